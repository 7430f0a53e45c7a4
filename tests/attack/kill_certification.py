"""Kills certification before its calls to the operating system: SCRATCH_DIRECTORY drawing|finishing

`drawing`: a hundred kills spread evenly over all of them. `finishing`: one before each that puts results into place.
After each, the results are those of the run before or of this one, whole; run again, all is as if undisturbed. Prints,
as JSON, how many kills there were and how many left the old results.
"""

import json
import shutil
import sys
from pathlib import Path

from pipeline.certification import certificate_files
from tests.attack.certifier import certify
from tests.kills import calls_of

BEFORE = {"images": range(3), "alpha": 0.05}
AFTER = {"images": range(6), "alpha": 0.01}


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
