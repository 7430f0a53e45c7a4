"""The curves of certified accuracy as image files, drawn with matplotlib's object API; no global state is touched.

Pages have their own charts (`charts`).
"""

import io
import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.report.charts import MAX_BANDS
from pipeline.report.radii import checked, end_of_plot, named, steps_of

# Okabe and Ito's colours, which remain distinct under the common colour-vision deficiencies, without yellow, which is
# too light for a line; and dashes for readers who see no colour. Seven and four have no common factor: looks repeat
# only after 28 curves.
INK, GREY, FAINT = "#22262A", "#626B75", "#E3E6EA"
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", INK, "#56B4E9", "#E69F00")
_DASHES = ((), (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5))
MAX_CURVES = len(_COLORS) * len(_DASHES)

_WIDTH, _HEIGHT = 7.2, 4.6  # inches


def radius_accuracy_curves(curves: Mapping[str, np.ndarray]) -> Figure:
    """Certified accuracy as a function of the radius: exact step curves, as in Figures 1 and 3 of the paper.

    Curves are distinguished by colour and by dashes, up to `MAX_CURVES`, and named in the order given. If there are
    few, each has a band of one standard error.

    Args:
        curves: name -> float [num_images], the certified radius of each image, -1 where the prediction is wrong or the
            classifier abstains. The certified accuracy at r is mean(radii >= r), its integral is the ACR.

    Raises:
        ValueError: there is no curve, or radii are empty, not one-dimensional or not finite.
    """
    if not curves:
        raise ValueError("curves must not be empty.")
    curves = {name: checked(radii) for name, radii in curves.items()}
    figure, axes, end = _radius_axes(max(max(radii.max(), 0.0) for radii in curves.values()))
    has_bands = len(curves) <= MAX_BANDS
    for place, (name, radii) in enumerate(curves.items()):
        look: dict[str, Any] = {"color": _COLORS[place % len(_COLORS)]}
        # It is constant on (steps[i - 1], steps[i]], which is what "steps-pre" draws.
        steps, accuracy = steps_of(radii, end)
        if has_bands:
            error = np.sqrt(accuracy * (1.0 - accuracy) / radii.size)
            low, high = np.maximum(accuracy - error, 0.0), np.minimum(accuracy + error, 1.0)
            axes.fill_between(steps, low, high, step="pre", alpha=0.18, linewidth=0, **look)
        look |= {"linewidth": 2.0, "linestyle": (0, _DASHES[place % len(_DASHES)])}
        axes.plot(steps, accuracy, drawstyle="steps-pre", label=named(name, radii), **look)
    handles, labels = axes.get_legend_handles_labels()
    if has_bands:
        handles.append(Patch(color=GREY, alpha=0.25, linewidth=0))
        labels.append("bands: ± 1 binomial standard error at each radius")
    _legend_above(figure, handles, labels)
    return figure


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


def _radius_axes(seen: float) -> tuple[Figure, Axes, float]:
    """A figure with axes for certified accuracy at radii up to a little more than `seen`, and where they end."""
    end = end_of_plot(seen)
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=GREY, labelsize=9, length=3)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    if seen == 0:
        axes.text(0.5, 0.5, "No image has a radius above 0", transform=axes.transAxes, ha="center", color=GREY)
    axes.set_xlim(-0.02 * end, end)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("l2 radius r, in [0, 1] pixel units", color=INK)
    axes.set_ylabel("certified accuracy at r", color=INK)
    return figure, axes, end


def _legend_above(figure: Figure, handles: list, labels: list[str]) -> None:
    """A legend above the axes, where no curve can run through it."""
    columns = 2 if len(labels) > 6 and max(map(len, labels)) <= 42 else 1
    labels = [textwrap.fill(label, 72) for label in labels]
    num_lines = math.ceil(sum(label.count("\n") + 1 for label in labels) / columns)
    figure.set_figheight(_HEIGHT + 0.2 * max(num_lines - 4, 0))  # otherwise a long one would squeeze the axes
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
