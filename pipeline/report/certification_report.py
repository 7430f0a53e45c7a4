"""The certification report: figures and the page, put together from an evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from scipy import special

from macer_tf.certificates import ABSTAIN, Certificates, max_radius
from macer_tf.votes import Votes
from pipeline.experiments import methods
from pipeline.report import figures, page, words
from pipeline.utils.atomic_files import write_text

FILE_NAME = "report.html"

NOTES = (
    "Each certificate holds with probability at least 1 - alpha over the noise, image by image: the smoothed "
    "classifier returns the same class everywhere within the certified l2 radius (Cohen et al. 2019). Of 1,000 "
    "certificates at alpha = 0.001, one false one is to be expected at most.",
    "The guarantee is about the smoothed classifier at this sigma, not about the network by itself, and about l2 "
    "perturbations of images in [0, 1]; radii are in those pixel units. It says nothing about other changes (rotation, "
    "blur) nor about whether the class is right.",
    "ACR grows with n: never compare it across n, alpha or image sets.",
)
_AFTER_A_LOOK = (
    "Votes of these images had been looked at before n was chosen. The certificates are therefore by the anytime-valid "
    "bound, which holds at alpha whenever one looks."
)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What a report is about.

    Attributes:
        metrics, blessing: what the Evaluator writes as JSON.
        listing: group -> list of [name, value in words, meaning], the run's settings.
        paper: a `presets.PaperRow` as a dictionary, or None.
        correct_radii: kind of certificate -> float64 [images], -1 where wrong or abstained; the run's own kind first.
        certificates, votes: of the images, of that kind.
        labels: int64 [images].
        class_names: one for each class.
        image, noisy: functions of an image's position: its pixels [H, W, C], and noisy copies of it [copies, H, W, C].
        history: structured array, one row for each epoch.
    """

    metrics: dict
    blessing: dict
    listing: dict
    paper: dict | None
    correct_radii: dict
    certificates: Certificates
    votes: Votes
    labels: np.ndarray
    class_names: Sequence[str]
    image: Callable
    noisy: Callable
    history: np.ndarray

    @property
    def name(self):
        """Of the model, in words."""
        return f"{self._setting('dataset')}, sigma = {self.metrics['sigma']:g}"

    @property
    def method(self):
        """How it was trained, in words."""
        return methods.find(self._setting("method")).label

    def _setting(self, name):
        return next(value for group in self.listing.values() for one, value, _ in group if one == name)


def write(directory, evaluated):
    """Writes report.html and its figures as PNG into `directory`, about an `Evaluated`."""
    pictures = {name: figures.save_png(figure) for name, figure in _figures(evaluated).items()}
    for figure_name, picture in pictures.items():
        (directory / f"{figure_name}.png").write_bytes(picture)
    metrics, listing = evaluated.metrics, evaluated.listing
    html = page.render(
        title=f"Certification report: {evaluated.name}",
        summary=_summary(metrics, evaluated.blessing),
        settings={group: [page.Setting(*entry) for entry in entries] for group, entries in listing.items()},
        metrics=page.MetricsTable(metrics["radii"], tuple(_rows(evaluated))),
        figures=[
            page.PageFigure(figure_name, heading, caption, pictures[figure_name], alt)
            for figure_name, heading, caption, alt in _panels(metrics, evaluated.paper)
            if figure_name in pictures
        ],
        notes=[*NOTES, *([_AFTER_A_LOOK] if metrics["bound"] == "anytime" else [])],
    )
    write_text(directory / FILE_NAME, html)


def _rows(evaluated):
    """The rows of the table: the run's own kind of certificates, the other kinds, the paper's."""
    metrics, paper = evaluated.metrics, evaluated.paper
    rows = [page.MetricRow(f"This model ({evaluated.name})", metrics["certified_accuracy"], _acr(metrics))]
    for kind in [*evaluated.correct_radii][1:]:
        of_kind = metrics["certificates"][kind]
        rows.append(page.MetricRow(f"This model, {kind}", of_kind["certified_accuracy"], _acr(of_kind)))
    if paper:
        label = paper["name"] + (f", Table {paper['table']}" if paper["table"] else "")
        rows.append(
            page.MetricRow(label, paper["certified_accuracy"], f"{paper['acr']:.3f}", paper_caveat=paper["image_set"])
        )
    return rows


def _figures(evaluated):
    """Name -> figure, of those that there are."""
    metrics, history, certificates = evaluated.metrics, evaluated.history, evaluated.certificates
    paper_curve = SimpleNamespace(**evaluated.paper) if evaluated.paper else None
    own = next(iter(evaluated.correct_radii.values()))
    estimated = evaluated.votes.n > 0
    drawn = {
        "radius_accuracy": figures.radius_accuracy(own, paper_curve, label=f"{evaluated.method}, {evaluated.name}"),
        "training": figures.training_curves({name: np.atleast_1d(history[name]) for name in history.dtype.names}),
    }
    if positions := _gallery_positions(certificates, evaluated.labels, estimated):
        drawn["examples"] = figures.example_gallery([_example(position, evaluated) for position in positions])
    if estimated.any():
        correct = (certificates.predictions == evaluated.labels)[estimated]
        ceiling = special.ndtr(max_radius(1.0, metrics["n"], metrics["alpha"], metrics["bound"]))
        drawn["p_a"] = figures.p_a_distribution(certificates.p_lower[estimated], correct, ceiling=ceiling)
    if len(evaluated.correct_radii) > 1:
        drawn["bounds"] = figures.radius_accuracy_curves(evaluated.correct_radii)
    return drawn


def _summary(metrics, blessing):
    verdict = "Blessed" if blessing["blessed"] else "Not blessed"
    of_samples = (
        f"after n0 = {metrics['n0']:,} to choose a class",
        f"{metrics['samples_per_image']:,.0f} were drawn on average",
    )
    return [
        page.Fact("Average certified radius (ACR)", _acr(metrics), ("± one standard error", metrics["image_set"])),
        page.Fact("Abstained", f"{metrics['abstained']:.3f}", _of_the_images(metrics)),
        page.Fact("Samples per image, n", f"{metrics['n']:,}", of_samples),
        page.Fact("Failure probability, alpha", f"{metrics['alpha']:g}", ("for each image",)),
        page.Fact("Verdict", verdict, tuple(blessing["reasons"] or _praise(metrics))),
    ]


def _acr(metrics):
    return words.mean(metrics["acr"], metrics["acr_standard_error"], digits=3)


def _panels(metrics, paper):
    """(figure's name, heading, caption, what it shows in words) of each figure that there may be."""
    return (
        (
            "radius_accuracy",
            "Certified accuracy by radius",
            "Share of the images whose certified class is their label, at each l2 radius or beyond. The area under the "
            "curve is the ACR."
            + (" Markers are the numbers reported in the paper, on its own images." if paper else ""),
            f"Curve of certified accuracy, from {metrics['certified_accuracy'][0]:.2f} at radius 0.",
        ),
        (
            "p_a",
            "How sure the votes are",
            "Lower bound on the probability of each image's class. Left of 1/2 the classifier abstains; the dashed "
            "line at the right is the highest bound that n samples can give. Images not estimated are left out.",
            "Histogram of the lower bounds, correct and not correct images apart.",
        ),
        (
            "bounds",
            "Hard and soft certificates",
            "The same samples, counted hard (Clopper-Pearson) and soft (Algorithm 2 of the paper, at the inverse "
            "temperature that the name ends in). Soft certificates are about another classifier: the class of the "
            "largest mean score.",
            "Curves of certified accuracy, one for each kind of certificate.",
        ),
        ("training", "Training", "Each epoch's means over the training images.", "Training curves."),
        (
            "examples",
            "Examples",
            "Images, two of the noisy copies that were voted on, the label, and what is certified.",
            "Grid of example images with noisy copies, predicted class and certified radius.",
        ),
    )


def _of_the_images(metrics):
    if not metrics["unestimated"]:
        return ("fraction of the images",)
    return (
        "fraction of the images",
        f"{metrics['unestimated']:.3f} more were not estimated: the class that was selected is not the label",
    )


def _example(position, evaluated):
    certificates, votes, class_names = evaluated.certificates, evaluated.votes, evaluated.class_names
    prediction = certificates.predictions[position]
    certified = prediction != ABSTAIN
    share = votes.estimation[position, certificates.selected[position]] / votes.n[position]
    return SimpleNamespace(
        image=evaluated.image(position),
        noisy=list(evaluated.noisy(position)),
        label=class_names[evaluated.labels[position]],
        prediction=class_names[prediction] if certified else figures.ABSTAIN,
        radius=float(certificates.radii[position]) if certified else None,
        vote_share=float(share),
    )


def _gallery_positions(certificates, labels, estimated):
    """Up to eight images: the largest, middle and smallest correct radii, then wrong and abstained ones."""
    predictions, radii = certificates.predictions, certificates.radii
    by_radius = np.flatnonzero(predictions == labels)
    by_radius = by_radius[np.argsort(-radii[by_radius], kind="stable")]
    wrong = np.flatnonzero((predictions != labels) & (predictions != ABSTAIN))[:2]
    abstained = np.flatnonzero((predictions == ABSTAIN) & estimated)[:2]
    room = figures.MAX_EXAMPLES - len(wrong) - len(abstained)
    spread = np.unique(np.linspace(0, len(by_radius) - 1, min(room, len(by_radius))).round().astype(int))
    return [*by_radius[spread], *wrong, *abstained]


def _praise(metrics):
    difference = metrics["difference_to_last_blessed"]
    if difference is None:
        return ("above the accuracy threshold; no comparable model was blessed before",)
    return (
        "above the accuracy threshold",
        f"ACR {words.mean(difference['mean'], difference['standard_error'], sign='+')} against the last blessed model",
    )
