"""Kills certification before its calls to the operating system: SCRATCH_DIRECTORY drawing|finishing

`drawing`: a hundred kills spread evenly over all of them. `finishing`: one before each that puts results into place.
After each, the results are those of the run before or of this one, whole; run again, all is as if undisturbed. Prints,
as JSON, how many kills there were and how many left the old results.
"""

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from pipeline.certification import certificate_files
from tests.attack.certifier import certify

BEFORE = {"images": range(3), "alpha": 0.05}
AFTER = {"images": range(6), "alpha": 0.01}


_SYSTEM = {"posix", "_io", "io"}


def calls_of(action, killed_before=None):
    """Carries out an action in a process of its own. Returns how many calls it made; None if it was killed before one.

    Calls are those to the operating system and to files, from its main thread.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = 0

        def before_call(frame, event, function):
            nonlocal count
            if event != "c_call":
                return
            method_of_file = isinstance(getattr(function, "__self__", None), io.IOBase)
            if function.__module__ in _SYSTEM or method_of_file:
                if count == killed_before:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.setprofile(before_call)
        action()
        sys.setprofile(None)
        os.write(writer, str(count).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        count = file.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0
    return int(count)


def results(output):
    """Name -> content of what a reader of the results finds; checks that they belong together."""
    about, *_, kinds = certificate_files.read(output)
    assert kinds["hard"].alpha == about["alpha"]
    return {name: (output / name).read_bytes() for name in ("certification.json", "certificates.jsonl")}


def main(root, what):
    old, new, base = root / "old", root / "new", root / "base"

    def run(folder, settings):
        return lambda: certify(folder, output=folder / "output", **settings)

    calls_of(run(old, BEFORE))
    shutil.copytree(old, new, symlinks=True)
    steps = calls_of(run(new, AFTER))
    expected = [results(folder / "output") for folder in (old, new)]
    names = {path.name for path in (new / "output").iterdir() if path.is_symlink()}
    # What puts results into place comes last.
    kills = range(steps - 150, steps) if what == "finishing" else [steps * place // 100 for place in range(100)]
    counts = [0, 0]
    for step in kills:
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(old, base, symlinks=True)
        if calls_of(run(base, AFTER), killed_before=step) is None:
            counts[expected.index(results(base / "output"))] += 1
        calls_of(run(base, AFTER))
        assert results(base / "output") == expected[1]
        assert {path.name for path in (base / "output").iterdir() if path.is_symlink()} == names
        assert len(list((base / "output").iterdir())) == len(names) + 1
    print(json.dumps({"kills": sum(counts), "old": counts[0]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
