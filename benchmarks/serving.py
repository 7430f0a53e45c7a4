"""The served model's speed, and what early exit saves: one run on the same cores.

    python benchmarks/serving.py --model model.keras --images test_images.npy

`model.keras` is what pipeline.run leaves in Trainer-*/model; the images are in ExampleGen-*/examples. This exports the
model and loads the SavedModel as a server does, with none of our code in between. Every comparison is a ratio of calls
that take turns.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import interrupts  # noqa: F401
from benchmarks.arguments import images_file, model_file, pixel_max, trained_model, whole
from macer_tf.checks import levels_of

N0, ALPHA, FIXED_N = 100, 0.001, 1000
THROUGHPUT_N = (1000, 10_000)
MICROBATCHES = (96, 192, 384, 768, 1536)
BATCHES = (1, 8, 32)


def main(arguments=None):
    """Runs all four measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_file, required=True, help="a MACERModel, saved")
    parser.add_argument(
        "--images", type=images_file, required=True, help="test images as bytes, [images, H, W, C], .npy"
    )
    parser.add_argument("--pixel_max", type=pixel_max, default=255, help="divides the images (default: 255)")
    parser.add_argument("--threads", type=whole, default=2, help="cores to use (default: 2)")
    parser.add_argument("--rounds", type=whole, default=7, help="rounds of certification (default: 7)")
    parser.add_argument("--requests", type=whole, default=100, help="requests for a percentile (default: 100)")
    parser.add_argument("--num_examples", type=whole, default=500, help="images for early exit (default: 500)")
    arguments = parser.parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

    import numpy as np
    import tensorflow as tf

    from macer_tf.smoothing import default_microbatch
    from pipeline.data.examples import evenly_spaced
    from serving.export import export
    from serving.validate import Server

    model, levels, stored = trained_model(arguments.model), levels_of(arguments.pixel_max), arguments.images
    if stored.shape[1:] != model.classifier.input_shape[1:]:
        parser.error(
            f"--images must be of the model's shape, {model.classifier.input_shape[1:]}. Received: {stored.shape}"
        )
    chosen = stored[evenly_spaced(len(stored), arguments.num_examples)]
    if chosen.max() > arguments.pixel_max:
        parser.error(f"--pixel_max must be at least the largest pixel, {chosen.max()}. Received: {arguments.pixel_max}")
    images = chosen.astype(np.float32) / arguments.pixel_max
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder) / "saved_model", n0=N0, n=FIXED_N, alpha=ALPHA, pixel_max=arguments.pixel_max)
        with contextlib.closing(tf.compat.v1.Session(graph=tf.Graph())) as session:
            server = Server(session, Path(folder) / "saved_model")
            height, width, channels = images.shape[1:]
            print(
                f"{model.classifier.name}, {model.classifier.count_params():,} weights, {height}x{width}x{channels} "
                f"pixels, sigma={model.sigma}, n0={N0}, alpha={ALPHA}, microbatch "
                f"{default_microbatch(images.shape[1:])}; TensorFlow {tf.__version__}, {arguments.threads} cores"
            )
            early_exit(server, model, images, levels)
            latency(server, images, arguments.requests)
            throughput(server, model, images, levels, arguments.rounds)
    microbatches(model, images, levels, arguments.rounds)


def early_exit(server, model, images, levels):
    """Samples that `predict` drew, against the fixed n of the binomial test on the same images."""
    import numpy as np

    from macer_tf.certificates import ABSTAIN
    from macer_tf.smoothing import SmoothedClassifier

    batches = [server("predict", images=images[start : start + 32]) for start in range(0, len(images), 32)]
    early, samples = (np.concatenate([batch[name] for batch in batches]) for name in ("predicted_class", "samples"))
    fixed = SmoothedClassifier(model, levels=levels).predict(images, n=FIXED_N, alpha=ALPHA)
    both = (early != ABSTAIN) & (fixed != ABSTAIN)
    print(
        f"early exit, {len(images)} images: {samples.mean():.1f} samples per image (median {np.median(samples):.0f}, "
        f"99th percentile {np.percentile(samples, 99):.0f}), {FIXED_N / samples.mean():.1f} times fewer than "
        f"n={FIXED_N}; abstained {np.mean(early == ABSTAIN):.3f}, fixed n {np.mean(fixed == ABSTAIN):.3f}; "
        f"other classes {np.sum(early[both] != fixed[both])} of {both.sum()}"
    )


def latency(server, images, requests):
    """Percentiles of `predict`'s latency, over different images."""
    import numpy as np

    for batch in BATCHES:
        seconds = []
        for request in range(requests):
            chosen = images[np.arange(request * batch, (request + 1) * batch) % len(images)]
            started = time.perf_counter()
            server("predict", images=chosen)
            seconds.append(time.perf_counter() - started)
        p50, p99 = 1000 * np.percentile(seconds, [50, 99])
        print(f"predict, {batch:>2} images: p50 {p50:.1f} ms, p99 {p99:.1f} ms, of {requests} requests")


def throughput(server, model, images, levels, rounds):
    """Certification by the SavedModel against the library's in this process, taking turns."""
    import numpy as np

    from macer_tf.smoothing import SmoothedClassifier

    library = SmoothedClassifier(model, seed=0, levels=levels)
    for n in THROUGHPUT_N:
        # Rounds take about the same time, whatever n.
        chosen = images[: max(1, 20_000 // n)]
        contestants = {
            "library": lambda chosen=chosen, n=n: library.certify(chosen, N0, n, ALPHA),
            "served": lambda chosen=chosen, n=n: server("certify_custom", images=chosen, n=np.int64(n)),
        }
        seconds = interleaved(contestants, rounds)
        ratio = statistics.median(a / b for a, b in zip(seconds["library"], seconds["served"], strict=True))
        wall = statistics.median(seconds["served"]) / len(chosen)
        print(
            f"certify, n={n:,}: {ratio:.2f} times the library's throughput, {1000 * wall:.0f} ms per image "
            f"({(n + N0) / wall:,.0f} samples/s); medians of {rounds} rounds"
        )


def microbatches(model, images, levels, rounds):
    """Certification by microbatch, against the default."""
    from macer_tf.smoothing import SmoothedClassifier, default_microbatch
    from pipeline.cli import console

    default = default_microbatch(images.shape[1:])
    sizes = sorted({*MICROBATCHES, default})
    contestants = {}
    for size in sizes:
        classifier = SmoothedClassifier(model, seed=0, microbatch=size, levels=levels)
        contestants[size] = lambda classifier=classifier: classifier.certify(images[:2], N0, 10_000, ALPHA)
    seconds = interleaved(contestants, rounds)
    rows = []
    for size in sizes:
        ratio = statistics.median(a / b for a, b in zip(seconds[default], seconds[size], strict=True))
        samples = 2 * (10_000 + N0) / statistics.median(seconds[size])
        rows.append((f"{size}{' (default)' if size == default else ''}", f"{samples:,.0f}", f"{ratio:.2f}"))
    print(f"certify by microbatch, n=10,000; medians of {rounds} rounds")
    print(console.table(("microbatch", "samples/s", "times the default's"), rows))


def interleaved(contestants, rounds):
    """Name -> seconds of each round, after one untimed call."""
    seconds = {name: [] for name in contestants}
    for measured in range(rounds + 1):
        for name, call in contestants.items():
            started = time.perf_counter()
            call()
            if measured:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
