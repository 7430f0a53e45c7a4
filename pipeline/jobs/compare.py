"""Anyone's certification logs side by side: python -m pipeline.compare A.tsv B.tsv

Takes the field's logs and the evaluations of our own runs; prints one table and draws one figure.
"""

import dataclasses
import json
import math
import re
import sys
import warnings
from pathlib import Path

import numpy as np

from macer_tf import certification_log, files
from pipeline.cli import command_line, console
from pipeline.cli.command_line import Kind, Setting
from pipeline.report import comparison, figures, words
from pipeline.utils import atomic_files
from pipeline.utils.errors import InputError
from serving.exit import exit_status
from serving.terminal import printable

_LOG, _METRICS, _SWEEP = "certificates.tsv", "metrics.json", "sweep.json"
# Our logs beside others of the same evaluation: certificates-soft-hoeffding-1.tsv; of a sweep: 2-lam-4.0.tsv.
_LOG_OF_KIND = re.compile(r"certificates-(.+)\.tsv")
_LOG_OF_MEMBER = re.compile(r"(\d{1,6})-(.+)\.tsv")
_MOST_BYTES = 2**24
# Where a log is in one of our folders: an evaluation, an Evaluator's execution, a pipeline root.
_PLACES = (_LOG, f"evaluation/{_LOG}", f"Evaluator-*/evaluation/{_LOG}")
_SUFFIXES = (".gz", ".tsv", ".txt", ".log")
_OUTPUTS = (".html", ".png", ".svg")


def _parse_ids(text):
    first, last = (int(number) for number in text.split("-"))
    if first > last:
        raise ValueError
    return first, last


def _parse_output(text):
    if Path(text).suffix not in _OUTPUTS:
        raise ValueError
    return command_line.PATH.parse(text)


_GROUPS = {
    "Comparison": (
        Setting("radii", command_line.RADII, "columns of the table, l2 in [0, 1] "
                "pixel units", None, "by the data"),
        Setting("ids", Kind("a range such as 500-999", _parse_ids), "compare on these images only", None, "all"),
        Setting("names", Kind("names with commas between them", lambda text: text.split(",")), "names of the curves",
                None, "the files'"),
        Setting("output", Kind(f"a file that ends in {', '.join(_OUTPUTS)}", _parse_output), "where the figure is "
                "written; as .html with the table", "comparison.html"),
    )
}  # fmt: skip


def main(arguments=None):
    """Prints the table and writes the figure. Returns the exit status: 0, 1 if it failed, 2 for bad input."""

    def parse():
        return _parse(sys.argv[1:] if arguments is None else arguments), Path()

    def work(settings):
        _compare(settings)
        return 0

    return exit_status(
        parse, work, "Nothing was written; run the same command again.", bad_input=InputError, at_once=True
    )


def load(path, name):
    """The `comparison.Entry` of a log, or of a folder of ours that has one evaluation.

    Raises:
        InputError: in one line, if there is none, or several, or it cannot be read.
    """
    log_path = Path(path)
    try:
        log_path = _find_log(log_path)
        log = certification_log.read(log_path)
    except FileNotFoundError:
        raise InputError(f"There is no file or folder {log_path}; give a log, or a folder of a run.") from None
    except OSError as error:
        raise InputError(f"Cannot read {log_path} ({error.strerror}).") from None
    except ValueError as error:
        raise InputError(str(error)) from None
    if (log.labels < 0).all():
        raise InputError(
            f"{log_path} has no labels, but -1 in their place: neither certified accuracy nor the ACR is known. Leave "
            "it out, or certify images whose classes are known."
        )
    return comparison.Entry(name, log, **_certified_at(log_path, len(log.ids)))


def names_of(paths):
    """A name for each path: as much of its end as it takes to tell them apart."""
    parts = [_telling_parts(Path(path).absolute()) for path in paths]
    different = len({tuple(part) for part in parts})
    names = next(
        names
        for length in range(1, max(map(len, parts)) + 1)
        if len(set(names := ["/".join(part[-length:]) for part in parts])) == different
    )
    # The same path may occur more than once.
    return [
        f"{name} ({names[:place].count(name) + 1})" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def _parse(arguments):
    values = command_line.given(
        arguments,
        _GROUPS,
        prog="python -m pipeline.compare",
        usage="%(prog)s LOG [LOG ...] [options]",
        description="Compares certification logs (the field's tab-separated idx, label, predict, radius, correct, "
        "time) and evaluations of pipeline.run (their folders): certified accuracy at radii, ACR with its standard "
        "error, and its paired difference from the first. In brackets: the default.",
        positional="paths",
    )
    return command_line.defaults(_GROUPS) | values


def _compare(settings):
    paths = settings["paths"]
    if not 1 <= len(paths) <= figures.MAX_CURVES:
        raise InputError(f"Give 1 to {figures.MAX_CURVES} logs, or folders of runs. Received: {len(paths)}")
    names = [printable(name) for name in settings["names"] or names_of(paths)]
    if len(names) != len(paths) or len(set(names)) != len(names) or not all(names):
        raise InputError(
            f"--names needs one name for each log ({len(paths)}), none empty and no two the same. Received: {names}"
        )
    entries = [load(path, name) for path, name in zip(paths, names, strict=True)]
    if settings["ids"]:
        entries = [_between(entry, *settings["ids"]) for entry in entries]
    radii = settings["radii"] or comparison.default_radii(entries)
    print(words.HEADER)
    print(console.table(*comparison.table(entries, radii)))
    print("\n".join([comparison.VERSUS_FIRST, *comparison.remarks(entries)]))
    print(f"\nFigure: {printable(_write(Path(settings['output']), entries, radii))}")


def _find_log(path):
    if not path.is_dir():
        return path
    found = []
    for place in _PLACES:
        # What a kill left unfinished is not an evaluation.
        found = found or sorted(log for log in path.glob(place) if ".unfinished/" not in str(log.relative_to(path)))
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{path} holds {len(found)} evaluations; name one: {', '.join(map(str, found))}")
    if (path / "certificates.jsonl").exists():
        raise InputError(f"{path} has certificates without labels; give the folder of the Evaluator that read them.")
    raise InputError(f"{path} is neither an evaluation nor a pipeline root with one: it has no {_LOG}.")


def _certified_at(log_path, num_images):
    """What one of our own logs was certified at, as an `Entry` has it; nothing for anyone else's, which do not say."""
    path, find = _description(log_path)
    if path is None or not path.exists():
        return {}
    try:
        described = find(json.loads(files.read(path, _MOST_BYTES)))
        known = {name: _positive(described[name]) for name in ("sigma", "n", "alpha")}
        of_images = _positive(described["num_images"])
        decided = tuple(map(_not_negative, described.get("decided_radii") or ()))
        bound, beta = (described.get(name) for name in ("bound", "beta"))
        of_soft = None if beta is None else _positive(beta)
        known |= {"decided_radii": decided, "bound": None if bound is None else words.bound(printable(bound), of_soft)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise InputError(f"{path} is damaged; make the evaluation again.") from None
    if of_images != num_images:
        raise InputError(f"{path} covers {of_images} images, {log_path} {num_images}: they are not from the same run.")
    return known


def _description(log_path):
    """The file that describes a log of ours, and what finds the description in it; None if the log is not ours."""
    of_kind, of_member = _LOG_OF_KIND.fullmatch(log_path.name), _LOG_OF_MEMBER.fullmatch(log_path.name)
    if log_path.name == _LOG:
        return log_path.with_name(_METRICS), lambda metrics: metrics
    if of_kind:
        return log_path.with_name(_METRICS), lambda metrics: metrics | metrics["certificates"][of_kind[1]]
    if of_member and int(of_member[1]):
        return log_path.with_name(_SWEEP), lambda sweep: sweep["members"][int(of_member[1]) - 1]
    return None, None


def _positive(value):
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError
    return value


def _not_negative(value):
    return value if value == 0 and type(value) in (int, float) else _positive(value)


def _telling_parts(path):
    """The parts of a path that distinguish one log from another: no suffixes, and none of our own files' names."""
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    parts = [*path.parts[1:-1], name]
    while len(parts) > 1 and parts[-1] in ("certificates", "evaluation"):
        parts.pop()
    return parts


def _between(entry, first, last):
    log = entry.log
    chosen = (log.ids >= first) & (log.ids <= last)
    if not chosen.any():
        raise InputError(
            f"{entry.name} has no image from {first} to {last}: its {len(log.ids):,} images are from {log.ids.min()} "
            f"to {log.ids.max()}."
        )
    columns = ("ids", "labels", "predictions", "radii", "seconds")
    chosen_columns = {name: np.asarray(getattr(log, name))[chosen] for name in columns}
    return dataclasses.replace(entry, log=dataclasses.replace(log, **chosen_columns))


def _write(path, entries, radii):
    with warnings.catch_warnings():
        # Letters that the figure's font lacks are drawn as boxes; the table has the readable name.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        if path.suffix == ".html":
            names = f"{len(entries)} models" if len(entries) > 1 else entries[0].name
            content = comparison.html(f"Certified accuracy of {names}", entries, radii).encode()
        else:
            save = figures.save_png if path.suffix == ".png" else figures.save_svg
            content = save(comparison.figure(entries))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_bytes(path, content)
    except OSError as error:
        raise InputError(f"Cannot write {path} ({error.strerror}); give another --output.") from None
    return path
