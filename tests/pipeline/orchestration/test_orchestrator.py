"""The orchestrator runs what is new, skips what is finished, and takes nothing half-written for finished."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.orchestration import orchestrator
from pipeline.orchestration.artifacts import Artifact
from pipeline.orchestration.orchestrator import Component, Resolver
from pipeline.utils import atomic_files
from pipeline.utils.errors import InputError
from serving.fingerprints import sealed, unsealed

SETTINGS = {"text": "hello", "times": 2, "suffix": "!", "unused": 0}


class Pipeline:
    """Source (text) -> Repeat (times) -> Suffix (suffix); `executed` says which were carried out."""

    def __init__(self, root):
        self.root, self.executed = root, []

        def component(name, inputs, output, parameter, make):
            def execute(execution):
                self.executed.append(name)
                read = [(artifact.path / "text").read_text() for artifact in execution.inputs.values()]
                (execution.outputs[output] / "text").write_text(make(*read, execution.parameters[parameter]))

            return Component(name, inputs, (output,), (parameter,), execute)

        self.components = [
            component("Source", (), "source", "text", lambda text: text.lower()),
            component("Repeat", ("source",), "repeated", "times", lambda text, times: text * times),
            component("Suffix", ("repeated",), "result", "suffix", lambda text, suffix: text + suffix),
        ]

    def run(self, anew=False, **changed):
        """The result's text and what was carried out for it."""
        self.executed.clear()
        artifacts = orchestrator.run(self.components, {**SETTINGS, **changed}, self.root, 1, anew)
        return (artifacts["result"].path / "text").read_text(), list(self.executed)

    def replace(self, place, **fields):
        self.components[place] = dataclasses.replace(self.components[place], **fields)

    def directory(self, name):
        (directory,) = self.root.glob(f"{name}-*")
        return directory


@pytest.fixture
def pipeline(tmp_path):
    return Pipeline(tmp_path)


def test_what_is_finished_is_not_executed_again(pipeline, capsys):
    assert pipeline.run() == ("hellohello!", ["Source", "Repeat", "Suffix"])
    assert "running" in capsys.readouterr().out
    assert pipeline.run() == ("hellohello!", [])
    out = capsys.readouterr().out
    assert out.count("cached in") == 3
    assert "running" not in out


@pytest.mark.parametrize(
    ("changed", "executed"),
    [
        ({"suffix": "?"}, ["Suffix"]),
        ({"times": 3}, ["Repeat", "Suffix"]),
        ({"text": "other"}, ["Source", "Repeat", "Suffix"]),
        # Another parameter, the same output: nothing downstream has other inputs.
        ({"text": "HELLO"}, ["Source"]),
        ({"unused": 1}, []),
    ],
)
def test_only_what_depends_on_a_change_is_executed(pipeline, changed, executed):
    pipeline.run()
    assert pipeline.run(**changed)[1] == executed
    assert pipeline.run()[1] == []


@pytest.mark.parametrize("fields", [{"outputs": ("other",)}, {"parameters": ("text", "times")}, {"name": "Renamed"}])
def test_a_changed_declaration_is_another_execution(pipeline, fields):
    pipeline.run()
    component = dataclasses.replace(
        pipeline.components[0], execute=lambda execution: pipeline.executed.append("again"), **fields
    )
    pipeline.executed.clear()
    orchestrator.run([component], SETTINGS, pipeline.root, 1)
    assert pipeline.executed == ["again"]


def test_a_new_version_of_the_library_is_another_execution(pipeline, monkeypatch):
    pipeline.run()
    monkeypatch.setattr("macer_tf.__version__", "0.0.0")
    assert len(pipeline.run()[1]) == 3


def test_number_of_workers_changes_nothing(pipeline):
    pipeline.run()
    pipeline.executed.clear()
    orchestrator.run(pipeline.components, SETTINGS, pipeline.root, 7)
    assert pipeline.executed == []


def test_the_record_says_what_was_done(pipeline):
    pipeline.run()
    record = json.loads((pipeline.directory("Repeat") / "execution.json").read_text())
    source = Artifact.of(pipeline.directory("Source") / "source").fingerprint
    assert record["component"] == "Repeat"
    assert record["inputs"] == {"source": source}
    assert record["outputs"] == ["repeated"]
    assert record["parameters"] == {"times": 2}
    assert record["output_fingerprints"] == {
        "repeated": Artifact.of(pipeline.directory("Repeat") / "repeated").fingerprint
    }
    assert record["finished_at"] >= record["started_at"]


STEPS = ("in the component", "hashing", "writing the record", "flushing", "renaming")


def stop_at(monkeypatch, step, pipeline, how):
    """Makes the second component stop by `how` in the middle of a step."""

    def reached(*arguments, **keywords):
        how()

    if step == "in the component":

        def execute(execution):
            (execution.outputs["repeated"] / "half").write_text("half")
            (execution.scratch / "kept").write_text("kept")
            how()

        pipeline.replace(1, execute=execute)
        return
    inner = pipeline.components[1].execute

    def execute(execution):
        inner(execution)
        (execution.scratch / "kept").write_text("kept")
        if step == "hashing":
            monkeypatch.setattr(orchestrator, "file_digests", reached)
        elif step == "writing the record":
            monkeypatch.setattr(os, "replace", reached)
        elif step == "flushing":
            monkeypatch.setattr(atomic_files, "flush", reached)
        else:
            monkeypatch.setattr(os, "rename", reached)

    pipeline.replace(1, execute=execute)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("how", ["raises", "killed"])
def test_nothing_half_written_counts_and_scratch_survives(tmp_path, step, how):
    interrupted = Pipeline(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        if how == "raises":

            def fail():
                raise RuntimeError("stopped")

            stop_at(patch, step, interrupted, fail)
            with pytest.raises(RuntimeError, match="stopped"):
                interrupted.run()
        else:
            child = os.fork()
            if child == 0:
                try:
                    stop_at(patch, step, interrupted, lambda: os.kill(os.getpid(), 9))
                    interrupted.run()
                finally:
                    os._exit(0)
            assert os.waitpid(child, 0)[1] == 9

    names = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    (unfinished,) = tmp_path.glob("*.unfinished")
    assert names == ["Repeat", "Source"]
    assert unfinished.name.startswith("Repeat-")
    assert (unfinished / "scratch" / "kept").read_text() == "kept"
    assert orchestrator.finished(tmp_path, "Repeat") == []

    again = Pipeline(tmp_path)
    found = []
    inner = again.components[1].execute

    def execute(execution):
        found.extend((execution.scratch / "kept").read_text().split())
        found.extend(path.name for path in execution.outputs["repeated"].iterdir())
        inner(execution)

    again.replace(1, execute=execute)
    assert again.run() == ("hellohello!", ["Repeat", "Suffix"])
    assert found == ["kept"]
    assert not list(tmp_path.glob("*.unfinished"))
    assert not list(tmp_path.glob("*/scratch"))


def test_scratch_left_by_a_kill_behind_the_rename_is_cleared(pipeline):
    pipeline.run()
    scratch = pipeline.directory("Repeat") / "scratch"
    scratch.mkdir()
    (scratch / "backup").write_text("x")
    assert pipeline.run()[1] == []
    assert not scratch.exists()


def damage_record(directory, change):
    path = directory / "execution.json"
    record = json.loads(path.read_text())
    change(record)
    del record["checksum"]
    path.write_text(json.dumps(sealed(record)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: (directory / "execution.json").write_text('{"component": "Re'),
        lambda directory: (directory / "execution.json").write_text("[]"),
        lambda directory: (directory / "execution.json").write_bytes(b"\xff\xfe\x00"),
        lambda directory: (directory / "execution.json").unlink(),
        lambda directory: damage_record(directory, lambda record: record.pop("output_fingerprints")),
        lambda directory: damage_record(directory, lambda record: record["parameters"].update(times=3)),
        lambda directory: (shutil.rmtree(directory), directory.mkdir(), (directory / "thesis.tex").write_text("")),
        lambda directory: (shutil.rmtree(directory), directory.write_text("a file")),
    ],
    ids=["torn", "list", "bytes", "no record", "no fingerprints", "another run's", "foreign", "a file"],
)
def test_a_directory_that_is_not_ours_is_told_in_one_line(pipeline, damage):
    pipeline.run()
    directory = pipeline.directory("Repeat")
    damage(directory)
    before = sorted(directory.iterdir()) if directory.is_dir() else directory.read_text()
    with pytest.raises(InputError) as error:
        pipeline.run()
    assert str(directory) in str(error.value)
    assert "is not a finished Repeat execution" in str(error.value)
    assert "delete that directory" in str(error.value)
    assert "\n" not in str(error.value)
    assert before == (sorted(directory.iterdir()) if directory.is_dir() else directory.read_text())


@pytest.mark.parametrize(
    "change",
    [
        lambda output: (output / "text").write_text("hellohellp"),
        lambda output: (output / "text").unlink(),
        lambda output: (output / "text").rename(output / "renamed"),
        lambda output: (output / "more").write_text(""),
        shutil.rmtree,
    ],
    ids=["changed", "removed", "renamed", "added", "all gone"],
)
def test_a_changed_output_is_told_in_one_line(pipeline, change):
    pipeline.run()
    change(pipeline.directory("Repeat") / "repeated")
    with pytest.raises(InputError, match=r"was changed or damaged after it was finished .*delete") as error:
        pipeline.run()
    assert "\n" not in str(error.value)
    shutil.rmtree(pipeline.directory("Repeat"))
    assert pipeline.run() == ("hellohello!", ["Repeat"])


LITTER = (".DS_Store", "._text", ".nfs0001", ".sync/state", "__MACOSX/text", "Thumbs.db", "desktop.ini")


@pytest.mark.parametrize("name", LITTER)
def test_what_a_desktop_leaves_behind_is_nobodys_content(pipeline, name):
    pipeline.run()
    for directory in (pipeline.directory("Repeat"), pipeline.directory("Repeat") / "repeated"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("litter")
    assert pipeline.run() == ("hellohello!", [])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda output: (output / "text").write_text("other"), "'text' was changed"),
        (lambda output: (output / "text").unlink(), "'text' is missing"),
        (lambda output: (output / "text").rename(output / "moved"), "'moved' is new, 'text' is missing"),
        (lambda output: (output / "a\x1b[31m").write_text(""), r"'a\x1b[31m' is new"),
        (lambda output: [(output / f"{i}").write_text("") for i in range(9)],
         "'0' is new, '1' is new, '2' is new, 6 more"),
    ],
    ids=["changed", "missing", "renamed", "escape sequence", "many"],
)  # fmt: skip
def test_the_file_that_was_changed_is_named(pipeline, change, named):
    pipeline.run()
    output = pipeline.directory("Repeat") / "repeated"
    change(output)
    with pytest.raises(InputError) as error:
        pipeline.run()
    assert f"{output} was changed or damaged after it was finished ({named}); put back what was there" in str(
        error.value
    )


def test_every_flipped_byte_of_a_record_is_told_in_one_line(pipeline):
    pipeline.run()
    path = pipeline.directory("Repeat") / "execution.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(InputError, match="is not a finished Repeat execution") as error:
            pipeline.run()
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    assert pipeline.run() == ("hellohello!", [])


@pytest.mark.parametrize("number", [1, 2])
def test_a_root_of_an_older_format_is_told_in_one_line(pipeline, number):
    pipeline.run()
    path = pipeline.directory("Source") / "execution.json"
    record = unsealed(json.loads(path.read_text()))
    if number == 1:  # of a time when records had neither a checksum nor the digests of single files
        del record["output_files"]
    record["format"] = number
    path.write_text(json.dumps(record if number == 1 else sealed(record)))
    with pytest.raises(
        InputError, match=f"is of format {number}, which an earlier version .* another pipeline_root"
    ) as error:
        pipeline.run()
    assert "\n" not in str(error.value)


def test_anew_everything_is_executed_again_and_counts_from_then_on(pipeline):
    before = pipeline.run() and pipeline.directory("Repeat").stat().st_ino
    assert pipeline.run(anew=True) == ("hellohello!", ["Source", "Repeat", "Suffix"])
    assert pipeline.directory("Repeat").stat().st_ino != before
    assert pipeline.run() == ("hellohello!", [])
    assert {path.suffix for path in pipeline.root.iterdir()} == {""}


def test_anew_nothing_of_an_unfinished_attempt_is_used(pipeline):
    found = []

    def execute(execution):
        found.extend(path.name for path in execution.scratch.iterdir())
        (execution.scratch / "backup").write_text("")
        (execution.outputs["repeated"] / "text").write_text("x")
        if len(found) < 1:
            raise RuntimeError

    pipeline.replace(1, execute=execute)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            pipeline.run(anew=True)
    assert not found
    assert pipeline.run()[0] == "x!"
    assert found == ["backup"]


def test_anew_is_once_for_a_command(pipeline):
    def run(made, **changed):
        pipeline.executed.clear()
        orchestrator.run(pipeline.components, {**SETTINGS, **changed}, pipeline.root, 1, anew=True, made=made)
        return list(pipeline.executed)

    pipeline.run()
    made = set()
    assert run(made) == ["Source", "Repeat", "Suffix"]
    assert run(made, suffix="?") == ["Suffix"]
    assert run(made) == []
    assert run(set()) == ["Source", "Repeat", "Suffix"]


def test_a_failure_or_a_kill_anew_loses_nothing_finished(pipeline, monkeypatch):
    pipeline.run()
    working = pipeline.components[1]

    def fail(execution):
        raise RuntimeError("no memory")

    pipeline.replace(1, execute=fail)
    with pytest.raises(RuntimeError):
        pipeline.run(anew=True)
    pipeline.components[1] = working
    assert pipeline.run() == ("hellohello!", [])

    # Between the two renames.
    with monkeypatch.context() as patch:
        patch.setattr(orchestrator, "finish_directory", fail)
        with pytest.raises(TypeError):
            pipeline.run(anew=True)
    assert pipeline.run() == ("hellohello!", [])
    assert pipeline.run(anew=True) == ("hellohello!", ["Source", "Repeat", "Suffix"])


def test_other_code_is_another_execution_and_other_wording_is_not(pipeline, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    monkeypatch.chdir(tmp_path / "code")
    pipeline.root = tmp_path / "root"
    pipeline.root.mkdir()
    # As a method, a network or a bound is named.
    pipeline.replace(1, parameters=("times", "method"), references=("method",))
    files = {"code_of_mine": "import beside_it\ndef f():\n    return beside_it.G\n", "beside_it": "G = 1\n"}

    def run(**changed):
        for name, text in {**files, **changed}.items():
            (tmp_path / "code" / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)  # as in another process
        return pipeline.run(method="code_of_mine:f")[1]

    assert run() == ["Source", "Repeat", "Suffix"]
    worded = '"""Says."""\nimport beside_it\ndef f():\n    """Returns."""\n\n    return beside_it.G  # why\n'
    assert run(code_of_mine=worded) == []
    assert run(beside_it="G = 2\n") == ["Repeat"]
    assert run(code_of_mine=files["code_of_mine"] + "H = 1\n") == ["Repeat"]
    assert run() == []
    # Of a long run, a later component: what it runs was imported before.
    (tmp_path / "code" / "beside_it.py").write_text("G = 2  # and why\n")
    with pytest.raises(InputError, match=r"^code_of_mine, or a file that it imports, was changed after it"):
        pipeline.run(method="code_of_mine:f")
    (tmp_path / "code" / "beside_it.py").write_text("G = 1  # and why\n")
    assert pipeline.run(method="code_of_mine:f")[1] == []
    assert sys.modules.pop("code_of_mine")
    assert sys.modules.pop("beside_it")


def test_what_is_read_from_elsewhere_tells_an_execution_from_others(pipeline, tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("one")
    pipeline.replace(0, reads=lambda parameters: {"source": source.read_text()})
    assert pipeline.run()[1] == ["Source", "Repeat", "Suffix"]
    assert pipeline.run()[1] == []
    source.write_text("two")
    assert pipeline.run()[1] == ["Source"]  # its output is what it was
    source.unlink()
    with pytest.raises(InputError, match=r"^Cannot read the input of Source \(.*No such file.*source\.txt.*\)\.$"):
        pipeline.run()


@pytest.mark.parametrize(("before", "is_refused"), [("one", True), (None, False)])
def test_what_changes_while_it_is_read_is_refused_and_what_is_made_there_is_not(pipeline, before, is_refused):
    found = [before]
    pipeline.replace(0, reads=lambda parameters: {"source": found[-1]})
    execute = pipeline.components[0].execute
    pipeline.replace(0, execute=lambda execution: (execute(execution), found[-1] == before and found.append("two")))
    if is_refused:
        with pytest.raises(InputError, match=r"^The files that Source read changed while it ran; run the same"):
            pipeline.run()
    else:
        assert pipeline.run()[1] == ["Source", "Repeat", "Suffix"]
    # What it made there itself is what the execution is told by.
    assert pipeline.run()[1] == (["Source", "Repeat", "Suffix"] if is_refused else [])
    found.append("three")
    assert pipeline.run()[1] == ["Source"]


def test_what_a_kill_left_of_an_execution_that_another_turns_out_to_be_is_no_obstacle(pipeline, tmp_path):
    """Without its data, an execution has another directory until it has made them."""
    data = tmp_path / "data"

    def execute(execution):
        data.write_text("made")
        (execution.outputs["source"] / "text").write_text("hello")

    found = {"reads": lambda _: {"data": data.read_text() if data.exists() else None}, "execute": execute}
    pipeline.replace(0, **found)
    pipeline.run()
    (directory,) = pipeline.root.glob("Source-*")
    shutil.copytree(directory, f"{directory}.replaced")
    data.unlink()
    assert pipeline.run()[0] == "hellohello!"
    assert list(pipeline.root.glob("Source-*")) == [directory]


def test_two_runs_at_once_in_one_root(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.orchestration import orchestrator\n"
        "with orchestrator.locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    repository = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=repository
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match=r"Another run is in progress in .*; wait for it"),
            orchestrator.locked(tmp_path),
        ):
            pass
        # The lock goes with the process, however it ends.
        other.kill()
        other.wait()
        with orchestrator.locked(tmp_path):
            pass


def test_an_unwritable_root(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(
                InputError, match=r"Cannot write to the folder .*; move away what .*, or give another pipeline"
            ),
            orchestrator.locked(root),
        ):
            pass
    if os.geteuid() != 0:
        (tmp_path / "readonly").mkdir(mode=0o500)
        with pytest.raises(InputError, match="Permission denied"), orchestrator.locked(tmp_path / "readonly"):
            pass


def test_a_command_that_is_about_one_root_tells_of_no_other(tmp_path, monkeypatch):
    with (
        orchestrator.locked(tmp_path),
        pytest.raises(InputError, match=rf"^Another run is in progress in {tmp_path}; wait for it\.$"),
        orchestrator.locked(tmp_path, None),
    ):
        pass

    def refuse(*arguments, **keywords):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for name, another in ((None, ""), ("output", ", or give another output")):
        with pytest.raises(InputError) as told, orchestrator.locked(tmp_path, name):
            pass
        assert str(told.value) == (
            f"Cannot write to the folder {tmp_path} (Read-only file system); make it writable{another}."
        )


def test_a_folder_in_the_place_of_the_lock_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError) as told, orchestrator.locked(tmp_path):
        pass
    assert str(told.value) == (
        f"Cannot write the file {tmp_path}/.lock (Is a directory); remove that folder, or give another pipeline_root."
    )
    assert not orchestrator.is_locked(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".unfinished", ".replaced"])
def test_an_execution_that_is_a_link_to_what_is_gone_is_refused_before_any_work(pipeline, tmp_path, suffix):
    pipeline.run()
    directory = pipeline.directory("Repeat")
    place = directory.with_name(directory.name + suffix)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(directory, tmp_path / "elsewhere" / "moved")
    place.symlink_to("elsewhere/moved")
    (tmp_path / "elsewhere").rename(tmp_path / "not mounted")
    pipeline.executed.clear()
    for refused in (pipeline.run, lambda: orchestrator.planned(pipeline.components, SETTINGS, pipeline.root)):
        with pytest.raises(InputError) as told:
            refused()
        assert str(told.value) == (
            f"{place} is a link to elsewhere/moved, which does not exist; put back or mount it, or remove "
            "the link to make it again."
        )
    assert pipeline.executed == []
    assert place in orchestrator.executions(pipeline.root)
    (tmp_path / "not mounted").rename(tmp_path / "elsewhere")
    assert pipeline.run()[1] == (["Repeat"] if suffix == ".unfinished" else [])


@pytest.mark.parametrize("name", ["", "/scratch", "/repeated"])
@pytest.mark.parametrize("anew", [False, True])
def test_a_file_in_the_place_of_a_folder_of_an_execution_gives_way(pipeline, name, anew):
    pipeline.run()
    directory = pipeline.directory("Repeat")
    shutil.rmtree(directory)
    file = pipeline.root / f"{directory.name}.unfinished{name}"
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    (_, step, _), _ = orchestrator.planned(pipeline.components, SETTINGS, pipeline.root)
    assert step.state == ("begun" if name else "to do")
    assert pipeline.run(anew)[0] == "hellohello!"
    assert "Repeat" in pipeline.executed
    assert not [*pipeline.root.glob("*.unfinished")]


def test_a_link_that_is_made_anew_leaves_what_it_led_to_and_no_link(pipeline, tmp_path):
    pipeline.run()
    directory = pipeline.directory("Repeat")
    shutil.move(directory, tmp_path / "moved")
    directory.symlink_to("moved")
    assert "Repeat" in pipeline.run(anew=True)[1]
    assert not directory.is_symlink()
    assert (tmp_path / "moved" / "execution.json").exists()
    assert not [*pipeline.root.glob("*.replaced")]


def test_a_root_that_is_moved_away_while_it_is_written_to_is_told_in_one_line(pipeline, tmp_path):
    pipeline.root = tmp_path / "root"
    pipeline.root.mkdir()
    execute = pipeline.components[1].execute
    pipeline.replace(1, execute=lambda execution: (pipeline.root.rename(tmp_path / "moved"), execute(execution)))
    with pytest.raises(InputError) as told:
        pipeline.run()
    assert str(told.value) == (
        f"Repeat cannot write in {pipeline.root}, which is gone. Put it back and run the same command again: what was "
        "finished is kept."
    )
    (tmp_path / "moved").rename(pipeline.root)
    pipeline.replace(1, execute=execute)
    assert pipeline.run() == ("hellohello!", ["Repeat", "Suffix"])


@pytest.mark.parametrize("damage", [lambda text: text.write_text("HELLO"), Path.unlink])
def test_an_input_that_changes_while_it_is_read_is_refused_and_nothing_is_cached_as_made_from_it(pipeline, damage):
    execute = pipeline.components[1].execute

    def change_and_execute(execution):
        text = execution.inputs["source"].path / "text"
        kept = text.read_text()
        text.write_text("OTHER")
        execute(execution)
        text.write_text(kept)
        damage(text)

    pipeline.replace(1, execute=change_and_execute)
    with pytest.raises(InputError) as told:
        pipeline.run()
    source = pipeline.directory("Source") / "source"
    assert str(told.value) == (
        f"{source} was changed while Repeat read it; put back what was there, or delete {source.parent} to make it "
        "again, and run the same command again."
    )
    assert not [path for path in pipeline.root.glob("Repeat-*") if path.suffix != ".unfinished"]
    (source / "text").write_text("hello")
    pipeline.replace(1, execute=execute)
    assert pipeline.run() == ("hellohello!", ["Repeat", "Suffix"])


def test_what_is_read_under_two_names_is_looked_at_once(pipeline, monkeypatch):
    """As the examples that the members of a sweep share."""
    looked_at, is_unchanged = [], Artifact.is_unchanged
    monkeypatch.setattr(Artifact, "is_unchanged", lambda self: looked_at.append(self.path.name) or is_unchanged(self))
    pipeline.components.insert(2, Resolver("again", lambda artifacts, *_: artifacts["repeated"]))
    last = pipeline.components[3]

    def execute(execution):
        del execution.inputs["again"]
        last.execute(execution)
        execution.inputs["again"] = execution.inputs["repeated"]

    pipeline.components[3] = dataclasses.replace(last, inputs=(*last.inputs, "again"), execute=execute)
    assert pipeline.run()[0] == "hellohello!"
    assert looked_at == ["source", "repeated"]


def test_a_resolver_is_asked_in_every_run(pipeline):
    """What it finds is an input like any other: another finding makes another execution."""
    found = {"source": "first"}

    def resolve(artifacts, settings, root):
        assert set(artifacts) == {"source", "repeated"}
        assert (settings["times"], root) == (2, pipeline.root)
        return Artifact(None, found["source"])

    pipeline.components.insert(2, Resolver("baseline", resolve))
    last = pipeline.components[3]

    def execute(execution):
        assert execution.inputs["baseline"].fingerprint == found["source"]
        pipeline.executed.append("Suffix")
        (execution.outputs["result"] / "text").write_text(found["source"])

    pipeline.components[3] = dataclasses.replace(last, inputs=("repeated", "baseline"), execute=execute)
    assert pipeline.run() == ("first", ["Source", "Repeat", "Suffix"])
    assert pipeline.run() == ("first", [])
    found["source"] = "second"
    assert pipeline.run() == ("second", ["Suffix"])


def test_finished_lists_the_latest_first_and_passes_over_what_is_not_finished(pipeline):
    pipeline.run()
    pipeline.run(times=3)
    latest = orchestrator.finished(pipeline.root, "Repeat")
    assert [(outputs["repeated"].path / "text").read_text() for outputs in latest] == ["hello" * 3, "hello" * 2]

    shutil.copytree(latest[0]["repeated"].path.parent, pipeline.root / "Repeat-0123.unfinished")
    (pipeline.root / "Repeat-mine").mkdir()
    (pipeline.root / "Repeat-broken").mkdir()
    (pipeline.root / "Repeat-broken" / "execution.json").write_text("{}")
    assert orchestrator.finished(pipeline.root, "Repeat") == latest

    (latest[1]["repeated"].path / "text").write_text("changed")
    with pytest.raises(InputError, match="was changed or damaged"):
        orchestrator.finished(pipeline.root, "Repeat")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/there/text"),
        RuntimeError("OSError: [Errno 28] No space left on device [while running 'Draw-ptransform-9']"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
    ],
)
def test_a_full_disk_is_told_in_one_line_whatever_it_is_raised_as(pipeline, error):
    def fail(execution):
        raise error

    execute = pipeline.components[1].execute
    pipeline.replace(1, execute=fail)
    with pytest.raises(InputError) as told:
        pipeline.run()
    number = getattr(error, "errno", errno.ENOSPC)
    remedy = "Raise the limit on the size of a file (ulimit -f)" if number == errno.EFBIG else "Make room there"
    assert str(told.value) == (
        f"Repeat cannot write ({os.strerror(number)}) in {pipeline.root}. {remedy} and run the same command again: "
        "what was finished is kept."
    )
    pipeline.replace(1, execute=execute)
    assert pipeline.run() == ("hellohello!", ["Repeat", "Suffix"])


def test_another_error_is_not_taken_for_a_full_disk(pipeline):
    def fail(execution):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    pipeline.replace(1, execute=fail)
    with pytest.raises(OSError, match="Input/output error"):
        pipeline.run()


def test_a_disk_that_is_full_before_a_component_begins_is_told_too(pipeline, monkeypatch):
    def no_folder(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", no_folder)
    with pytest.raises(InputError, match=r"^Source cannot write \(No space left on device\)"):
        pipeline.run()
