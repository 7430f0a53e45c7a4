"""Kills a publisher before every call that it makes to the operating system: SCRATCH_DIRECTORY publish|rollback

After each kill: only whole versions are there, the next publisher goes on and cleans up. Prints, as JSON, how many
kills there were and how many found the new version there.
"""

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from serving.publish import publish, rollback
from serving.versions import versions

_SYSTEM = {"posix", "fcntl", "_io", "io"}


def killed_at(step, action):
    """Runs `action` in a process that is killed before call number `step`; False if it came to its end."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def before_call(frame, event, function):
            nonlocal count
            if event != "c_call":
                return
            method_of_file = isinstance(getattr(function, "__self__", None), io.IOBase)
            if function.__module__ in _SYSTEM or method_of_file:
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.setprofile(before_call)
        action()
        sys.setprofile(None)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def write_model(directory, content):
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").write_text(content)
    (directory / "variables" / "variables.index").write_text(content * 2)


def contents(version):
    """The content of a version; fails if it is not whole."""
    files = {str(path.relative_to(version)): path for path in version.rglob("*") if path.is_file()}
    assert sorted(files) == ["assets.extra/publication.json", "saved_model.pb", "variables/variables.index"], files
    content = files["saved_model.pb"].read_text()
    assert files["variables/variables.index"].read_text() == content * 2
    assert json.loads(files["assets.extra/publication.json"].read_text())["blessed"] is True
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in files.values())
    assert version.stat().st_mode & 0o777 == 0o755
    return content


def main(scratch, verb):
    models = [scratch / name for name in ("one", "two", "three")]
    for model in models:
        write_model(model, model.name)
    pristine, base = scratch / "pristine", scratch / "base"
    if verb == "rollback":
        for model in models[:2]:
            publish(model, pristine, blessed=True, check=None)
    before = [contents(version) for version in versions(pristine)]

    def action():
        if verb == "publish":
            publish(models[0], base, blessed=True, check=None)
        else:
            rollback(base, check=None)

    step = finished = 0
    while True:
        shutil.rmtree(base, ignore_errors=True)
        if pristine.exists():
            shutil.copytree(pristine, base)
        was_killed = killed_at(step, action)
        after = [contents(version) for version in versions(base)]
        assert after in (before, [*before, "one"]), after
        finished += len(after) > len(before)
        assert publish(models[2], base, blessed=True, check=None).name == str(len(after) + 1)
        assert [contents(version) for version in versions(base)] == [*after, "three"]
        assert {path.name for path in base.iterdir()} == {str(i + 1) for i in range(len(after) + 1)}
        if not was_killed:
            break
        step += 1
    print(json.dumps({"kills": step, "finished": finished - 1}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
