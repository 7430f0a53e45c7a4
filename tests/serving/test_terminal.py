"""Commands at terminals of every kind: what they print arrives or is dropped, and how they end is told by a status."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from serving.terminal import printable

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shell(tmp_path):
    """A function: a line of bash in which $PYTHON is this one -> what it came to."""

    def run(line, **environment):
        environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(
            ["bash", "-c", line], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.fixture
def says(tmp_path):
    """A function: text and status -> the line of bash whose command prints the one and returns the other."""

    def says(text="ACR ± error · more…", status=0):
        path = tmp_path / "says.py"
        path.write_text(f"from serving import terminal\ntext = {text!a}\nterminal.run(lambda: print(text) or {status})")
        return f"$PYTHON {path}"

    return says


def test_what_an_encoding_lacks_is_replaced(shell, says):
    for encoding, said in [
        ("utf-8", "ACR ± error · more…\n"),
        ("ascii", "ACR +- error - more...\n"),
        ("cp1252", "ACR ± error · more…\n"),
    ]:
        ended = shell(f"{says()} | iconv -f {encoding} -t utf-8", PYTHONIOENCODING=encoding)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, said, "")
    ended = shell(says("\u65e5\udcff"), PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "\\u65e5\\udcff\n", "")


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_the_status_is_the_commands(shell, says, status):
    assert shell(says(status=status)).returncode == status


def test_code_that_tensorflow_generated_is_removed(shell, tmp_path):
    generated = tmp_path / "__autograph_generated_fileabc.py"
    (tmp_path / "imports.py").write_text(f"from serving import terminal\nterminal.run_main_of({generated.stem!r})")
    generated.write_text("def main():\n    return 3\n")
    assert shell("$PYTHON imports.py").returncode == 3
    assert not generated.exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_lead_nowhere(shell, closed):
    """Nor into the file that is opened next, which would get their numbers."""
    code = (
        "import os, sys\nfrom serving import terminal\n"
        "def main():\n"
        '    with open("file", "w") as file:\n'
        '        print("out", flush=True)\n'
        '        print("err", file=sys.stderr, flush=True)\n'
        '        os.write(1, b"o"), os.write(2, b"e")\n'
        "    return 3\n"
        "terminal.run(main)"
    )
    ended = shell(f"$PYTHON -c '{code}' {closed}; status=$?; wc -c < file; exit $status")
    assert ended.returncode == 3
    assert ended.stdout == ("" if closed.startswith(">&-") else "out\no") + "0\n"
    assert ended.stderr == ("" if "2>&-" in closed else "err\ne")


def test_a_reader_that_is_gone_ends_the_command_quietly(shell, says):
    ended = shell(says("line\n" * 20_000) + " | head -1; exit ${PIPESTATUS[0]}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (141, "line\n", "")


def test_a_full_disk_ends_no_work_and_is_told(shell, says):
    ended = shell(says() + " > /dev/full")
    assert ended.returncode == 1
    assert ended.stderr == "error: Some of the output could not be written (No space left on device).\n"


@pytest.mark.parametrize(
    "command",
    ["pipeline.run --help", "pipeline.run --list_presets", "pipeline.certify --help", "pipeline.compare --help",
     "serving.publish --help", "serving.local --help"],
)  # fmt: skip
def test_every_command_may_be_read_in_part_or_not_at_all(shell, command):
    ended = shell(f"{{ $PYTHON -m {command}; echo $? >&2; }} | true")
    # Whether it is through before its reader is gone is chance.
    assert ended.stderr in ("141\n", "0\n")
    ended = shell(f"$PYTHON -m {command} >&-")
    assert (ended.returncode, ended.stderr) == (0, "")
    ended = shell(f"$PYTHON -m {command}", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.isascii()


def test_ctrl_c_while_a_command_is_imported_is_one_line(shell):
    code = "import os, signal\nfrom serving import terminal\nterminal.run(lambda: os.kill(os.getpid(), signal.SIGINT))"
    ended = shell(f"$PYTHON -c '{code}'")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\nInterrupted.\n")


@pytest.mark.parametrize(
    "module",
    [*(f"pipeline.{name}" for name in ("run", "certify", "compare", "runs")),
     *(f"serving.{name}" for name in ("publish", "local", "validate"))],
)  # fmt: skip
def test_ctrl_c_while_a_command_imports_what_it_needs_is_one_line(shell, module):
    code = (
        "import os, runpy, signal, sys\n"
        "class Signals:\n"
        "    def find_spec(self, name, *_):\n"
        '        if name in ("pipeline.jobs", "serving.exit"): os.kill(os.getpid(), signal.SIGINT)\n'
        "sys.meta_path.insert(0, Signals())\n"
        f'runpy.run_module("{module}", run_name="__main__", alter_sys=True)\n'
    )
    ended = shell(f"$PYTHON -c '{code}'")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\nInterrupted.\n")


def test_ctrl_c_while_tensorflow_is_imported_can_be_read_and_its_own_page_not(shell, tmp_path):
    """Another thread than the one that imports may get the signal."""
    (tmp_path / "tensorflow.py").write_text(
        "import os, signal, threading, time\nos.write(2, b'a page')\n"
        "thread = threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "thread.start()\nthread.join()\ntime.sleep(5)\n"
    )
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom serving import exit, terminal\n"
        "work = lambda parsed: terminal.import_tensorflow()\n"
        "exit.exit_status(lambda: (None, None), work, 'Come back.', at_once=True)\n"
    )
    (tmp_path / "program.py").write_text(code)
    ended = shell(f"$PYTHON {tmp_path / 'program.py'}", PYTHONPATH=str(ROOT))
    assert (ended.returncode, ended.stderr) == (130, "\nInterrupted. Come back.\n")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ('ImportError("libtensorflow_cc.so.2: failed to map segment from shared object")', "is not enough memory"),
        ('ImportError("libtensorflow_cc.so.2: Cannot allocate memory")', "is not enough memory"),
        ("MemoryError()", "is not enough memory"),
        ('ImportError("No module named absl")', "No module named absl"),
    ],
)
def test_what_tensorflow_lacks_is_told_in_one_line(shell, tmp_path, raised, told):
    (tmp_path / "tensorflow.py").write_text(f"raise {raised}")
    (tmp_path / "program.py").write_text(
        "from serving import exit, terminal\n"
        "exit.exit_status(lambda: (None, None), lambda parsed: terminal.import_tensorflow(), '')\n"
    )
    ended = shell(f"$PYTHON {tmp_path / 'program.py'}")
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, é ± 日本", "plain text, é ± 日本"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("right\u202eto left", r"right\u202eto left"),
        ("not \udcff text\x9b", r"not \udcff text\x9b"),
    ],
)
def test_no_terminal_obeys_what_is_printable(text, shown):
    assert printable(text) == shown


def test_a_terminal_that_cannot_redraw_gets_whole_lines(monkeypatch):
    from pipeline.cli.console import Progress

    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        for kind in ("dumb", "xterm"):
            monkeypatch.setenv("TERM", kind)
            Progress("Work", 2).finish(2)
            screen.flush()
            shown = os.read(leader, 1000)
            assert (b"\x1b" in shown) == (kind == "xterm")
    os.close(leader)
