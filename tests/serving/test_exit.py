"""Every command ends by one function: a line and a status for whatever stops it."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving import validate
from serving.exit import exit_status


class BadInput(ValueError):
    pass


@pytest.mark.parametrize(
    ("error", "options", "status", "said"),
    [
        (ValueError("no such\x1b[2J version"), {}, 2, "error: no such\\x1b[2J version"),
        (BadInput("no"), {"bad_input": BadInput}, 2, "error: no"),
        (ValueError("no\nmore"), {"bad_input": BadInput}, 1, "error: ValueError: no (details: error.log)"),
        (OSError(28, "No space left", "b"), {"foreseen": (OSError,)}, 1, "error: cannot use b: No space left"),
        (OSError("odd"), {"foreseen": (OSError,)}, 1, "error: cannot use a file: odd"),
        (RuntimeError("died"), {"foreseen": (OSError, RuntimeError)}, 1, "error: died"),
        (TypeError(), {"foreseen": (OSError,)}, 1, "error: TypeError:  (details: error.log)"),
        (
            RuntimeError("Graph execution error:\n\nassertion failed: [n is too small]\n\t [[node]]"),
            {},
            1,
            "error: RuntimeError: assertion failed: [n is too small] (details: error.log)",
        ),
        # A file's name that is not valid text.
        (RuntimeError("caf\udce9"), {}, 1, "error: RuntimeError: caf\\udce9 (details: error.log)"),
        # From someone's own layer: the command had ended without a word, and with this status.
        (
            SystemExit(0),
            {},
            1,
            "error: RuntimeError: code of your own called sys.exit(0); let it raise an error (details: error.log)",
        ),
        (KeyboardInterrupt(), {}, 130, "\nInterrupted. All is kept."),
    ],
)
def test_what_stops_a_command_is_one_line_and_a_status(tmp_path, monkeypatch, capsys, error, options, status, said):
    monkeypatch.chdir(tmp_path)

    def work(parsed):
        raise error

    assert exit_status(lambda: (None, tmp_path / "."), work, "All is kept.", **options) == status
    assert capsys.readouterr().err.replace(f"{tmp_path}/", "") == f"{said}\n"
    assert (tmp_path / "error.log").exists() == ("error.log" in said)


def test_an_error_of_a_command_without_a_folder_leaves_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_status(lambda: (0, None), lambda parsed: 1 / parsed, "") == 1
    assert capsys.readouterr().err == "error: ZeroDivisionError: division by zero\n"
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_the_system_refuses_is_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "x" * 300
    assert exit_status(lambda: (Path(name).exists(), None), lambda parsed: 0, "", bad_input=BadInput) == 2
    assert (
        capsys.readouterr().err == f"error: Cannot use {name} ({os.strerror(errno.ENAMETOOLONG)}); give another path.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_command_may_be_carried_out_in_another_thread():
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor() as threads:
        assert threads.submit(exit_status, lambda: (3, None), lambda parsed: parsed, "", at_once=True).result() == 3
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("arguments", [[], ["model"], ["model", "images.npy", "yes"], ["a", "b", "trust", "c"]])
def test_validation_says_what_it_takes(capsys, arguments):
    assert validate.main(arguments) == 2
    said = capsys.readouterr().err
    assert said == f"error: Expected SAVED_MODEL IMAGES.npy, and trust or nothing. Received: {' '.join(arguments)}\n"


def test_validation_of_nothing_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert validate.main(["absent", "images.npy"]) == 1
    assert capsys.readouterr().err == ("error: FileNotFoundError: [Errno 2] No such file or directory: 'images.npy'\n")
