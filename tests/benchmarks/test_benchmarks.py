"""Each benchmark once, on its smallest setting and without the authors' code: what it measures runs, and what it prints
of known times is right."""

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import beam, budgets, budgets_mnist, certify, interleaved, serving, table3, train_step, whole_table
from macer_tf import certification_log
from macer_tf.certificates import Certificates
from pipeline.data import sources
from pipeline.utils.errors import InputError

WITHOUT_AUTHORS = "LEFT OUT: the authors' code, and with it every comparison to it (no --reference was given).\n"


@pytest.fixture(autouse=True)
def process_as_before():
    """Benchmarks choose cores and precision for a process of their own, which here is that of the tests after them."""
    import keras

    cores, policy, environment = os.sched_getaffinity(0), keras.config.dtype_policy(), dict(os.environ)
    yield
    os.sched_setaffinity(0, cores)
    keras.config.set_dtype_policy(policy)
    os.environ.update(environment)


@pytest.fixture
def times(monkeypatch):
    """A function: benchmark, and name -> seconds, which each contestant is said to have taken for its one real step."""

    def say(benchmark, seconds):
        class Rounds(interleaved.Rounds):
            def __init__(self, contestants, count, steps, threads, idle=()):
                assert contestants.keys() == seconds.keys()
                assert set(idle) <= seconds.keys()
                for function, *arguments in contestants.values():
                    function(*arguments)()
                self.kept, self.count = [seconds], count

        monkeypatch.setattr(benchmark, "Rounds", Rounds)

    return say


@pytest.fixture
def cores_are_free(monkeypatch):
    for benchmark in (certify, interleaved):
        monkeypatch.setattr(benchmark, "LOWEST_SHARE", 0)


def model_of(shape, folder, favourite=0):
    """Path of a saved model of random weights that mostly answers with its favourite class."""
    import keras

    from macer_tf.model import MACERModel

    inputs = keras.Input(shape)
    dense = keras.layers.Dense(10)
    classifier = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    dense.bias.assign(5.0 * np.eye(10)[favourite])
    MACERModel(classifier, sigma=0.5, seed=0).save(folder / "model.keras")
    return folder / "model.keras"


def test_a_training_step(times, capsys):
    # A step of LeNet on one noisy copy: three times (288,000 + 1,600,000 + 400,000 + 5,000) multiply-adds, less the
    # gradient by the image; 32 copies of them are 421.8 MFLOP, and in 0.01 s half of the product's 84.4 GFLOP/s.
    work = 2 * 16 * 2 * (3 * 2_293_000 - 288_000)
    matrix = interleaved.MATRIX_FLOPS / (2 * work / 0.01)
    seconds = {"input": 4.0, "float32": 0.01, "float32 fed": 0.0105, "float32 matrix": matrix}
    seconds["float32 without oneDNN"] = 0.03
    times(train_step, seconds)
    train_step.main(["--precision", "float32", "--batch", "2", "--rounds", "1", "--steps", "1"])
    assert capsys.readouterr().out == (
        WITHOUT_AUTHORS + "lenet, batch 2, k=16, 2 threads; medians of 1 rounds (0 dropped) of 1 steps\n"
        "  ours, float32              10.0 ms per step;  50 % of 84 GFLOP/s, the matrix peak; "
        "3.00 times as fast as without oneDNN\n"
        "  input pipeline alone (crops, flips): 100 images per second\n"
        "    float32 consumes 200; a step on its batches takes 1.050 times as long as on a constant batch\n"
    )


def test_a_training_step_beside_the_authors(times, monkeypatch, capsys):
    monkeypatch.setattr(train_step, "has_reference", lambda folder, modules: True)
    monkeypatch.setattr(train_step, "authors_step", lambda arguments: lambda: None)
    monkeypatch.setattr(train_step, "our_step", lambda *arguments: lambda: None)
    monkeypatch.setattr(train_step, "input_alone", lambda arguments: lambda: None)
    seconds = {"authors": 0.03, "input": 4.0, "float32": 0.01, "float32 fed": 0.0105, "float32 matrix": 0.1}
    seconds["float32 without oneDNN"] = 0.03
    times(train_step, seconds)
    train_step.main(["--precision", "float32", "--batch", "2", "--rounds", "1", "--steps", "1"])
    out = capsys.readouterr().out
    assert (
        "  authors, float32           30.0 ms per step\n  ours, float32              10.0 ms per step   3.00 times as"
        in out
    )


@pytest.mark.slow
def test_an_epoch_of_methods_beside_the_papers_table_3(times, monkeypatch, capsys):
    seconds = {"Gaussian": 0.001, "MACER, best, 2 copies, 1 step": 0.002}
    seconds |= {"MACER, 16 copies": 0.016, "SmoothAdv, 8 copies, 10 steps": 0.06}
    monkeypatch.setattr(table3, "METHODS", {name: table3.METHODS[name] for name in seconds})
    monkeypatch.setattr(table3, "CHEAP", ("Gaussian",))
    times(table3, seconds)
    table3.main(["--network", "lenet", "--batch", "2", "--rounds", "1"])
    # 25,000 batches of 2 images are an epoch of 50,000.
    rows = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["lenet, float32, batch 2, 2 threads; medians of 1 rounds (0 dropped)"]
    assert rows[2:] == [
        ["Gaussian", "25", "1.0", "31.4", "1.0"],
        ["MACER, best, 2 copies, 1 step", "50", "2.0", "-", "-"],
        ["MACER, 16 copies", "400", "16.0", "504.0", "16.1"],
        ["SmoothAdv, 8 copies, 10 steps", "1500", "60.0", "1990.1", "63.4"],
    ]


def test_a_sample_when_certifying(cores_are_free, capsys):
    certify.main(["--samples", "16", "--microbatch", "16", "--rounds", "1", "--threads", "1"])
    first, second, *rows = capsys.readouterr().out.splitlines()
    assert first + "\n" == WITHOUT_AUTHORS
    peak = re.fullmatch(
        r"lenet, 16 samples, 1 threads; medians of 1 rounds \(0 dropped\); float32 matrix peak (\d+) GFLOP/s", second
    )
    *rows, in_float32, in_bfloat16 = rows
    kinds = [(noise, precision) for precision in ("float32", "bfloat16") for noise in ("ours", "float noise")]
    times = {}
    for (noise, precision), row in zip(kinds, rows, strict=True):
        time_of_one, share = re.fullmatch(
            rf"  {noise}, {precision} +([\d.]+) us per sample +(\d+) % of the matrix peak", row
        ).groups()
        times[noise, precision] = float(time_of_one)
        expected = 100 * 2 * 2_293_000 / (float(time_of_one) * 1e-6) / (float(peak[1]) * 1e9)
        assert abs(float(share) - expected) < 1 + 0.02 * expected
    for precision, line in (("float32", in_float32), ("bfloat16", in_bfloat16)):
        ratio = re.fullmatch(rf"  exact noise takes ([\d.]+) times as long as noise drawn in floats, {precision}", line)
        assert float(ratio[1]) == pytest.approx(times["ours", precision] / times["float noise", precision], abs=0.011)


def test_what_beam_adds(times, capsys):
    times(beam, {"plain loop": 2.0, "pipeline": 2.2})
    beam.main(["--images", "2", "--n", "100", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lenet, 400 samples of 2 images, 2 threads; medians of 1 rounds (0 dropped)"
    assert lines[1:3] == [
        "  plain loop      2.00 s,   5000.0 us per sample",
        "  pipeline        2.20 s,   5500.0 us per sample",
    ]
    assert lines[3] == "  Beam and the vote store add 10.0 %"


@pytest.mark.slow
def test_the_served_model(cores_are_free, tmp_path, monkeypatch, capsys):
    model = model_of((4, 4, 1), tmp_path)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), np.uint8))
    monkeypatch.setattr(serving, "MICROBATCHES", (64,))
    flags = ("--threads", "1", "--rounds", "1", "--requests", "2", "--num_examples", "4")
    serving.main(["--model", str(model), "--images", str(tmp_path / "images.npy"), *flags])
    out = capsys.readouterr().out
    samples, fewer = re.search(
        r"early exit, 4 images: ([\d.]+) samples .*, ([\d.]+) times fewer than n=1000", out
    ).groups()
    assert float(fewer) == pytest.approx(1000 / float(samples), rel=0.01, abs=0.06)
    assert len(re.findall(r"^predict, +\d+ images: p50 [\d.]+ ms, p99 [\d.]+ ms, of 2 requests$", out, re.M)) == 3
    assert len(re.findall(r"^certify, n=1?[01],000: [\d.]+ times the library's throughput", out, re.M)) == 2
    assert re.search(r"^\d+ \(default\) +[\d,]+ +1\.00$", out, re.M)
    with pytest.raises(SystemExit):
        serving.main(["--model", str(model), "--images", str(tmp_path / "images.npy"), "--pixel_max", "16"])
    assert re.search(r"--pixel_max must be at least the largest pixel, \d+\. Received: 16$", capsys.readouterr().err)


def test_what_budgets_save_on_published_logs(tmp_path, capsys):
    radii = np.array([0.6, 0.6, 0.005, 0.0])
    log = Certificates(np.array([1, 2, 3, -1]), radii, radii, np.arange(4), 0.25, 0.001, 100, 100_000)
    certification_log.write(tmp_path / "tiny-sigma0.25.tsv", log, np.array([1, 2, 0, 4]), np.arange(4))
    (tmp_path / "nameless.tsv").write_text("")
    (tmp_path / "sigma0.tsv").write_text("")
    budgets.main(["--logs", str(tmp_path)])
    left_out, without_noise, title, *rows = capsys.readouterr().out.splitlines()
    assert left_out.startswith("LEFT OUT: nameless.tsv")
    assert without_noise.startswith("LEFT OUT: sigma0.tsv")
    assert title == "tiny-sigma0.25: 4 images"
    found = [
        re.match(r"  (\w+) +([\d.]+) +(labels)? +([\d.]+) x fewer samples .*at [\d.]+ +([\d.]+) \(", row)
        for row in rows
    ]
    assert [(row[1], row[2], row[3]) for row in found] == [
        (name, value, labels)
        for name, value in (*(("RadiusBudget", f"{r:g}") for r in budgets.RADII), ("ToleranceBudget", "0.01"))
        for labels in (None, "labels")
    ]
    # Two of four images are right, certified at 0.25 and 0.5 but not at 0.75.
    assert [float(row[5]) for row in found] == [0.5] * 4 + [0.0] * 2 + [0.5] * 2
    assert all(float(row[4]) > 10 for row in found[:2])


def test_budgets_of_logs_that_are_not_there_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        budgets.main(["--logs", str(tmp_path)])
    assert f"sigma0.25.tsv. Received: {tmp_path}" in capsys.readouterr().err


def test_what_budgets_save_on_real_votes(shared_tfds, tmp_path, capsys):
    model = model_of((28, 28, 1), tmp_path, favourite=2)  # what both images are
    arguments = ["--model", str(model), "--data_dir", str(shared_tfds), "--cache", str(tmp_path / "cache")]
    arguments += ["--num_examples", "2", "--figure", str(tmp_path / "figure.png")]
    budgets_mnist.main(arguments)
    drawn = capsys.readouterr()
    assert "2 of 2 images drawn" in drawn.err
    assert drawn.out.startswith("2 test images of MNIST, alpha=0.001, bfloat16; CERTIFY (n0=100, n=100,000): ACR ")
    assert re.search(r"FixedBudget\(10,000\) +9\.91 x fewer samples", drawn.out)  # 100,100 / 10,100
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    budgets_mnist.main(arguments)
    again = capsys.readouterr()
    assert (again.out, again.err) == (drawn.out, "")


def test_only_models_of_mnist_that_know_their_noise_have_real_votes_for_budgets(shared_tfds, tmp_path, capsys):
    import keras

    plain = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    plain.save(tmp_path / "plain.keras")
    given = ["--data_dir", str(shared_tfds), "--cache", str(tmp_path), "--model"]
    with pytest.raises(InputError, match=r"such as a MACERModel\. Received: .*plain\.keras, which holds a "):
        budgets_mnist.main([*given, str(tmp_path / "plain.keras")])
    for flags, said in (
        ([str(model_of((8, 8, 1), tmp_path))], "--model must take MNIST's images, (28, 28, 1). Received: "),
        ([str(tmp_path / "plain.keras"), "--num_examples", "1001"], "--num_examples must be at most 1,000. Received: "),
    ):
        with pytest.raises(SystemExit):
            budgets_mnist.main([*given, *flags])
        assert said in capsys.readouterr().err


def test_seconds_to_a_whole_table(shared_tfds, tmp_path, monkeypatch, capfd):
    model = model_of((28, 28, 1), tmp_path, favourite=2)
    monkeypatch.setattr(whole_table, "N", 1000)
    monkeypatch.setattr(whole_table, "RADII", (0.0, 0.1))
    whole_table.main(["--model", str(model), "--data_dir", str(shared_tfds), "--images", "4"])
    out = capfd.readouterr().out
    assert out.startswith(WITHOUT_AUTHORS)
    assert re.search(r"^4 images; .* per image, bound: anytime", out, re.MULTILINE)
    seconds = re.search(r"4 images of MNIST, sigma=0\.5, n=1,000, 2 cores: ours ([\d.]+) s from the start", out)
    assert float(seconds[1]) > 1


def test_a_whole_table_is_of_as_many_images_as_it_says():
    for images in (1, 3, 100, 300, 6000, 10_000):
        _, skip, _, most = whole_table.selected(images)
        ids = sources.select(np.arange(10_000), skip=skip, max=most)
        assert len(ids) == images


def test_the_budgets_figure_has_its_labels_inside_and_clear_of_markers_and_of_each_other():
    # As close as those of MNIST: the last of ours lie beside the last of the others.
    ns, precisions = [f"{n:,}" for n in budgets_mnist.FIGURE_N], ["0.1", "0.05", "0.02", "0.01"]
    plain = budgets_mnist.Line("fixed n", [0.011, 0.031, 0.101, 0.301, 1], [0.71, 0.80, 0.885, 0.945, 1], ns)
    ours = budgets_mnist.Line("ToleranceBudget", [0.157, 0.333, 0.58, 0.719], [0.911, 0.955, 0.982, 0.991], precisions)
    figure = budgets_mnist.drawn_figure(((plain, plain), (plain, ours)))
    axes = figure.axes[1]
    labels = [text.get_window_extent() for text in axes.texts]
    assert sorted(text.get_text() for text in axes.texts) == sorted(ns + precisions)
    markers = axes.transData.transform([*zip(*plain[1:3], strict=True), *zip(*ours[1:3], strict=True)])
    for place, box in enumerate(labels):
        assert axes.bbox.containsx(box.x0)
        assert axes.bbox.containsx(box.x1)
        assert axes.bbox.containsy(box.y0)
        assert axes.bbox.containsy(box.y1)
        assert not box.count_overlaps([*labels[:place], *labels[place + 1 :], axes.get_legend().get_window_extent()])
        assert not box.padded(2.7 / 72 * figure.dpi).count_contains(markers)


def nothing():
    return lambda: None


def half_a_core():
    return lambda: time.sleep(0.01)


def test_contestants_take_turns_in_processes_of_their_own(cores_are_free):
    rounds = interleaved.Rounds({"fast": (nothing,), "slow": (half_a_core,)}, 3, 2, 1)
    assert str(rounds) == "medians of 3 rounds (0 dropped)"
    assert rounds.median("slow") == statistics.median(seconds["slow"] for seconds in rounds.kept) >= 0.01
    assert rounds.ratio("slow", "fast") > 1 > rounds.ratio("fast", "slow")


def test_a_round_without_its_cores_is_dropped():
    with pytest.raises(SystemExit, match="In none of 1 rounds were 1 cores free"):
        interleaved.Rounds({"sleeps": (half_a_core,)}, 1, 1, 1)
    assert interleaved.Rounds({"sleeps": (half_a_core,)}, 1, 1, 1, idle=("sleeps",)).kept


def presses_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    return nothing()


def test_ctrl_c_is_not_the_contestants(cores_are_free):
    assert interleaved.Rounds({"interrupted": (presses_ctrl_c,)}, 1, 1, 1).kept
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_one_line():
    program = "from benchmarks import interrupts; raise KeyboardInterrupt"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "\nInterrupted.\n")
    program = "from benchmarks import interrupts; raise KeyError('that')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, "KeyError: 'that'")


@pytest.mark.parametrize(
    ("benchmark", "arguments", "said"),
    [
        (beam, ["--rounds", "0"], "argument --rounds: must be a whole number from 1. Received: '0'"),
        (certify, ["--threads", "-1"], "argument --threads: must be a whole number from 1. Received: '-1'"),
        (table3, ["--network", "lenet5"], "argument --network: Unknown network. Received: lenet5; accepted: lenet, "),
        (table3, ["--network", "cifar_resnet9"], "argument --network: The depth of a cifar_resnet must be 6n + 2"),
        (train_step, ["--steps", "1.5"], "argument --steps: must be a whole number from 1. Received: '1.5'"),
        (serving, ["--images", "no.npy", "--model", "no.keras"], "argument --images: must be a file. Received: 'no."),
        (serving, ["--images", __file__, "--model", "no.keras"], "argument --images: must be an .npy file of images, "),
        (serving, ["--pixel_max", "65536"], "argument --pixel_max: must be a whole number from 1 to 65535. Received: "),
        (whole_table, ["--model", "no.keras", "--data_dir", "."], "argument --model: There is no model no.keras."),
        (whole_table, ["--images", "10001"], "argument --images: must be at most 10,000. Received: '10001'"),
        (budgets, ["--seed", "-1"], "argument --seed: must be a whole number from 0 to 4294967295. Received: '-1'"),
        (budgets_mnist, ["--tolerance", "1"], "argument --tolerance: must be a number above 0 and below 1. Received: "),
    ],
)
def test_bad_input_is_told_before_anything_is_measured(capsys, benchmark, arguments, said):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert said in capsys.readouterr().err


def test_a_log_that_is_none_is_one_line(tmp_path):
    (tmp_path / "sigma0.25.tsv").write_text("")
    program = f"from benchmarks import budgets; budgets.main(['--logs', {str(tmp_path)!r}])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    said = f"error: {tmp_path / 'sigma0.25.tsv'} is empty: it holds no certificates.\n"
    assert (ended.returncode, ended.stderr) == (1, said)


def test_what_is_left_out_is_said(tmp_path, capsys):
    assert not interleaved.has_reference(None, ())
    assert capsys.readouterr().out == WITHOUT_AUTHORS
    with pytest.raises(SystemExit, match=r"--reference must be a clone of github\.com/RuntianZ/macer\. Received: "):
        interleaved.has_reference(tmp_path, ())
    (tmp_path / "macer.py").touch()
    assert not interleaved.has_reference(tmp_path, ("no_such_module",))
    assert "(not installed: no_such_module)" in capsys.readouterr().out
    assert interleaved.has_reference(tmp_path, ("json",))
    assert capsys.readouterr().out == ""


def test_every_benchmark_is_run_here():
    folder = Path(interleaved.__file__).parent
    run = {
        module.__name__.partition(".")[2]
        for module in (beam, budgets, budgets_mnist, certify, serving, table3, train_step, whole_table)
    }
    run |= {"published", "results"}  # in test_published and test_results
    assert {path.stem for path in folder.glob("*.py")} == run | {"arguments", "interleaved", "interrupts"}
    for name in run:
        assert "\nfrom benchmarks import interrupts" in (folder / f"{name}.py").read_text()
