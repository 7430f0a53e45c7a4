"""Time of a noisy sample in certification against the authors' PyTorch code: one interleaved run on the same cores.

    python benchmarks/certify.py --network lenet --reference DIR      DIR: a clone of github.com/RuntianZ/macer

Both sides draw noise, run the network and count the votes of one image, with the same number of threads. Each round
times the authors' `Smooth` at each of their batch sizes (whole batches), ours in float32 and in bfloat16 and a matrix
product, one after the other; a round in which the process did not get its cores is dropped. The authors' code needs
torch and statsmodels beside the project's requirements; without them or --reference ours alone is timed.
"""

import argparse
import importlib
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.interleaved import has_reference

# network: image shape, multiply-adds of one forward pass, samples in a round
NETWORKS = {"lenet": ((28, 28, 1), 2_293_000, 4096), "cifar_resnet110": ((32, 32, 3), 255_270_000, 1024)}
SIGMA = 0.25
MATRIX_SIDE = 2048
# Of the cores asked for, in the matrix product that closes a round.
LOWEST_SHARE = 0.9


def main(arguments=None):
    """Runs the rounds and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="lenet")
    parser.add_argument("--reference", type=Path, help="clone of the authors' code (default: without)")
    parser.add_argument("--threads", type=int, default=2, help="cores to use (default: 2)")
    parser.add_argument("--rounds", type=int, default=11, help="rounds (default: 11)")
    parser.add_argument("--samples", type=int, help="samples in a round (default: 4096, ResNet-110: 1024)")
    parser.add_argument("--microbatch", type=int, help="our noisy copies in a forward pass (default: ours)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1000, 100], help="the authors' batch sizes (default: 1000 100)"
    )
    arguments = parser.parse_args(arguments)
    arguments.samples = arguments.samples or NETWORKS[arguments.network][2]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    contestants = {}
    if has_reference(arguments.reference, ("torch", "statsmodels")):
        smooth = authors_smooth(arguments)
        for batch in arguments.batches:
            contestants[f"authors, batch {batch}"] = authors_sampling(arguments, smooth, batch)
    contestants |= {f"ours, {precision}": our_sampling(arguments, precision) for precision in ("float32", "bfloat16")}
    contestants["matrix product"] = matrix_product()
    rounds = []
    for _ in range(arguments.rounds):
        seconds = {}
        for name, (run, samples) in contestants.items():
            started, cpu = time.perf_counter(), time.process_time()
            run()
            wall = time.perf_counter() - started
            share = (time.process_time() - cpu) / wall / arguments.threads
            seconds[name] = wall / samples
        if share >= LOWEST_SHARE:
            rounds.append(seconds)
    if not rounds:
        sys.exit(f"All {arguments.rounds} rounds were disturbed: the machine is busy.")
    report(arguments, rounds)


def report(arguments, rounds):
    """Prints the median time of a sample, the median ratios to the authors' code, and the share of the matrix peak."""
    multiply_adds = NETWORKS[arguments.network][1]
    *names, matrix = rounds[0]
    references = [name for name in names if name.startswith("authors")]
    peak = statistics.median(2 * MATRIX_SIDE**3 / seconds[matrix] for seconds in rounds)
    print(
        f"{arguments.network}, {arguments.samples} samples, {arguments.threads} threads; medians of "
        f"{len(rounds)} rounds ({arguments.rounds - len(rounds)} dropped); float32 matrix peak {peak / 1e9:.0f} GFLOP/s"
    )
    for name in names:
        wall = statistics.median(seconds[name] for seconds in rounds)
        ratios = {
            other: statistics.median(seconds[other] / seconds[name] for seconds in rounds) for other in references
        }
        print(
            f"  {name:<20}{1e6 * wall:9.1f} us a sample"
            + "".join(f"{ratio:7.2f} x {other.removeprefix('authors, ')}" for other, ratio in ratios.items())
            + f"{100 * 2 * multiply_adds / wall / peak:6.0f} % of the matrix peak"
        )


def authors_smooth(arguments):
    """The authors' `Smooth` with their network."""
    import torch

    torch.set_num_threads(arguments.threads)
    sys.path[:0] = [str(arguments.reference), str(arguments.reference / "rs")]
    models = importlib.import_module("model")
    network = models.LeNet() if arguments.network == "lenet" else models.resnet110()
    network.eval()
    return importlib.import_module("core").Smooth(network, 10, SIGMA, "cpu")


def authors_sampling(arguments, smooth, batch):
    """The authors' votes of one image in batches of `batch`, and the number of samples."""
    import torch

    samples = max(arguments.samples // batch, 1) * batch

    height, width, channels = NETWORKS[arguments.network][0]
    image = torch.rand(channels, height, width)

    def run():
        smooth._sample_noise(image, samples, batch)

    run()
    return run, samples


def our_sampling(arguments, precision):
    """`SmoothedClassifier.count` of one image, and the number of samples."""
    import numpy as np

    from macer_tf import networks, noise
    from macer_tf.smoothing import SmoothedClassifier

    shape = NETWORKS[arguments.network][0]
    classifier = networks.build(arguments.network, shape, 10)
    smoothed = SmoothedClassifier(
        classifier, SIGMA, seed=0, micro_batch=arguments.microbatch, precision=precision
    )  # fmt: skip
    image = np.random.default_rng(0).random(shape, np.float32)

    def run():
        smoothed.count(image, 0, noise.ESTIMATION, 0, arguments.samples)

    run()
    return run, arguments.samples


def matrix_product():
    """One float32 matrix product, the machine's peak, and 1."""
    import tensorflow as tf

    matrix = tf.random.normal([MATRIX_SIDE, MATRIX_SIDE])
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))

    def run():
        product().numpy()

    run()
    return run, 1


if __name__ == "__main__":
    main()
