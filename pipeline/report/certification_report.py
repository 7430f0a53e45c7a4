"""The certification report: the page about one classifier's certificates, put together from an evaluation."""

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

import macer_tf
from macer_tf import noise
from macer_tf.certificates import ABSTAIN, Certificates, max_radius
from macer_tf.votes import Votes
from pipeline.report import charts, figures, page, single_images, words
from pipeline.utils.atomic_files import write_bytes, write_text

FILE_NAME, FIGURE_NAME = "report.html", "radius_accuracy.png"

NOTES = (
    "Each certificate holds with probability at least 1 - alpha over the noise, image by image: the smoothed "
    "classifier returns the same class everywhere within the certified l2 radius (Cohen et al. 2019). Of 1,000 "
    "certificates at alpha = 0.001, at most one is expected to be false.",
    "The guarantee is about the smoothed classifier at this sigma, not about the network by itself, and about l2 "
    "perturbations of images in [0, 1]; radii are in those pixel units. It says nothing about other changes (rotation, "
    "blur), or about whether the class is right.",
    "ACR grows with n: never compare it across n, alpha or image sets.",
)
_AFTER_A_LOOK = (
    "Votes of these images had been looked at before n was chosen. The certificates therefore use the anytime-valid "
    "bound, which holds at alpha whenever one looks."
)
_DECIDED = (
    "Samples were drawn only until it was decided at which of the requested radii each image is certified: its radius "
    "could be larger, and so could the ACR."
)
_VERSIONS = ("tensorflow", "keras", "numpy", "apache-beam")


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What a report is about.

    Attributes:
        title: heading of the page.
        metrics, blessing: what the Evaluator writes as JSON; no blessing if none was asked for.
        listing: group -> list of [name, value in words, meaning], the run's settings.
        correct_radii: kind of certificate -> float64 [images], -1 where wrong or abstained; the run's own kind first.
            If no label is known, certified counts as correct.
        certificates, votes: of the images, for that kind.
        ids, labels: int64 [images]; labels are -1 where not known.
        class_names: one for each class.
        image: function of an image's position: its pixels [H, W, C], or None if they are no longer available.
        noise: function of an image's position: noise that was added to it for a vote, of the same shape.
        names: one for each image, of its file or as its data set calls it; or None.
        paper: a `presets.PaperRow` as a dictionary, or None.
        history: name -> one float per epoch, or None.
        command: the command that produces these certificates.
        finished_at: when they were made, seconds since the epoch, or None.
        color: place of the training method's colour.
    """

    title: str
    metrics: dict
    listing: dict
    correct_radii: dict
    certificates: Certificates
    votes: Votes
    ids: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    image: Callable
    noise: Callable
    command: str
    names: Sequence[str] | None = None
    blessing: dict | None = None
    paper: dict | None = None
    history: dict | None = None
    finished_at: float | None = None
    color: int = 0

    @property
    def has_labels(self):
        return bool((self.labels >= 0).any())

    @property
    def was_decided_at_first(self):
        """Whether samples were drawn at a first look to decide some radii: that budget has bounds of its own."""
        return bool(self.metrics.get("decided_radii")) and self.metrics["is_first_look"]

    @property
    def limit(self):
        """The largest radius that n and alpha can certify."""
        sigma, n, alpha, bound = (self.metrics[name] for name in ("sigma", "n", "alpha", "bound"))
        # That budget's look at n samples is by the default bound, at half of alpha.
        return max_radius(sigma, n, alpha / 2) if self.was_decided_at_first else max_radius(sigma, n, alpha, bound)


def first_noise(grid, image_shape, seed, ids):
    """A function: position in `ids` -> the noise of the image's first estimation sample, in [0, 1] pixel units."""

    def noise_of(position):
        drawn = grid.draw(image_shape, seed, int(ids[position]), noise.ESTIMATION, 0, 1)
        return drawn.numpy()[0] / grid.levels

    return noise_of


def write(directory, evaluated):
    """Writes the page, and the curve as an image, into `directory`, for an `Evaluated` with at least one image."""
    if evaluated.has_labels:
        write_bytes(directory / FIGURE_NAME, figures.save_png(figures.radius_accuracy_curves(evaluated.correct_radii)))
    write_text(directory / FILE_NAME, html(evaluated))


def html(evaluated):
    """The page as HTML text; always the same for the same `Evaluated`."""
    metrics = evaluated.metrics
    notes = [*NOTES]
    notes += [_AFTER_A_LOOK] if metrics["bound"] == "anytime" and not evaluated.was_decided_at_first else []
    notes += [_DECIDED] if metrics.get("decided_radii") else []
    return page.render(
        title=evaluated.title,
        summary=_summary(evaluated) if evaluated.has_labels else _summary_without_labels(evaluated),
        settings={group: [page.Setting(*entry) for entry in rows] for group, rows in evaluated.listing.items()},
        metrics=_table(evaluated) if evaluated.has_labels else None,
        figures=_figures(evaluated),
        notes=notes,
        images=single_images.browser(evaluated),
        confusion=single_images.confusion(evaluated.certificates.selected, evaluated.labels, evaluated.class_names),
        footer=_footer(evaluated),
        accent=evaluated.color,
    )


def _table(evaluated):
    """The run's own kind of certificates, the other kinds and the paper's row, up to the radii that n can certify."""
    metrics, paper = evaluated.metrics, evaluated.paper
    kept = [place for place, radius in enumerate(metrics["radii"]) if radius <= evaluated.limit]

    def row(name, certified_accuracy, acr, **details):
        return page.MetricRow(name, tuple(certified_accuracy[place] for place in kept), acr, **details)

    rows = [row("This model", metrics["certified_accuracy"], _acr(metrics), details=f"n = {metrics['n']:,}")]
    for kind in [*evaluated.correct_radii][1:]:
        of_kind = metrics["certificates"][kind]
        rows.append(row(f"This model, {kind}", of_kind["certified_accuracy"], _acr(of_kind)))
    if paper:
        acr = "—" if paper["acr"] is None else f"{paper['acr']:.3f}"
        caveat = f"n = 100,000, alpha = 0.001; {paper['image_set']}"
        name = paper["name"] + (f", Table {paper['table']}" if paper["table"] else "")
        rows.append(row(name, paper["certified_accuracy"], acr, paper_caveat=caveat))
    return page.MetricsTable(tuple(metrics["radii"][place] for place in kept), tuple(rows))


def _figures(evaluated):
    metrics, certificates, votes = evaluated.metrics, evaluated.certificates, evaluated.votes
    radii = next(iter(evaluated.correct_radii.values()))
    limit = evaluated.limit, charts.name_of_limit(evaluated.limit, metrics["n"])
    limit = None if metrics.get("decided_radii") else limit
    has_labels = evaluated.has_labels
    what = {} if has_labels else {"y_label": "share certified at r", "mean": "mean radius"}
    curve = charts.certified_accuracy(
        {"Measured here": radii}, colors={"Measured here": evaluated.color}, paper=evaluated.paper, limit=limit, **what
    )
    drawn = [
        page.accuracy_curves(
            curve,
            f"Curve of certified accuracy, from {np.mean(radii >= 0):.2f} at radius 0.",
            "certified class is their label" if has_labels else "class is certified",
        )
    ]
    estimated = votes.n > 0
    if estimated.any():
        p_lower = certificates.p_lower[estimated]
        ceiling = max(float(special.ndtr(evaluated.limit / metrics["sigma"])), p_lower.max())
        correct = (certificates.predictions == evaluated.labels)[estimated] if has_labels else None
        drawn.append(_sureness(charts.lower_bounds(p_lower, correct, ceiling=ceiling)))
    if len(evaluated.correct_radii) > 1:
        drawn.append(_kinds(charts.certified_accuracy(evaluated.correct_radii, **what)))
    if evaluated.history is not None:
        drawn.append(_training(charts.training(evaluated.history)))
    return drawn


def _sureness(drawn):
    return page.Figure(
        "p_a",
        "How sure the votes are",
        "Lower bound on the probability of each image's class, on the scale of its radius. Left of 1/2 the classifier "
        "abstains; the dashed line at the right is the highest bound that n samples can give. Images not estimated are "
        "left out.",
        drawn,
        "Histogram of the lower bounds.",
    )


def _training(drawn):
    caption = "Each epoch's means over the training images; above each curve, the last."
    return page.Figure("training", "Training", caption, drawn, "Training curve.", small=True)


def _kinds(chart):
    return page.Figure(
        "bounds",
        "Hard and soft certificates",
        "The same samples, counted hard (Clopper-Pearson) and soft (Algorithm 2 of the paper, at the inverse "
        "temperature that the name ends in). Soft certificates are about another classifier: the class of the "
        "largest mean score.",
        [chart],
        "Curves of certified accuracy, one for each kind of certificate.",
    )


def _summary(evaluated):
    metrics, blessing = evaluated.metrics, evaluated.blessing
    facts = [
        page.Fact(
            "Average certified radius (ACR)", _acr(metrics), ("± one standard error", metrics["image_set"]), short="ACR"
        ),
        page.Fact("Abstained", f"{metrics['abstained']:.3f}", _of_the_images(metrics)),
        *_facts_of_sampling(metrics),
    ]
    if blessing:
        verdict = "Blessed" if blessing["blessed"] else "Not blessed"
        facts.append(page.Fact("Verdict", verdict, tuple(blessing["reasons"] or _praise(metrics))))
    return facts


def _summary_without_labels(evaluated):
    metrics, certificates = evaluated.metrics, evaluated.certificates
    certified = certificates.radii[certificates.predictions != ABSTAIN]
    median = words.at_least(np.median(certified), 3) if len(certified) else "—"
    return [
        page.Fact(
            "Certified",
            f"{len(certified) / len(certificates):.3f}",
            ("fraction of the images, whose labels are not known", metrics["image_set"]),
        ),
        page.Fact("Median radius", median, ("of the certified images",)),
        *_facts_of_sampling(metrics),
    ]


def _facts_of_sampling(metrics):
    of_samples = (
        f"after n0 = {metrics['n0']:,} to choose a class",
        f"{metrics['samples_per_image']:,.0f} were drawn on average",
    )
    return [
        page.Fact("Samples per image, n", f"{metrics['n']:,}", of_samples),
        page.Fact("Failure probability, alpha", f"{metrics['alpha']:g}", ("for each image",)),
    ]


def _footer(evaluated):
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS)
    made = evaluated.finished_at and time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(evaluated.finished_at))
    return [
        ("Command", evaluated.command),
        *([("Certified", made)] if made else []),
        ("Versions", f"macer_tf {macer_tf.__version__}, {versions}"),
    ]


def _acr(metrics):
    return words.mean(metrics["acr"], metrics["acr_standard_error"], digits=3)


def _of_the_images(metrics):
    if not metrics["unestimated"]:
        return ("fraction of the images",)
    return (
        "fraction of the images",
        f"{metrics['unestimated']:.3f} more were not estimated: the class that was selected is not the label",
    )


def _praise(metrics):
    difference = metrics["difference_to_last_blessed"]
    if difference is None:
        return ("above the accuracy threshold; no comparable model was blessed before",)
    return (
        "above the accuracy threshold",
        f"ACR {words.mean(difference['mean'], difference['standard_error'], sign='+')} against the last blessed model",
    )
