"""The certificates of a run as files: a JSON line for each image, in ascending order of id, and a description."""

import filecmp
import json
import os
import re
import uuid
from pathlib import Path

import numpy as np

from macer_tf.certificates import Certificates
from macer_tf.votes import Votes
from pipeline.utils import sealed
from pipeline.utils.atomic_files import finish_directory, remove_path, write_link, write_text
from pipeline.utils.errors import InputError
from serving.fingerprints import digest

_COLUMNS = {
    "example_id": np.int64, "selection": np.int64, "estimation": np.int64, "prediction": np.int64, "selected": np.int64,
    "radius": np.float64, "p_lower": np.float64,
}  # fmt: skip
_ABOUT = "certification.json"
_RESULTS = "results"
_FORMAT = 2
# What `finish` may find of an earlier run.
_FILE = re.compile(
    r"certificates(-[\w.+-]+)?\.(jsonl|tsv|parquet)|certification\.json|failed\.tsv|metrics\.json|"
    r"radius_accuracy\.png|report\.html|settings\.yaml"
)
_DIRECTORY = re.compile(rf"{_RESULTS}-[0-9a-f]{{8}}")
# Holds the name of the directory of results that it is in. A folder of the user's may have such a name, but not this.
_OURS = ".directory"
# What the directory of the results before is called while it is removed.
_REPLACED = ".certifying-replaced"


def write(path, outcome, plan, sigma, precision):
    """Writes what `read` reads: for each kind, a JSON line for each image, in ascending order of id; and a description.

    The description, certification.json, carries its own checksum and those of the other files.

    Args:
        path: directory.
        outcome: `driver.Outcome`.
        plan: the `SamplingPlan`.
        sigma: noise level.
        precision: number type that the classifier computed in.
    """
    votes = outcome.votes
    if len(outcome.ids):
        certified = plan.certificates(votes, sigma, outcome.share_of_alpha)
    else:
        nothing = np.zeros(0)
        certified = {
            name: Certificates(nothing, nothing, nothing, nothing, sigma, plan.alpha, plan.n0, plan.n, bound, beta)
            for name, bound, beta in plan.kinds
        }
    kinds = []
    for place, (name, certificates) in enumerate(certified.items()):
        rows = zip(
            outcome.ids,
            votes.selection,
            votes.estimation,
            certificates.predictions,
            certificates.selected,
            certificates.radii,
            certificates.p_lower,
            strict=True,
        )
        lines = [json.dumps(dict(zip(_COLUMNS, (value.tolist() for value in row), strict=True))) + "\n" for row in rows]
        content = "".join(lines)
        write_text(Path(path) / file_name(place, name, "jsonl"), content)
        of_kind = {"name": name, "bound": certificates.bound, "beta": certificates.beta}
        kinds.append({**of_kind, "sha256": digest(content.encode())})
    about = {
        "format": _FORMAT,
        "sigma": sigma,
        "alpha": plan.alpha,
        **plan.first_look,
        "is_first_look": outcome.is_first_look,
        "precision": precision,
        "kinds": kinds,
    }
    write_text(Path(path) / _ABOUT, sealed.dumps(about, indent=1))


def read(path):
    """Reads what `write` wrote.

    Returns:
        The description, as in certification.json; ids int64 [images]; hard `Votes`; and kind's name -> `Certificates`,
        the run's own kind first.

    Raises:
        InputError: if a file is missing, or was changed since it was written.
    """
    try:
        about = sealed.loads((Path(path) / _ABOUT).read_bytes())
        if (found := about.get("format", 1)) != _FORMAT:
            which = "an earlier" if found in range(_FORMAT) else "another"
            raise InputError(
                f"The certificates in {path} are of format {found}, which {which} version wrote. This one reads format "
                f"{_FORMAT}: certify again."
            )
        contents = [
            (Path(path) / file_name(i, kind["name"], "jsonl")).read_bytes() for i, kind in enumerate(about["kinds"])
        ]
        if [digest(content) for content in contents] != [kind["sha256"] for kind in about["kinds"]]:
            raise ValueError("a file of certificates does not match its checksum")
    except InputError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"The certificates in {path} were changed or damaged ({error}); certify again: no sample is drawn again."
        ) from None
    certified = {}
    for kind, content in zip(about["kinds"], contents, strict=True):
        rows = [json.loads(line) for line in content.splitlines()]
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
    return about, columns["example_id"], votes, certified


def file_name(place, kind, suffix):
    """The name of a file for the kind of certificates in this place; the run's own kind is the first."""
    return f"certificates-{kind}.{suffix}" if place else f"certificates.{suffix}"


def check_room(output):
    """Raises InputError if `finish` could not put results into this folder; also to be called before any work."""
    current = Path(output) / _RESULTS
    if current.exists() and not current.is_symlink():
        raise InputError(f"{current} is in the way: the certificates' directory goes there. Move it elsewhere.")
    for path in _results_in(Path(output)):
        if not _is_ours(path):
            raise InputError(
                f"{path} is in the way: a result of that name goes there. Move it elsewhere, or give another output."
            )


def finish(unfinished, output):
    """Replaces the files of the previous run, all at once, by those of the directory `unfinished`.

    They move to a directory of their own in `output`, and the link `results` there is pointed to it. Links under the
    files' own names lead through it: whoever reads them finds the files of one run, whenever this one is killed.

    Raises:
        InputError: if something else is in the way.
    """
    output = Path(output)
    names = [path.name for path in _results_in(Path(unfinished))]
    check_room(output)
    current = output / _RESULTS
    directory = output / f"{_RESULTS}-{uuid.uuid4().hex[:8]}"
    write_text(Path(unfinished) / _OURS, directory.name)
    finish_directory(unfinished, directory)
    for path in _results_in(output):
        # In a copy of the folder that did not keep links: no results for a moment are better than those of two runs.
        if not path.is_symlink():
            path.unlink()
    for name in names:
        write_link(output / name, f"{_RESULTS}/{name}")
    write_link(current, directory.name)
    for path in _directories(output):
        if path != directory:
            # Renamed first: after a kill, what is left of it could not be told from a folder of the user's.
            remove_path(output / _REPLACED)
            os.rename(path, output / _REPLACED)
    remove_path(output / _REPLACED)
    for path in _results_in(output):
        if path.name not in names:
            path.unlink()


def _results_in(output):
    return [path for path in sorted(output.glob("*")) if _FILE.fullmatch(path.name)]


def _directories(output):
    """The directories of results that `finish` made here; none that somebody copied or renamed to keep it."""
    found = [path for path in output.iterdir() if _DIRECTORY.fullmatch(path.name) and path.is_dir()]
    return [path for path in found if _says(path / _OURS, path.name)]


def _says(path, name):
    try:
        return path.read_text() == name
    except (OSError, ValueError):
        return False


def _is_ours(path):
    """Whether it is a link that `finish` made, or a copy of its target."""
    if path.is_symlink():
        return os.readlink(path) == f"{_RESULTS}/{path.name}"
    originals = [directory / path.name for directory in _directories(path.parent)]
    return path.is_file() and any(one.is_file() and filecmp.cmp(path, one, shallow=False) for one in originals)
