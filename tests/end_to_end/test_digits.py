"""The whole job on the embedded digits: run, run again, change alpha, interrupt, kill, diverge."""

import json
import re
import shutil
import signal

import pyarrow.parquet as pq
import pytest

from pipeline.jobs import certify, runs
from pipeline.jobs import run as run_lib
from serving import publish

pytestmark = pytest.mark.slow

# Tiny, but long enough to be killed in the middle of training and of certification.
TINY = (
    "--dataset", "digits", "--epochs", "6", "--num_samples", "8", "--lam", "0", "--learning_rate", "0.1", "--n", "4800",
    "--num_test_examples", "100", "--serving_n", "50", "--num_workers", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """An undisturbed run: its root, the command and its certificates."""
    root = tmp_path_factory.mktemp("undisturbed")
    done = command(*TINY, "--pipeline_root", root).run_afresh()
    assert (done.status, done.err) == (0, ""), done.err
    return root, done, certificates(root)


def one(root, pattern):
    (path,) = root.glob(pattern)
    return path


def certificates(root):
    return one(root, "Certifier-*/certificates/certificates.jsonl").read_bytes()


def ledger_lines(root):
    return [line for path in root.glob("votes/*/*.jsonl") for line in path.read_text().splitlines()]


def samples_in_shards(root):
    """How many samples the Parquet files hold."""
    return sum(pq.read_table(path)["count"].to_numpy().sum() for path in root.glob("votes/*/*.parquet"))


def test_a_run_says_what_it_does_and_where_everything_is(finished):
    root, done, _ = finished
    out = done.out
    assert out.startswith(f"macer on digits, preset macer-digits-0.25, in {root}\n")
    for setting in ("epochs=6", "lam=0.0", "n=4800", "num_test_examples=100"):
        assert setting in out
    # What the preset says is told by --verbose.
    assert "clip_norm=" not in out.partition("ExampleGen")[0]
    assert "Loading TensorFlow ...\n" in out
    components = re.findall(r"^(\w+) +done in \d+ s: (.*)$", out, re.MULTILINE)
    assert [name for name, _ in components] == [
        "ExampleGen", "Trainer", "Certifier", "Evaluator", "Exporter", "InfraValidator", "Pusher"
    ]  # fmt: skip
    assert re.search(r"Training: 100 %, took .* epoch 6/6, loss [\d.]+ = ", out)
    assert "To draw: at most 490,000 noisy samples, a forward pass each: at most " in out
    assert re.search(
        r"Certification: 100 %, took .* · [\d,]+ samples, [\d,]+ per second, 100 of 100 images, .* correct", out
    )
    assert re.search(r"^radius +0 +0\.25 +0\.5 .*ACR$", out, re.MULTILINE)
    assert re.search(r"^this model +[\d.]+ .*± [\d.]+$", out, re.MULTILINE)
    assert "n=4,800, n0=100, alpha=0.001, sigma=0.25; images: 100, evenly spaced, of the last 360" in out
    assert re.search(r"^[\d,]+ samples per image, bound: clopper-pearson; .* % abstained", out, re.MULTILINE)
    report = one(root, "Evaluator-*/evaluation/report.html")
    assert f"Report: {report}\n" in out
    assert f"Pushed model: {root / 'serving' / 'digits-0.25' / '1'}\n" in out
    assert (root / "serving" / "digits-0.25" / "1" / "saved_model.pb").is_file()
    assert not list(root.glob("*.unfinished"))


def test_the_run_has_a_folder_of_links_which_is_the_latest(finished):
    root, done, _ = finished
    latest = root / "latest"
    assert latest.is_symlink()
    places = {"model": "Trainer", "saved_model": "Exporter", "report.html": "Evaluator", "blessing.json": "Evaluator"}
    for name, component in places.items():
        assert (latest / name).is_symlink()
        assert (latest / name).resolve().relative_to(root).parts[0].startswith(f"{component}-")
    assert list((latest / "tensorboard").glob("events.out.tfevents.*"))
    assert f"Curves: tensorboard --logdir {root / 'tensorboard'}\n" in done.out
    assert re.search(rf"^Run: {latest.resolve()}, also linked as {latest}: ", done.out, re.MULTILINE)


def test_its_settings_are_its_command_in_a_file_and_a_program_gets_its_result(finished, capsys, monkeypatch):
    root, *_ = finished
    capsys.readouterr()
    assert run_lib.main(["--config", str(root / "latest" / "settings.yaml"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.count("cached in") == 7
    told = json.loads(out)
    metrics = json.loads(one(root, "Evaluator-*/evaluation/metrics.json").read_text())
    assert (told["status"], told["metrics"], told["acr"], told["blessed"]) == (0, metrics, metrics["acr"], True)
    assert told["pushed_to"] == str(root / "serving" / "digits-0.25" / "1")
    assert (root / "latest").samefile(root / "history" / told["run"])

    assert runs.main([str(root), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["state"], listed["acr"], listed["latest"]) == ("finished", metrics["acr"], True)
    assert ["epochs", "6", "60"] in listed["differs"]
    assert runs.main([str(root), "--prune"]) == 0
    assert capsys.readouterr().out.startswith("Removed 0 folders, 0 bytes")


def test_its_saved_model_is_published_by_its_links(finished, tmp_path):
    latest = finished[0] / "latest"
    arguments = ["publish", str(latest / "saved_model"), str(tmp_path / "served")]
    assert publish.main([*arguments, "--blessing", str(latest / "blessing.json")]) == 0
    assert (tmp_path / "served" / "1" / "saved_model.pb").is_file()


def test_what_it_certifies_makes_sense(finished):
    """After six epochs most digits are right; no accuracy rises with the radius."""
    metrics = json.loads(one(finished[0], "Evaluator-*/evaluation/metrics.json").read_text())
    accuracy = metrics["certified_accuracy"]
    assert accuracy[0] > 0.5
    assert accuracy == sorted(accuracy, reverse=True)
    assert 0.1 < metrics["acr"] < 1
    for line in finished[2].splitlines():
        row = json.loads(line)
        # Images whose selected class is not the label are spared.
        assert (sum(row["selection"]), sum(row["estimation"])) in ((100, 4800), (100, 0))


def test_the_report_stands_alone(finished):
    html = one(finished[0], "Evaluator-*/evaluation/report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert (
        sum(source.startswith("data:image/png;base64,") for source in sources) == 2 * 96
    )  # each image that is shown, and its noise
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert html.count("<script") == 1
    assert "url(" not in html


def test_the_same_again_is_cached(finished, command):
    root, first, _ = finished
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    again = command(*TINY, "--pipeline_root", root).run()
    assert (again.status, again.err) == (0, "")
    assert again.out.count("cached in") == 7
    assert "running" not in again.out
    assert again.out.partition("\nCertified")[2] == first.out.partition("\nCertified")[2]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert again.seconds < 60


def test_what_is_no_more_where_it_was_pushed_is_not_called_the_pushed_model(finished, command, tmp_path):
    root, *_ = finished
    version = root / "serving" / "digits-0.25" / "1"
    version.rename(tmp_path / "kept")
    version.mkdir()
    (version / "saved_model.pb").write_bytes(b"another model")
    try:
        again = command(*TINY, "--pipeline_root", root).run()
    finally:
        shutil.rmtree(version)
        (tmp_path / "kept").rename(version)
    assert (again.status, again.err) == (0, "")
    (pusher,) = root.glob("Pusher-*")
    assert f"Pushed model: it was {version}, but is no longer there; delete {pusher} and run again" in again.out


def test_a_certification_beside_the_run_knows_what_was_looked_at(finished, tmp_path, capsys):
    """Both draw the same noise for the same model: another n is a choice after a look."""
    shutil.copytree(finished[0] / "votes", tmp_path / "votes")
    model = finished[0] / "latest" / "model" / "model.keras"
    arguments = ["--model", model, "--dataset", "digits", "--max", "1", "--n", "5000", "--output", tmp_path]
    assert certify.main([*map(str, arguments)]) == 0
    out = capsys.readouterr().out
    assert "first drawn for n0=100, n=4,800: these certificates use the bound" in out
    assert "bound: anytime" in out


def test_another_alpha_trains_and_samples_nothing(finished, command):
    root, _, before = finished
    samples = samples_in_shards(root)
    done = command(*TINY, "--pipeline_root", root, "--alpha", "0.01").run()
    assert (done.status, done.err) == (0, "")
    assert re.search(r"Trainer +cached", done.out)
    assert f"{samples:,} samples have already been drawn." in done.out
    assert "To draw" not in done.out
    assert samples_in_shards(root) == samples
    (other,) = (
        path for path in root.glob("Certifier-*/certificates/certificates.jsonl") if path.read_bytes() != before
    )
    for ours, theirs in zip(other.read_text().splitlines(), before.decode().splitlines(), strict=True):
        ours, theirs = json.loads(ours), json.loads(theirs)
        assert ours["estimation"] == theirs["estimation"]
        assert ours["p_lower"] >= theirs["p_lower"]


def test_interrupted_and_killed_it_ends_where_an_undisturbed_run_does(finished, command, tmp_path):
    disturbed = command(*TINY, "--pipeline_root", tmp_path)

    def epochs():
        return [int(path.name[-5:]) for path in tmp_path.glob("Trainer-*.unfinished/scratch/backup/epoch-?????")]

    def is_told_in_one_line():
        assert disturbed.status == 130
        (line,) = disturbed.err.strip().splitlines()
        assert line == "Interrupted. What was finished is kept; run the same command again to resume."
        assert disturbed.seconds < 20

    disturbed.stop(signal.SIGINT, lambda: epochs())
    is_told_in_one_line()
    reached = max(epochs())
    assert 1 <= reached < 6

    disturbed.stop(signal.SIGKILL, lambda: max(epochs()) > reached)
    assert f"Training resumes after epoch {reached} of 6." in disturbed.out
    reached = max(epochs())
    assert reached < 6
    assert not list(tmp_path.glob("Certifier-*"))

    disturbed.stop(signal.SIGINT, lambda: len(ledger_lines(tmp_path)) >= 110)  # 100 of selection
    is_told_in_one_line()
    assert f"Training resumes after epoch {reached} of 6." in disturbed.out
    drawn = len(ledger_lines(tmp_path))
    assert 110 <= drawn < 350

    # What is on ledgers becomes a shard first.
    ledgers = set(tmp_path.glob("votes/*/*.jsonl"))
    disturbed.stop(
        signal.SIGKILL,
        lambda: ledgers.isdisjoint(tmp_path.glob("votes/*/*.jsonl")) and len(ledger_lines(tmp_path)) >= 20,
    )
    assert re.search(r"Trainer +cached", disturbed.out)
    assert "samples have already been drawn." in disturbed.out
    assert samples_in_shards(tmp_path) > 0

    disturbed.run()
    assert (disturbed.status, disturbed.err) == (0, "")
    assert certificates(tmp_path) == finished[2]
    history = "Trainer-*/model/history.csv"
    assert one(tmp_path, history).read_text() == one(finished[0], history).read_text()
    # None was drawn twice, but for a torn line, which counts for nothing.
    assert ledger_lines(tmp_path) == []
    assert samples_in_shards(tmp_path) == samples_in_shards(finished[0])


def test_divergence_is_one_line(command, tmp_path):
    done = command(
        "--dataset", "digits", "--epochs", "3", "--num_samples", "2", "--n", "1000", "--learning_rate", "1e6",
        "--clip_norm", "none", "--lr_schedule", "step", "--pipeline_root", tmp_path,
    ).run()  # fmt: skip
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert re.match(r"error: Training diverged: loss (nan|inf) at epoch 1, step \d+, learning rate 1e\+06\. ", line)
    assert "Try a lower learning_rate" in line
    assert not list(tmp_path.glob("Trainer-*/model.keras"))
    assert all(path.name.endswith(".unfinished") for path in tmp_path.glob("Trainer-*"))
