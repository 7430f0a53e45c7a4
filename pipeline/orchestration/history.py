"""The runs of a pipeline root: a folder of links for each in `history`; the last whole run is also called `latest`.

A run that is at work, or was stopped, also has a folder, which records what was asked for. Its name ends in
`.unfinished` until the run is finished and the folder renamed; from then on, nothing in it changes. What a finished run
uses is known from the executions' own records, so a root from before there was a history has its runs, too.
"""

import contextlib
import itertools
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from macer_tf import files
from pipeline.orchestration import orchestrator
from pipeline.orchestration.orchestrator import TENSORBOARD
from pipeline.utils import sealed
from pipeline.utils.atomic_files import remedy, remove_path, write_link, write_text, writing
from pipeline.utils.errors import InputError
from serving.exit import in_one_line
from serving.files import flush
from serving.fingerprints import fingerprint

LATEST, SETTINGS = "latest", "settings.yaml"
_HISTORY, _RECORD, _TRASH = "history", "run.json", ".pruned"
_UNFINISHED = ".unfinished"
_FORMAT = 1
_MOST_BYTES = 2**24
# Names as `name_of` makes them, and as the Trainer names its curves: anything else beside them is not ours.
_UNFINISHED_RUN = re.compile(rf"[\w.+-]+-[0-9a-f]{{8}}{re.escape(_UNFINISHED)}")
_CURVES = re.compile(r"[\w.+-]+-[\w.+-]+-\d[\d.e+-]*-[0-9a-f]{8}")
# What the user is told of a run that could not be recorded.
_GOES_ON = "what was finished is kept"
_SCHEMA = {
    "format": int, "state": str, "executions": list, "began_at": float, "ended_at": float | None, "reason": str | None,
    "about": dict, "result": dict,
}  # fmt: skip
# The components that end a run: whatever they lead back to is in use.
_LAST = ("Pusher", "SweepEvaluator")
# Kept, because it may have taken days, and an unfinished run's command continues from it.
_KEPT = "Trainer"


@dataclass(frozen=True)
class Run:
    """A run of a root.

    Attributes:
        name: name of its folder in the history; for a run from before there was one, that of its last execution.
        state: "finished"; "running"; "failed"; "interrupted"; or "damaged", if its record cannot be read.
        executions: directories of the executions that it used, if it is finished; otherwise of those that it began.
        folder: its folder in the history; None for a run from before there was one.
        about, result: what was recorded about it and its results, JSON values by name.
        reason: why it failed, in one line, or None.
        began_at, ended_at: in seconds since 1970; None if unknown, or if it has not ended.
    """

    name: str
    state: str
    executions: tuple[Path, ...]
    folder: Path | None = None
    about: dict | None = None
    result: dict | None = None
    reason: str | None = None
    began_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True)
class Unused:
    """What no finished run uses in a root.

    Attributes:
        paths: what `remove` removes: unfinished executions and finished ones, records of unfinished runs, and curves
            of models that no longer exist.
        models: finished executions that trained a model; they are kept.
        unreadable: directories of executions whose records cannot be read; they are left alone.
    """

    paths: tuple[Path, ...]
    models: tuple[Path, ...]
    unreadable: tuple[Path, ...]


@contextlib.contextmanager
def recorded(root, name, about, settings):
    """A context with a `Recorder` of these: an error in it is what stopped the run.

    Raises:
        InputError: if `latest` is a folder, as in a copy of a root made with links followed.
    """
    latest = root / LATEST
    if latest.is_dir() and not latest.is_symlink():
        raise InputError(
            f"{latest} must be a link to the last run, but is a folder, as after `cp -L`. Move it away and run "
            "the same command again."
        )
    recorder = Recorder(root, name, about, settings)
    try:
        yield recorder
    except Exception as error:
        with contextlib.suppress(InputError):  # from the disk that was already full
            recorder.failed(in_one_line(error, None, InputError))
        raise


def name_of(told, given):
    """A run's name: `told`, for people, and a few digits that distinguish `given`, a JSON value, from all others."""
    told = re.sub(r"[^\w.+-]", "_", told)
    return f"{told}-{fingerprint(given)[:8]}"


def curves_of(root, directory):
    """Where the curves of the execution in a directory are, or None."""
    return next((root / TENSORBOARD).glob(f"*-{directory.name.rpartition('-')[2][:8]}"), None)


class Recorder:
    """Records a run: that it began, once something is executed for it, and how it ended.

    A run that finds everything cached, and was recorded before, writes nothing.

    Args:
        root: `Path` of the pipeline root, which is locked.
        name: a file's name, the same for the same settings and for no others.
        about: what describes the run, JSON values by name.
        settings: text of its settings file.
    """

    def __init__(self, root, name, about, settings):
        self._root, self._name, self._about, self._settings = root, name, about, settings
        self._folder = root / _HISTORY / f"{name}{_UNFINISHED}"
        self._executions, self._began_at = [], None

    def starting(self, directory):
        """For `orchestrator.run`: an execution is about to start."""
        if self._began_at is None:
            self._began_at = self._now()
            # What an earlier attempt finished belongs to this run, too.
            before = _read(self._folder)
            self._executions = [] if before is None else before["executions"]
        if directory.name not in self._executions:
            self._executions.append(directory.name)
        self._write("running")

    def failed(self, reason):
        """An error, described in one line, has stopped the run."""
        if self._began_at is not None:
            self._write("failed", reason=reason)

    def finish(self, artifacts, links, result, is_whole=True):
        """The run is finished.

        Args:
            artifacts: `Artifact`s, all that it used.
            links: name -> path under root, for links in the run's folder.
            result: its results, JSON values by name.
            is_whole: whether `latest` should be this run.

        Returns:
            `Path` of its folder.

        Raises:
            InputError: if it cannot be recorded.
        """
        with writing(self._folder, _GOES_ON):
            return self._finish(artifacts, links, result, is_whole)

    def _finish(self, artifacts, links, result, is_whole):
        used = sorted({artifact.path.parent.name for artifact in artifacts if artifact.path is not None})
        folder = self._finished_before(used)
        if folder is None:
            self._executions = used
            self._write("finished", result=result)
            for name, path in links.items():
                # An earlier attempt may have left it.
                remove_path(self._folder / name)
                (self._folder / name).symlink_to(os.path.relpath(path, self._folder))
            folder = self._free_name()
            flush(self._folder)
            os.rename(self._folder, folder)
            flush(folder.parent)
        remove_path(self._folder)
        if is_whole:
            write_link(self._root / LATEST, str(folder.relative_to(self._root)))
        return folder

    def _finished_before(self, used):
        """The folder of this same run from the same executions, if there is one."""
        for folder in itertools.takewhile(os.path.lexists, self._numbered()):
            record = _read(folder)
            if record and record["executions"] == used:
                return folder
        return None

    def _free_name(self):
        return next(folder for folder in self._numbered() if not os.path.lexists(folder))

    def _numbered(self):
        """The folders that it may have: with another version of the code, the same settings make other artifacts."""
        for number in itertools.count(1):
            yield self._folder.with_name(self._name if number == 1 else f"{self._name}-{number}")

    def _now(self):
        """As `orchestrator.now`, and after all that runs record: a later one must not be listed before them."""
        records = filter(None, map(_read, (self._root / _HISTORY).glob("*")))
        recorded = [record["ended_at"] or record["began_at"] for record in records]
        return round(max([orchestrator.now(self._root), *(seconds + 0.001 for seconds in recorded)]), 3)

    def _write(self, state, reason=None, result=None):
        now = self._now()
        record = {
            "format": _FORMAT,
            "state": state,
            "executions": self._executions,
            "began_at": self._began_at or now,
            "ended_at": None if state == "running" else now,
            "reason": reason,
            "about": self._about,
            "result": result or {},
        }
        with writing(self._folder, _GOES_ON):
            # Does not create the root, which may have been moved meanwhile.
            for folder in (self._folder.parent, self._folder):
                folder.mkdir(exist_ok=True)
            write_text(self._folder / SETTINGS, self._settings)
            write_text(self._folder / _RECORD, sealed.dumps(record, indent=1))


def root_above(folder):
    """The nearest folder above this one that has records of runs, or None."""
    return next((one for one in folder.absolute().parents if any((one / _HISTORY).glob(f"*/{_RECORD}"))), None)


def runs(root):
    """The `Run`s of a root, the latest last."""
    executions, is_locked = orchestrator.executions(root), orchestrator.is_locked(root)
    found, recorded = [], set()
    for folder in sorted(path for path in (root / _HISTORY).glob("*") if path.is_dir()):
        record = _read(folder)
        name = folder.name.removesuffix(_UNFINISHED)
        if record is None:
            found.append(Run(name, "damaged", (), folder))
            continue
        used = tuple(root / name for name in record["executions"])
        told = {name: record[name] for name in ("state", "about", "result", "reason", "began_at", "ended_at")}
        found.append(Run(name, executions=used, folder=folder, **told))
        recorded |= {*used}
    for path in _last(executions):
        if path not in recorded:
            record = executions[path]
            used = tuple(sorted(_leading_to({path}, executions)))
            found.append(Run(path.name, "finished", used, ended_at=record["finished_at"]))
    found.sort(key=lambda run: run.ended_at or run.began_at or 0)
    return _with_interrupted(found, is_locked)


def unused(root):
    """`Unused`.

    Raises:
        InputError: if a run is at work in the root.
    """
    if orchestrator.is_locked(root):
        raise InputError(f"A run is in progress in {root}; wait for it.")
    return _unused(root)


def remove(root):
    """Removes what is unused; a kill in between leaves nothing half removed.

    Returns:
        `Unused` as it was before, and how many bytes its paths had.

    Raises:
        InputError: if a run is at work in the root, or something cannot be removed.
    """
    with orchestrator.locked(root, None):
        trash = root / _TRASH
        try:
            remove_path(trash)
            found = _unused(root)
            size = sum(map(size_of, found.paths))
            trash.mkdir()
            for number, path in enumerate(found.paths):
                os.rename(path, trash / str(number))
            shutil.rmtree(trash)
        except OSError as error:
            raise InputError(
                f"Cannot remove {error.filename} ({error.strerror}). {remedy(error.strerror)} and run the same command "
                "again."
            ) from None
    return found, size


def size_of(path):
    """Bytes of all files in a directory; links are not followed."""
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)


def _unused(root):
    executions = orchestrator.executions(root)
    found = runs(root)
    last = _last(executions)
    finished = {path for run in found if run.state == "finished" for path in run.executions}
    # A kill may have come after the last execution.
    used = _leading_to(finished | last, executions)
    others = {path: record for path, record in executions.items() if path not in used}
    # Without those that were about to be replaced: if the replacement does not exist, the next run puts them back.
    whole = {path: record for path, record in others.items() if record is not None and not path.suffix}
    models = {path for path, record in whole.items() if record["component"] == _KEPT}
    left_over = {path for path in others if path.suffix == _UNFINISHED or _is_replaced(path)}
    gone = left_over | (whole.keys() - models)
    runs_gone = {
        run.folder
        for run in found
        if run.folder is not None
        and _UNFINISHED_RUN.fullmatch(run.folder.name)
        and (models | last).isdisjoint(run.executions)
    }
    left = {path.name.rpartition("-")[2] for path in executions if path not in gone}
    curves = [path for path in (root / TENSORBOARD).glob("*-*") if _CURVES.fullmatch(path.name) and path.is_dir()]
    curves_gone = {path for path in curves if not any(name.startswith(path.name.rpartition("-")[2]) for name in left)}
    return Unused(
        paths=tuple(sorted(gone | runs_gone | curves_gone)),
        models=tuple(sorted(models)),
        unreadable=tuple(sorted(path for path in others if others[path] is None and not path.suffix)),
    )


def _last(executions):
    """The directories of the finished executions with which a run ends."""
    finished = {path: record for path, record in executions.items() if record and not path.suffix}
    return {path for path, record in finished.items() if record["component"] in _LAST}


def _leading_to(paths, executions):
    """These executions, and all whose outputs they read, directly or indirectly."""
    made = {}
    for path, record in executions.items():
        for output in record["output_fingerprints"].values() if record and not _is_replaced(path) else ():
            made.setdefault(output, set()).add(path)
    waiting, found = [*paths], set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            record = executions.get(path)
            inputs = record["inputs"].values() if record else ()
            waiting += [one for output in inputs for one in made.get(output, ())]
    return found


def _is_replaced(path):
    """Whether an execution was replaced by one that exists."""
    return bool(path.suffix) and path.with_suffix("").exists()


def _with_interrupted(found, is_locked):
    """Of the runs that were left at work, only the last can still be running, and only if somebody holds the root."""
    began = [run.began_at for run in found if run.state == "running"]
    last = max(began, default=None) if is_locked else None
    return [
        replace(run, state="interrupted") if run.state == "running" and run.began_at != last else run for run in found
    ]


def _read(folder):
    """The record of a run, or None if there is none or it is damaged."""
    try:
        record = sealed.loads(files.read(folder / _RECORD, _MOST_BYTES))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.keys() != _SCHEMA.keys() or record["format"] != _FORMAT:
        return None
    is_ours = all(isinstance(record[name], kind) for name, kind in _SCHEMA.items())
    return record if is_ours and all(_is_name(name) for name in record["executions"]) else None


def _is_name(name):
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z]+-[0-9a-f]{16}", name) is not None
