"""A SavedModel is tried in a process of its own, which says nothing of the model where it is ended from outside."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tensorflow import errors

from serving import validate

ROOT = Path(__file__).resolve().parents[2]
# What a process is ended by even where its parent ignores that signal, as `nohup` has it ignore SIGHUP.
ENDED_BY = (
    f"exec {sys.executable} -c 'import os, signal; signal.signal(signal.{{0}}, signal.SIG_DFL); "
    "os.kill(os.getpid(), signal.{0})'"
)


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """A function: a line of sh -> what is found of a model, where that line is all that the fresh process does."""

    def run(line):
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{line}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return validate.in_fresh_process(tmp_path, tmp_path / "images.npy")

    return run


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("kill -KILL $$", "SIGKILL, as the system does when memory is short"),
        *((ENDED_BY.format(name), name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU")),
        ("exit 130", "Ctrl-C"),
        ("ulimit -c 0; echo '  what():  std::bad_alloc' >&2; kill -ABRT $$", "a lack of memory"),
    ],
)
def test_a_process_that_is_ended_from_outside_says_nothing_of_the_model(in_process, line, told):
    with pytest.raises(RuntimeError) as raised:
        in_process(line)
    assert str(raised.value) == f"the process that tried the SavedModel was ended by {told}; try again"


@pytest.mark.parametrize("name", ["SEGV", "ABRT"])
def test_a_crash_is_the_models(in_process, name):
    status = -getattr(signal, f"SIG{name}")
    assert in_process(f"ulimit -c 0; kill -{name} $$") == (None, f"the process died with exit status {status}")


def test_what_the_model_fails_is_the_models_and_what_is_found_before_it_is_loaded_is_not(in_process):
    assert in_process("echo 'error: its card is gone' >&2; exit 1") == (None, "its card is gone")
    with pytest.raises(RuntimeError, match=r"^the SavedModel was not tried: no memory for TensorFlow$"):
        in_process("echo 'error: no memory for TensorFlow' >&2; exit 2")


def test_without_tensorflow_nothing_is_tried(monkeypatch, capsys):
    def fail():
        raise MemoryError("There is no memory.")

    monkeypatch.setattr(validate.terminal, "import_tensorflow", fail)
    assert validate.main(["model", "images.npy"]) == 2
    assert capsys.readouterr().err == "error: There is no memory.\n"


@pytest.mark.parametrize("error", [MemoryError(), errors.ResourceExhaustedError(None, None, "OOM when allocating")])
def test_memory_that_runs_out_is_not_the_models(monkeypatch, tmp_path, capsys, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(validate, "run", fail)
    np.save(tmp_path / "images.npy", np.zeros((1, 1, 1, 1)))
    assert validate.main(["model", str(tmp_path / "images.npy")]) == 2
    assert re.fullmatch("error: There is not enough memory to run it; .*\n", capsys.readouterr().err)


def children(process):
    return [int(one) for one in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("is_at_work", [False, True])
def test_it_does_not_outlive_the_process_that_waits_for_it(tmp_path, is_at_work):
    """Neither where that ends before it has begun, nor where the model never answers."""
    (tmp_path / "tensorflow.py").write_text("import logging\nget_logger = logging.getLogger\n")
    images = tmp_path / "images.npy"
    os.mkfifo(images)
    program = f"from serving import validate; validate.in_fresh_process({str(tmp_path)!r}, {str(images)!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as waiting:
        wait_for(lambda: children(waiting))
        (pid,) = children(waiting)
        # A pipe is opened once it is read, too: it then waits for images.
        writer = os.open(images, os.O_WRONLY) if is_at_work else None
        assert is_running(pid)
        waiting.terminate()
    try:
        wait_for(lambda: not is_running(pid))
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
    if writer is not None:
        os.close(writer)
