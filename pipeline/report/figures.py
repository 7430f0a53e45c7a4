"""The figures of a certification report, drawn from plain arrays with matplotlib's object API.

Every function returns a `matplotlib.figure.Figure` and touches no global state; `save_png` turns one into the
bytes that `page.render` embeds. Radii are l2 radii in [0, 1] pixel units.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Protocol

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter

from macer_tf.certificates import radius_in_words

# Okabe and Ito's colours, which stay apart under the common colour-vision deficiencies, each with one meaning
# throughout: blue is measured here and correct, vermilion is wrong, ink is the paper, grey is an abstention.
BLUE, VERMILION = "#0072B2", "#D55E00"
INK, GREY, FAINT = "#22262A", "#626B75", "#E3E6EA"

# For curves side by side, where a colour only tells them apart: the same palette but for yellow, too light for a line,
# and dashes for those who see no colour. Seven and four have no common factor: looks repeat after 28 curves only.
_SEVERAL = (BLUE, VERMILION, "#009E73", "#CC79A7", INK, "#56B4E9", "#E69F00")
_DASHES = ((), (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5))
MAX_CURVES = len(_SEVERAL) * len(_DASHES)

WIDTH = 7.2  # inches, of every figure: one text size throughout the page
ABSTAIN = "ABSTAIN"
MAX_EXAMPLES = 8
_HEIGHT = 4.6  # inches, of a figure of certified accuracy
_MAX_BANDS = 4
_BAND = "1 binomial standard error at each radius"
CURVES = (
    "loss",
    "classification_loss",
    "robustness_loss",
    "smoothed_accuracy",
    "hinge_fraction",
    "soft_radius",
    "learning_rate",
)
FRACTIONS = ("smoothed_accuracy", "hinge_fraction")


class PaperCurve(Protocol):
    """One row of a table of the paper: `certified_accuracy[i]` at l2 radius `radii[i]`, and its ACR."""

    name: str
    radii: tuple[float, ...]
    certified_accuracy: tuple[float, ...]
    acr: float


class Example(Protocol):
    """One image for the gallery.

    image: float [height, width, channels] in [0, 1], 1 or 3 channels.
    noisy: noisy copies of it, same shape, not clipped.
    label, prediction: class names; the prediction may be "ABSTAIN".
    radius: certified l2 radius, None where there is none.
    vote_share: share of the votes that went to the top class, in [0, 1].
    """

    image: np.ndarray
    noisy: Sequence[np.ndarray]
    label: str
    prediction: str
    radius: float | None
    vote_share: float


def radius_accuracy(radii: np.ndarray, paper: PaperCurve | None = None, *, label: str) -> Figure:
    """Certified accuracy as a function of the radius: the exact step curve, as in Figure 1 of the paper.

    Args:
        radii: float [num_images], the certified radius of each image, -1 where the prediction is wrong or
            the classifier abstains. The certified accuracy at r is mean(radii >= r), its integral is the ACR.
        paper: numbers to compare with, drawn as markers and named as the paper's. The plot ends before the
            radii at which both curves are 0.
        label: name of the model measured here.

    The band is one pointwise binomial standard error, sqrt(p (1 - p) / num_images), over the draw of images.

    Raises:
        ValueError: `radii` is empty, not one-dimensional or not finite.
    """
    radii = _checked_radii(radii)
    seen = max(radii.max(), 0.0)
    if paper is not None:
        seen = max([seen, *(r for r, a in zip(paper.radii, paper.certified_accuracy, strict=True) if a > 0)])
    figure, axes, end = _radius_axes(seen)
    _step_curve(axes, radii, end, f"Measured here: {_named(label, radii)}", BLUE, band=f"± {_BAND}")
    if paper is not None:
        axes.plot(
            paper.radii,
            paper.certified_accuracy,
            linestyle="none",
            marker="D",
            markersize=7,
            markerfacecolor="white",
            markeredgecolor=INK,
            markeredgewidth=1.6,
            label=f"Reported in the paper, not measured here: {paper.name}, ACR {paper.acr:.3f}",
        )
    handles, labels = axes.get_legend_handles_labels()
    order = [1, 0, *range(2, len(handles))]
    _legend_above(figure, [handles[i] for i in order], [labels[i] for i in order])
    return figure


def radius_accuracy_curves(curves: Mapping[str, np.ndarray]) -> Figure:
    """Certified accuracy as a function of the radius of several models: exact step curves, as in Figure 3 there.

    Curves are told apart by colour and by dashes, up to `MAX_CURVES`, and named in the order given. Each has its band
    of one standard error as long as there are few.

    Args:
        curves: name -> radii as in `radius_accuracy`.

    Raises:
        ValueError: there is no curve, or radii as in `radius_accuracy`.
    """
    if not curves:
        raise ValueError("curves must not be empty.")
    curves = {name: _checked_radii(radii) for name, radii in curves.items()}
    figure, axes, end = _radius_axes(max(max(radii.max(), 0.0) for radii in curves.values()))
    has_bands = len(curves) <= _MAX_BANDS
    for place, (name, radii) in enumerate(curves.items()):
        color, dashes = _SEVERAL[place % len(_SEVERAL)], _DASHES[place % len(_DASHES)]
        # A label with an underscore in front stays out of the legend.
        _step_curve(axes, radii, end, _named(name, radii), color, dashes, band="_" if has_bands else None)
    handles, labels = axes.get_legend_handles_labels()
    if has_bands:
        handles.append(Patch(color=GREY, alpha=0.25, linewidth=0))
        labels.append(f"bands: ± {_BAND}")
    _legend_above(figure, handles, labels)
    return figure


def _checked_radii(radii: np.ndarray) -> np.ndarray:
    radii = np.asarray(radii, dtype=np.float64)
    if radii.ndim != 1 or radii.size == 0 or not np.isfinite(radii).all():
        raise ValueError(f"radii must be finite, of shape [num_images > 0]. Received: shape {radii.shape}, {radii}")
    return radii


def _named(name: str, radii: np.ndarray) -> str:
    plural = "" if radii.size == 1 else "s"
    return f"{name}, ACR {np.maximum(radii, 0.0).mean():.3f} ({radii.size:,} image{plural})"


def _radius_axes(seen: float) -> tuple[Figure, Axes, float]:
    """A figure with axes for certified accuracy at radii up to a little more than `seen`, and where they end."""
    end = 1.06 * seen if seen > 0 else 1.0
    figure = Figure(figsize=(WIDTH, _HEIGHT), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _quiet(axes)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    if seen == 0:
        axes.text(0.5, 0.5, "No image has a radius above 0", transform=axes.transAxes, ha="center", color=GREY)
    axes.set_xlim(-0.02 * end, end)  # room for a marker at 0
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("l2 radius r, in [0, 1] pixel units", color=INK)
    axes.set_ylabel("certified accuracy at r", color=INK)
    return figure, axes, end


def _step_curve(
    axes: Axes, radii: np.ndarray, end: float, label: str, color: str, dashes: tuple = (), *, band: str | None
) -> None:
    """Draws mean(radii >= r) up to `end`, with a band of one standard error called `band` unless that is None."""
    # It is constant on (steps[i - 1], steps[i]], which is what "steps-pre" draws.
    steps = np.unique(np.concatenate([[0.0, end], np.maximum(radii, 0.0)]))
    accuracy = 1.0 - np.searchsorted(np.sort(radii), steps, side="left") / radii.size
    if band is not None:
        error = np.sqrt(accuracy * (1.0 - accuracy) / radii.size)
        low, high = np.maximum(accuracy - error, 0.0), np.minimum(accuracy + error, 1.0)
        axes.fill_between(steps, low, high, step="pre", color=color, alpha=0.18, linewidth=0, label=band)
    axes.plot(steps, accuracy, drawstyle="steps-pre", color=color, linewidth=2.0, linestyle=(0, dashes), label=label)


def _legend_above(figure: Figure, handles: list, labels: list[str]) -> None:
    """A legend above the axes, where no curve can run through it."""
    columns = 2 if len(labels) > 6 and max(map(len, labels)) <= 42 else 1
    labels = [textwrap.fill(label, 72) for label in labels]
    num_lines = math.ceil(sum(label.count("\n") + 1 for label in labels) / columns)
    figure.set_figheight(_HEIGHT + 0.2 * max(num_lines - 4, 0))  # or a long one would squeeze the axes
    legend = figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=10,
        labelcolor=INK,
        handlelength=2.8,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def p_a_distribution(p_lower: np.ndarray, correct: np.ndarray, *, ceiling: float) -> Figure:
    """Histogram of the lower confidence bound on the top-class probability, correct and other images apart.

    The horizontal axis is Phi^-1(p_lower), the certified radius over sigma: on the scale of p itself nearly
    all images would share the last pixel. Bounds too far below 1/2 for the axis are counted in the first bin,
    and the axis says how many.

    Args:
        p_lower: float [num_images], in [0, ceiling].
        correct: bool [num_images], whether the image counts as correctly classified.
        ceiling: largest `p_lower` that any vote can attain (alpha ** (1 / n) for Clopper-Pearson), in (0, 1).

    Raises:
        ValueError: an argument is outside its range, or the shapes differ.
    """
    p_lower, correct = _checked_bounds(p_lower, correct, ceiling)
    quantile = NormalDist().inv_cdf
    top = quantile(ceiling)
    z, edges, width, overflow = _bins(p_lower, ceiling)

    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained", facecolor="white")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, chosen, name, style in (
        (upper, correct, "Correct", {"facecolor": BLUE, "edgecolor": "white"}),
        (lower, ~correct, "Not correct", {"facecolor": "white", "edgecolor": VERMILION, "hatch": "////"}),
    ):
        _quiet(axes)
        counts, _ = np.histogram(z[chosen], edges)
        axes.axvspan(edges[0], 0.0, color=FAINT, alpha=0.6, linewidth=0)
        axes.axvline(0.0, color=INK, linewidth=1.0)
        axes.axvline(top, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", linewidth=0.8, **style)
        axes.set_ylim(0, 1.3 * max(counts.max(), 1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.set_ylabel(f"{name}\n{chosen.sum()} of {z.size} images", color=INK)
    upper.set_xlim(edges[0], max(top, 0.0) + width)

    headroom = {"ha": "right", "va": "top", "fontsize": 9, "color": INK}
    abstains = "abstains: 1/2 or less"
    upper.text(-0.3 * width, 0.97, abstains, transform=upper.get_xaxis_transform(), **headroom)
    attainable = f"largest attainable bound {_probability(ceiling)}"
    lower.text(top - 0.3 * width, 0.97, attainable, transform=lower.get_xaxis_transform(), **headroom)

    note = f"\nimages further left, counted in the first bin: {overflow}" if overflow else ""
    lower.set_xlabel(f"certified radius in units of sigma, Φ⁻¹(lower bound){note}", color=INK)
    marks = (0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999, 0.9999, 0.99999)
    marks = [p for p in marks if edges[0] < quantile(p) < top]
    scale = upper.secondary_xaxis("top")
    scale.set_xticks([quantile(p) for p in marks], [f"{p:g}" for p in marks])
    scale.set_xlabel("lower confidence bound on the top-class probability", color=INK)
    scale.tick_params(colors=GREY, labelsize=9, length=3)
    scale.spines["top"].set_color(FAINT)
    return figure


def _checked_bounds(p_lower: np.ndarray, correct: np.ndarray, ceiling: float) -> tuple[np.ndarray, np.ndarray]:
    p_lower = np.asarray(p_lower, dtype=np.float64)
    correct = np.asarray(correct, dtype=bool)
    if p_lower.ndim != 1 or p_lower.size == 0 or p_lower.shape != correct.shape:
        raise ValueError(
            "p_lower and correct must both have shape [num_images > 0]. "
            f"Received: shapes {p_lower.shape} and {correct.shape}"
        )
    if not 0.0 < ceiling < 1.0:
        raise ValueError(f"ceiling must be in (0, 1). Received: ceiling={ceiling}")
    if not (p_lower.min() >= 0.0 and p_lower.max() <= ceiling + 1e-6):
        raise ValueError(
            f"p_lower must be in [0, ceiling={ceiling}]. Received: from {p_lower.min()} to {p_lower.max()}"
        )
    return p_lower, correct


def _bins(p_lower: np.ndarray, ceiling: float) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Phi^-1 of the bounds, the bins' edges and width, and how many bounds left of the first are counted in it."""
    quantile = NormalDist().inv_cdf
    top = quantile(ceiling)
    z = np.array([quantile(p) if p > 0 else -math.inf for p in np.minimum(p_lower, ceiling)])

    # Bins end at the ceiling and, where anything can be certified at all, have an edge at 0 (p = 1/2).
    width = top / 24 if top > 0.5 else 0.1
    unit, last = max(top, 0.5), min(top, 0.0)
    left = min(max(z.min(), last - 0.6 * unit), last - 0.25 * unit)
    edges = top - width * np.arange(math.ceil((top - left) / width), -1, -1)
    overflow = int((z < edges[0]).sum())
    return np.clip(z, edges[0], top), edges, width, overflow


def training_curves(history: Mapping[str, Sequence[float]]) -> Figure:
    """Small multiples, one per quantity of `CURVES` that `history` has, with the value of the last epoch.

    Args:
        history: name -> one float per epoch. Names that are not in `CURVES` are not drawn.

    Raises:
        ValueError: `history` has no value for any of them.
    """
    names = [name for name in CURVES if len(history.get(name, ()))]
    if not names:
        raise ValueError(f"history must have a value for one of {CURVES}. Received: {dict(history)}")
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.75 * rows), layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (axes, name) in enumerate(zip(panels, names, strict=False)):
        values = np.asarray(history[name], dtype=np.float64)
        _quiet(axes)
        axes.plot(
            np.arange(1, values.size + 1),
            values,
            color=BLUE,
            linewidth=1.8,
            marker="." if values.size == 1 else None,
            drawstyle="steps-mid" if name == "learning_rate" else "default",
        )
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
        if name in FRACTIONS:
            axes.set_ylim(-0.02, 1.02)
        elif name == "learning_rate" and (values > 0).all():
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_title(name.replace("_", " "), loc="left", fontsize=9.5, color=INK)
        last = f"{values[-1]:.3g}" if name == "learning_rate" else f"{values[-1]:.3f}"
        axes.set_title(last, loc="right", fontsize=9.5, color=BLUE, fontweight="bold")
        if place + columns >= len(names):  # the lowest panel of its column
            axes.set_xlabel("epoch", fontsize=9.5, color=INK)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


def example_gallery(examples: Sequence[Example]) -> Figure:
    """Up to 8 images, each with noisy copies, its label, the smoothed prediction and the certified radius.

    The outcome is told by a sign, by words and by the frame of the clean image (solid: correct, dashed:
    wrong, dotted: abstained), not by colour alone.

    Raises:
        ValueError: there are no examples, or more than 8.
    """
    if not 1 <= len(examples) <= MAX_EXAMPLES:
        raise ValueError(f"examples must be 1 to {MAX_EXAMPLES}. Received: {len(examples)}")
    columns = min(2, len(examples))
    rows = math.ceil(len(examples) / columns)
    across = 1 + max(len(example.noisy) for example in examples)

    # Inches. Image sides follow from the width, so every image of the grid has the same box.
    margin, gutter, gap, caption, header = 0.12, 0.34, 0.05, 0.5, 0.2
    strip = (WIDTH - 2 * margin - gutter) / 2
    side = (strip - gap * (across - 1)) / across
    full_width = 2 * margin + columns * strip + (columns - 1) * gutter
    full_height = 2 * margin + header + rows * (caption + side) + (rows - 1) * 0.14
    figure = Figure(figsize=(full_width, full_height), facecolor="white")

    for index, example in enumerate(examples):
        row, column = divmod(index, columns)
        x = margin + column * (strip + gutter)
        y = full_height - margin - header - row * (caption + side + 0.14) - caption - side
        lift = header if row == 0 else 0.0  # for the words "clean" and "noisy", said once
        sign, words, color, line = _outcome(example)
        names = f"{_shorten(example.label)} → {_shorten(example.prediction)}"
        for height, text, style in (
            (0.29, f"{sign} {names}", {"color": color, "fontsize": 10.5, "fontweight": "bold"}),
            (0.1, f"{words}, {100 * example.vote_share:.2f} % of votes", {"color": INK, "fontsize": 9}),
        ):
            at = (x / full_width, (y + side + lift + height) / full_height)
            figure.text(*at, text, parse_math=False, **style)
        for place, image in enumerate((example.image, *example.noisy)):
            at = x + place * (side + gap)
            axes = figure.add_axes((at / full_width, y / full_height, side / full_width, side / full_height))
            _show(axes, image, *((color, 2.4, line) if place == 0 else (FAINT, 0.8, "solid")))
            if row == 0:
                above = ((at + side / 2) / full_width, (y + side + 0.07) / full_height)
                said = "clean" if place == 0 else f"noisy {place}"
                figure.text(*above, said, ha="center", color=GREY, fontsize=9)
    return figure


def _show(axes: Axes, image: np.ndarray, color: str, width: float, line: str | tuple) -> None:
    """An image in a frame of this colour, width and line."""
    shown = np.clip(np.asarray(image, dtype=np.float64), 0.0, 1.0)
    if shown.shape[-1] == 1:
        shown = shown[..., 0]  # imshow wants [height, width] for grey
    axes.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=width)
        spine.set_linestyle(line)


def save_svg(figure: Figure) -> bytes:
    """The figure as an SVG file, the same bytes for the same data."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "macer_tf"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save_png(figure: Figure) -> bytes:
    """The figure as a PNG file, at 200 dots per inch (1440 pixels for a full-width figure)."""
    buffer = io.BytesIO()
    # Without the version string, the same data and matplotlib's next patch release still give the same bytes.
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def _quiet(axes: Axes) -> None:
    """Leaves the axes with faint spines, small grey ticks and the grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=GREY, labelsize=9, length=3)
    axes.set_axisbelow(True)


def _probability(p: float) -> str:
    """p with two significant digits of 1 - p, without ever rounding up to 1: 0.99993, 0.93."""
    digits = max(2, 1 - math.floor(math.log10(1.0 - p)))
    return f"{math.floor(p * 10**digits) / 10**digits:.{digits}f}"


def _outcome(example: Example) -> tuple[str, str, str, str]:
    """Sign, words, colour and line style for what became of an example."""
    if example.prediction == ABSTAIN:
        return "?", "abstained, no radius", GREY, "dotted"
    radius = "no certified radius" if example.radius is None else f"certified radius {radius_in_words(example.radius)}"
    if example.prediction == example.label:
        return "✓", f"correct, {radius}", BLUE, "solid"
    return "✗", f"wrong, {radius}", VERMILION, "dashed"


def _shorten(name: str) -> str:
    """A class name that leaves room for another one beside it."""
    return name if len(name) <= 15 else name[:14] + "…"
