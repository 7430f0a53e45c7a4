"""The runs of a pipeline root: python -m pipeline.runs [ROOT]

Lists each with its command, what differs from its preset, its results and where everything is; --prune removes what no
finished run uses.
"""

import json
import os
import sys
from datetime import datetime
from pathlib import Path

from macer_tf import files
from pipeline.cli import command_line, console
from pipeline.cli.command_line import SWITCH, Setting
from pipeline.experiments import settings as settings_lib
from pipeline.orchestration import history, orchestrator
from pipeline.report import results, words
from pipeline.utils.errors import InputError
from serving.exit import exit_status
from serving.terminal import printable

_GROUPS = {
    "Runs": (
        Setting("json", SWITCH, "one JSON value on stdout", False),
        Setting("prune", SWITCH, "remove what no finished run uses", False),
        Setting("dry_run", SWITCH, "with --prune: show what it would remove, and remove nothing", False),
    )
}
_ROOT = "runs"
_MOST_BYTES = 2**24


def main(arguments=None):
    """Lists or prunes. Returns the exit status: 0, 1 if it failed, 2 for bad input."""

    def parse():
        return _parse(sys.argv[1:] if arguments is None else arguments), None

    def work(settings):
        (_prune if settings["prune"] else _list)(settings)
        return 0

    interrupted = "Run the same command again."
    return exit_status(parse, work, interrupted, bad_input=InputError, foreseen=(OSError,), at_once=True)


def _parse(arguments):
    given = command_line.given(
        arguments,
        _GROUPS,
        prog="python -m pipeline.runs",
        usage="%(prog)s [ROOT] [options]",
        description="Lists the runs of a pipeline root, the latest last: state, ACR, command, what differs from the "
        "preset, and the folder with links to its results. --prune removes what failed or was not finished, "
        "and what no finished run uses; trained models, votes and pushed versions are kept. In brackets: the default.",
        positional="roots",
    )
    settings = command_line.defaults(_GROUPS) | given
    roots = settings["roots"] or [_ROOT]
    if len(roots) > 1:
        raise InputError(f"Give one pipeline root. Received: {' '.join(map(printable, roots))}")
    if settings["dry_run"] and not settings["prune"]:
        raise InputError("--dry_run is for --prune.")
    # Leaves the home of a user who does not exist as it is, where Path's own would raise RuntimeError.
    root = Path(os.path.expanduser(roots[0]))
    if not root.is_dir():
        raise InputError(f"There is no pipeline root {printable(root)}.")
    return {**settings, "root": root}


def _list(settings):
    root = settings["root"]
    found, executions = history.runs(root), orchestrator.executions(root)
    link = root / history.LATEST
    latest = Path(os.path.realpath(link)).name if link.is_symlink() else None
    told = [_told(run, executions, latest) for run in found]
    if settings["json"]:
        print(json.dumps(told, indent=1))
    elif not told:
        above = history.root_above(root)
        print(f"No run in {printable(root)} yet.{f' Did you mean {printable(above)}?' if above else ''}")
    else:
        print("\n\n".join(_in_words(one) for one in told))


def _told(run, executions, latest):
    """A run as JSON values."""
    about = run.about or _about_by(run, executions)
    result = run.result or _result_by(run, executions)
    return {
        "run": run.name,
        "state": run.state,
        "latest": run.folder is not None and run.folder.name == latest,
        **{name: about.get(name) for name in ("method", "dataset", "sigma", "preset", "sweep", "differs", "command")},
        **{name: result.get(name) for name in ("acr", "acr_standard_error", "blessed", "pushed_to", "failed")},
        "reason": run.reason,
        "began_at": run.began_at,
        "ended_at": run.ended_at,
        "folder": None if run.folder is None else str(run.folder),
        "paths": _paths(run),
    }


def _about_by(run, executions):
    """What a run from before there was a history was, according to its Evaluator's record."""
    parameters = next((record["parameters"] for record in _records(run, executions, "Evaluator")), None)
    if parameters is None:
        return {}
    told = {name: value for entries in parameters["listing"].values() for name, value, *_ in entries}
    about = {"sigma": parameters["sigma"], **{name: told.get(name) for name in ("method", "dataset")}}
    try:
        command, differs = settings_lib.command(parameters["listing"]), settings_lib.differing(parameters["listing"])
    except (InputError, KeyError):  # a method that no longer exists, or a setting of another version
        return about
    return {**about, "command": command, "differs": differs}


def _result_by(run, executions):
    for record in _records(run, executions, "Evaluator"):
        directory = next(path for path, other in executions.items() if other is record)
        try:
            told = _read(directory / "evaluation" / results.METRICS) | _read(directory / "evaluation" / "blessing.json")
            # Of few images there is no standard error.
            kinds = {"acr": float, "acr_standard_error": float | None, "blessed": bool}
            return {name: told[name] for name, kind in kinds.items() if isinstance(told[name], kind)}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):  # changed or damaged
            return {}
    return {}


def _read(path):
    return json.loads(files.read(path, _MOST_BYTES))


def _records(run, executions, component):
    """Records of the run's executions of a component, the latest first."""
    records = [record for path in run.executions if (record := executions.get(path)) is not None]
    found = [record for record in records if record["component"] == component]
    return sorted(found, key=lambda record: -record["finished_at"])


def _paths(run):
    """Name -> path, for what a run left: links in its folder, or the outputs of its executions."""
    if run.folder is not None:
        return {path.name: str(path) for path in sorted(run.folder.iterdir()) if not path.name.startswith(".")}
    found = sorted(output for directory in run.executions for output in directory.glob("*") if output.is_dir())
    return {output.name: str(output) for output in found}


def _in_words(told):
    when = "" if told["ended_at"] is None else f" {_time(told['ended_at'])}"
    if told["state"] in ("running", "interrupted"):
        when = f", started {_time(told['began_at'])}"
    parts = [f"{told['state']}{when}"]
    if told["acr"] is not None:
        parts.append(f"ACR {words.mean(told['acr'], told['acr_standard_error'])}")
    if told["blessed"] is not None:
        parts.append("blessed" if told["blessed"] else "not blessed")
    lines = [f"{printable(told['run'])}{' (latest)' if told['latest'] else ''}", console.wrapped(", ".join(parts))]
    if told["reason"]:
        lines.append(console.wrapped(f"failed: {printable(told['reason'])}"))
    if told["sweep"]:
        failed = f"; failed: {', '.join(told['failed'])}" if told["failed"] else ""
        values = ", ".join(told["sweep"]["values"])
        lines.append(console.wrapped(f"sweep of {told['sweep']['name']}: {values}{failed}"))
    if told["differs"] is not None:
        differs = ", ".join(f"{name}={printable(value)}" for name, value, _ in told["differs"])
        preset = "the preset" if told["preset"] is None else f"preset {told['preset']}"
        lines.append(console.wrapped(f"differs from {preset}: {differs or 'nothing'}"))
    if told["command"]:
        # On one line, so that it can be copied.
        lines.append(f"  command: {printable(told['command'])}")
    if told["folder"]:
        lines.append(console.wrapped(f"folder: {printable(told['folder'])} with {', '.join(told['paths'])}"))
    else:
        lines += [f"  {name}: {printable(path)}" for name, path in told["paths"].items()]
    return "\n".join(lines)


def _time(seconds):
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _prune(settings):
    root = settings["root"]
    if settings["dry_run"]:
        found = history.unused(root)
        size = sum(map(history.size_of, found.paths))
    else:
        found, size = history.remove(root)
    verb = "Would remove" if settings["dry_run"] else "Removed"
    if settings["json"]:
        told = {name: [str(path) for path in getattr(found, name)] for name in ("paths", "models", "unreadable")}
        print(json.dumps({"removed": not settings["dry_run"], "bytes": size, **told}, indent=1))
        return
    for path in found.paths:
        print(f"{verb} {printable(path)}")
    folders = "1 folder" if len(found.paths) == 1 else f"{len(found.paths):,} folders"
    print(f"{verb} {folders}, {_amount(size)}; what finished runs use is untouched.")
    for path in found.models:
        told = f"Kept: {printable(path)} ({_amount(history.size_of(path))}), a trained model that no finished run uses"
        print(f"{told}. Delete the folder if you do not want it.")
    for path in found.unreadable:
        print(f"Left alone: {printable(path)}, whose record is damaged or from another version.")


def _amount(size):
    """Bytes in words."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    place = min(max(len(str(size)) - 1, 0) // 3, len(units) - 1)
    return f"{size / 1000**place:.{1 if place else 0}f} {units[place]}"
