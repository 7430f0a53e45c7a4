"""Samples that budgets save on the real votes of a model of MNIST: each budget spends the same recorded samples.

    python benchmarks/budgets_mnist.py --model model.keras --data_dir DIR --cache DIR --figure docs/budgets.png

`model.keras` is what pipeline.run leaves in Trainer-*/model. Draws, once, 1,000 selection and 100,000 estimation
samples of every tenth test image in bfloat16, and keeps the votes of each block of BLOCK samples in the cache, a file
an image; a run that was killed goes on where it was. A budget then gets block after block as it asks for them, which is
what it would have drawn. Samples are those of selection and estimation, relative to CERTIFY's own n0=100 and n=100,000
for all images. Differences are to its certificates from the same samples, with their standard error over the drawing
of images.
"""

import argparse
import io
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from macer_tf.budgets import BLOCK, FixedBudget, PrecisionBudget, RadiusBudget
from macer_tf.evaluation import correct_radii, mean_and_standard_error
from macer_tf.votes import Votes

N0, N, ALPHA = 100, 100_000, 0.001
MOST_N0 = 1000
SPACING = 10
SEED, PRECISION = 0, "bfloat16"
# Whole blocks, and a multiple of the 16 rows that forward passes come in.
MICRO_BATCH = 16 * BLOCK
RADII = (0.5, 1.0, 1.5)
FIGURE_RADIUS = 1.0
FIGURE_CAPS = (1000, 10_000, 100_000)
FIGURE_N = (1000, 3000, 10_000, 30_000, 100_000)
FIGURE_PRECISIONS = (0.1, 0.05, 0.02, 0.01)


def main():
    """Draws what the cache lacks, prints a line for each budget with and without labels, and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a MACERModel of MNIST, saved")
    parser.add_argument("--data_dir", type=Path, required=True, help="directory of prepared TFDS data")
    parser.add_argument("--cache", type=Path, required=True, help="directory where votes are kept")
    parser.add_argument("--num_examples", type=int, default=1000, help="images, at most 1,000 (default: 1000)")
    parser.add_argument("--n0", type=int, default=500, help="selection samples of PrecisionBudget (default: 500)")
    parser.add_argument("--precision", type=float, default=0.01, help="of PrecisionBudget (default: 0.01)")
    parser.add_argument("--figure", type=Path, help="PNG to write, of samples against what they certify")
    arguments = parser.parse_args()
    if arguments.n0 not in range(BLOCK, MOST_N0 + 1, BLOCK):
        parser.error(f"--n0 must be a multiple of {BLOCK} up to {MOST_N0}. Received: {arguments.n0}")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

    from pipeline import datasets, models

    model = models.load(arguments.model)
    test, pixel_max, _ = datasets.load_split("mnist", arguments.data_dir)
    chosen = spread(len(test.images) // SPACING)[: arguments.num_examples] * SPACING
    images = test.images[chosen].astype(np.float32) / np.float32(pixel_max)
    blocks = drawn(arguments.model, model, images, chosen, arguments.cache)
    samples = Recorded(blocks, test.labels[chosen], model.sigma)
    report(samples, arguments)
    if arguments.figure:
        write_figure(samples, arguments)


def spread(count):
    """int64 [count]: 0 to count - 1, in an order whose beginnings are about evenly spread."""
    step = round(count * (5**0.5 - 1) / 2)
    while np.gcd(step, count) != 1:
        step -= 1
    return np.arange(count) * step % count


def drawn(path, model, images, indices, cache):
    """uint8 [images, blocks, classes]: votes of each image's selection blocks, then of its estimation blocks."""
    from macer_tf import noise
    from macer_tf.smoothing import SmoothedClassifier
    from pipeline import artifacts

    identity = {"model": artifacts.file_digest(path), "precision": PRECISION, "seed": SEED, "block": BLOCK}
    folder = cache / artifacts.fingerprint(identity)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    classifier = SmoothedClassifier(model, seed=SEED, micro_batch=MICRO_BATCH, precision=PRECISION)
    missing = [place for place, index in enumerate(indices) if not (folder / f"{index:05d}.npy").exists()]
    started = time.monotonic()
    for done, place in enumerate(missing, 1):
        streams = ((noise.SELECTION, MOST_N0 // BLOCK), (noise.ESTIMATION, N // BLOCK))
        votes = [votes_of_blocks(classifier, images[place], indices[place], *stream) for stream in streams]
        content = io.BytesIO()
        np.save(content, np.concatenate(votes).astype(np.uint8))
        artifacts.write_bytes(folder / f"{indices[place]:05d}.npy", content.getvalue())
        if done % 10 == 0 or done == len(missing):
            minutes = (time.monotonic() - started) / 60
            print(f"{done} of {len(missing)} images drawn in {minutes:.1f} minutes", file=sys.stderr, flush=True)
    return np.stack([np.load(folder / f"{index:05d}.npy") for index in indices])


def votes_of_blocks(classifier, image, example_id, stream, blocks):
    """int64 [blocks, classes] of one image's first samples."""
    images = np.broadcast_to(image, (blocks, *image.shape))
    starts = [block * BLOCK for block in range(blocks)]
    return classifier.draw(images, [int(example_id)] * blocks, stream, starts, [BLOCK] * blocks).counts


class Recorded:
    """The drawn samples of the images, for one budget after the other to spend.

    Attributes:
        labels: int64 [images].
    """

    def __init__(self, blocks, labels, sigma):
        self.labels, self._sigma = labels, sigma
        selection, estimation = np.split(blocks, [MOST_N0 // BLOCK], axis=1)
        self._selection, self._estimation = (
            np.pad(part.cumsum(axis=1, dtype=np.int64), ((0, 0), (1, 0), (0, 0))) for part in (selection, estimation)
        )

    def spend(self, budget, n0=N0, with_labels=False):
        """Radii of correct certificates as `correct_radii` has them, and the samples of an image on average."""
        selection = self._selection[:, n0 // BLOCK]
        votes = Votes(selection, np.zeros_like(selection))
        labels = self.labels if with_labels else None
        while (more := budget.more(votes, self._sigma, ALPHA, labels)).any():
            whole_blocks, rest = np.divmod(votes.n + more, BLOCK)
            assert not rest.any()
            votes = Votes(selection, self._estimation[np.arange(len(selection)), whole_blocks])
        radii = correct_radii(budget.certify(votes, self._sigma, ALPHA), self.labels)
        return radii, (votes.n0 + votes.n).mean()


def report(samples, arguments):
    """Prints what CERTIFY gives, and what each budget saves and costs."""
    fixed, fixed_samples = samples.spend(FixedBudget(N))
    acr, error = mean_and_standard_error(np.maximum(fixed, 0))
    print(
        f"{len(fixed):,} test images of MNIST, alpha={ALPHA:g}, {PRECISION}; CERTIFY (n0={N0}, n={N:,}): "
        f"ACR {acr:.4f} ± {error:.4f}, certified accuracy at "
        + ", ".join(f"{radius:g}: {np.mean(fixed >= radius):.3f}" for radius in (0, *RADII))
    )
    budgets = [(f"RadiusBudget({radius:g})", RadiusBudget(radius, N), N0) for radius in RADII]
    budgets += [(f"FixedBudget({n:,})", FixedBudget(n), N0) for n in FIGURE_N[:-1]]
    budgets.append((f"PrecisionBudget({arguments.precision:g})", PrecisionBudget(arguments.precision, N), arguments.n0))
    for name, budget, n0 in budgets:
        for with_labels in (False, True):
            radii, spent = samples.spend(budget, n0, with_labels)
            if hasattr(budget, "radius"):
                reached = radii >= budget.radius
                change, error = mean_and_standard_error(100 * (reached - 1.0 * (fixed >= budget.radius)))
                gives = f"certified accuracy {reached.mean():.3f} ({change:+.2f} ± {error:.2f} points)"
            else:
                ours = np.maximum(radii, 0)
                change, error = mean_and_standard_error(100 * (ours - np.maximum(fixed, 0)) / acr)
                gives = f"ACR {ours.mean():.4f} ({change:+.2f} ± {error:.2f} %)"
            print(f"  {name:<22}{'labels' * with_labels:<8}{fixed_samples / spent:7.2f} x fewer samples   {gives}")


def write_figure(samples, arguments):
    """Two panels: certified accuracy at FIGURE_RADIUS, and ACR, against samples."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter
    from PIL import Image

    from pipeline.artifacts import write_bytes
    from pipeline.report.figures import BLUE, FAINT, GREY, INK, WIDTH, save_png

    fixed, fixed_samples = samples.spend(FixedBudget(N))
    full_acr = np.maximum(fixed, 0).mean()
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)

    def draw(axes, value, budgets, n0, names, below, **style):
        spent = [samples.spend(budget, n0) for budget in budgets]
        x, y = [mean / fixed_samples for _, mean in spent], [value(radii) for radii, _ in spent]
        axes.plot(x, y, markersize=5.5, **style)
        for *place, name in zip(x, y, names, strict=True):
            # The last of ours stands on its point, clear of the one before.
            offset, side = ((6, -10), "left") if below else ((10 if name == names[-1] else -6, 6), "right")
            axes.annotate(name, place, offset, textcoords="offset points", ha=side, fontsize=8, color=style["color"])

    def accuracy(radii):
        return np.mean(radii >= FIGURE_RADIUS)

    def acr(radii):
        return np.maximum(radii, 0).mean() / full_acr

    plain = {"color": INK, "linewidth": 1.4, "linestyle": (0, (5, 1.5)), "marker": "s", "label": "fixed n"}
    ours = {"color": BLUE, "linewidth": 2, "marker": "o"}
    names = [f"{n:,}" for n in FIGURE_CAPS]
    draw(left, accuracy, [FixedBudget(n) for n in FIGURE_CAPS], N0, names, True, **plain)
    budgets = [RadiusBudget(FIGURE_RADIUS, n) for n in FIGURE_CAPS]
    draw(left, accuracy, budgets, N0, names, False, **ours, label="RadiusBudget")
    left.set_ylabel(f"certified accuracy at radius {FIGURE_RADIUS:g}", color=INK)
    draw(right, acr, [FixedBudget(n) for n in FIGURE_N], N0, [f"{n:,}" for n in FIGURE_N], True, **plain)
    budgets = [PrecisionBudget(precision, N) for precision in FIGURE_PRECISIONS]
    names = [f"{precision:g}" for precision in FIGURE_PRECISIONS]
    draw(right, acr, budgets, arguments.n0, names, False, **ours, label="PrecisionBudget")
    right.set_ylabel(f"ACR, relative to n = {N:,}", color=INK)
    right.yaxis.set_major_formatter(PercentFormatter(1, 0))
    for axes in (left, right):
        axes.margins(0.16, 0.16)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(PercentFormatter(1, None))
        axes.set_xlabel(f"samples, relative to n = {N:,}", color=INK)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(which="both", colors=GREY, labelsize=9, length=3)
        axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK, handlelength=1.6)
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    # Few colours make a small file.
    Image.open(io.BytesIO(save_png(figure))).convert("RGB").quantize(64).save(content, format="png", optimize=True)
    write_bytes(arguments.figure, content.getvalue())


if __name__ == "__main__":
    main()
