"""What a run prints while it is at work, on a terminal and elsewhere."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli import console

REPOSITORY = Path(__file__).resolve().parents[3]
WORK = """
import sys, time
from pipeline.cli import console
console._SECONDS_BETWEEN_LINES, console._SECONDS_TO_MEASURE = 0, 0.3
progress = console.Progress("Work", 4)
for done in (1, 2, 3):
    time.sleep(0.25)
    progress.update(done, f"step {done}")
    if done == 2:
        print("said by others")
        print("complained by others", file=sys.stderr)
"""
ENDED = {"finished": 'progress.finish(4, "all")\nprint("behind")', "failed": "progress.close()\nprint('behind')"}


def on_a_terminal(code, wait=None, **environment):
    """What a terminal gets of a program; it is killed once that matches `wait`."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60", **environment}
    command = [sys.executable, "-c", code]
    program = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    got, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                part = os.read(leader, 4096)
            except OSError:  # the program has closed it
                break
            if not part:
                break
            got += part
        if wait and re.search(wait, got.decode()):
            program.send_signal(signal.SIGKILL)
    program.wait(10)
    os.close(leader)
    return got.decode().replace("\r\n", "\n")


def seen(text):
    """The lines that stand on the screen in the end."""
    lines = []
    for line in text.split("\n"):
        parts = re.split(r"\r\x1b\[2K", line)
        lines.append(re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", parts[-1]).strip("\r").rstrip())
    return lines


def test_on_a_terminal_one_line_is_redrawn_below_what_others_print():
    text = on_a_terminal(WORK + ENDED["finished"])
    assert text.count("\x1b[2K") >= 3
    lines = seen(text)
    assert lines[-5:-3] == ["said by others", "complained by others"]
    assert re.fullmatch(r"  Work: 100 %, took \d+ s · all", lines[-3])
    assert lines[-2:] == ["behind", ""]


def test_what_failed_leaves_its_last_line_and_a_line_end():
    lines = seen(on_a_terminal(WORK + ENDED["failed"]))
    assert re.search(r"Work:  75 %, \d+ s left · step 3$", lines[-3])
    assert lines[-2:] == ["behind", ""]


def test_a_kill_leaves_the_cursor_to_be_seen():
    text = on_a_terminal(WORK + "time.sleep(60)", wait="step 3")
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}])
def test_without_escape_codes_where_they_are_not_wanted(environment):
    text = on_a_terminal(WORK + ENDED["finished"], **environment)
    assert "\x1b" not in text
    first = next(line for line in text.split("\n") if "Work" in line)
    assert first == "  Work:  25 % · step 1"
    assert "said by others\ncomplained by others\n" in text


def test_plain_lines_where_there_is_no_terminal():
    done = subprocess.run(
        [sys.executable, "-c", WORK + ENDED["finished"]],
        **{"cwd": REPOSITORY, "env": {**os.environ, "FORCE_COLOR": "1"}, "capture_output": True, "text": True},
        check=True,
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert "Work: 100 %, took" in done.stdout
    assert done.stderr == "complained by others\n"


def test_no_time_left_is_told_from_the_first_steps(monkeypatch, capsys):
    """They trace graphs: here the first takes 100 s, and each later one 1 s."""
    now = [0.0]
    monkeypatch.setattr("pipeline.cli.console.time.monotonic", lambda: now[0])
    progress = console.Progress("Work", 1000, 10)
    told = []
    for done, at in ((11, 100), (12, 101), (27, 116), (42, 131)):
        now[0] = at
        progress.update(done)
        told.append(progress.speed(done))
    assert told == [None, None, 1.0, 1.0]
    told = ["  Work:   1 %", "  Work:   3 %, 16 min 13 s left", "  Work:   4 %, 15 min 58 s left"]
    assert capsys.readouterr().out.splitlines() == told


def test_before_anything_is_done_there_is_no_speed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.cli.console.time.monotonic", lambda: now[0])
    progress = console.Progress("Work", 10, 4)
    for now[0] in (50.0, 60.0):
        progress.update(4)
        assert progress.speed(4) is None
    progress.update(5)
    assert progress.speed(5) is None


@pytest.mark.parametrize("width", [1, 20, 34, 60, 80, 200])
def test_a_plan_is_wrapped_between_words_at_any_width(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    entries = [[f"setting_{i}", f"value-{i}", "default"] for i in range(40)]
    console.print_listing({"Group": entries}, ["a note of some words"])
    console.print_differing(entries)
    lines = capsys.readouterr().out.splitlines()
    # A word that is longer than a line has one for itself.
    assert all(len(line) <= max(width, 20) or len(line.split()) == 1 for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "Note: a note of some words Group: setting_0=value-0, setting_1=value-1, " in text
    assert "Differs from the preset: setting_0=value-0 (default), setting_1=value-1 (default), " in text


def test_only_what_takes_more_than_an_hour_is_told_to_be_long(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    console.print_if_long(3600, ["n"])
    console.print_if_long(99999, [])
    assert capsys.readouterr().out == ""
    console.print_if_long(3601, ["n", "skip", "budget=adaptive"])
    told = "  More than an hour: a smaller --n, a smaller --skip or --budget adaptive would shorten it.\n"
    assert capsys.readouterr().out == told


def test_a_long_line_is_cut_to_the_width_of_the_terminal():
    text = on_a_terminal(WORK.replace("step {done}", "{'x' * 200}"))
    assert max(map(len, seen(text))) <= 60


def test_the_command_that_shows_curves_can_be_copied():
    assert console.curves(Path("my runs/tensorboard")) == "Curves: tensorboard --logdir 'my runs/tensorboard'"
