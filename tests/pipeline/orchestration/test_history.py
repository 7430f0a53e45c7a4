"""The history of a root: each run has a folder of links, the last one is swapped in, and nothing used is removed."""

import errno
import json
import os
import random
import re
import shutil
import time
from types import SimpleNamespace

import pytest

from pipeline.orchestration import history, orchestrator
from pipeline.orchestration.orchestrator import Component
from pipeline.utils.errors import InputError

# What each component reads, what it makes, and the setting that it depends on.
COMPONENTS = (
    ("ExampleGen", (), "examples", "data"),
    ("Trainer", ("examples",), "model", "epochs"),
    ("Certifier", ("examples", "model"), "certificates", "n"),
    ("Pusher", ("model", "certificates"), "push", "folder"),
)
SETTINGS = {"data": "digits", "epochs": 3, "n": 100, "folder": "a"}


class Killed(BaseException):
    """What nothing in a run catches."""


class Root:
    """A root in which runs are made, stopped and looked for."""

    def __init__(self, folder):
        self.folder = folder
        self.executed = []

    def run(self, stop_in=None, how=None, **changed):
        """Runs all components, recorded; `how` is raised in the component `stop_in`. Returns the run's folder."""
        self.executed.clear()
        settings = {**SETTINGS, **changed}

        def component(name, inputs, output, parameter):
            def execute(execution):
                (execution.outputs[output] / "half").write_text("half")
                if name == stop_in:
                    raise how
                self.executed.append(name)
                read = [sorted(path.name for path in one.path.iterdir()) for one in execution.inputs.values()]
                (execution.outputs[output] / "content").write_text(f"{name} {read} {settings[parameter]}")

            return Component(name, inputs, (output,), (parameter,), execute)

        components = [component(*one) for one in COMPONENTS]
        name, about = history.name_of("a run", settings), {"command": f"run {changed}"}
        with orchestrator.locked(self.folder), history.recorded(self.folder, name, about, "n: 1\n") as recorder:
            artifacts = orchestrator.run(components, settings, self.folder, 1, starting=recorder.starting)
            links = {"model": artifacts["model"].path, "content": artifacts["certificates"].path / "content"}
            return recorder.finish(artifacts.values(), links, {"acr": settings["n"] / 1000})

    def stopped(self, stop_in, how=None, **changed):
        how = how or Killed()
        with pytest.raises(type(how)):
            self.run(stop_in, how, **changed)

    def pushers_of(self, *folders):
        """The Pusher's execution of each of these runs."""
        used = {run.folder: run.executions for run in history.runs(self.folder)}
        return [path for folder in folders for path in used[folder] if path.name.startswith("Pusher")]

    def states(self):
        return [run.state for run in history.runs(self.folder)]

    def times(self):
        return {path: path.lstat().st_mtime_ns for path in self.folder.rglob("*")}

    @property
    def latest(self):
        return self.folder / "latest"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return Root(folder)


# Folders and links


def test_a_finished_run_has_relative_links_that_move_with_the_root(root, tmp_path):
    folder = root.run()
    assert os.readlink(root.latest) == str(folder.relative_to(root.folder))
    assert not any(os.path.isabs(os.readlink(path)) for path in folder.iterdir() if path.is_symlink())
    assert sorted(path.name for path in root.latest.iterdir()) == ["content", "model", "run.json", "settings.yaml"]
    shutil.move(root.folder, tmp_path / "moved")
    assert (tmp_path / "moved/latest/content").read_text().startswith("Certifier")
    assert (tmp_path / "moved/latest/model/content").read_text().startswith("Trainer")
    assert (tmp_path / "moved/latest/settings.yaml").read_text() == "n: 1\n"
    (run,) = history.runs(tmp_path / "moved")
    assert (run.state, run.result, run.about["command"]) == ("finished", {"acr": 0.1}, "run {}")


def test_the_same_again_writes_nothing(root):
    folder = root.run()
    before = root.times()
    assert root.run() == folder
    assert root.times() == before


def test_latest_is_the_last_run_also_if_it_is_an_older_one_that_was_cached(root):
    first, second = root.run(), root.run(n=200)
    assert root.latest.resolve() == second.resolve()
    assert root.run() == first
    assert root.latest.resolve() == first.resolve()
    assert len(root.states()) == 2


def test_latest_is_swapped_at_one_stroke(root, monkeypatch):
    first = root.run()
    seen = []
    link = os.replace

    def looking(source, target):
        seen.append(root.latest.resolve())
        link(source, target)
        seen.append(root.latest.resolve())

    monkeypatch.setattr("os.replace", looking)
    second = root.run(n=200)
    assert {*seen} == {first.resolve(), second.resolve()}
    # Never anything in between, and never back.
    assert seen == sorted(seen, key=[first.resolve(), second.resolve()].index)


@pytest.mark.parametrize("function", ["os.replace", "os.rename"])
def test_a_kill_at_any_stroke_leaves_a_whole_latest_run_and_the_same_command_ends_it(root, monkeypatch, function):
    root.run()
    name, strokes = function.partition(".")[2], 0
    content, stroke = (root.latest / "content").read_text(), getattr(os, name)
    while True:
        left = [strokes]

        def killed(source, target, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            stroke(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(f"os.{name}", killed)
            try:
                root.run(n=200)
                break
            except Killed:
                strokes += 1
        assert (root.latest / "content").read_text() == content
        assert root.latest.resolve() in {run.folder.resolve() for run in history.runs(root.folder)}
        if len([*root.folder.glob("Pusher-" + "?" * 16)]) == 2:
            assert history.unused(root.folder).paths == ()
    assert strokes >= 2
    assert root.states() == ["finished", "finished"]
    assert not list((root.folder / "history").glob("*.unfinished"))


def test_another_version_of_the_code_makes_another_run_of_the_same_settings(root, monkeypatch):
    first = root.run()
    content = (first / "content").read_text()
    monkeypatch.setattr("macer_tf.__version__", "0.0.0")
    second = root.run()
    assert second.name == f"{first.name}-2"
    assert root.latest.resolve() == second.resolve()
    assert (first / "content").read_text() == content
    assert root.run() == second
    assert len(root.states()) == 2


def test_a_root_that_was_copied_with_its_links_followed_is_refused_before_any_work(root, tmp_path):
    root.run()
    copy = Root(tmp_path / "copy")
    shutil.copytree(root.folder, copy.folder)
    with pytest.raises(InputError) as told:
        copy.run(epochs=4)
    assert str(told.value) == (
        f"{copy.latest} must be a link to the last run, but is a folder, as after `cp -L`. Move it away and run "
        "the same command again."
    )
    assert copy.executed == []
    shutil.rmtree(copy.latest)
    folder = copy.run(epochs=4)
    assert copy.latest.resolve() == folder.resolve()


def test_a_folder_in_the_place_of_a_link_that_is_being_made_gives_way(root):
    (root.folder / ".latest.writing" / "deep").mkdir(parents=True)
    root.stopped("Pusher")
    (unfinished,) = (root.folder / "history").glob("*.unfinished")
    # As a kill leaves the links of a run, and a copy that follows them.
    (unfinished / "model").mkdir()
    folder = root.run()
    assert root.latest.resolve() == folder.resolve()
    assert (folder / "model").is_symlink()
    assert not (root.folder / ".latest.writing").exists()


@pytest.mark.parametrize("function", ["os.symlink", "os.replace", "os.rename"])
def test_a_disk_that_is_full_at_the_end_is_told_in_one_line_and_loses_nothing(root, monkeypatch, function):
    stroke = getattr(os, function.partition(".")[2])

    def full(source, target, *arguments, **keywords):
        if "history" in str(target) or "latest" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stroke(source, target, *arguments, **keywords)

    root.stopped("Pusher")
    with monkeypatch.context() as patch:
        patch.setattr(function, full)
        with pytest.raises(InputError) as told:
            root.run()
    assert str(told.value).startswith(f"Cannot write {root.folder}/history/a_run-")
    assert str(told.value).endswith(
        "(No space left on device). Make room there and run the same command again: what was finished is kept."
    )
    root.run()
    assert root.executed == ([] if function != "os.replace" else ["Pusher"])
    assert root.states() == ["finished"]


@pytest.mark.parametrize("name", ["history", "history/a_run-"])
def test_a_file_in_the_place_of_the_history_is_named_before_any_work(root, name):
    if name != "history":
        root.stopped("Trainer")
        (folder,) = (root.folder / "history").iterdir()
        shutil.rmtree(folder)
        name = f"history/{folder.name}"
    (root.folder / name).write_text("mine")
    with pytest.raises(InputError) as told:
        root.run()
    assert f"({root.folder / name}: File exists). Move away what is in its place and run" in str(told.value)
    assert "\n" not in str(told.value)
    assert "Trainer" not in root.executed
    assert (root.folder / name).read_text() == "mine"


def test_a_root_that_is_moved_away_is_not_made_again_for_the_record(root, tmp_path):
    recorder = history.Recorder(root.folder, "a_run-01234567", {}, "")
    recorder.starting(root.folder / "Trainer-0123456789abcdef")
    root.folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"\(No such file or directory\)\. Put back what is missing there and run"):
        recorder.failed("it is gone")
    assert not root.folder.exists()


# States


def test_a_run_that_failed_says_why_and_is_the_same_run_when_it_is_finished(root):
    root.stopped("Certifier", ValueError("no room\nfor more"))
    (run,) = history.runs(root.folder)
    assert (run.state, run.reason) == ("failed", "ValueError: no room")
    assert [path.name.partition("-")[0] for path in run.executions] == ["ExampleGen", "Trainer", "Certifier"]
    assert (run.folder / "settings.yaml").exists()
    assert not root.latest.is_symlink()
    root.run()
    assert root.states() == ["finished"]


def test_of_runs_that_were_left_only_the_last_can_be_at_work(root):
    root.stopped("Trainer")
    root.stopped("Certifier", n=200)
    assert root.states() == ["interrupted", "interrupted"]
    with orchestrator.locked(root.folder):
        assert root.states() == ["interrupted", "running"]


def test_a_clock_that_is_set_back_changes_no_order(root, monkeypatch, capsys):
    def set_back(hours):
        clock = SimpleNamespace(time=lambda: time.time() - 3600 * hours, monotonic=time.monotonic, sleep=time.sleep)
        monkeypatch.setattr(orchestrator, "time", clock)

    first = root.run()
    root.stopped("Certifier", n=1)
    set_back(5)
    second = root.run(n=200)
    assert [run.folder.name for run in history.runs(root.folder)][::2] == [first.name, second.name]
    assert root.latest.resolve() == second
    pushes = [outputs["push"].path.parent.name for outputs in orchestrator.finished(root.folder, "Pusher")]
    assert pushes == [path.name for path in root.pushers_of(second, first)]
    set_back(10)
    root.stopped("Trainer", epochs=5)
    with orchestrator.locked(root.folder):
        assert root.states() == ["finished", "interrupted", "finished", "running"]
    assert {*re.findall("done in (.*?):", capsys.readouterr().out)} == {"0 s"}


def test_looking_for_a_moment_refuses_nobody(root):
    root.run()
    assert not orchestrator.is_locked(root.folder)
    with orchestrator.locked(root.folder):
        assert orchestrator.is_locked(root.folder)
        with pytest.raises(InputError, match="Another run is in progress"), orchestrator.locked(root.folder):
            pass
    with orchestrator.locked(root.folder):
        pass


@pytest.mark.parametrize(
    "content", ["", "{}", "no json", '{"format": 1, "state": "finished"}', '{"executions": ["../../home"]}']
)
def test_a_record_that_was_changed_is_not_believed(root, content):
    folder = root.run()
    (folder / "run.json").write_text(content)
    runs = {run.name: run for run in history.runs(root.folder)}
    assert runs.pop(folder.name).state == "damaged"
    # What it used is found by the executions' own records.
    (found,) = runs.values()
    assert (found.state, found.folder, len(found.executions)) == ("finished", None, 4)
    assert history.unused(root.folder).paths == ()


def test_a_root_of_before_there_was_a_history_has_its_runs(root):
    root.run()
    root.run(n=200)
    shutil.rmtree(root.folder / "history")
    assert root.states() == ["finished", "finished"]
    assert all(run.name.startswith("Pusher-") and len(run.executions) == 4 for run in history.runs(root.folder))
    assert history.remove(root.folder)[0].paths == ()
    root.run()
    assert root.executed == []


# Pruning


def test_what_was_not_finished_is_removed_and_what_finished_runs_use_is_not(root):
    root.run()
    root.stopped("Certifier", n=200)
    root.stopped("Trainer", epochs=4)
    root.stopped("Trainer", data="mnist", epochs=5)
    found, size = history.remove(root.folder)
    names = sorted(path.name.partition("-")[0] for path in found.paths if path.parent == root.folder)
    # The data of the last one are nobody's.
    assert names == ["Certifier", "ExampleGen", "Trainer", "Trainer"]
    assert size > 0
    assert (found.models, found.unreadable) == ((), ())
    assert not any(path.exists() for path in found.paths)
    assert not list(root.folder.rglob("*.unfinished"))
    root.run()
    assert root.executed == []
    assert root.states() == ["finished"]


def test_a_trained_model_that_no_finished_run_uses_is_kept_and_its_run_goes_on_from_it(root):
    root.stopped("Certifier", epochs=4)
    found, _ = history.remove(root.folder)
    assert [path.name.partition("-")[0] for path in found.models] == ["Trainer"]
    assert root.states() == ["interrupted"]
    root.run(epochs=4)
    assert root.executed == ["ExampleGen", "Certifier", "Pusher"]
    assert history.unused(root.folder).models == ()


def test_looking_removes_nothing_and_says_the_same(root):
    root.run()
    root.stopped("Trainer", epochs=4)
    before = root.times()
    looked = history.unused(root.folder)
    assert root.times() == before
    assert looked.paths
    assert history.remove(root.folder)[0] == looked
    assert history.remove(root.folder)[0].paths == ()


def test_nothing_is_removed_beside_a_run_that_is_at_work(root):
    root.stopped("Trainer")
    with orchestrator.locked(root.folder):
        for refused in (history.unused, history.remove):
            with pytest.raises(InputError, match=r"is in progress in .*; wait for it\.$"):
                refused(root.folder)
    assert list(root.folder.glob("Trainer-*.unfinished"))


def test_what_cannot_be_read_is_left_alone_and_so_are_the_files_of_others(root):
    root.run()
    root.stopped("Trainer", epochs=4)
    for name in ("Trainer-mine", "notes-0123456789abcdef.txt", "votes", "serving"):
        (root.folder / name).mkdir()
        (root.folder / name / "file").write_text("mine")
    older = root.folder / "Trainer-0123456789abcdef"
    older.mkdir()
    (older / "execution.json").write_text(json.dumps({"format": 2}))
    found, _ = history.remove(root.folder)
    assert found.unreadable == (older,)
    assert older.exists()
    assert all((root.folder / name / "file").exists() for name in ("Trainer-mine", "votes", "serving"))


def test_what_was_to_be_replaced_when_a_run_was_killed_is_put_back_and_not_removed(root):
    root.run()
    (trainer,) = root.folder.glob("Trainer-*")
    trainer.rename(f"{trainer}.replaced")
    assert history.remove(root.folder)[0].paths == ()
    root.run()
    assert root.executed == []
    shutil.copytree(trainer, f"{trainer}.replaced")
    assert [path.name for path in history.remove(root.folder)[0].paths] == [f"{trainer.name}.replaced"]
    root.run()
    assert root.executed == []


def test_curves_go_with_their_model(root):
    root.run()
    (trainer,) = root.folder.glob("Trainer-*")
    used = root.folder / "tensorboard" / f"macer-digits-0.25-{trainer.name[-16:][:8]}"
    for folder in (used, root.folder / "tensorboard" / "macer-digits-0.25-ffffffff"):
        folder.mkdir(parents=True)
        (folder / "events").write_text("")
    assert history.curves_of(root.folder, trainer) == used
    assert [path.name for path in history.remove(root.folder)[0].paths] == ["macer-digits-0.25-ffffffff"]
    assert (used / "events").exists()


def test_what_else_lies_beside_our_curves_and_records_is_nobodys_to_remove(root):
    root.run()
    root.stopped("Trainer", epochs=4)
    (ours,) = (root.folder / "history").glob("*.unfinished")
    theirs = [
        *(root.folder / "tensorboard" / name for name in ("pytorch-baseline", "baseline-20240131", "my-runs")),
        *(root.folder / "history" / name for name in ("notes.unfinished", "my-notes.unfinished", "notes-0123abcd")),
    ]
    for folder in theirs:
        folder.mkdir(parents=True)
        (folder / "file").write_text("theirs")
    gone = history.remove(root.folder)[0].paths
    assert ours in gone
    assert {*theirs}.isdisjoint(gone)
    assert all((folder / "file").exists() for folder in theirs)


def test_the_curves_of_a_model_on_a_disk_that_is_not_mounted_are_kept(root):
    root.run()
    (trainer,) = root.folder.glob("Trainer-*")
    curves = root.folder / "tensorboard" / f"macer-digits-0.25-{trainer.name[-16:][:8]}"
    curves.mkdir(parents=True)
    shutil.rmtree(trainer)
    trainer.symlink_to("elsewhere")
    found, _ = history.remove(root.folder)
    assert found.paths == ()
    assert curves.exists()


def test_a_file_in_the_place_of_what_pruning_makes_gives_way(root):
    root.stopped("Trainer")
    (root.folder / ".pruned").write_text("")
    assert history.remove(root.folder)[0].paths
    assert not (root.folder / ".pruned").exists()


@pytest.mark.parametrize("after", range(4))
def test_a_removal_that_is_killed_leaves_nothing_half_removed(root, monkeypatch, after):
    root.run()
    root.stopped("Certifier", n=200)
    root.stopped("Trainer", epochs=4)
    rename, left = os.rename, [after]

    def killed(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", killed)
        with pytest.raises(Killed):
            history.remove(root.folder)
    root.run()
    assert root.executed == []
    history.remove(root.folder)
    assert sorted(path.name for path in root.folder.iterdir() if path.name.startswith(".")) == [".lock"]
    assert root.states() == ["finished"]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happened_before_finished_runs_stay_cached_and_nothing_unfinished_is_left(root, seed):
    draw = random.Random(seed)
    finished = []
    for _ in range(6):
        changed = {"epochs": draw.choice((3, 4)), "n": draw.choice((100, 200)), "data": draw.choice(("a", "b"))}
        stop_in = draw.choice((None, None, *(name for name, *_ in COMPONENTS)))
        try:
            root.run(stop_in, draw.choice((Killed(), ValueError("failed"))), **changed)
            finished.append(changed)
        except (Killed, ValueError):
            pass
        if draw.random() < 0.3:
            history.remove(root.folder)
    history.remove(root.folder)
    assert not list(root.folder.glob("*-*.unfinished"))
    for changed in finished:
        root.run(**changed)
        assert root.executed == []
