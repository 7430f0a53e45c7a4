"""What a command says goes to people or to a program, and never the one's in the other's way."""

import io
import json
import re
import sys

import pytest

from pipeline.cli import console
from pipeline.cli.saying import Saying
from serving import exit as exit_lib


@pytest.fixture
def said(capsys):
    """A function: flags -> what a command with them leaves on stdout and stderr, and its status."""

    def say(*flags, fails=False):
        with Saying(["--dataset", "digits", *flags]) as saying:
            print("working\n\non it")
            if fails:
                saying.failed("no room")
                print("error: no room", file=sys.stderr)
                status = saying.end(2)
            else:
                with saying.result(acr=0.5, paths={"model": "m"}):
                    print("ACR 0.5")
                status = saying.end(0)
        print("after")
        out, err = capsys.readouterr()
        assert out.endswith("after\n")
        return status, out.removesuffix("after\n"), err

    return say


def test_people_are_told_all_of_it(said):
    assert said() == (0, "working\n\non it\nACR 0.5\n", "")


@pytest.mark.parametrize("flags", [["--quiet"], ["--quiet", "yes"], ["--quiet=yes"], ["--quiet", "--epochs", "3"]])
def test_the_quiet_are_told_the_result(said, flags):
    assert said(*flags) == (0, "ACR 0.5\n", "")
    assert said(*flags, fails=True) == (2, "", "error: no room\n")


@pytest.mark.parametrize("flags", [["--quiet", "no"], ["--quiet=no"], ["--epochs", "3"]])
def test_a_switch_that_is_off_changes_nothing(said, flags):
    assert said(*flags) == said()


def test_a_program_gets_one_value_and_people_the_rest(said):
    status, out, err = said("--json")
    assert (status, json.loads(out)) == (0, {"status": 0, "acr": 0.5, "paths": {"model": "m"}})
    assert err == "working\n\non it\nACR 0.5\n"
    _, quiet_out, quiet_err = said("--json", "--quiet")
    assert (quiet_out, quiet_err) == (out, "")


def test_a_program_is_told_of_an_error_too(said):
    status, out, err = said("--json", fails=True)
    assert (status, json.loads(out)) == (2, {"status": 2, "error": "no room"})
    assert err.endswith("error: no room\n")


def test_a_program_is_told_of_ctrl_c_too(capsys):
    with Saying(["--json"]) as said:
        for action in exit_lib._before_end:
            action()
        assert json.loads(capsys.readouterr().out) == {"status": 130, "error": "Interrupted."}
        said.end(0)


def test_a_clock_stands_before_each_line_that_is_not_empty(said):
    _, out, _ = said("--clock")
    clock = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert re.fullmatch(rf"{clock}working\n\n{clock}on it\n{clock}ACR 0\.5\n", out)


def test_progress_is_in_plain_lines_under_a_clock(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", stream)
    with Saying(["--clock"]):
        console.Progress("Work", 2).finish(2)
    assert re.fullmatch(r"[-\d]+ [:\d]+    Work: 100 %, took 0 s\n", stream.getvalue())


def test_what_is_said_reaches_the_stream_in_whatever_pieces(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with Saying(["--clock"]):
        for piece in ("a", "b\n", "", "\n", "c\nd", "\n"):
            sys.stdout.write(piece)
    assert re.sub(r"[-\d]+ [:\d]+  ", "T ", stream.getvalue()) == "T ab\n\nT c\nT d\n"
