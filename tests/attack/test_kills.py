"""Certification killed at its calls to the operating system: nobody reads two halves, and it ends as if undisturbed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.attack, pytest.mark.slow]


@pytest.mark.parametrize("what", ["drawing", "finishing"])
def test_killed_anywhere_it_ends_the_same(tmp_path, what):
    script = Path(__file__).with_name("kill_certification.py")
    arguments = [sys.executable, "-m", f"tests.attack.{script.stem}", str(tmp_path), what]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, cwd=script.parents[2], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= 90
    assert told["old"] >= 50
    if what == "finishing":
        # Before the swap and after it.
        assert told["old"] < told["kills"]
