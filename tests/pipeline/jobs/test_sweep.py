"""A sweep is the plain command once for each value, and its one table is what their certificates say."""

import csv
import hashlib
import json
import math
import os
import re
import shutil
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from macer_tf import evaluation
from pipeline.cli import config
from pipeline.components import sweep_evaluator, trainer
from pipeline.components.certifier import CERTIFIER
from pipeline.components.example_gen import EXAMPLE_GEN
from pipeline.experiments import methods
from pipeline.experiments import settings as settings_lib
from pipeline.jobs import run as run_lib
from pipeline.jobs import runs as runs_lib
from pipeline.jobs import sweep as sweep_lib
from pipeline.orchestration import history, orchestrator
from pipeline.report import charts, figures, page, sweep_report
from pipeline.training import backups, models
from pipeline.utils import sealed
from pipeline.utils.errors import InputError
from serving.terminal import printable
from tests.kills import Ended

pytestmark = pytest.mark.usefixtures("small_heap")

TINY = (
    "--dataset", "digits", "--epochs", "2", "--train_examples", "96", "--num_samples", "2", "--n0", "10", "--n", "50",
    "--num_test_examples", "8", "--num_workers", "2",
)  # fmt: skip
# What is said of it stays in its line.
ROOT = "a\nroot"


@pytest.fixture
def sweep(capsys, tmp_path):
    """A function that runs the command in one root -> status, stdout, stderr, the sweeps' directories by age."""
    root = tmp_path / ROOT

    def run(*arguments):
        status = run_lib.main([*TINY, "--pipeline_root", str(root), *arguments])
        printed = capsys.readouterr()
        directories = sorted(root.glob("SweepEvaluator-*/comparison"), key=lambda d: d.stat().st_mtime)
        # No line of the root's name by itself.
        assert not re.search("^root", printed.out + printed.err, re.MULTILINE)
        return SimpleNamespace(status=status, out=printed.out, err=printed.err, root=root, directories=directories)

    return run


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder for the root of the one sweep that several tests look at."""
    return tmp_path_factory.mktemp("kept") / "root"


@pytest.fixture
def swept(sweep, kept):
    """The root of that sweep, which is run now if no test has run it before."""
    if not kept.exists():
        shutil.copytree(sweep("--sweep", "lam=0,8").root, kept, symlinks=True)
    return kept


# The command line.


@pytest.mark.parametrize(
    ("arguments", "name", "values"),
    [
        (["--dataset", "digits"], "lam", ["0", "1", "16"]),
        (["--dataset", "cifar10", "--seed", "3"], "sigma", ["0.25", "0.5", "1.0", "0.3"]),
        (["--dataset", "mnist"], "method", ["cohen", "macer", "smoothadv"]),
        (["--dataset", "digits"], "num_samples", ["1", "4", "16"]),
        (["--dataset", "digits"], "gamma", ["2", "8"]),
        (["--dataset", "digits"], "beta", ["1", "16"]),
        (["--dataset", "digits", "--method", "smoothadv"], "epsilon", ["0.25", "1"]),
        (["--dataset", "digits"], "alpha", ["0.001", "0.01"]),
        (["--dataset", "digits"], "clip_norm", ["none", "1"]),
        (["--dataset", "digits"], "seed", ["0", "1"]),
        ([], "dataset", ["digits", "mnist"]),
        ([], "preset", ["macer-cifar10-0.25", "macer-cifar10-0.25-150"]),
    ],
)
def test_a_member_is_the_command_with_its_flag(arguments, name, values):
    sweep = sweep_lib.parse([*arguments, "--sweep", f"{name}={','.join(values)}"])
    assert sweep == sweep_lib.parse([f"--sweep={name}={','.join(values)}", *arguments])
    assert (sweep.name, [member.value for member in sweep.members]) == (name, values)
    for member, value in zip(sweep.members, values, strict=True):
        assert (member.settings, member.preset) == settings_lib.parse([*arguments, f"--{name}", value])


def test_each_method_keeps_its_own_preset_and_takes_the_flags_that_fit():
    flags = ["--lam", "4", "--num_samples=2", "--epsilon", "0.1", "--epochs", "3"]
    sweep = sweep_lib.parse(["--dataset", "digits", *flags, "--sweep", "method=cohen,macer,smoothadv"])
    cohen, macer, smoothadv = (member.settings for member in sweep.members)
    names = ("method", "lam", "num_samples", "epsilon", "attack", "warmup_epochs", "epochs")
    assert [cohen.get(name) for name in names] == ["cohen", None, None, None, None, None, 3]
    assert [macer.get(name) for name in names] == ["macer", 4, 2, None, None, None, 3]
    assert [smoothadv.get(name) for name in names] == ["smoothadv", None, 2, 0.1, "pgd", 10, 3]
    *left_out, unreached = sweep.notes
    assert unreached == "warmup_epochs=10: that takes 10 epochs, and there are 3."
    told = [line.split(" is not a setting of the method ") for line in left_out]
    assert [(flag, rest.split(",")[0]) for flag, rest in told] == [
        ("--lam", "cohen"), ("--num_samples", "cohen"), ("--epsilon", "cohen"), ("--epsilon", "macer"),
        ("--lam", "smoothadv"),
    ]  # fmt: skip


@pytest.mark.parametrize("switch", [["--average_cross_entropy"], ["--average_cross_entropy", "yes"],
                                    ["--average_cross_entropy=yes"]])  # fmt: skip
@pytest.mark.parametrize("behind", [["--n=1000"], ["--n", "1000"]])
def test_what_stands_behind_a_switch_that_is_left_out_holds_for_all(switch, behind):
    sweep = sweep_lib.parse(["--dataset", "digits", *switch, *behind, "--sweep", "method=macer,cohen"])
    assert [member.settings["n"] for member in sweep.members] == [1000, 1000]
    assert [member.settings.get("average_cross_entropy") for member in sweep.members] == [True, None]


def test_a_flag_without_its_value_takes_no_other_flag_away():
    with pytest.raises(InputError, match="method=macer: argument --lam: expected one argument"):
        sweep_lib.parse(["--dataset", "digits", "--lam", "--n=1000", "--sweep", "method=cohen,macer"])


def test_a_value_may_have_commas():
    sweep = sweep_lib.parse(["--dataset", "cifar10", "--sweep", "lr_drop_epochs=50,100; 200,400;none"])
    assert [member.settings["lr_drop_epochs"] for member in sweep.members] == [[50, 100], [200, 400], None]


def test_what_does_something_for_one_member_is_not_refused():
    sweep = sweep_lib.parse(["--dataset", "digits", "--soft_betas", "1,4", "--sweep", "certify=hard,all"])
    assert [member.settings["soft_betas"] for member in sweep.members] == [[1, 4], [1, 4]]


def test_without_sweep_there_is_none():
    assert sweep_lib.parse(["--dataset", "digits", "--lam", "3"]) is None


BAD = [
    (["--sweep"], "--sweep must be a setting and two or more of its values, such as lam=0,1,4. Received: ''"),
    (["--sweep", "lam"], "--sweep must be a setting and two or more of its values"),
    (["--sweep", "lam="], "--sweep must be a setting and two or more of its values"),
    (["--sweep", "lam=0,,1"], "--sweep must be a setting and two or more of its values"),
    (["--sweep", "lam=0,1,"], "--sweep must be a setting and two or more of its values"),
    (["--sweep", "lam=3"], "for one value, give --lam 3."),
    (["--sweep", "lambda=0,1"], "Unknown setting lambda. Did you mean lam"),
    (["--sweep", "lr=0.1,1"], "Unknown setting lr. Did you mean learning_rate?"),
    (["--sweep", "xyzzy=0,1"], "Unknown setting xyzzy. See --help. Received: --sweep xyzzy=0,1"),
    (["--sweep", "lam=0,1,1.0"], "--sweep has the value 1.0 twice. Received: lam=0,1,1.0"),
    (["--sweep", "lam=0,x"], "--lam must be a number from 0. Received: x"),
    (["--sweep", "sigma=0.25,0"], "--sigma must be a number above 0. Received: 0"),
    (["--sweep", "method=macer,trades"], "Unknown method. Received: trades; accepted: macer, cohen, smoothadv, "),
    (["--sweep", "gamma=8,100"], "--sweep gamma=100: gamma must be above 0 and at most 24"),
    (["--sweep", "n=1000,5"], "--sweep n=5: n is too small."),
    (["--sweep", "preset=macer-digits-0.25,nothing"], "--sweep preset=nothing: Unknown preset nothing."),
    (["--sweep", "lam=0,1", "--lam", "2"], "--lam is swept: leave --lam out. Received: --sweep lam=0,1"),
    (["--lam=2", "--sweep", "lam=0,1"], "--lam is swept: leave --lam out."),
    (["--sweep", "lam=0,1", "--sweep", "gamma=1,2"], "--sweep can be given only once. Received: lam=0,1 and gamma=1,2"),
    (["--sweep", "lam=0,1", "--sgima", "1"], "Unknown argument --sgima. Did you mean --sigma"),
    (["--sweep", "lam=0,1", "--method", "cohen"], "--sweep lam=0: --lam is not a setting of the method cohen"),
    (["--sweep", "epsilon=0.1,1"], "--epsilon is not a setting of the method macer: leave it out, or use"),
    (["--sweep", "beta=1,2", "--method", "smoothadv"], "--beta is not a setting of the method smoothadv: leave it"),
    (["--sweep", "method=macer,cohen", "--preset", "macer-digits-0.25"], "--sweep method=cohen: The preset macer-dig"),
    (["--sweep", "lam=0,1", "--soft_betas", "4"], "--soft_betas would do nothing here: it is for soft certificates"),
    (["--sweep", "warmup_epochs=2,9", "--method", "smoothadv", "--epochs", "5"], "--sweep warmup_epochs=9: --warmup_e"),
    *(
        (["--sweep", "lam=0,1", f"--{name}", "0.5" if name == "min_accuracy" else "500"], f"--{name} would do nothing")
        for name in ("min_accuracy", "serving_n", "push_dir")
    ),
    (["--sweep", "dataset=digits,mnits"], "--dataset is swept"),
    (["--sweep", "network=small_cnn,vgg"], "--sweep network=vgg: Unknown network. Received: vgg"),
    *(
        (["--sweep", f"{name}=1,2"], f"A sweep compares certificates, which {name} does not change.")
        for name in ("serving_n", "min_accuracy", "num_workers", "push_dir", "pipeline_root", "sweep")
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_a_bad_sweep_is_one_line_before_anything_is_made(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_lib.main(["--dataset", "digits", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "network=small_cnn,lenet"], "--sweep network=lenet: lenet takes images of at least 16x16 pixels."),
        (["--sweep", "test_split=test,train"], "digits are embedded"),
    ],
)
def test_data_and_networks_of_all_members_are_checked_before_the_first_is_trained(sweep, arguments, message):
    done = sweep(*arguments)
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert message in line
    assert not list(done.root.glob("Trainer-*"))


# The whole of it.


def certificates(root, **parameters):
    """Rows of the one Certifier execution under root whose model was trained with these parameters."""
    found = []
    for path in root.glob("Certifier-*/execution.json"):
        model = json.loads(path.read_text())["inputs"]["model"]
        for training in root.glob("Trainer-*/execution.json"):
            record = json.loads(training.read_text())
            if record["output_fingerprints"]["model"] == model and parameters.items() <= record["parameters"].items():
                lines = (path.parent / "certificates" / "certificates.jsonl").read_text().splitlines()
                found.append(([json.loads(line) for line in lines], training.parent / "model" / "seconds.csv"))
    (only,) = found
    return only


def credited_radii(rows, labels):
    return [row["radius"] if row["prediction"] == labels[row["example_id"]] else 0.0 for row in rows]


def test_the_table_is_what_the_members_certificates_say(sweep, digits, kept):
    done = sweep("--sweep", "lam=0,8")
    assert (done.status, done.err) == (0, "")
    shutil.copytree(done.root, kept, symlinks=True)
    (directory,) = done.directories
    comparison = json.loads((directory / "sweep.json").read_text())
    labels = digits[1][1437:]
    zero, eight = (certificates(done.root, lam=lam) for lam in (0.0, 8.0))
    radii = {value: credited_radii(rows, labels) for value, (rows, _) in (("0", zero), ("8", eight))}
    assert [member["value"] for member in comparison["members"]] == ["0", "8"]
    for member, (rows, path) in zip(comparison["members"], (zero, eight), strict=True):
        credited = radii[member["value"]]
        assert member["num_images"] == len(rows) == 8
        assert member["acr"] == pytest.approx(statistics.mean(credited))
        assert member["acr_standard_error"] == pytest.approx(statistics.stdev(credited) / math.sqrt(8))
        for radius, accuracy in zip(comparison["radii"], member["certified_accuracy"], strict=True):
            right = [row for row in rows if row["prediction"] == labels[row["example_id"]] and row["radius"] >= radius]
            assert accuracy == len(right) / 8
        with open(path, newline="") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
        assert member["seconds_per_epoch"] == pytest.approx(sum(seconds) / 2)  # the median of two
        assert all(value > 0 for value in seconds)
    assert comparison["reference"] == "0"
    assert comparison["members"][0]["difference"] is None
    differences = [after - before for before, after in zip(radii["0"], radii["8"], strict=True)]
    assert comparison["members"][1]["difference"]["mean"] == pytest.approx(statistics.mean(differences))
    expected = statistics.stdev(differences) / math.sqrt(8)
    assert comparison["members"][1]["difference"]["standard_error"] == pytest.approx(expected)

    # The same figures on the terminal, in the CSV and in the page.
    with open(directory / "sweep.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["lam"] for line in lines] == ["0", "8"]
    html = (directory / "sweep.html").read_text()
    for line, member in zip(lines, comparison["members"], strict=True):
        assert float(line["acr"]) == member["acr"]
        assert float(line["seconds_per_epoch"]) == member["seconds_per_epoch"]
        assert float(line["certified_accuracy_0"]) == member["certified_accuracy"][0]
        acr = f"{member['acr']:.4f} ± {member['acr_standard_error']:.4f}"
        assert re.search(rf"^{member['value']} +[\d.]+ .*{re.escape(acr)} ", done.out, re.MULTILINE)
        assert f'<td class="acr">{acr}</td>' in html
    assert float(lines[1]["difference"]) == comparison["members"][1]["difference"]["mean"]
    assert lines[0]["difference"] == ""
    assert html.count('<path class="curve color-') == 2
    assert not re.search(r"<script[^>]|url\(|src=|href=\"(?!#)", html)
    assert f"Page: {printable(directory / 'sweep.html')}\n" in done.out
    assert printable(directory / "sweep.csv") in done.out
    assert {path.name for path in directory.glob("*.tsv")} == {"1-lam-0.tsv", "2-lam-8.tsv"}
    assert not list(done.root.glob("Pusher-*")) + list(done.root.glob("Evaluator-*"))

    # The same again is cached, and so is a member by itself: same model, same certificates.
    before = {path: path.stat().st_mtime_ns for path in done.root.rglob("*")}
    again = sweep("--sweep", "lam=0,8")
    assert again.status == 0
    assert "running" not in again.out
    assert again.out.partition("\nCertified")[2] == done.out.partition("\nCertified")[2]
    assert {path: path.stat().st_mtime_ns for path in done.root.rglob("*")} == before
    longer = sweep("--sweep", "lam=8,0")
    assert (longer.status, longer.out.count("running")) == (0, 1)
    assert re.search(r"^SweepEvaluator +running", longer.out, re.MULTILINE)


def test_a_member_equals_the_same_training_by_itself(swept, tmp_path):
    """Whatever ran before it in the process: the same weights, so the same votes."""
    (tmp_path / "alone").mkdir()
    settings, _ = settings_lib.parse([*TINY, "--lam", "8", "--pipeline_root", str(tmp_path / "alone")])
    # What the command does up to the certificates; it exports and pushes besides.
    orchestrator.run((EXAMPLE_GEN, trainer.component(settings), CERTIFIER), settings, tmp_path / "alone", 2)
    rows, seconds = certificates(tmp_path / "alone", lam=8.0)
    swept_rows, swept_seconds = certificates(swept, lam=8.0)
    assert swept_rows == rows

    def losses(path):
        with open(path, newline="") as file:
            return [row["loss"] for row in csv.DictReader(file)]

    assert losses(swept_seconds.with_name("history.csv")) == losses(seconds.with_name("history.csv"))


def test_a_sweep_has_a_folder_of_its_own_and_is_no_latest_run(swept):
    (run,) = history.runs(swept)
    assert (run.state, run.about["sweep"]) == ("finished", {"name": "lam", "values": ["0", "8"]})
    assert (run.folder / "sweep.html").samefile(run.folder / "comparison" / "sweep.html")
    assert not os.path.lexists(swept / "latest")
    assert history.unused(swept).paths == ()
    again = sweep_lib.parse(config.expand(["--config", str(run.folder / "settings.yaml")], settings_lib.known))
    assert (again.name, [member.value for member in again.members]) == ("lam", ["0", "8"])
    first, second = (member.settings for member in again.members)
    assert {name for name in first if first[name] != second[name]} == {"lam"}
    assert [first[name] for name in ("epochs", "train_examples", "num_samples", "n")] == [2, 96, 2, 50]


def test_a_member_that_diverges_is_told_and_the_others_go_on(sweep, capsys):
    flags = ("--clip_norm", "none", "--lr_schedule", "step", "--lam", "0")
    done = sweep("--sweep", "learning_rate=1e6,0.02,0.05", *flags)
    assert done.status == 1
    (line,) = done.err.splitlines()
    assert line.startswith("error: learning_rate=1e6 failed: Training diverged: ")
    (directory,) = done.directories
    comparison = json.loads((directory / "sweep.json").read_text())
    failed, first, second = comparison["members"]
    assert failed["failure"].startswith("Training diverged: ")
    assert "acr" not in failed
    assert comparison["reference"] == first["value"] == "0.02"
    assert (first["failure"], first["difference"], second["failure"]) == (None, None, None)
    assert second["difference"] is not None
    assert re.search(r"^1e6 +- .* failed ", done.out, re.MULTILINE)
    assert "difference: of the ACR from that of learning_rate=0.02, on the same images" in done.out
    html = (directory / "sweep.html").read_text()
    assert "learning_rate = 1e6 failed. Training diverged" in html
    assert "2 of 3" in html
    again = sweep("--sweep", "learning_rate=1e6,0.02,0.05", *flags)
    assert (again.status, again.err) == (1, done.err)
    assert again.out.count("done in") == 0  # only the training that fails is tried again
    assert runs_lib.main([str(done.root)]) == 0
    assert "sweep of learning_rate: 1e6, 0.02, 0.05; failed: 1e6\n" in capsys.readouterr().out


def test_redone_what_values_share_is_redone_once(sweep):
    assert sweep("--sweep", "alpha=0.01,0.1").status == 0
    done = sweep("--sweep", "alpha=0.01,0.1", "--no_cache")
    assert (done.status, done.err) == (0, "")
    assert len(re.findall(r"^Trainer +running", done.out, re.MULTILINE)) == 1
    assert len(re.findall(r"^Certifier +running", done.out, re.MULTILINE)) == 2


def test_a_member_whose_code_leaves_fails_and_the_others_go_on(sweep, monkeypatch):
    def leave_at_0(method, settings, *arguments):
        return sys.exit(0) if settings["lam"] == 0 else build(method, settings, *arguments)

    build = models.build
    monkeypatch.setattr("pipeline.training.models.build", leave_at_0)
    done = sweep("--sweep", "lam=0,8")
    assert done.status == 1
    assert "lam=0 failed: RuntimeError: code of your own called sys.exit(0); let it raise an error" in done.err
    assert re.search("^8 ", done.out, re.MULTILINE)


def test_where_all_fail_there_is_nothing_to_compare(sweep, monkeypatch):
    def fail(method, settings, *arguments):
        raise RuntimeError(f"no memory\nfor lam={settings['lam']}")

    monkeypatch.setattr("pipeline.training.models.build", fail)
    done = sweep("--sweep", "lam=0,8")
    assert done.status == 1
    *failed, last = done.err.splitlines()
    for lam, name, line in zip((0, 8), ("error-1.log", "error-2.log"), failed, strict=True):
        log = done.root / name
        assert line == f"error: lam={lam} failed: RuntimeError: no memory (details: {printable(log)})"
        assert f"for lam={lam}.0" in log.read_text()
    assert last == "error: every value failed: there is nothing to compare."
    assert not done.directories
    told = json.loads(sweep("--sweep", "lam=0,8", "--json").out)
    assert told == {"status": 1, "error": "every value failed: there is nothing to compare."}


def test_interrupted_it_goes_on_where_it_was(sweep, monkeypatch, tmp_path, ctrl_c, capsys):
    build = sweep_lib.orchestrator.run

    def interrupted(components, settings, *arguments, **keywords):
        if settings.get("lam") == 8.0 and len(components) == 3:
            ctrl_c()
        return build(components, settings, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_lib.orchestrator, "run", interrupted)
        with pytest.raises(Ended, match="130"):
            sweep("--sweep", "lam=0,8")
    assert "run the same command again to resume" in capsys.readouterr().err
    assert len(list(tmp_path.glob(f"{ROOT}/Trainer-*"))) == 1
    done = sweep("--sweep", "lam=0,8")
    assert (done.status, done.err) == (0, "")
    assert len(re.findall(r"^Trainer +cached", done.out, re.MULTILINE)) == 1
    assert len(re.findall(r"^Trainer +running", done.out, re.MULTILINE)) == 1


def test_interrupted_where_all_is_redone_it_does_not_promise_to_resume(sweep, monkeypatch, ctrl_c, capsys):
    monkeypatch.setattr(sweep_lib, "run", lambda *_: ctrl_c())
    for flags, said in (
        ((), "run the same command again to resume."),
        (("--no_cache",), "the same command begins anew; without --no_cache, it resumes."),
    ):
        with pytest.raises(Ended, match="130"):
            sweep("--sweep", "lam=0,8", *flags)
        assert capsys.readouterr().err == f"\nInterrupted. What was finished is kept; {said}\n"


# The comparison by itself.


class Compare:
    """Runs the component on certificates made by hand."""

    def __init__(self, execution, write_examples, tmp_path):
        self._execution, self._write_examples, self._root = execution, write_examples, tmp_path
        self.inputs, self.members = {}, []

    def add(self, value, rows, examples, seconds=("1.5",), bound="clopper-pearson", beta=None, **changed):
        """A member whose image i is certified as class rows[i][0] with radius rows[i][1]."""
        place = len(self.members)
        model, certified = (self._root / f"{name}-{place}" for name in ("model", "certificates"))
        model.mkdir()
        certified.mkdir()
        if seconds:
            lines = ["epoch,seconds", *(f"{i + 1},{text}" for i, text in enumerate(seconds))]
            (model / "seconds.csv").write_text("\n".join(lines) + "\n")
        lines = [
            {"example_id": i, "selection": [1, 0], "estimation": [9, 1], "prediction": prediction,
             "selected": max(prediction, 0), "radius": radius, "p_lower": 0.6}
            for i, (prediction, radius) in enumerate(rows)
        ]  # fmt: skip
        text = "\n".join(map(json.dumps, lines)) + "\n"
        (certified / "certificates.jsonl").write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        kinds = [{"name": "hard", "bound": bound, "beta": beta, "sha256": digest}]
        about = {"format": 2, "sigma": 0.5, "alpha": 0.001, "n0": 1, "n": 10, "kinds": kinds}
        (certified / "certification.json").write_text(sealed.dumps(about))
        self.inputs |= {f"examples_{place}": examples, f"model_{place}": model, f"certificates_{place}": certified}
        entry = {"value": value, "failure": None, "paper": None, "dataset": "tiny", "sigma": 0.5, "n0": 1, "n": 1000}
        self.members.append({**entry, "alpha": 0.001, "epochs": len(seconds), "seed": 0, **changed})

    def fail(self, value):
        self.members.append({**self.members[0], "value": value, "failure": "Training diverged."})

    def result(self, name="lam"):
        listing = {"Training": [["method", "macer"], ["lam", "0 | 1"]]}
        sweep = {"name": name, "listing": listing, "members": self.members}
        execution = self._execution(self.inputs, ("comparison",), {"sweep": sweep})
        sweep_evaluator.evaluate(execution)
        return json.loads((execution.outputs["comparison"] / "sweep.json").read_text())


@pytest.fixture
def compare(execution, write_examples, tmp_path):
    return Compare(execution, write_examples, tmp_path)


@pytest.fixture
def four(write_examples):
    """Examples artifacts of four images of class 1: twice the same test images beside other training images, then
    others.
    """
    images = np.arange(16, dtype=np.uint8).reshape(4, 2, 2, 1)
    labels = np.ones(4, np.int64)
    return [
        write_examples(images, labels, name="one"),
        write_examples(images, labels, train=(images[:2], labels[:2]), name="two"),
        write_examples(images[::-1], labels, name="three"),
    ]


def test_by_hand(compare, four):
    """Radii credited: 0.5, 0.25, 0 (wrong), 0 (abstained) against 1.0, 0.25, 0.75, 0."""
    compare.add("0", [(1, 0.5), (1, 0.25), (0, 0.9), (-1, 0.0)], four[0], seconds=("9", "1", "2", "2.5"))
    compare.fail("1")
    compare.add("2", [(1, 1.0), (1, 0.25), (1, 0.75), (-1, 0.0)], four[1], seconds=())
    compare.add("4", [(1, 1.0), (1, 0.25), (1, 0.75), (-1, 0.0)], four[2])
    comparison = compare.result()
    zero, one, two, four_ = comparison["members"]
    assert zero["acr"] == pytest.approx(0.75 / 4)
    assert two["acr"] == pytest.approx(2 / 4)
    # At n=1,000 and sigma=0.5 no radius is above 0.5 * 2.46: columns up to 1.0.
    assert comparison["radii"] == [0, 0.25, 0.5, 0.75, 1.0]
    assert zero["certified_accuracy"] == [0.5, 0.5, 0.25, 0, 0]
    assert two["certified_accuracy"] == [0.75, 0.75, 0.5, 0.5, 0.25]
    # Differences 0.5, 0, 0.75, 0: mean 0.3125; squares of the deviations 0.03515625 + 0.09765625 + 0.19140625 +
    # 0.09765625 = 0.421875; sqrt(0.421875 / 3 / 4) = 0.1875.
    assert two["difference"]["mean"] == pytest.approx(0.3125)
    assert two["difference"]["standard_error"] == pytest.approx(0.1875)
    assert four_["difference"] is None  # other images
    assert (zero["abstained"], two["abstained"]) == (0.25, 0.25)
    assert [member["seconds_per_epoch"] for member in comparison["members"]] == [2.25, None, None, 1.5]
    assert one["failure"] == "Training diverged."

    assert sweep_report.columns_behind_acr(comparison) == [
        ("difference", ["-", "-", "+0.3125 ± 0.1875", "-"]),
        ("s/epoch", ["2.25", "-", "-", "1.5"]),
    ]
    assert [sweep_report.acr(member) for member in comparison["members"]][1:3] == ["failed", "0.5000 ± 0.2282"]


def test_no_difference_where_fewer_images_were_certified(compare, four):
    compare.add("0", [(1, 0.5), (1, 0.25), (1, 0.5)], four[0])
    compare.add("1", [(1, 0.5), (1, 0.25)], four[0])
    comparison = compare.result()
    assert comparison["members"][1]["difference"] is None
    assert [header for header, _ in sweep_report.columns_behind_acr(comparison)] == ["s/epoch"]


def test_the_radii_are_those_of_the_member_that_can_certify_most(compare, four):
    compare.add("0.25", [(1, 0.5), (1, 0.25)], four[0], sigma=0.25)
    compare.add("1", [(1, 0.5), (1, 0.25)], four[0], sigma=1.0)
    comparison = compare.result()
    assert comparison["radii"] == [i / 4 for i in range(10)]
    assert "sigma=0.25 | 1;" in sweep_report.conditions(comparison)[0]


def test_other_n_is_no_other_model(compare, four):
    compare.add("500", [(1, 0.5), (1, 0.25)], four[0], n=500)
    compare.add("1000", [(1, 0.5), (1, 0.25)], four[0], n=1000)
    lines = sweep_report.conditions(compare.result())
    assert lines[0].startswith("n=500 | 1,000, ")
    assert any("ACR grows with n" in line for line in lines)


def test_bounds_that_were_asked_for_are_no_choice_after_a_look(compare, four):
    compare.add("hard", [(1, 0.5), (1, 0.25)], four[0])
    for beta in (1.0, 16.0):
        compare.add(f"soft {beta}", [(1, 0.5), (1, 0.25)], four[0], bound="hoeffding", beta=beta)
    (line,) = (line for line in sweep_report.conditions(compare.result()) if line.startswith("bound: "))
    assert line.startswith(
        "bound: clopper-pearson | hoeffding at beta=1 | hoeffding at beta=16; differences between bounds"
    )


def test_a_file_of_settings_gives_back_what_not_all_members_have(tmp_path):
    given = ["--dataset", "digits", "--num_samples", "3", "--gamma", "2", "--epochs", "2"]
    sweep = sweep_lib.parse([*given, "--sweep", "method=macer,cohen,smoothadv"])
    path = tmp_path / "settings.yaml"
    path.write_text(sweep_lib._settings_file(sweep))
    again = sweep_lib.parse(config.expand(["--config", str(path)], settings_lib.known))
    for one, other in zip(again.members, sweep.members, strict=True):
        assert one.settings == {**other.settings, "config": str(path)}


def test_members_by_several_bounds_are_told_apart(compare, four):
    compare.add("500", [(1, 0.5), (1, 0.25)], four[0], n=500)
    compare.add("1000", [(1, 0.5), (1, 0.25)], four[0], n=1000, bound="anytime")
    (line,) = (line for line in sweep_report.conditions(compare.result()) if line.startswith("bound: "))
    assert line.startswith("bound: clopper-pearson | anytime, because some n was chosen after a look")


def test_the_papers_rows_stand_beside_it_as_reported(compare, four):
    row = {"acr": 0.488, "image_set": "which images it does not say"}
    compare.add("0", [(1, 0.5), (1, 0.25)], four[0], paper=row)
    compare.add("3", [(1, 0.5), (1, 0.25)], four[0])
    comparison = compare.result()
    assert sweep_report.columns_behind_acr(comparison)[-1] == ("paper's ACR *", ["0.488", "-"])
    assert sweep_report.conditions(comparison)[-1].startswith("* as reported, at n=100,000 and alpha=0.001; which im")


def test_a_sweep_of_methods_has_each_in_its_own_colour_and_the_limit_of_n(compare, four):
    """As its own report has it, in whatever order; at n = 1,000 and sigma = 0.5 no radius is above 1.2315."""
    for name in ("smoothadv", "macer"):
        compare.add(name, [(1, 0.5), (1, 0.25)], four[0])
    compare.result(name="method")
    (path,) = Path(compare._root).glob("execution/comparison/sweep.html")
    html = path.read_text()
    colours = dict(re.findall(r'<line class="curve (color-\d)[^/]*/></svg><span>method = (\w+),', html))
    assert colours == {f"color-{charts.METHOD_COLORS[name] + 1}": name for name in ("smoothadv", "macer")}
    assert "limit of n = 1,000: 1.231" in html


def test_every_method_has_a_colour_of_its_own():
    assert set(charts.METHOD_COLORS) == set(methods.NAMES)
    assert sorted(charts.METHOD_COLORS.values()) == list(range(charts.COLORS))


# Seconds.


def test_seconds_are_the_epochs_own(monkeypatch):
    """Read off a clock at 10, 13.5, 20 and 21: epochs of 3.5 and 1 seconds; the pause between them belongs to none."""
    clock = iter([10.0, 13.5, 20.0, 21.0])
    monkeypatch.setattr(backups.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(backups, "learning_rate", lambda model: 0.1)
    record = backups.Record(steps=1)
    record.set_model(SimpleNamespace(stop_training=False))
    for epoch in range(2):
        record.on_epoch_begin(epoch)
        record.on_train_batch_end(0)
        record.on_epoch_end(epoch, {"loss": 1.0})
    assert record.seconds == [3.5, 1.0]
    assert all("seconds" not in row for row in record.history)  # the history is the same in every run


def test_an_epoch_that_is_killed_keeps_the_time_up_to_its_last_backup(monkeypatch):
    """Begun at 0, backed up at 5, killed, begun again at 100 and done at 102: 7 seconds."""
    clock = iter([0.0, 5.0, 100.0, 102.0])
    monkeypatch.setattr(backups.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(backups, "learning_rate", lambda model: 0.1)
    model = keras.Sequential()
    model.stop_training = False  # as `fit` does
    killed, resumed = backups.Record(steps=2), backups.Record(steps=2)
    for record in (killed, resumed):
        record.set_model(model)
    killed.on_epoch_begin(0)
    killed.on_train_batch_end(0)
    resumed.restore(json.loads(json.dumps(killed.state())), model)
    resumed.on_epoch_begin(0)
    resumed.on_train_batch_end(0)
    resumed.on_epoch_end(0, {"loss": 1.0})
    assert resumed.seconds == [7.0]


# What is drawn.


def test_the_curves_are_the_shares_of_images_at_each_radius_or_beyond():
    radii = {"a": np.array([0.5, 0.25, -1.0, 0.0]), "b": np.array([0.1, 0.2, 0.3])}
    (axes,) = figures.radius_accuracy_curves(radii).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["a, ACR 0.188 (4 images)", "b, ACR 0.200 (3 images)"]
    for line, values in zip(lines.values(), radii.values(), strict=True):
        x, y = line.get_data()
        assert line.get_drawstyle() == "steps-pre"
        for radius in (0.0, 0.05, 0.1, 0.11, 0.25, 0.26, 0.5):
            # steps-pre: the height up to and at a step is that step's own.
            assert y[np.searchsorted(x, radius)] == pytest.approx(np.mean(values >= radius))


def test_every_curve_looks_unlike_the_others():
    names = [str(i) for i in range(28)]
    figure = figures.radius_accuracy_curves({name: np.array([0.1 * float(name)]) for name in names})
    (axes,) = figure.axes
    assert len({(line.get_color(), line._unscaled_dash_pattern) for line in axes.get_lines()}) == 28
    first = [line._unscaled_dash_pattern for line in axes.get_lines()[:4]]
    assert len(set(first)) == 4  # without any colour, too


@pytest.mark.parametrize("curves", [{}, {"a": np.array([])}, {"a": np.array([[0.1]])}, {"a": np.array([np.nan])}])
def test_no_curve_from_nothing(curves):
    with pytest.raises(ValueError, match=r"must (not be empty|be finite, of shape \[num_images > 0\])"):
        figures.radius_accuracy_curves(curves)


def test_a_row_has_a_text_for_each_column_behind_the_acr():
    row = page.MetricRow("<a>", (0.5,), "0.1", behind=("+0.1", "<2>"))
    table = page.MetricsTable((0.0,), (row,), ("difference", "s/epoch"), ("below & under",))
    html = page.render("t", [], {}, table, [], [])
    assert "<td>+0.1</td><td>&lt;2&gt;</td>" in html
    assert '<th scope="col">difference</th><th scope="col">s/epoch</th>' in html
    assert "below &amp; under" in html
    with pytest.raises(ValueError, match=r"one text per column after the ACR, 1\. Received: 2"):
        page.MetricsTable((0.0,), (row,), ("difference",))


def test_the_field_s_log_of_a_member_can_be_read(compare, four):
    from macer_tf import certification_log

    compare.add("0", [(1, 0.5), (1, 0.25), (0, 0.9), (-1, 0.0)], four[0])
    compare.result()
    (path,) = Path(compare._root).glob("execution/comparison/1-lam-0.tsv")
    log = certification_log.read(path)
    assert log.predictions.tolist() == [1, 1, 0, -1]
    assert np.maximum(evaluation.correct_radii(log, log.labels), 0).tolist() == [0.5, 0.25, 0, 0]


def test_a_long_value_fits_into_the_name_of_its_log(compare, four):
    """Such as the path of someone's images."""
    for value in ("x" * 300, "x" * 300 + "/y"):
        compare.add(value, [(1, 0.5)] * 4, four[0])
    assert [member["value"] for member in compare.result()["members"]] == ["x" * 300, "x" * 300 + "/y"]
    names = {path.name for path in Path(compare._root).glob("execution/comparison/*.tsv")}
    assert names == {f"{place}-lam-{'x' * 100}.tsv" for place in (1, 2)}
