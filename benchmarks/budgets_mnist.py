"""Samples that budgets save on the real votes of an MNIST model: each budget spends the same recorded samples.

    python benchmarks/budgets_mnist.py --model model.keras --data_dir DIR --cache DIR --figure docs/budgets.png

`model.keras` is what pipeline.run leaves in Trainer-*/model. This draws, once, 1,000 selection and 100,000 estimation
samples of every tenth test image in bfloat16, and keeps the votes of each block of BLOCK samples in the cache, one file
per image; a run that was killed resumes. A budget then gets block after block as it asks for them, which is what it
would have drawn. Samples are those of selection and estimation, relative to CERTIFY's own n0=100 and n=100,000 for all
images. Differences are from its certificates with the same samples, with their standard error over the drawing of
images.
"""

import argparse
import io
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import interrupts  # noqa: F401
from benchmarks.arguments import fraction, model_file, trained_model, whole
from macer_tf.budgets import BLOCK, FixedBudget, RadiusBudget, ToleranceBudget
from macer_tf.evaluation import correct_radii, mean_and_standard_error
from macer_tf.votes import Votes

N0, N, ALPHA = 100, 100_000, 0.001
MOST_N0 = 1000
SPACING = 10
MOST_IMAGES = 10_000 // SPACING
SEED, PRECISION = 0, "bfloat16"
RADII = (0.5, 1.0, 1.5)
# All columns of the paper's table that n samples can fill at sigma = 0.5.
TABLE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
FIGURE_RADIUS = 1.0
FIGURE_CAPS = (1000, 10_000, 100_000)
FIGURE_N = (1000, 3000, 10_000, 30_000, 100_000)
FIGURE_TOLERANCES = (0.1, 0.05, 0.02, 0.01)
BLUE = "#0072B2"
MARKER_POINTS = 5.5
# Places of a label beside its point, in points; the first free one is taken. Our line starts from the end of the list.
LABEL_PLACES = (
    ((6, -4), "left", "top"),
    ((8, 0), "left", "center"),
    ((0, -6), "center", "top"),
    ((-6, -4), "right", "top"),
    ((6, 5), "left", "bottom"),
    ((0, 6), "center", "bottom"),
    ((-4, 12), "right", "bottom"),
    ((-8, 0), "right", "center"),
    ((-6, 5), "right", "bottom"),
)


def main(arguments=None):
    """Draws what the cache lacks, prints a line for each budget with and without labels, and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_file, required=True, help="a MACERModel of MNIST, saved")
    parser.add_argument("--data_dir", type=Path, required=True, help="directory of prepared TFDS data")
    parser.add_argument("--cache", type=Path, required=True, help="directory where votes are kept")
    parser.add_argument("--num_examples", type=whole, default=1000, help="images, at most 1,000 (default: 1000)")
    parser.add_argument("--n0", type=whole, default=500, help="selection samples of ToleranceBudget (default: 500)")
    parser.add_argument("--tolerance", type=fraction, default=0.01, help="of ToleranceBudget (default: 0.01)")
    parser.add_argument("--figure", type=Path, help="PNG to write, of samples against what they certify")
    arguments = parser.parse_args(arguments)
    if arguments.n0 not in range(BLOCK, MOST_N0 + 1, BLOCK):
        parser.error(f"--n0 must be a multiple of {BLOCK} up to {MOST_N0}. Received: {arguments.n0}")
    if arguments.num_examples > MOST_IMAGES:
        parser.error(f"--num_examples must be at most {MOST_IMAGES:,}. Received: {arguments.num_examples}")
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

    from pipeline.data import datasets

    model = trained_model(arguments.model)
    test, pixel_max, _ = datasets.load_split("mnist", arguments.data_dir)
    if model.classifier.input_shape[1:] != test.images.shape[1:]:
        parser.error(f"--model must take MNIST's images, {test.images.shape[1:]}. Received: {arguments.model}")
    chosen = spread(MOST_IMAGES)[: arguments.num_examples] * SPACING
    images = test.images[chosen].astype(np.float32) / np.float32(pixel_max)
    blocks = drawn(arguments.model, model, images, chosen, arguments.cache)
    samples = Recorded(blocks, test.labels[chosen], model.sigma)
    report(samples, arguments)
    if arguments.figure:
        write_figure(drawn_figure(panels_of(samples, arguments.n0)), arguments.figure)


def spread(count):
    """int64 [count]: 0 to count - 1, in an order whose every beginning is about evenly spread."""
    step = round(count * (5**0.5 - 1) / 2)
    while np.gcd(step, count) != 1:
        step -= 1
    return np.arange(count) * step % count


def drawn(path, model, images, indices, cache):
    """uint8 [images, blocks, classes]: votes of each image's selection blocks, then of its estimation blocks."""
    from macer_tf import noise
    from macer_tf.smoothing import SmoothedClassifier
    from pipeline.utils.atomic_files import write_bytes
    from serving.fingerprints import file_digest, fingerprint

    identity = {"model": file_digest(path), "precision": PRECISION, "seed": SEED, "block": BLOCK}
    folder = cache / fingerprint(identity)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    classifier = SmoothedClassifier(model, seed=SEED, precision=PRECISION)
    missing = [place for place, index in enumerate(indices) if not (folder / f"{index:05d}.npy").exists()]
    started = time.monotonic()
    for done, place in enumerate(missing, 1):
        streams = ((noise.SELECTION, MOST_N0 // BLOCK), (noise.ESTIMATION, N // BLOCK))
        votes = [votes_of_blocks(classifier, images[place], indices[place], *stream) for stream in streams]
        content = io.BytesIO()
        np.save(content, np.concatenate(votes).astype(np.uint8))
        write_bytes(folder / f"{indices[place]:05d}.npy", content.getvalue())
        if done % 10 == 0 or done == len(missing):
            minutes = (time.monotonic() - started) / 60
            print(f"{done} of {len(missing)} images drawn in {minutes:.1f} minutes", file=sys.stderr, flush=True)
    return np.stack([np.load(folder / f"{index:05d}.npy") for index in indices])


def votes_of_blocks(classifier, image, example_id, stream, blocks):
    """int64 [blocks, classes] of one image's first samples."""
    images = np.broadcast_to(image, (blocks, *image.shape))
    starts = [block * BLOCK for block in range(blocks)]
    return classifier.draw(images, [int(example_id)] * blocks, stream, starts, [BLOCK] * blocks).counts


class Line(NamedTuple):
    """One line of the figure.

    Attributes:
        name: name in the legend.
        samples, values: for each point; samples are relative to those of CERTIFY.
        labels: for each point.
    """

    name: str
    samples: list
    values: list
    labels: list


class Recorded:
    """The drawn samples of the images, for one budget after another to spend.

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
        """Radii of correct certificates, as in `correct_radii`, and the average number of samples per image."""
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
    if acr == 0:
        raise SystemExit("The model certifies none of the images: there is nothing that a budget could save.")
    print(
        f"{len(fixed):,} test images of MNIST, alpha={ALPHA:g}, {PRECISION}; CERTIFY (n0={N0}, n={N:,}): "
        f"ACR {acr:.4f} ± {error:.4f}, certified accuracy at "
        + ", ".join(f"{radius:g}: {np.mean(fixed >= radius):.3f}" for radius in (0, *RADII))
    )
    budgets = [(f"RadiusBudget({radius:g})", RadiusBudget(radius, N), N0) for radius in RADII]
    tables = (TABLE[:-2], TABLE[:-1], TABLE)
    budgets += [(f"RadiusBudget(0 to {table[-1]:g})", RadiusBudget(table, N), N0) for table in tables]
    budgets += [(f"FixedBudget({n:,})", FixedBudget(n), N0) for n in FIGURE_N[:-1]]
    budgets.append((f"ToleranceBudget({arguments.tolerance:g})", ToleranceBudget(arguments.tolerance, N), arguments.n0))
    for name, budget, n0 in budgets:
        for with_labels in (False, True):
            radii, spent = samples.spend(budget, n0, with_labels)
            if isinstance(budget, RadiusBudget):
                gives = ", ".join(reached_at(radius, radii, fixed) for radius in budget.radii)
                gives = f"certified accuracy {gives}"
            else:
                ours = np.maximum(radii, 0)
                change, error = mean_and_standard_error(100 * (ours - np.maximum(fixed, 0)) / acr)
                gives = f"ACR {ours.mean():.4f} ({change:+.2f} ± {error:.2f} %)"
            print(f"  {name:<24}{'labels' * with_labels:<8}{fixed_samples / spent:7.2f} x fewer samples   {gives}")


def reached_at(radius, radii, fixed):
    """Certified accuracy at a radius, and by how many points it differs from CERTIFY's."""
    reached = radii >= radius
    change, error = mean_and_standard_error(100 * (reached - 1.0 * (fixed >= radius)))
    return f"{reached.mean():.3f} at {radius:g} ({change:+.2f} ± {error:.2f} points)"


def panels_of(samples, n0):
    """The figure's two panels: certified accuracy at FIGURE_RADIUS, and ACR, against samples."""
    fixed, fixed_samples = samples.spend(FixedBudget(N))
    full_acr = np.maximum(fixed, 0).mean()

    def line(name, value, budgets, n0, labels):
        spent = [samples.spend(budget, n0) for budget in budgets]
        return Line(name, [mean / fixed_samples for _, mean in spent], [value(radii) for radii, _ in spent], labels)

    def accuracy(radii):
        return np.mean(radii >= FIGURE_RADIUS)

    def acr(radii):
        return np.maximum(radii, 0).mean() / full_acr

    caps, ns = ([f"{n:,}" for n in several] for several in (FIGURE_CAPS, FIGURE_N))
    radius_budgets = [RadiusBudget(FIGURE_RADIUS, n) for n in FIGURE_CAPS]
    precision_budgets = [ToleranceBudget(tolerance, N) for tolerance in FIGURE_TOLERANCES]
    tolerances = [f"{tolerance:g}" for tolerance in FIGURE_TOLERANCES]
    return (
        (
            line("fixed n", accuracy, [FixedBudget(n) for n in FIGURE_CAPS], N0, caps),
            line("RadiusBudget", accuracy, radius_budgets, N0, caps),
        ),
        (
            line("fixed n", acr, [FixedBudget(n) for n in FIGURE_N], N0, ns),
            line("ToleranceBudget", acr, precision_budgets, n0, tolerances),
        ),
    )


def drawn_figure(panels):
    """A Matplotlib figure of what `panels_of` returns, each panel a plain `Line` and ours."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from pipeline.report.figures import FAINT, GREY, INK

    figure = Figure(figsize=(7.2, 3.3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    styles = (
        {"color": INK, "linewidth": 1.4, "linestyle": (0, (5, 1.5)), "marker": "s"},
        {"color": BLUE, "linewidth": 2, "marker": "o"},
    )
    for axes, lines in zip((left, right), panels, strict=True):
        for line, style in zip(lines, styles, strict=True):
            axes.plot(line.samples, line.values, markersize=MARKER_POINTS, label=line.name, **style)
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
    left.set_ylabel(f"certified accuracy at radius {FIGURE_RADIUS:g}", color=INK)
    right.set_ylabel(f"ACR, relative to n = {N:,}", color=INK)
    right.yaxis.set_major_formatter(PercentFormatter(1, 0))
    figure.draw_without_rendering()  # places in pixels are known only now
    figure.set_layout_engine("none")
    for axes, lines in zip((left, right), panels, strict=True):
        label_points(axes, lines)
    return figure


def label_points(axes, lines):
    """Writes each point's label beside it, inside the axes, clear of lines, markers, the legend and other labels."""
    taken = np.concatenate([_pixels_of(axes, line) for line in lines])
    boxes = [axes.get_legend().get_window_extent()]
    for line, curve, sides in zip(lines, axes.lines, (LABEL_PLACES, LABEL_PLACES[::-1]), strict=True):
        for *point, name in zip(line.samples, line.values, line.labels, strict=True):
            tried = []
            for offset, ha, va in sides:
                text = axes.annotate(
                    name, point, offset, textcoords="offset points", ha=ha, va=va, fontsize=8, color=curve.get_color()
                )
                box = text.get_window_extent().padded(1)
                inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
                inside &= axes.bbox.containsy(box.y0) and axes.bbox.containsy(box.y1)
                covered = box.count_contains(taken) + 1000 * box.count_overlaps(boxes) + 1000 * (not inside)
                tried.append((covered, text, box))
            _, best, box = min(tried, key=lambda entry: entry[0])
            boxes.append(box)
            for _, text, _ in tried:
                if text is not best:
                    text.remove()


def _pixels_of(axes, line):
    """float64 [points, 2]: where a line and its markers are drawn."""
    places = axes.transData.transform(np.column_stack([line.samples, line.values]))
    along = np.linspace(0, len(places) - 1, 100 * len(places))
    between = [np.interp(along, np.arange(len(places)), column) for column in places.T]
    half = MARKER_POINTS / 2 / 72 * axes.figure.dpi
    corners = np.array([(x, y) for x in (-half, 0, half) for y in (-half, 0, half)])
    return np.concatenate([np.column_stack(between), (places[:, None] + corners).reshape(-1, 2)])


def write_figure(figure, path):
    """Writes the figure as PNG."""
    from PIL import Image

    from pipeline.report.figures import save_png
    from pipeline.utils.atomic_files import write_bytes

    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    # Few colours keep the file small.
    Image.open(io.BytesIO(save_png(figure))).convert("RGB").quantize(64).save(content, format="png", optimize=True)
    write_bytes(path, content.getvalue())


if __name__ == "__main__":
    main()
