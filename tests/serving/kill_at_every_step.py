"""Kills a publisher before every call that it makes to the operating system: SCRATCH_DIRECTORY publish|force|rollback

The scratch directory holds the models `NAMES`, of which `two` is never blessed. After each kill: only whole versions
are there, the next publisher goes on and cleans up. Prints, as JSON, how many kills there were and how many found the
new version there.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from serving import blessing, card, manifest
from serving.fingerprints import weights_fingerprint
from serving.publish import content_fingerprint, publish, rollback
from serving.versions import versions
from tests.kills import calls_of
from tests.serving import saved_models

NAMES = ("one", "two", "three")


def contents(version):
    """The content of a version; fails if it is not whole, or does not say that it was forced if it was."""
    files = {str(path.relative_to(version)): path for path in version.rglob("*") if path.is_file()}
    assert sorted(files) == [
        "assets.extra/manifest.json", "assets.extra/model_card.json", "assets.extra/publication.json", "saved_model.pb",
        "variables/variables.data-00000-of-00001", "variables/variables.index",
    ], files  # fmt: skip
    content = files["saved_model.pb"].read_text()
    manifest.check(version)
    record = json.loads(files["assets.extra/publication.json"].read_text())
    is_forced = content == "two"
    assert (record["blessed"], record["forced"]) == (not is_forced, is_forced)
    assert card.read(version).get("forced", False) is is_forced
    assert record["fingerprint"] == content_fingerprint(version)
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in files.values())
    assert version.stat().st_mode & 0o777 == 0o755
    return content


def main(scratch, verb):
    models = {name: scratch / name for name in NAMES}
    blessings = {name: saved_models.write_blessing(scratch / f"{name}.json", name) for name in ("one", "three")}

    def push(name, base):
        return publish(models[name], base, blessing=blessings.get(name), force=name == "two", check=None)

    pristine, base = scratch / "pristine", scratch / "base"
    if verb == "rollback":
        push("two", pristine)
        push("one", pristine)
    before = [contents(version) for version in versions(pristine)]
    new = "one" if verb == "publish" else "two"

    def action():
        if verb == "rollback":
            rollback(base, check=None)
        else:
            push(new, base)

    step = finished = 0
    while True:
        shutil.rmtree(base, ignore_errors=True)
        if pristine.exists():
            shutil.copytree(pristine, base)
        was_killed = calls_of(action, killed_before=step) is None
        after = [contents(version) for version in versions(base)]
        assert after in (before, [*before, new]), after
        finished += len(after) > len(before)
        assert push("three", base).name == str(len(after) + 1)
        assert [contents(version) for version in versions(base)] == [*after, "three"]
        assert {path.name for path in base.iterdir()} == {str(i + 1) for i in range(len(after) + 1)}
        if not was_killed:
            break
        step += 1
    print(json.dumps({"kills": step, "finished": finished - 1}))


def fingerprint_by_content(directory):
    """What TensorFlow would read of a model of `saved_models`. Without TensorFlow, a process forks faster."""
    return weights_fingerprint([saved_models.weights((Path(directory) / "saved_model.pb").read_text())])


if __name__ == "__main__":
    blessing.fingerprint_of_saved_model = fingerprint_by_content
    # A call as good as the other, but that it waits for no disk: what was written outlives the process either way.
    os.fsync = os.fstat
    main(Path(sys.argv[1]), sys.argv[2])
