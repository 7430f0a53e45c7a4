"""Certificates -> results: the measured figures, the files that record them, and the rows of their table.

The Evaluator and `pipeline.certify` both use this, so that the same votes have the same results, whoever drew them.
"""

import json
import math

import numpy as np

from macer_tf import certification_log, evaluation
from macer_tf.certificates import ABSTAIN
from pipeline.certification import certificate_files
from pipeline.report import table, words
from pipeline.utils.atomic_files import write_text
from pipeline.utils.numbers import exactly

METRICS = "metrics.json"


def write(directory, certified, labels, radii=None, names=None, **also):
    """Writes the field's log of each kind of certificates, a Parquet file of each, and metrics.json.

    Args:
        directory: `Path`, which exists.
        certified: what `certificate_files.read` returned.
        labels: int64 [images], or -1 for all where they are not known.
        radii: l2 radii at which to report certified accuracy; by default those that were decided, if the samples were
            drawn to decide some, otherwise `evaluation.default_radii`.
        names: of the images, as `certification_log.write` takes them.
        also: further JSON values for metrics.json.

    Returns:
        The metrics: `also`, and what `of` returns.
    """
    about, ids, votes, kinds = certified
    for place, (name, certificates) in enumerate(kinds.items()):
        log = directory / certificate_files.file_name(place, name, "tsv")
        certification_log.write(log, certificates, labels, ids, names)
        path = directory / certificate_files.file_name(place, name, "parquet")
        table.write(path, certificates, votes, labels, ids, names)
    # At radii other than those that were decided, the share certified is not the model's.
    shown = radii or about["radii"] or evaluation.default_radii(about["sigma"], about["n"], about["alpha"])
    metrics = {**also, **of(kinds, votes, labels, shown)}
    write_text(directory / METRICS, json.dumps(metrics, indent=1))
    return metrics


def of(kinds, votes, labels, radii):
    """What is measured of certificates, as JSON values: for the run's own kind, and for each under "certificates".

    Args:
        kinds: kind's name -> `Certificates`, the run's own first.
        votes: `Votes` of the images.
        labels, radii: see `write`.
    """
    count = len(labels)
    each = {name: _of_kind(certificates, labels, radii) for name, certificates in kinds.items()} if count else {}
    return {
        "num_images": count,
        "samples_per_image": float(np.mean(votes.n0 + votes.n)) if count else None,
        **next(iter(each.values()), {}),
        "certificates": each,
    }


def _of_kind(certificates, labels, radii):
    result = evaluation.evaluate(certificates, labels, radii)
    certified = certificates.radii[certificates.predictions != ABSTAIN]
    of_all = {
        "bound": certificates.bound,
        "beta": certificates.beta,
        "num_certified": len(certified),
        "median_radius": float(np.median(certified)) if len(certified) else None,
        "abstained": result.abstained,
        "unestimated": result.unestimated,
    }
    if (labels < 0).all():
        return of_all
    return of_all | {
        "acr": result.acr,
        "acr_standard_error": in_json(result.acr_standard_error),
        "radii": result.radii,
        "certified_accuracy": result.certified_accuracy,
    }


def in_json(standard_error):
    """A standard error as JSON, which has no NaN; None if there is none, as of one value."""
    return None if math.isnan(standard_error) else standard_error


def twice_chance(num_classes):
    """The certified accuracy from which a model is better than chance: twice chance; for two classes, halfway to 1."""
    chance = 1 / num_classes
    # For two classes, twice chance would require perfection.
    return min(2 * chance, (1 + chance) / 2)


def header(first, radii):
    """The header of a table of results whose first column is called `first`."""
    return [first, *map(exactly, radii), "ACR"]


def row(name, measured):
    """A row of that table, for one of the "certificates" that `of` returned."""
    accuracies = [f"{accuracy:.3f}" for accuracy in measured["certified_accuracy"]]
    return [name, *accuracies, words.mean(measured["acr"], measured["acr_standard_error"])]
