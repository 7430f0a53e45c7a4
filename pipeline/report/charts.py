"""Charts as data, which the page's template draws as SVG in the page's own colours.

Places are percentages of the plot's width from its left edge and of its height from its upper edge; in a path they are
thousandths, as the SVG stretches it to the available width. Radii are l2 radii in [0, 1] pixel units.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pipeline.report.radii import checked, end_of_plot, named, steps_of
from pipeline.report.words import at_least

COLORS, DASHES = 7, 4  # of the style sheet; without a common factor, so that looks repeat only after 28 curves
# Places in the list of colours, the same on every page.
METHOD_COLORS = {
    name: place
    for place, name in enumerate(("macer", "cohen", "smoothadv", "stability", "smoothmix", "consistency", "catrs"))
}
MAX_BANDS = 4
FRACTIONS = ("smoothed_accuracy", "hinge_fraction")
CURVES = ("loss", "classification_loss", "robustness_loss", *FRACTIONS, "soft_radius", "learning_rate")
# What the pointer shows: radii with this many decimals.
_DECIMALS = 3
_MARKS = (0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999, 0.9999, 0.99999)
_NEAREST_MARKS = 13  # per cent of the width


@dataclass(frozen=True)
class Tick:
    """A place on an axis, or a vertical line of the plot, and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Path:
    """A line or an area; `looks` are classes of the style sheet."""

    line: str
    looks: str


@dataclass(frozen=True)
class Curve:
    """A curve in the legend.

    counts[i] of its `num_images` images have a radius of at least at[i] thousandths, and as many have one of more than
    at[i - 1].
    """

    name: str
    looks: str
    num_images: int
    at: list[int]
    counts: list[int]


@dataclass(frozen=True)
class Chart:
    """A plot. `end` is the radius at its right edge, up to which curves can be read; `note` is written across it."""

    y_label: str
    x_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    paths: Sequence[Path]
    top_ticks: Sequence[Tick] = ()
    top_label: str = ""
    lines: Sequence[Tick] = ()
    points: Sequence[tuple[float, float]] = ()
    points_name: str = ""
    curves: Sequence[Curve] = ()
    end: float = 0.0
    note: str = ""


class _Axis:
    """From `first` at 0 % to `last` at 100 %."""

    def __init__(self, first: float, last: float):
        self.first, self.last = first, last

    def at(self, value):
        return np.round(100 * (np.asarray(value) - self.first) / (self.last - self.first), 2)

    def ticks(self, values: Iterable[float], form: str = "g") -> list[Tick]:
        return [Tick(float(self.at(value)), f"{value:{form}}") for value in values]

    def round_ticks(self, most: int) -> list[Tick]:
        """At most `most` ticks, at multiples of 1, 2, 2.5 or 5 times a power of ten."""
        width = self.last - self.first
        power = 10.0 ** math.floor(math.log10(width / most))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if width / (power * factor) < most)
        multiples = range(math.ceil(self.first / step), math.floor(self.last / step) + 1)
        return self.ticks([float(f"{step * multiple:.6g}") for multiple in multiples])


def name_of_limit(limit: float, n: int) -> str:
    """What is written beside the largest radius that n samples can certify."""
    return f"limit of n = {n:,}: {at_least(limit, 3)}"


def looks(place: int) -> str:
    """Classes of the curve in this place: a colour, and dashes for readers who cannot tell colours apart."""
    return f"color-{place % COLORS + 1} dash-{place % DASHES + 1}"


def certified_accuracy(
    radii: Mapping[str, np.ndarray],
    *,
    colors: Mapping[str, int] | None = None,
    paper: Mapping | None = None,
    limit: tuple[float, str] | None = None,
    y_label: str = "certified accuracy at r",
    mean: str = "ACR",
) -> Chart:
    """Certified accuracy as a function of the radius: exact step curves, whose areas are the ACRs.

    Args:
        radii: name -> float [num_images], the certified radius of each image, -1 where the prediction is wrong or the
            classifier abstains. The certified accuracy at r is mean(radii >= r). If there are few, each has a band of
            one pointwise binomial standard error over the drawing of images.
        colors: name -> place in the list of colours; by default the place among the names.
        paper: numbers to compare with: name, radii, certified_accuracy, acr; those up to the plot's end are points.
        limit: a radius that no curve can pass, and what is written beside it.
        y_label: label of the vertical axis.
        mean: name of the area under a curve.

    Raises:
        ValueError: there is no curve, or radii are empty, not one-dimensional or not finite.
    """
    if not radii:
        raise ValueError("curves must not be empty.")
    radii = {name: checked(values) for name, values in radii.items()}
    furthest = [max(values.max(), 0.0) for values in radii.values()]
    if paper:
        furthest += [r for r, a in zip(paper["radii"], paper["certified_accuracy"], strict=True) if a > 0]
    x, y = _Axis(0.0, end_of_plot(max([*furthest, limit[0] if limit else 0]))), _Axis(1.0, 0.0)
    paths: list[Path] = []
    curves: list[Curve] = []
    for place, (name, values) in enumerate(radii.items()):
        own = looks(place if colors is None else colors[name])
        steps, accuracy = steps_of(values, x.last)
        paths.insert(place, Path(_stairs(x, y, steps, accuracy), f"curve {own}"))
        if len(radii) <= MAX_BANDS:
            error = np.sqrt(accuracy * (1.0 - accuracy) / values.size)
            upper = _stairs(x, y, steps, np.minimum(accuracy + error, 1.0))
            lower = _stairs(x, y, steps, np.maximum(accuracy - error, 0.0), backwards=True)
            paths.append(Path(f"{upper}L{lower[1:]}Z", f"band {own}"))
        curves.append(Curve(named(name, values, mean), own, values.size, *_reading(values)))
    given = zip(paper["radii"], paper["certified_accuracy"], strict=True) if paper else ()
    return Chart(
        y_label,
        "l2 radius r, in [0, 1] pixel units",
        x.round_ticks(6),
        y.ticks((0, 0.2, 0.4, 0.6, 0.8, 1)),
        paths[::-1],  # bands below curves, the first curve on top
        lines=[Tick(float(x.at(limit[0])), limit[1])] if limit else (),
        points=[(float(x.at(r)), float(y.at(a))) for r, a in given if r <= x.last],
        points_name=f"Reported in the paper, not measured here: {paper['name']}{_acr(paper)}" if paper else "",
        curves=curves,
        end=x.last,
        note="" if max(furthest) > 0 else "No image has a radius above 0",
    )


def _acr(paper):
    return "" if paper["acr"] is None else f", ACR {paper['acr']:.3f}"


def _reading(radii):
    """Radii in thousandths after which the count of images with that radius or beyond falls, and the counts there."""
    reached = np.sort(radii[radii >= 0])
    places = np.floor(reached * 10**_DECIMALS)
    # Exactly as the decimals are read: the product may have been rounded to another thousandth.
    places += (places + 1) / 10**_DECIMALS <= reached
    places -= places / 10**_DECIMALS > reached
    at, first = np.unique(places.astype(np.int64), return_index=True)
    return at.tolist(), (reached.size - first).tolist()


def _stairs(x, y, steps, heights, backwards=False):
    """The path of a step function that is heights[i] on (steps[i - 1], steps[i]]; where steps coincide, the last.

    Each path begins with the letter M.
    """
    across, down = 10 * x.at(steps), 10 * y.at(heights)
    # Of steps closer than a tenth of a thousandth, only the last is visible.
    across = np.round(across, 1)
    kept = np.append(np.diff(across) > 0, True)
    kept[0] = True
    across, down = across[kept], down[kept]
    points = [(across[0], down[0])]
    for place in range(1, len(across)):
        points += [(across[place - 1], down[place]), (across[place], down[place])]
    if backwards:
        points.reverse()
    return _line(points)


def _line(points):
    return "M" + " ".join(f"{across:g},{down:g}" for across, down in points)


def lower_bounds(p_lower: np.ndarray, correct: np.ndarray | None, *, ceiling: float) -> list[Chart]:
    """Histograms of the lower confidence bound on the top-class probability, separately for correct and other images.

    The horizontal axis is Phi^-1(p_lower), the certified radius over sigma: on the scale of p itself, nearly
    all images would share the last pixel. Bounds too far below 1/2 for the axis are counted in the first bin,
    and the axis says how many.

    Args:
        p_lower: float [num_images], in [0, ceiling].
        correct: bool [num_images], whether the image counts as correctly classified; None if that is not known.
        ceiling: largest `p_lower` that any votes can attain (alpha ** (1 / n) for Clopper-Pearson), in (0, 1).

    Raises:
        ValueError: an argument is outside its range, or the shapes differ.
    """
    p_lower, known = _checked_bounds(p_lower, np.ones(np.shape(p_lower)) if correct is None else correct, ceiling)
    quantile = NormalDist().inv_cdf
    z, edges, width, overflow = _bins(p_lower, ceiling)
    top = quantile(ceiling)
    x = _Axis(edges[0], max(top, 0.0) + width)
    lines = [Tick(float(x.at(0.0)), "abstains to the left"), Tick(float(x.at(top)), f"at most {_probability(ceiling)}")]
    marks = [Tick(float(x.at(quantile(p))), f"{p:g}") for p in _MARKS if edges[0] < quantile(p) < x.last]
    note = f"; {overflow} further left, counted in the first bin" if overflow else ""
    charts = []
    for name, chosen in [("Images", known)] if correct is None else [("Correct", known), ("Not correct", ~known)]:
        counts, _ = np.histogram(z[chosen], edges)
        y = _Axis(1.35 * max(counts.max(), 1), 0)
        bars = "".join(
            f"M{10 * x.at(left):g},1000V{10 * y.at(count):g}H{10 * x.at(right):g}V1000Z"
            for left, right, count in zip(edges, edges[1:], counts, strict=False)
            if count
        )
        charts.append(
            Chart(
                f"{name}: {chosen.sum():,} of {z.size:,} images",
                f"certified radius in units of sigma{note}",
                x.round_ticks(6),
                y.ticks(sorted({0, int(counts.max())}), ","),
                [Path(bars, "bars wrong" if name == "Not correct" else "bars")],
                top_ticks=_thinned(marks),
                top_label="lower bound on the probability of the class",
                lines=lines,
            )
        )
    return charts


def _thinned(ticks):
    """Without ticks that would overlap another, the outer ones first."""
    kept = []
    for tick in sorted(ticks, key=lambda tick: (tick.text != "0.5", tick.text != "0.99", len(tick.text))):
        if all(abs(tick.at - other.at) >= _NEAREST_MARKS for other in kept):
            kept.append(tick)
    return sorted(kept, key=lambda tick: tick.at)


def _checked_bounds(p_lower, correct, ceiling):
    p_lower, correct = np.asarray(p_lower, np.float64), np.asarray(correct, bool)
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


def _bins(p_lower, ceiling):
    """Phi^-1 of the bounds, the bins' edges and width, and how many bounds left of the first bin are counted in it."""
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


def _probability(p):
    """p with two significant digits of 1 - p, without ever rounding up to 1: 0.99993, 0.93."""
    digits = max(2, 1 - math.floor(math.log10(1.0 - p)))
    return f"{math.floor(p * 10**digits) / 10**digits:.{digits}f}"


def training(history: Mapping[str, Sequence[float]]) -> list[Chart]:
    """One small chart for each quantity of `CURVES` that `history` has, with the last epoch's value as its heading.

    Args:
        history: name -> one float per epoch. Names that are not in `CURVES` are not drawn.

    Raises:
        ValueError: `history` has no value for any of them.
    """
    names = [name for name in CURVES if len(history.get(name, ()))]
    if not names:
        raise ValueError(f"history must have a value for one of {CURVES}. Received: {dict(history)}")
    return [_of_training(name, np.asarray(history[name], np.float64)) for name in names]


def _of_training(name, values):
    is_log = name == "learning_rate" and bool((values > 0).all())
    finite = values[np.isfinite(values)]
    low, high = (0.0, 1.0) if name in FRACTIONS or not finite.size else (finite.min(), finite.max())
    drawn = np.log10(values) if is_log else values
    bottom, top = (math.log10(low), math.log10(high)) if is_log else (low, high)
    room = 0.08 * (top - bottom) or 1.0
    x, y = _Axis(1, max(len(values), 2)), _Axis(top + room, bottom - room)
    parts = np.ma.clump_unmasked(np.ma.masked_invalid(drawn))  # infinite and NaN ones leave gaps
    lines = [
        _line(zip(10 * x.at(np.arange(part.start, part.stop) + 1), 10 * y.at(drawn[part]), strict=True)) + "h0"
        for part in parts
    ]
    last = f"{values[-1]:.3g}" if name == "learning_rate" else f"{values[-1]:.3f}"
    shown = {f"{value:.3g}": float(y.at(place)) for value, place in ((low, bottom), (high, top))}
    return Chart(
        f"{name.replace('_', ' ')} {last}",
        "epoch",
        x.ticks(sorted({1, len(values)})),
        [Tick(at, text) for text, at in shown.items()],
        [Path("".join(lines), "curve color-1")],
    )
