"""The certificates of a run as files: a JSON line an image, by rising id, and what they are."""

import json
from pathlib import Path

import numpy as np

from macer_tf.certificates import Certificates
from macer_tf.votes import Votes
from pipeline.artifacts import write_text

_COLUMNS = {
    "id": np.int64, "selection": np.int64, "estimation": np.int64, "prediction": np.int64, "selected": np.int64,
    "radius": np.float64, "p_lower": np.float64,
}  # fmt: skip
_ABOUT = "certification.json"


def write(path, outcome, plan, sigma, precision):
    """Writes what `read` reads: a JSON line an image, by rising id, for each kind of certificate; and what they are.

    Args:
        path: directory.
        outcome: `certification.Outcome`.
        plan: `SamplingPlan`.
        sigma: noise level.
        precision: what the classifier computed in.
    """
    votes = outcome.votes
    if len(outcome.ids):
        certified = plan.certificates(votes, sigma, outcome.is_first_look)
    else:
        nothing = np.zeros(0)
        certified = {
            name: Certificates(nothing, nothing, nothing, nothing, sigma, plan.alpha, plan.n0, plan.n, bound, beta)
            for name, bound, beta in plan.kinds
        }
    for place, (name, certificates) in enumerate(certified.items()):
        rows = zip(
            outcome.ids, votes.selection, votes.estimation, certificates.predictions, certificates.selected,
            certificates.radii, certificates.p_lower, strict=True,
        )  # fmt: skip
        lines = [json.dumps(dict(zip(_COLUMNS, (value.tolist() for value in row), strict=True))) + "\n" for row in rows]
        write_text(Path(path) / file_name(place, name, "jsonl"), "".join(lines))
    about = {
        "sigma": sigma,
        "alpha": plan.alpha,
        "n0": plan.n0,
        **plan.first_look,
        "is_first_look": outcome.is_first_look,
        "precision": precision,
        "kinds": [
            {"name": name, "bound": certificates.bound, "beta": certificates.beta}
            for name, certificates in certified.items()
        ],
    }
    write_text(Path(path) / _ABOUT, json.dumps(about, indent=1))


def read(path):
    """What `write` wrote.

    Returns:
        What the certificates are, as in certification.json; ids int64 [images]; hard `Votes`; and kind's name ->
        `Certificates`, the run's own kind first.
    """
    about = json.loads((Path(path) / _ABOUT).read_text())
    certified = {}
    for place, kind in enumerate(about["kinds"]):
        file = Path(path) / file_name(place, kind["name"], "jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        columns = {name: np.array([row[name] for row in rows], dtype) for name, dtype in _COLUMNS.items()}
        counts = [columns[name].reshape(len(rows), -1 if rows else 0) for name in ("selection", "estimation")]
        votes = Votes(*counts)
        n = votes.n
        certified[kind["name"]] = Certificates(
            predictions=columns["prediction"],
            radii=columns["radius"],
            p_lower=columns["p_lower"],
            selected=columns["selected"],
            sigma=about["sigma"],
            alpha=about["alpha"],
            n0=about["n0"],
            n=about["n"] if (n == about["n"]).all() else n,
            bound=kind["bound"],
            beta=kind["beta"],
        )
    return about, columns["id"], votes, certified


def file_name(place, kind, suffix):
    """Of the certificates of the kind in this place: the run's own kind is the first."""
    return f"certificates-{kind}.{suffix}" if place else f"certificates.{suffix}"
