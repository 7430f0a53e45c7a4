"""Time of a training step against the authors' PyTorch code: one interleaved run on the same cores.

    python benchmarks/train_step.py --network lenet --reference DIR      DIR: a clone of github.com/RuntianZ/macer

Both sides take the same images, batch, k and number of threads. Each round times the authors' step, ours in float32,
ours in bfloat16 and a matrix product, one after the other; a round in which the process did not get its cores is
dropped. Needs torch beside the project's requirements.
"""

import argparse
import contextlib
import importlib
import io
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# network: batch, image shape, multiply-adds of one forward pass
NETWORKS = {"lenet": (64, (28, 28, 1), 2_293_000), "cifar_resnet110": (4, (32, 32, 3), 255_270_000)}
NUM_SAMPLES = 16
MATRIX_SIDE = 2048
# Of the cores asked for, in the matrix product that closes a round.
LOWEST_SHARE = 0.9


def main():
    """Runs the rounds and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="lenet")
    parser.add_argument("--reference", type=Path, required=True, help="clone of the authors' code")
    parser.add_argument("--threads", type=int, default=2, help="cores to use (default: 2)")
    parser.add_argument("--rounds", type=int, default=11, help="rounds (default: 11)")
    parser.add_argument("--steps", type=int, default=5, help="training steps in a round (default: 5)")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    contestants = {
        "authors, float32": authors_steps(arguments),
        "ours, float32": our_steps(arguments, "float32"),
        "ours, bfloat16": our_steps(arguments, "mixed_bfloat16"),
        "matrix product": matrix_product(),
    }
    rounds = []
    for _ in range(arguments.rounds):
        seconds = {}
        for name, run in contestants.items():
            started, cpu = time.perf_counter(), time.process_time()
            run()
            seconds[name] = time.perf_counter() - started
            share = (time.process_time() - cpu) / seconds[name] / arguments.threads
        if share >= LOWEST_SHARE:
            rounds.append(seconds)
    report(arguments, rounds)


def report(arguments, rounds):
    """Prints the median time of a step, the median ratio to the reference, and the share of the matrix peak."""
    batch, _, multiply_adds = NETWORKS[arguments.network]
    reference, *ours, matrix = rounds[0]
    peak = statistics.median(2 * MATRIX_SIDE**3 / seconds[matrix] for seconds in rounds)
    print(
        f"{arguments.network}, batch {batch}, k={NUM_SAMPLES}, {arguments.threads} threads; medians of {len(rounds)} "
        f"rounds ({arguments.rounds - len(rounds)} dropped) of {arguments.steps} steps; float32 matrix peak "
        f"{peak / 1e9:.0f} GFLOP/s"
    )
    # A backward pass does the work of two forward passes.
    work = 3 * 2 * multiply_adds * batch * NUM_SAMPLES * arguments.steps
    for name in (reference, *ours):
        wall = statistics.median(seconds[name] for seconds in rounds)
        ratio = statistics.median(seconds[reference] / seconds[name] for seconds in rounds)
        print(
            f"  {name:<18}{1000 * wall / arguments.steps:9.1f} ms a step{ratio:7.2f} x"
            f"{100 * work / wall / peak:6.0f} % of the matrix peak"
        )


def authors_steps(arguments):
    """The authors' `macer_train` on one batch, `steps` times."""
    import torch

    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(arguments.reference))
    train = importlib.import_module("macer").macer_train
    models = importlib.import_module("model")
    network = models.LeNet() if arguments.network == "lenet" else models.resnet110()
    network.train()
    batch, (height, width, channels), _ = NETWORKS[arguments.network]
    loader = [(torch.rand(batch, channels, height, width), torch.randint(0, 10, (batch,)))] * arguments.steps
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def run():
        with contextlib.redirect_stdout(io.StringIO()):
            train(0.25, 12.0, NUM_SAMPLES, 16.0, 8.0, 10, network, loader, optimizer, "cpu")

    run()
    return run


def our_steps(arguments, policy):
    """`MACERModel.train_step` on one batch, `steps` times, as `fit` runs it."""
    import keras
    import numpy as np
    import tensorflow as tf

    from macer_tf import networks
    from macer_tf.model import MACERModel
    from macer_tf.optimizers import SGD

    batch, shape, _ = NETWORKS[arguments.network]
    keras.config.set_dtype_policy(policy)
    model = MACERModel(networks.build(arguments.network, shape, 10), sigma=0.25, num_samples=NUM_SAMPLES, seed=0)
    model.compile(SGD(1e-4, momentum=0.9, l2=5e-4))
    rng = np.random.default_rng(0)
    images, labels = rng.random((batch, *shape), np.float32), rng.integers(0, 10, batch)
    batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat())
    model.make_train_function()

    def run():
        for _ in range(arguments.steps):
            logs = model.train_function(batches)
        float(logs["loss"])

    run()
    return run


def matrix_product():
    """One float32 matrix product, the machine's peak."""
    import tensorflow as tf

    matrix = tf.random.normal([MATRIX_SIDE, MATRIX_SIDE])
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))

    def run():
        product().numpy()

    run()
    return run


if __name__ == "__main__":
    main()
