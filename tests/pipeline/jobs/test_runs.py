"""`pipeline.runs` lists what a root holds and removes what nothing needs, in words and for programs."""

import json
import os
import re

import pytest

from pipeline.experiments import settings as settings_lib
from pipeline.jobs import runs
from pipeline.orchestration import history, orchestrator
from pipeline.orchestration.orchestrator import Component

NAMES = ("Trainer", "Evaluator", "Pusher")


def make(root, *flags, acr=0.5, fails_in=None, is_recorded=True):
    """A run of three components with an Evaluator's records, as `pipeline.run` leaves one."""
    settings, preset = settings_lib.parse(["--dataset", "digits", *flags])
    listing = settings_lib.without_meanings(settings_lib.listing(settings))

    def component(place, name):
        def execute(execution):
            if name == fails_in:
                raise ValueError("no room")
            output = execution.outputs[f"of{name}"]
            (output / "content").write_text(f"{listing}")
            if name == "Evaluator":
                (execution.outputs["evaluation"] / "metrics.json").write_text(
                    json.dumps({"acr": acr, "acr_standard_error": 0.01})
                )
                (execution.outputs["evaluation"] / "blessing.json").write_text(json.dumps({"blessed": True}))

        inputs = (f"of{NAMES[place - 1]}",) if place else ()
        outputs = (f"of{name}", *(["evaluation"] if name == "Evaluator" else []))
        return Component(name, inputs, outputs, ("listing", "sigma"), execute)

    components = [component(*one) for one in enumerate(NAMES)]
    settings = {**settings, "listing": listing}
    about = {
        "command": f"python -m pipeline.run --dataset digits {' '.join(flags)}",
        "method": "macer", "dataset": "digits", "sigma": 0.25, "preset": preset.name,
        "differs": settings_lib.differing(listing),
    }  # fmt: skip
    root.mkdir(exist_ok=True)
    with orchestrator.locked(root):
        if not is_recorded:
            orchestrator.run(components, settings, root, 1)
            return
        with history.recorded(root, history.name_of("macer-digits-0.25", listing), about, "") as recorder:
            artifacts = orchestrator.run(components, settings, root, 1, starting=recorder.starting)
            links = {"model": artifacts["ofTrainer"].path}
            result = {"acr": acr, "acr_standard_error": 0.01, "blessed": True, "pushed_to": None}
            recorder.finish(artifacts.values(), links, result)


@pytest.fixture
def run(capsys):
    """A function: arguments -> status, output, errors."""

    def call(*arguments):
        return runs.main([str(argument) for argument in arguments]), *capsys.readouterr()

    return call


def test_each_run_is_listed_with_what_tells_it_and_where_it_is(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    root = tmp_path / "root"
    make(root, acr=0.25)
    with pytest.raises(ValueError, match="no room"):
        make(root, "--lam=3", fails_in="Evaluator")
    make(root, "--epochs=5", "--n=500")
    capsys.readouterr()
    status, out, err = run(root)
    assert (status, err) == (0, "")
    first, failed, last = out.split("\n\n")
    name = r"macer-digits-0\.25-[0-9a-f]{8}"
    assert re.match(name + r"\n  finished [-\d]+ [:\d]+, ACR 0\.2500 ± 0\.0100, blessed\n", first)
    assert "  differs from preset macer-digits-0.25: nothing\n" in first
    assert "  command: python -m pipeline.run --dataset digits \n" in first
    assert re.search(r"  failed [-\d]+ [:\d]+\n  failed: ValueError: no room\n", failed)
    assert "differs from preset macer-digits-0.25: lam=3.0\n" in failed
    assert re.match(name + r" \(latest\)\n", last)
    assert "epochs=5, n=500" in last
    folder = re.search(r"folder: (.*) with model, run.json, settings.yaml", last)[1]
    assert (root / "latest").samefile(folder)


def test_programs_get_the_same_as_json(run, tmp_path, capsys):
    root = tmp_path / "root"
    make(root, acr=0.25)
    make(root, "--epochs=5")
    capsys.readouterr()
    status, out, _ = run(root, "--json")
    assert run("--json", root)[1] == out
    first, last = json.loads(out)
    assert (status, first["state"], first["acr"], first["latest"], last["latest"]) == (0, "finished", 0.25, False, True)
    assert last["differs"] == [["epochs", "5", "60"]]
    assert set(last["paths"]) == {"model", "run.json", "settings.yaml"}


def test_runs_of_before_there_was_a_history_are_told_by_their_evaluators(run, tmp_path, capsys):
    root = tmp_path / "root"
    make(root, "--epochs=5", acr=0.75, is_recorded=False)
    capsys.readouterr()
    (found,) = json.loads(run(root, "--json")[1])
    assert (found["acr"], found["method"], found["dataset"], found["blessed"]) == (0.75, "macer", "digits", True)
    assert found["command"].endswith("--dataset=digits --sigma=0.25 --method=macer --epochs=5")
    assert run(root)[1].startswith("Pusher-")
    (metrics,) = root.glob("Evaluator-*/evaluation/metrics.json")
    for damaged in ("[]", '{"acr": "high", "acr_standard_error": 0.1}', "[" * 10**5):
        metrics.write_text(damaged)
        status, out, err = run(root)
        assert (status, err, "ACR" in out) == (0, "", False)


def test_a_link_to_itself_and_a_pipe_in_place_of_a_record_are_no_run(run, tmp_path):
    (tmp_path / "latest").symlink_to("latest")
    (tmp_path / "history" / "odd").mkdir(parents=True)
    os.mkfifo(tmp_path / "history" / "odd" / "run.json")
    status, out, err = run(tmp_path)
    assert (status, err) == (0, "")
    assert out.startswith("odd\n  damaged\n")


def test_an_empty_root_is_said_to_be_one(run, tmp_path):
    assert run(tmp_path) == (0, f"No run in {tmp_path} yet.\n", "")
    assert list(tmp_path.iterdir()) == []
    (status, out, _) = run(tmp_path, "--prune")
    assert (status, out) == (0, "Removed 0 folders, 0 bytes; what finished runs use is untouched.\n")


def test_of_a_folder_in_a_root_the_root_is_named(run, tmp_path):
    folder = tmp_path / "history" / "macer-digits-0.25-01234567"
    folder.mkdir(parents=True)
    assert run(folder) == (0, f"No run in {folder} yet.\n", "")
    (folder / "run.json").touch()
    (tmp_path / "latest").symlink_to(folder)
    for inside in (folder, tmp_path / "latest", tmp_path / "history"):
        assert run(inside) == (0, f"No run in {inside} yet. Did you mean {tmp_path}?\n", "")


def test_pruning_says_what_and_how_much_and_before_that_what_it_would(run, tmp_path, capsys):
    root = tmp_path / "root"
    make(root)
    with pytest.raises(ValueError, match="no room"):
        make(root, "--lam=3", fails_in="Evaluator")
    (unfinished,) = root.glob("*.unfinished")
    (unfinished / "scratch" / "big").write_bytes(bytes(3_000_000))
    capsys.readouterr()
    status, out, err = run(root, "--prune", "--dry_run")
    assert (status, err) == (0, "")
    assert f"Would remove {unfinished}\n" in out
    assert re.search(r"^Would remove 1 folder, 3\.0 MB; what finished runs use is untouched\.$", out, re.MULTILINE)
    assert unfinished.exists()
    (kept,) = re.findall(r"^Kept: (\S+) \([\d.]+ \w+\), a trained model that no finished run uses", out, re.M)
    assert kept.startswith(str(root / "Trainer-"))
    assert run(root, "--prune")[1] == out.replace("Would remove", "Removed")
    assert not unfinished.exists()
    assert json.loads(run(root, "--prune", "--json")[1])["bytes"] == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "There is no pipeline root nowhere."),
        (["~nobody-of-that-name/runs"], "There is no pipeline root ~nobody-of-that-name/runs."),
        (["a", "b"], "Give one pipeline root. Received: a b"),
        (["--dry_run"], "--dry_run is for --prune."),
        (["--purne"], "Unknown argument --purne. Did you mean --prune"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err
