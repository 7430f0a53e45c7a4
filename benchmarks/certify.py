"""Time of a noisy sample in certification against the authors' PyTorch code: one interleaved run on the same cores.

    python benchmarks/certify.py --network lenet --reference DIR      DIR: a clone of github.com/RuntianZ/macer

Both sides draw noise, run the network and count the votes of one image, with the same number of threads. Each round
times, one after the other, the authors' `Smooth` at each of their batch sizes (whole batches), ours in float32 and in
bfloat16, the same with noise drawn in floats, and a matrix product; a round in which the process did not get its cores
is dropped. The authors' code needs torch and statsmodels besides the project's requirements; without them or
--reference, only ours is timed.
"""

import argparse
import importlib
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import interrupts  # noqa: F401
from benchmarks.arguments import whole
from benchmarks.interleaved import MATRIX_FLOPS, has_reference, matrix_product

# network: image shape, classes, multiply-adds of one forward pass, samples in a round
NETWORKS = {
    "lenet": ((28, 28, 1), 10, 2_293_000, 4096),
    "cifar_resnet110": ((32, 32, 3), 10, 255_270_000, 1024),
    "resnet50": ((224, 224, 3), 1000, 4_089_000_000, 128),  # the authors' code has no such network
}
SIGMA = 0.25
# Share of the requested cores that the matrix product at the end of a round must get.
LOWEST_SHARE = 0.9


def main(arguments=None):
    """Runs the rounds and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="lenet")
    parser.add_argument("--reference", type=Path, help="clone of the authors' code (default: without)")
    parser.add_argument("--threads", type=whole, default=2, help="cores to use (default: 2)")
    parser.add_argument("--rounds", type=whole, default=11, help="rounds (default: 11)")
    parser.add_argument(
        "--samples", type=whole, help="samples in a round (default: 4096, ResNet-110: 1024, ResNet-50: 128)"
    )
    parser.add_argument("--microbatch", type=whole, help="our noisy copies in a forward pass (default: ours)")
    parser.add_argument(
        "--batches", type=whole, nargs="+", default=[1000, 100], help="the authors' batch sizes (default: 1000 100)"
    )
    arguments = parser.parse_args(arguments)
    arguments.samples = arguments.samples or NETWORKS[arguments.network][3]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    contestants = {}
    if arguments.network != "resnet50" and has_reference(arguments.reference, ("torch", "statsmodels")):
        smooth = authors_smooth(arguments)
        for batch in arguments.batches:
            contestants[f"authors, batch {batch}"] = authors_sampling(arguments, smooth, batch)
    for precision in ("float32", "bfloat16"):
        contestants[f"ours, {precision}"] = our_sampling(arguments, precision)
        contestants[f"float noise, {precision}"] = float_noise_sampling(arguments, precision)
    product = matrix_product("float32")
    product()
    contestants["matrix product"] = product, 1
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
    """Prints the median time per sample, the median ratios to the authors' code, and the share of the matrix peak."""
    multiply_adds = NETWORKS[arguments.network][2]
    *names, matrix = rounds[0]
    references = [name for name in names if name.startswith("authors")]
    peak = statistics.median(MATRIX_FLOPS / seconds[matrix] for seconds in rounds)
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
            f"  {name:<20}{1e6 * wall:9.1f} us per sample"
            + "".join(f"{ratio:7.2f} x {other.removeprefix('authors, ')}" for other, ratio in ratios.items())
            + f"{100 * 2 * multiply_adds / wall / peak:6.0f} % of the matrix peak"
        )
    for precision in ("float32", "bfloat16"):
        pairs = [(seconds[f"ours, {precision}"], seconds[f"float noise, {precision}"]) for seconds in rounds]
        ratio = statistics.median(ours / floats for ours, floats in pairs)
        print(f"  exact noise takes {ratio:.2f} times as long as noise drawn in floats, {precision}")


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

    shape, classes, *_ = NETWORKS[arguments.network]
    classifier = networks.build(arguments.network, shape, classes)
    smoothed = SmoothedClassifier(classifier, SIGMA, seed=0, microbatch=arguments.microbatch, precision=precision)
    image = np.random.default_rng(0).integers(0, 256, shape) / np.float32(255)

    def run():
        smoothed.count(image, 0, noise.ESTIMATION, 0, arguments.samples)

    run()
    return run, arguments.samples


class FloatNoise:
    """TensorFlow's normals in place of certification's exact noise: shows what the guarantee costs in time."""

    levels = 255

    def draw(self, *address):
        """As `GridNoise.draw`."""
        from macer_tf import noise

        return SIGMA * self.levels * noise.gaussian(*address)


def float_noise_sampling(arguments, precision):
    """The same forward passes as `our_sampling`, with noise drawn in floats, and the number of samples."""
    import numpy as np
    import tensorflow as tf

    from macer_tf import networks, noise
    from macer_tf.inference import InferenceGraph
    from macer_tf.smoothing import draw_pass, passes, rows_of_a_pass

    shape, classes, *_ = NETWORKS[arguments.network]
    graph = InferenceGraph(networks.build(arguments.network, shape, classes), precision)
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    rows = rows_of_a_pass(shape, arguments.microbatch)
    draw = tf.function(lambda *inputs: draw_pass(graph, FloatNoise(), rows, *inputs))

    def run():
        for [(_, offset, samples)] in passes([arguments.samples], rows):
            address = np.array([[0, 0, noise.ESTIMATION, offset]])
            draw(image[None], address, np.array([samples]))[0].numpy()

    run()
    return run, arguments.samples


if __name__ == "__main__":
    main()
