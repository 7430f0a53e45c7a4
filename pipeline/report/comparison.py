"""Several models' certificates side by side: one table, one figure, and what limits the comparison."""

from dataclasses import dataclass

import numpy as np

from macer_tf import evaluation
from macer_tf.certification_log import CertificationLog
from pipeline.report import charts, figures, page, words
from pipeline.utils.numbers import exactly

_MAX_RADII = 10
UNKNOWN = "?"
VERSUS_FIRST = (
    "vs first: paired difference of the ACR from the first row's ± its standard error, on the images that both have "
    "(how many, unless all)."
)

_NOTES = (
    "Certified accuracy at radius r is the share of the images whose certified class is their label, with a radius of "
    "r or beyond. The ACR is the mean of those radii, wrong and abstained images counting as 0; ± is one standard "
    "error over the drawing of the images.",
    f"{VERSUS_FIRST} That standard error is the one to judge by: an ACR's own mostly reflects how different the images "
    "are, which is the same for both.",
    "Each certificate was made to hold with probability 1 - alpha, image by image, if n samples were drawn at sigma as "
    "its log's makers say; this page adds up what the logs say and certifies nothing.",
)


@dataclass(frozen=True, eq=False)
class Entry:
    """One model's certificates, for comparison.

    Attributes:
        name: name of the curve and the row.
        log: the images with their labels, predictions and radii.
        sigma, n, alpha: what it was certified at; None if not known.
        bound: the bound that certified it, as `words.bound` calls it; None if not known.
        decided_radii: the radii that its samples were drawn to decide; empty if they were drawn to find the largest.
    """

    name: str
    log: CertificationLog
    sigma: float | None = None
    n: int | None = None
    alpha: float | None = None
    bound: str | None = None
    decided_radii: tuple[float, ...] = ()

    @property
    def correct_radii(self):
        """float64 [images], -1 where the prediction is wrong or abstained."""
        return evaluation.correct_radii(self.log, self.log.labels)


@dataclass(frozen=True)
class PairedDifference:
    """Difference of one entry's ACR from another's, on the `num_images` images that both have."""

    mean: float
    standard_error: float
    num_images: int


def paired_difference(entry, first):
    """The `PairedDifference` of `entry` from `first`; None if they share fewer than two images or differ in labels."""
    here, there, num_other_labels = _shared(entry, first)
    if len(here) < 2 or num_other_labels:
        return None
    gains = np.maximum(entry.correct_radii[here], 0) - np.maximum(first.correct_radii[there], 0)
    return PairedDifference(*evaluation.mean_and_standard_error(gains), len(here))


def default_radii(entries):
    """Multiples of 0.25, or of its doubles, up to the largest radius of a correct prediction; at most ten."""
    largest = max(entry.correct_radii.max() for entry in entries)
    step = 0.25
    while int(largest / step) + 1 > _MAX_RADII:
        step *= 2
    return tuple(step * i for i in range(max(int(largest / step), 0) + 1))


def table(entries, radii):
    """Header and rows of text: certified accuracy at `radii`, ACR, its difference from the first entry's, settings."""
    header = ["radius", *map(exactly, radii), "ACR", "vs first", *_SETTINGS, "images"]
    rows = []
    for entry in entries:
        result = _evaluate(entry, radii)
        accuracies = (f"{accuracy:.3f}" for accuracy in result.certified_accuracy)
        settings = (_in_words(value) for value in _setting(entry))
        images = _images(entry.log.ids)
        rows.append([entry.name, *accuracies, _acr(result), _difference(entry, entries[0]), *settings, images])
    return header, rows


def remarks(entries):
    """What to know before comparing these entries, one line each."""
    settings = list(zip(*map(_setting, entries), strict=True))
    differ = [name for name, values in zip(_SETTINGS, settings, strict=True) if len(set(values) - {None}) > 1]
    if any(set(entry.log.ids.tolist()) != set(entries[0].log.ids.tolist()) for entry in entries):
        differ.append("images")
    lines = []
    if differ:
        lines.append(
            f"Warning: these differ in {_and(differ)}. Radii grow with n and alpha and depend on sigma and the images: "
            "these figures are comparable only where all four are the same."
        )
    unknown = [name for name, values in zip(_SETTINGS, settings, strict=True) if None in values]
    if unknown:
        lines.append(f"{UNKNOWN}: a log does not state its {_and(unknown)}; make sure that they are the same.")
    if len(bounds := dict.fromkeys(entry.bound for entry in entries if entry.bound is not None)) > 1:
        lines.append(
            f"Warning: these differ in their bounds, {_and([*bounds])}: differences between bounds are not differences "
            "between models."
        )
    for entry in entries:
        if entry.decided_radii:
            decided = _and([*map(exactly, entry.decided_radii)])
            lines.append(
                f"Warning: {entry.name} was sampled only to decide at {decided}: its radii, and so its ACR, could be "
                "larger."
            )
        if entry.log.cut_off:
            lines.append(f"Warning: {entry.name} is incomplete: line {entry.log.cut_off} was cut off and is left out.")
        shared, _, num_other_labels = _shared(entry, entries[0])
        if num_other_labels:
            lines.append(
                f"Warning: {entry.name} has other labels than {entries[0].name} for {num_other_labels:,} of the "
                f"{len(shared):,} images that both have: they are from different data sets or in a different order."
            )
    return lines


def figure(entries):
    """The curves of certified accuracy against radius."""
    return figures.radius_accuracy_curves(_curves(entries))


def html(title, entries, radii):
    """The comparison as one page that needs no other file."""
    names = ", ".join(entry.name for entry in entries)
    rows = []
    for entry in entries:
        result = _evaluate(entry, radii)
        settings = [f"{name} = {_in_words(value)}" for name, value in zip(_SETTINGS, _setting(entry), strict=True)]
        difference = _difference(entry, entries[0])
        rows.append(
            page.MetricRow(
                entry.name,
                result.certified_accuracy,
                _acr(result),
                details=f"{', '.join(settings)}; images: {_images(entry.log.ids)}",
                acr_details=f"{difference} vs first" if difference else "",
            )
        )
    return page.render(
        title=title,
        summary=(),
        settings={},
        metrics=page.MetricsTable(radii, tuple(rows), remarks=tuple(remarks(entries))),
        figures=[
            page.accuracy_curves(
                charts.certified_accuracy(_curves(entries)), f"Curves of certified accuracy of {names}."
            )
        ],
        notes=list(_NOTES),
    )


_SETTINGS = ("sigma", "n", "alpha")


def _curves(entries):
    return {entry.name: entry.correct_radii for entry in entries}


def _setting(entry):
    return tuple(getattr(entry, name) for name in _SETTINGS)


def _in_words(value):
    if value is None:
        return UNKNOWN
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _evaluate(entry, radii):
    return evaluation.evaluate(entry.log, entry.log.labels, radii)


def _acr(result):
    return words.mean(result.acr, result.acr_standard_error)


def _difference(entry, first):
    difference = None if entry is first else paired_difference(entry, first)
    if difference is None:
        return ""
    told = words.mean(difference.mean, difference.standard_error, sign="+")
    if difference.num_images < max(len(entry.log.ids), len(first.log.ids)):
        told += f" ({difference.num_images:,})"
    return told


def _images(ids):
    return f"{len(ids):,} ({ids.min()}-{ids.max()})"


def _shared(entry, first):
    """Places in `entry` and in `first` of the images that both have, and how many of these differ in their labels."""
    _, here, there = np.intersect1d(entry.log.ids, first.log.ids, return_indices=True)
    return here, there, int((entry.log.labels[here] != first.log.labels[there]).sum())


def _and(names):
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
