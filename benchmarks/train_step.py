"""Time of a training step against the authors' PyTorch code: one interleaved run on the same cores.

    python benchmarks/train_step.py --network lenet --reference DIR      DIR: a clone of github.com/RuntianZ/macer

Both sides take the same batch, k and number of threads, each in its own process. Each round times, one after the other,
the authors' step, ours on a constant batch, ours without oneDNN, which macer_tf turns on, ours behind the pipeline's
shuffling, random crops and flips, that input pipeline alone, and a matrix product; a round in which one did not get its
cores is dropped. The authors' step needs torch besides the project's requirements; without it or --reference, only ours
is timed.
"""

import argparse
import contextlib
import importlib
import io
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import interrupts  # noqa: F401
from benchmarks.arguments import whole
from benchmarks.interleaved import MATRIX_FLOPS, Rounds, constant_batches, has_reference, matrix_product, training_step

# network: the usual batch, image shape
NETWORKS = {"lenet": (64, (28, 28, 1)), "cifar_resnet110": (4, (32, 32, 3))}
POLICIES = ("float32", "mixed_bfloat16")
NUM_SAMPLES = 16
# Batches on which the input pipeline is timed.
INPUT_BATCHES = 200


def main(arguments=None):
    """Runs the rounds and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="lenet")
    parser.add_argument("--reference", type=Path, help="clone of the authors' code (default: without)")
    parser.add_argument("--precision", choices=POLICIES, help="ours in this precision alone (default: both)")
    parser.add_argument("--batch", type=whole, help="images in a batch (default: 64 for lenet, 4 for cifar_resnet110)")
    parser.add_argument("--threads", type=whole, default=2, help="cores to use (default: 2)")
    parser.add_argument("--rounds", type=whole, default=11, help="rounds (default: 11)")
    parser.add_argument("--steps", type=whole, default=5, help="training steps in a round (default: 5)")
    arguments = parser.parse_args(arguments)
    arguments.batch = arguments.batch or NETWORKS[arguments.network][0]
    policies = [arguments.precision] if arguments.precision else POLICIES
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    contestants = {"authors": (authors_step, arguments)} if has_reference(arguments.reference, ("torch",)) else {}
    contestants["input"] = (input_alone, arguments)
    for policy in policies:
        contestants |= {
            policy: (our_step, arguments, policy, constant_batches),
            f"{policy} without oneDNN": (our_step_without_onednn, arguments, policy),
            f"{policy} fed": (our_step, arguments, policy, pipeline_batches),
            f"{policy} matrix": (matrix_product, policy.removeprefix("mixed_")),
        }
    rounds = Rounds(contestants, arguments.rounds, arguments.steps, arguments.threads, idle=("input",))
    report(arguments, policies, rounds, "authors" in contestants)


def report(arguments, policies, rounds, with_authors):
    """Prints the median time of a step, its ratio to the reference, its share of the matrix peak, and the input's."""
    batch = arguments.batch
    print(
        f"{arguments.network}, batch {batch}, k={NUM_SAMPLES}, {arguments.threads} threads; {rounds} of "
        f"{arguments.steps} steps"
    )
    if with_authors:
        print(f"  authors, float32{1000 * rounds.median('authors'):15.1f} ms per step")
    work = step_flops(arguments.network) * batch * NUM_SAMPLES
    for policy in policies:
        peak = MATRIX_FLOPS / rounds.median(f"{policy} matrix")
        faster = f"{rounds.ratio('authors', policy):7.2f} times as fast" if with_authors else ""
        print(
            f"  ours, {policy:<15}{1000 * rounds.median(policy):10.1f} ms per step{faster};"
            f" {100 * work / rounds.median(policy) / peak:3.0f} % of {peak / 1e9:.0f} GFLOP/s, the matrix peak;"
            f" {rounds.ratio(f'{policy} without oneDNN', policy):.2f} times as fast as without oneDNN"
        )
    print(
        f"  input pipeline alone (crops, flips): {INPUT_BATCHES * batch / rounds.median('input'):.0f} images per second"
    )
    for policy in policies:
        print(
            f"    {policy} consumes {batch / rounds.median(policy):.0f}; a step on its batches takes "
            f"{rounds.ratio(f'{policy} fed', policy):.3f} times as long as on a constant batch"
        )


def authors_step(arguments):
    """The authors' `macer_train` on a loader of one batch."""
    import torch

    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(arguments.reference))
    train = importlib.import_module("macer").macer_train
    models = importlib.import_module("model")
    network = models.LeNet() if arguments.network == "lenet" else models.resnet110()
    network.train()
    height, width, channels = NETWORKS[arguments.network][1]
    batch = torch.rand(arguments.batch, channels, height, width), torch.randint(0, 10, (arguments.batch,))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def run():
        with contextlib.redirect_stdout(io.StringIO()):
            train(0.25, 12.0, NUM_SAMPLES, 16.0, 8.0, 10, network, [batch], optimizer, "cpu")

    return run


def our_step(arguments, policy, source):
    """A training step of MACERModel with the authors' settings, in a given precision, on batches of a source."""
    import keras

    from macer_tf import networks
    from macer_tf.model import MACERModel
    from macer_tf.optimizers import SGD

    keras.config.set_dtype_policy(policy)
    shape = NETWORKS[arguments.network][1]
    model = MACERModel(networks.build(arguments.network, shape, 10), 0.25, num_samples=NUM_SAMPLES, seed=0)
    model.compile(SGD(1e-4, momentum=0.9, l2=5e-4))
    return training_step(model, source(shape, arguments.batch))


def our_step_without_onednn(arguments, policy):
    """`our_step` on a constant batch, in a process that has not imported TensorFlow yet."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    return our_step(arguments, policy, constant_batches)


def pipeline_batches(shape, batch):
    """The pipeline's own training batches of 50,000 random images, with random crops and flips, endlessly."""
    import numpy as np

    from pipeline.data.examples import Examples
    from pipeline.training.input_pipeline import batches

    rng = np.random.default_rng(0)
    examples = Examples(
        images={"train": rng.integers(0, 256, (50_000, *shape), np.uint8)},
        labels={"train": rng.integers(0, 10, 50_000)},
        descriptions={},
        pixel_max=255,
        class_names=tuple("0123456789"),
    )
    return batches(
        examples, np.arange(50_000), batch_size=batch, seed=0, first_step=0, epochs=100, crop_padding=4, flip=True
    ).repeat()


def input_alone(arguments):
    """INPUT_BATCHES batches of the pipeline, discarded."""
    iterator = iter(pipeline_batches(NETWORKS[arguments.network][1], arguments.batch))

    def run():
        for _ in range(INPUT_BATCHES):
            next(iterator)

    return run


def step_flops(network):
    """FLOPs of a training step on one noisy copy: convolutions and dense layers, forward and backward.

    A layer's forward pass, its weights' gradient and its input's gradient take the same number of multiply-adds; the
    first layer's input has no gradient.
    """
    import keras

    from macer_tf import networks

    layers = networks.build(network, NETWORKS[network][1], 10).layers
    multiply_adds = []
    for layer in layers:
        if isinstance(layer, keras.layers.Conv2D):
            _, height, width, _ = layer.output.shape
            multiply_adds.append(layer.kernel.numpy().size * height * width)
        elif isinstance(layer, keras.layers.Dense):
            multiply_adds.append(layer.kernel.numpy().size)
    return 2 * (3 * sum(multiply_adds) - multiply_adds[0])


if __name__ == "__main__":
    main()
