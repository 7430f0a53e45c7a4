"""Runs components in order, each in its own directory, and skips those that were run before.

A component declares, as in TFX, which artifacts it reads, which it makes and which parameters it depends on. The
fingerprint of these, of its code and of the outside data that it reads names its directory,
`<root>/<component>-<fingerprint>`. Until it is finished, the directory is called `….unfinished`; it counts once it is
renamed, after everything is flushed.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import macer_tf
from pipeline.cli.console import duration
from pipeline.orchestration.artifacts import Artifact
from pipeline.utils import code
from pipeline.utils.atomic_files import finish_directory, remedy, remove_path, working_in, write_text
from pipeline.utils.errors import InputError
from serving.exit import exits_are_errors
from serving.files import read_json
from serving.fingerprints import differences, file_digests, fingerprint, sealed, unsealed
from serving.terminal import printable

_RECORD = "execution.json"
# <component>-<fingerprint>
_DIRECTORY = re.compile(r"([A-Za-z]+)-[0-9a-f]{16}")
_SCRATCH, _LOCK = "scratch", ".lock"
# Folder of a root where training curves are.
TENSORBOARD = "tensorboard"
_UNFINISHED, _REPLACED = ".unfinished", ".replaced"
_FORMAT = 3
_TRIES_TO_LOCK, _SECONDS_BETWEEN_TRIES = 4, 0.05
_SCHEMA = {
    "format": int, "component": str, "inputs": dict, "outputs": list, "parameters": dict, "version": str, "code": dict,
    "files": dict,
    "output_fingerprints": dict, "output_files": dict, "started_at": float, "finished_at": float,
}  # fmt: skip


@dataclass(frozen=True)
class Component:
    """A step of the pipeline: its declaration, and the function that carries it out.

    Attributes:
        name: in TFX's vocabulary, e.g. "Trainer".
        inputs: names of the artifacts it reads, made by earlier components.
        outputs: names of the artifacts it makes, each a directory.
        parameters: names of the settings it depends on, and no others.
        execute: called with an `Execution`.
        references: names of the parameters that may be package.module:name, for a user's own module whose code it runs.
        reads: called with the parameters; returns name -> JSON value that identifies the outside data it reads; None
            for data it will create itself.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: tuple[str, ...]
    execute: Callable
    references: tuple[str, ...] = ()
    reads: Callable = lambda parameters: {}


@dataclass(frozen=True)
class Resolver:
    """Looks up, in every run, an artifact that an earlier run made (TFX's Resolver); it makes nothing itself.

    Attributes:
        output: name of the artifact.
        resolve: called with (name -> `Artifact` so far, settings, root); returns an `Artifact`.
    """

    output: str
    resolve: Callable


@dataclass(frozen=True)
class Execution:
    """What a component's function gets.

    Attributes:
        inputs: name -> `Artifact`, finished.
        outputs: name -> empty directory to fill.
        parameters: the declared ones.
        root: the pipeline root.
        scratch: directory that survives a kill: the next attempt at the same execution finds it as it was left.
        num_workers: how many threads to use; does not change a result.
        engine: Beam's engine to certify on, None for this machine; does not change a result.
        name: name of its directory, once it is finished.
    """

    inputs: dict
    outputs: dict
    parameters: dict
    root: Path
    scratch: Path
    num_workers: int
    engine: object = None
    name: str = ""


@dataclass(frozen=True)
class Step:
    """What a run would do with a component.

    Attributes:
        component: the `Component`.
        state: "cached"; "begun", if an earlier run was stopped in it; or "to do".
        directory: directory of the execution; None if something that it reads does not exist yet.
        scratch: what an earlier run left to continue from; None if there is nothing.
    """

    component: Component
    state: str
    directory: Path | None = None
    scratch: Path | None = None


def planned(components, settings, root, anew=False):
    """What `run` would do; nothing is executed or written.

    Args:
        components, settings, root, anew: see `run`; the root need not exist.

    Returns:
        The `Step`s, and name -> `Artifact` of those that exist.

    Raises:
        InputError: as `run`.
    """
    steps, artifacts = [], {}
    for component in components:
        if isinstance(component, Resolver):
            artifacts |= resolved([component], artifacts, settings, root)
            continue
        if not artifacts.keys() >= {*component.inputs}:
            steps.append(Step(component, "to do"))
            continue
        declaration, directory = _declared(component, artifacts, settings, root)
        _check_links(directory)
        # Includes what a run would first put back.
        finished = next((path for path in (directory, _replaced(directory)) if path.exists()), None)
        scratch = None if anew or not _unfinished(directory).is_dir() else _unfinished(directory) / _SCRATCH
        state = "cached" if finished and not anew else "begun" if scratch else "to do"
        steps.append(Step(component, state, directory, scratch))
        if finished:
            artifacts.update(_finished_outputs(component, declaration, finished))
    return steps, artifacts


def resolved(components, artifacts, settings, root):
    """Name -> `Artifact`, of what those `components` that are `Resolver`s find in artifacts, of which some may lack."""
    found = {}
    for component in components:
        if isinstance(component, Resolver):
            with contextlib.suppress(KeyError):  # it looks at something that does not exist yet
                found[component.output] = component.resolve(artifacts, settings, root)
    return found


def run(components, settings, root, num_workers, anew=False, engine=None, starting=lambda directory: None, made=None):
    """Runs components in order, and reports each.

    Args:
        components: `Component`s and `Resolver`s; each reads artifacts made before it.
        settings: name -> JSON value; components pick the parameters they declare.
        root: `Path` of the pipeline root, which exists.
        num_workers: see `Execution`.
        anew: whether to execute components even if they were before; their old outputs are kept until they are done.
        engine: see `Execution`.
        starting: called with the directory of each execution before it starts; not for those that are cached.
        made: set of the directories of executions that this command has made, which `anew` does not repeat: artifacts
            that were already read from them would be gone. It is added to.

    Returns:
        name -> `Artifact`, all of them.

    Raises:
        InputError: if a finished directory of this root was changed, is not ours or is a link to something gone, or the
            disk is full.
    """
    artifacts, made = {}, set() if made is None else made
    for component in components:
        if isinstance(component, Resolver):
            artifacts[component.output] = component.resolve(artifacts, settings, root)
            continue
        declaration, directory = _declared(component, artifacts, settings, root)
        _check_links(directory)
        _put_back(directory)
        if directory.exists() and (not anew or directory in made):
            print(f"{component.name:<15} cached in {printable(directory)}", flush=True)
        else:
            print(f"{component.name:<15} running", flush=True)
            with working_in(directory.parent, component.name, "what was finished"):
                starting(directory)
                if anew:
                    remove_path(_unfinished(directory))
                inputs = {name: artifacts[name] for name in component.inputs}
                parameters = declaration["parameters"]
                execution = _prepare(component, inputs, parameters, directory, root, num_workers, engine)
                declaration, directory, seconds = _execute(component, execution, declaration, directory)
            made.add(directory)
            print(f"{component.name:<15} done in {duration(seconds)}: {printable(directory)}", flush=True)
        artifacts.update(_finished_outputs(component, declaration, directory))
        # Only after the rename: a kill in between would cost what scratch holds.
        shutil.rmtree(directory / _SCRATCH, ignore_errors=True)
    return artifacts


def finished(root, name):
    """Outputs, name -> `Artifact`, of each finished execution of the component `name` under root, the latest first.

    Raises:
        InputError: if one of them was changed after it was finished.
    """
    found = [
        (record["finished_at"], _checked_outputs(record, directory))
        for directory in root.glob(f"{name}-*")
        if directory.suffix not in (_UNFINISHED, _REPLACED) and (record := _read_record(directory)) is not None
    ]
    return [outputs for _, outputs in sorted(found, key=lambda entry: entry[0], reverse=True)]


def executions(root):
    """Directory -> record, a dictionary, of each execution under root; None if it is unfinished or cannot be read.

    A finished one has, among others, its `component`, `inputs` and `output_fingerprints`, its `parameters`, and
    `started_at` and `finished_at` in seconds since 1970. Names of unfinished ones end in `.unfinished`; names of those
    that a later one was about to replace, in `.replaced`.
    """
    names = re.compile(rf"{_DIRECTORY.pattern}({re.escape(_UNFINISHED)}|{re.escape(_REPLACED)})?")
    # The target of a link may only be gone for a while, for example on a disk that is not mounted.
    found = [
        path
        for path in sorted(root.glob("*-*"))
        if names.fullmatch(path.name) and (path.is_dir() or _leads_nowhere(path))
    ]
    return {path: None if path.suffix == _UNFINISHED else _read_record(path) for path in found}


def now(root):
    """Seconds since 1970, but after all that executions under root record: the clock may have been set back."""
    recorded = [record["finished_at"] for record in executions(root).values() if record]
    # In milliseconds: with more digits, one of them could be changed without changing the number.
    return round(max([time.time(), *(finished_at + 0.001 for finished_at in recorded)]), 3)


def is_locked(root):
    """Whether a run is at work in a root."""
    try:
        with open(root / _LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, IsADirectoryError):
        return False
    except OSError:
        return True
    return False


@contextlib.contextmanager
def locked(root, name="pipeline_root"):
    """Holds the root for one run at a time.

    The lock ends with the process, however that ends.

    Args:
        root: its `Path`.
        name: name of the setting that can give another root; None if there is none, because the command is about this.

    Raises:
        InputError: if the root cannot be written, or another run holds it.
    """
    lock, another = root / _LOCK, f", or give another {name}" if name else ""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a")  # noqa: SIM115 (held open as long as the lock)
    except IsADirectoryError as error:
        raise InputError(f"Cannot write the file {lock} ({error.strerror}); remove that folder{another}.") from None
    except OSError as error:
        what = remedy(error.strerror).lower()
        raise InputError(f"Cannot write to the folder {root} ({error.strerror}); {what}{another}.") from None
    with file:
        if not any(_try_to_lock(file) for _ in range(_TRIES_TO_LOCK)):
            raise InputError(f"Another run is in progress in {root}; wait for it{another}.")
        yield


def _try_to_lock(file):
    """Whether we now have the lock; `is_locked` may hold it for a moment."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        time.sleep(_SECONDS_BETWEEN_TRIES)
        return False
    return True


def _declared(component, artifacts, settings, root):
    """What identifies an execution, as JSON values, and its directory."""
    parameters = {name: settings[name] for name in component.parameters}
    modules = code.modules(*(parameters[name] for name in component.references))
    # Imported even if it is cached, because later components load what it saves.
    for module in modules:
        code.import_module(module)
    declaration = {
        "component": component.name,
        "inputs": {name: artifacts[name].fingerprint for name in component.inputs},
        "outputs": list(component.outputs),
        "parameters": parameters,
        "version": macer_tf.__version__,
        "code": _code(component, modules),
        "files": _read(component, parameters),
    }
    return declaration, _directory(declaration, root)


def _directory(declaration, root):
    return root / f"{declaration['component']}-{fingerprint(declaration)[:16]}"


def _prepare(component, inputs, parameters, directory, root, num_workers, engine):
    unfinished = _unfinished(directory)
    outputs = {name: unfinished / name for name in component.outputs}
    scratch = unfinished / _SCRATCH
    # A file may have our name; scratch is kept for what an earlier attempt left there.
    for path in (unfinished, scratch):
        if not path.is_dir():
            remove_path(path)
        path.mkdir(exist_ok=True)
    for path in outputs.values():
        remove_path(path)
        path.mkdir()
    return Execution(inputs, outputs, parameters, root, scratch, num_workers, engine, directory.name)


def _execute(component, execution, declaration, directory):
    """Runs it. Returns declaration, directory and seconds; the first two are new if it created what it reads."""
    unfinished = _unfinished(directory)
    began = time.monotonic()
    with exits_are_errors():
        component.execute(execution)
    before, after = declaration["files"], _read(component, execution.parameters)
    if any(found is not None and after[name] != found for name, found in before.items()):
        raise InputError(f"The files that {component.name} read changed while it ran; run the same command again.")
    _check_unchanged(execution.inputs, component)
    if after != before:
        declaration = {**declaration, "files": after}
        directory = _directory(declaration, directory.parent)
    files = {name: file_digests(path) for name, path in execution.outputs.items()}
    finished_at, seconds = now(directory.parent), time.monotonic() - began
    record = {
        "format": _FORMAT,
        **declaration,
        "output_fingerprints": {name: fingerprint(digests) for name, digests in files.items()},
        "output_files": files,
        "started_at": round(finished_at - seconds, 3),
        "finished_at": finished_at,
    }
    write_text(unfinished / _RECORD, json.dumps(sealed(record), indent=1))
    # Work such as preparing data changes the name, and a killed run may have left this one half replaced.
    _put_back(directory)
    if directory.exists():
        os.rename(directory, _replaced(directory))
    finish_directory(unfinished, directory)
    remove_path(_replaced(directory))
    return declaration, directory, seconds


def _check_unchanged(inputs, component):
    """Raises InputError unless what was read is what was fingerprinted: otherwise it would be cached as if it were."""
    # Each once: the members of a sweep share their examples.
    for artifact in {*inputs.values()}:
        # There may be none, such as for a first run's baseline.
        if artifact.path is not None and not artifact.is_unchanged():
            raise InputError(
                f"{artifact.path} was changed while {component.name} read it; put back what was there, or delete "
                f"{artifact.path.parent} to make it again, and run the same command again."
            )


def _code(component, modules):
    """What identifies an execution's code: ours, and the user's own that it runs."""
    ours = code.digest_of_ours(component.execute.__module__)
    return {"ours": ours, **{module: code.digest_as_imported(module) for module in modules}}


def _read(component, parameters):
    """What identifies the data that an execution reads from elsewhere."""
    try:
        return component.reads(parameters)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the input of {component.name} ({error}).") from None


def _check_links(directory):
    """Raises InputError if an execution's directory is a link to something gone: made again, it would have no place."""
    for path in (directory, _replaced(directory), _unfinished(directory)):
        if _leads_nowhere(path):
            raise InputError(
                f"{path} is a link to {os.readlink(path)}, which does not exist; put back or mount it, or remove the "
                "link to make it again."
            )


def _leads_nowhere(path):
    return path.is_symlink() and not path.exists()


def _put_back(directory):
    """Puts back what a run, killed in between, was about to replace."""
    if _replaced(directory).exists():
        if directory.exists():
            remove_path(_replaced(directory))
        else:
            os.rename(_replaced(directory), directory)


def _replaced(directory):
    return directory.with_name(directory.name + _REPLACED)


def _unfinished(directory):
    return directory.with_name(directory.name + _UNFINISHED)


def _finished_outputs(component, declaration, directory):
    record = _read_record(directory)
    if record is None and (format_before := _format_before(directory)):
        raise InputError(
            f"{directory} is of format {format_before}, which an earlier version of this pipeline wrote; this one "
            f"reads format {_FORMAT}. Give another pipeline_root, or move {directory.parent} away."
        )
    if record is None or {key: record[key] for key in declaration} != json.loads(json.dumps(declaration)):
        raise InputError(
            f"{directory} is not a finished {component.name} execution of this pipeline (its {_RECORD} is missing, "
            "damaged or of another run); delete that directory, or give another pipeline_root."
        )
    return _checked_outputs(record, directory)


def _read_record(directory):
    """The record of a finished execution, or None if there is none or it is damaged."""
    record = unsealed(_json_of_record(directory))
    if record is None or record.keys() != _SCHEMA.keys() or record["format"] != _FORMAT:
        return None
    return record if all(isinstance(record[name], kind) for name, kind in _SCHEMA.items()) else None


def _format_before(directory):
    """The format of a record that an earlier version wrote, or None."""
    found = _json_of_record(directory)
    # The first format had no checksum.
    record = unsealed(found) if isinstance(found, dict) and "checksum" in found else found
    return record["format"] if isinstance(record, dict) and record.get("format") in range(1, _FORMAT) else None


def _json_of_record(directory):
    try:
        return read_json(directory / _RECORD)
    except (OSError, ValueError):
        return None


def _checked_outputs(record, directory):
    artifacts = {name: _found_output(directory / name, directory) for name in record["outputs"]}
    for name, artifact in artifacts.items():
        if artifact.fingerprint != record["output_fingerprints"].get(name):
            recorded = record["output_files"].get(name)
            which = differences(recorded, file_digests(artifact.path)) if recorded else ""
            raise InputError(
                f"{artifact.path} was changed or damaged after it was finished{which and f' ({which})'}; put back what "
                f"was there, or delete {directory} to make it again."
            )
    return artifacts


def _found_output(path, directory):
    try:
        return Artifact.of(path)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path} ({error}); delete {directory} to make it again.") from None
