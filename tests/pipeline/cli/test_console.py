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

REPOSITORY = Path(__file__).resolve().parents[3]
WORK = """
import sys, time
from pipeline.cli import console
console._SECONDS_BETWEEN_LINES = 0
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
    assert re.fullmatch(r"  Work:  25 %, \d+ s left · step 1", first)
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


def test_a_long_line_is_cut_to_the_width_of_the_terminal():
    text = on_a_terminal(WORK.replace("step {done}", "{'x' * 200}"))
    assert max(map(len, seen(text))) <= 60
