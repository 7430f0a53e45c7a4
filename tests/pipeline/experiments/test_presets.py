"""Presets say what the paper says (section 5.1, Tables 1-13), and find() never lends a published row."""

import dataclasses
import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from macer_tf import certificates, checks
from pipeline.cli import console
from pipeline.experiments import methods, presets
from pipeline.experiments import settings as settings_lib
from pipeline.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("small_heap")

PAPER_TEXT = Path(__file__).resolve().parents[4] / "shared" / "macer-paper.txt"

# Tables 1, 2, 6, 7 and 8 (150 epochs), typed off the paper apart from the module: the preset, the table, certified
# accuracies, ACR.
PAPER = """
cohen-cifar10-0.25      1 0.75 0.60 0.43 0.26 0 0 0 0 0 0 0.416
smoothadv-cifar10-0.25  1 0.74 0.67 0.57 0.47 0 0 0 0 0 0 0.538
macer-cifar10-0.25      1 0.81 0.71 0.59 0.43 0 0 0 0 0 0 0.556
cohen-cifar10-0.50      1 0.65 0.54 0.41 0.32 0.23 0.15 0.09 0.04 0 0 0.491
smoothadv-cifar10-0.50  1 0.50 0.46 0.44 0.40 0.38 0.33 0.29 0.23 0 0 0.709
macer-cifar10-0.50      1 0.66 0.60 0.53 0.46 0.38 0.29 0.19 0.12 0 0 0.726
cohen-cifar10-1.00      1 0.47 0.39 0.34 0.28 0.21 0.17 0.14 0.08 0.05 0.03 0.458
smoothadv-cifar10-1.00  1 0.45 0.41 0.38 0.35 0.32 0.28 0.25 0.22 0.19 0.17 0.787
macer-cifar10-1.00      1 0.45 0.41 0.38 0.35 0.32 0.29 0.25 0.22 0.18 0.16 0.792
cohen-imagenet-0.25     2 0.67 0.49 0 0 0 0 0 0.470
smoothadv-imagenet-0.25 2 0.65 0.56 0 0 0 0 0 0.528
macer-imagenet-0.25     2 0.68 0.57 0 0 0 0 0 0.544
cohen-imagenet-0.50     2 0.57 0.46 0.37 0.29 0 0 0 0.720
smoothadv-imagenet-0.50 2 0.54 0.49 0.43 0.37 0 0 0 0.815
macer-imagenet-0.50     2 0.64 0.53 0.43 0.31 0 0 0 0.831
cohen-imagenet-1.00     2 0.44 0.38 0.33 0.26 0.19 0.15 0.12 0.863
smoothadv-imagenet-1.00 2 0.40 0.37 0.34 0.30 0.27 0.25 0.20 1.003
macer-imagenet-1.00     2 0.48 0.43 0.36 0.30 0.25 0.18 0.14 1.008
cohen-mnist-0.25        6 0.99 0.97 0.94 0.89 0 0 0 0 0 0 0.887
macer-mnist-0.25        6 0.99 0.99 0.97 0.95 0 0 0 0 0 0 0.918
macer-mnist-0.25-paper  6 0.99 0.99 0.97 0.95 0 0 0 0 0 0 0.918
cohen-mnist-0.50        6 0.99 0.97 0.94 0.91 0.84 0.75 0.57 0.33 0 0 1.453
macer-mnist-0.50        6 0.99 0.98 0.96 0.94 0.90 0.83 0.73 0.50 0 0 1.583
macer-mnist-0.50-paper  6 0.99 0.98 0.96 0.94 0.90 0.83 0.73 0.50 0 0 1.583
cohen-mnist-1.00        6 0.95 0.92 0.87 0.81 0.72 0.61 0.50 0.34 0.20 0.10 1.417
macer-mnist-1.00        6 0.89 0.85 0.79 0.75 0.69 0.61 0.54 0.45 0.36 0.28 1.520
macer-mnist-1.00-paper  6 0.89 0.85 0.79 0.75 0.69 0.61 0.54 0.45 0.36 0.28 1.520
cohen-svhn-0.25         7 0.90 0.70 0.44 0.26 0 0 0 0 0 0 0.469
macer-svhn-0.25         7 0.86 0.72 0.56 0.39 0 0 0 0 0 0 0.540
cohen-svhn-0.50         7 0.67 0.48 0.37 0.24 0.14 0.08 0.06 0.03 0 0 0.434
macer-svhn-0.50         7 0.61 0.53 0.44 0.35 0.24 0.15 0.09 0.04 0 0 0.538
macer-cifar10-0.25-150  8 0.76 0.67 0.57 0.42 0 0 0 0 0.531
macer-cifar10-0.50-150  8 0.62 0.57 0.50 0.44 0.38 0.29 0.21 0.13 0.712
"""
ROWS = [line.split() for line in PAPER.strip().splitlines()]

# Average certified radii of the methods that came after the paper, as their authors printed or logged them, by sigma.
LATER = {
    ("stability", "mnist"): (0.915, 1.572, 1.634), ("stability", "cifar10"): (0.420, 0.531, 0.514),
    ("consistency", "mnist"): (0.928, 1.655, 1.738), ("consistency", "cifar10"): (0.552, 0.720, 0.756),
    ("smoothmix", "mnist"): (0.932, 1.694, 1.820), ("smoothmix", "cifar10"): (0.553, 0.712, None),
    ("catrs", "mnist"): (0.933, 1.700, 1.831), ("catrs", "cifar10"): (0.562, 0.757, 0.815),
}  # fmt: skip

# Every published row the module holds, with its noise level.
PUBLISHED = [
    *((preset.sigma, preset.paper) for preset in presets.PRESETS if preset.paper),
    *((sigma, row) for ablation in presets.ABLATIONS.values() for (sigma, _), row in ablation.rows.items()),
]


@pytest.fixture(scope="module")
def paper_table():
    """Number of a table -> its rows as lists of cells, from the paper's text beside the repository."""
    if not PAPER_TEXT.is_file():
        pytest.skip(
            "NEEDS THE PAPER: no ../shared/macer-paper.txt beside the repository; no table was compared with it"
        )
    text = PAPER_TEXT.read_text()

    def read(number):
        body = re.search(rf"^Table {number}: [^\n]*\n\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)[1]
        return [[re.sub("<.*?>", "", cell).strip() for cell in line.split("\t")] for line in body.splitlines()]

    return read


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_published_rows(row):
    name, table, *accuracy, acr = row
    preset = presets.by_name(name)
    paper = preset.paper
    step = 0.5 if preset.dataset == "imagenet" else 0.25
    assert paper.table == int(table)
    assert paper.radii == tuple(step * i for i in range(len(accuracy)))
    assert paper.certified_accuracy == tuple(float(value) for value in accuracy)
    assert paper.acr == float(acr)
    paper_name = {"macer": "MACER", "cohen": "Cohen", "smoothadv": "Salman"}[preset.method]
    assert paper.name == f"{paper_name}-{preset.sigma:.2f}" + (", 150 epochs" if name.endswith("-150") else "")
    assert paper.image_set


def test_no_other_published_rows():
    of_the_paper = {preset.name for preset in presets.PRESETS if preset.paper and preset.paper.table}
    assert of_the_paper == {row[0] for row in ROWS}
    assert "500..999" in presets.find("cifar10", 0.5).paper.image_set
    assert "0..499" in presets.find("cifar10", 0.5, "smoothadv").paper.image_set


def test_published_rows_of_the_methods_after_the_paper():
    found = {preset.name: preset for preset in presets.PRESETS if preset.paper and preset.paper.table is None}
    expected = {
        f"{method}-{dataset}-{sigma:.2f}": acr
        for (method, dataset), acrs in LATER.items()
        for sigma, acr in zip((0.25, 0.5, 1.0), acrs, strict=True)
        if acr
    }
    assert {name: preset.paper.acr for name, preset in found.items()} == expected
    for preset in found.values():
        assert preset.paper.image_set.startswith("measured on all 10,000 test images; recomputed from the log")
        assert preset.batch_size * preset.num_samples == 256
    # What was trained otherwise than here is said beside the number.
    assert "another model's" in presets.by_name("catrs-mnist-0.25").paper.image_set
    assert "one-step adversary" in presets.by_name("smoothmix-cifar10-0.50").note
    # CAT-RS's authors trained on MNIST for longer than those of the other three.
    schedules = {name: (preset.epochs, preset.lr_drop_epochs) for name, preset in found.items() if "mnist" in name}
    on_mnist = {name: (150, (50, 100)) if name.startswith("catrs") else (90, (30, 60)) for name in schedules}
    assert schedules == on_mnist
    weights = [presets.by_name(f"catrs-mnist-{sigma}").adversarial for sigma in ("0.25", "0.50", "1.00")]
    assert weights == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("sigma", ["0.25", "0.50", "1.00"])
def test_the_best_of_mnist_is_short_and_has_no_row(sigma):
    best, paper = presets.by_name(f"macer-mnist-{sigma}-best"), presets.by_name(f"macer-mnist-{sigma}")
    assert best.paper is None
    assert (best.sigma, best.network, best.gamma, best.batch_size) == (
        paper.sigma, paper.network, paper.gamma, paper.batch_size
    )  # fmt: skip
    assert best.epochs <= 30
    assert best.average_cross_entropy
    # Beside its own settings the recipe of the paper is what it was.
    assert (paper.average_cross_entropy, paper.consistency, paper.entropy, paper.ema, paper.noise_steps) == (
        False, 0, 0, 0, 0
    )  # fmt: skip


@pytest.mark.parametrize(("number", "dataset"), [(1, "cifar10"), (2, "imagenet"), (6, "mnist"), (7, "svhn")])
def test_rows_of_the_papers_text(paper_table, number, dataset):
    header, *rows = paper_table(number)
    methods = {"Cohen": "cohen", "Salman": "smoothadv", "MACER": "macer"}
    sigma, seen = None, set()
    for first, model, *figures in rows:
        sigma = first or sigma
        preset = presets.find(dataset, float(sigma), methods[model.split("-")[0]])
        assert preset.name == f"{preset.method}-{dataset}-{sigma}"
        assert preset.paper.table == number
        assert preset.paper.radii == tuple(map(float, header[2:-1]))
        assert (*preset.paper.certified_accuracy, preset.paper.acr) == tuple(map(float, figures))
        seen.add(preset.name)
    defaults = [preset for preset in presets.PRESETS if preset.dataset == dataset and preset.paper]
    assert seen == {p.name for p in defaults if p.paper.table == number and not p.name.endswith("-paper")}


def test_table_8_of_the_papers_text(paper_table):
    header, *rows = paper_table(8)
    sigma = None
    for first, model, *figures, acr, epochs, hours in rows:
        sigma = first or sigma
        suffix = "-150" if model == "MACER" and epochs == "150" else ""
        preset = presets.by_name(f"{model.lower()}-cifar10-{sigma}{suffix}")
        columns = len(header) - 5
        assert preset.paper.radii[:columns] == tuple(map(float, header[2:-3]))
        assert preset.paper.certified_accuracy[:columns] == tuple(map(float, figures))
        assert (preset.paper.acr, preset.epochs, preset.paper.hours) == (float(acr), int(epochs), float(hours))
        assert preset.paper.table == (8 if suffix else 1)
    assert len(rows) == 6


@pytest.mark.parametrize(("number", "dataset"), [(4, "cifar10"), (5, "imagenet")])
def test_settings_of_the_papers_text(paper_table, number, dataset):
    compared = []
    for *_, model, description in paper_table(number)[2:]:
        words = dict(re.findall(r"\$\\?(\w+) = ([\d.]+)\$", description))
        method, sigma = model.split("-")
        preset = presets.by_name(f"{ {'Salman': 'smoothadv', 'MACER': 'macer'}[method] }-{dataset}-{sigma}")
        if method == "Salman":
            samples, steps, attack = re.match(r"(\d)-sample (\d+)-step SmoothAdv (PGD|DDN) with", description).groups()
            assert (preset.num_samples, preset.attack_steps, preset.attack) == (
                int(samples),
                int(steps),
                attack.lower(),
            )
            assert preset.epsilon == float(words["epsilon"])
        else:
            assert (preset.num_samples, preset.beta, preset.gamma) == (int(words["k"]), 16.0, 8.0)
            assert (float(words["beta"]), float(words["gamma"])) == (16.0, 8.0)
            if "dynamic" in description:
                assert (preset.lam, preset.lam_start_epoch) == (12.0, preset.lr_drop_epochs[0])
            else:
                assert (preset.lam, preset.lam_start_epoch) == (float(words["lambda"]), 0)
        compared.append(preset.name)
    assert len(set(compared)) == 6


def test_table_3_of_the_papers_text(paper_table):
    methods = {"Cohen-0.25": "cohen", "Salman-0.25": "smoothadv", "MACER-0.25": "macer"}
    dataset, expected = None, []
    for first, model, *figures in paper_table(3)[1:]:
        dataset = first or dataset
        seconds, epochs, hours, acr = map(float, figures)
        name = {"Cifar-10": "cifar10", "ImageNet": "imagenet"}[dataset]
        expected.append(presets.TrainingTime(name, methods[model.split()[0]], seconds, int(epochs), hours, acr))
    assert list(presets.TABLE_3) == expected


def test_table_3_agrees_with_itself_and_the_presets():
    assert len(presets.TABLE_3) == 6
    for time in presets.TABLE_3:
        preset = presets.find(time.dataset, 0.25, time.method)
        assert time.seconds_per_epoch * time.epochs / 3600 == pytest.approx(time.hours, abs=0.006)
        assert (preset.epochs, preset.paper.acr, preset.paper.hours) == (time.epochs, time.acr, time.hours)


def test_table_9_of_the_papers_text(paper_table):
    names = ("num_samples", "lam", "gamma", "beta")
    for setting, (_, *columns) in zip(names, paper_table(9)[1:], strict=True):
        ablation = presets.ABLATIONS[setting]
        cells = dict(zip(names, columns, strict=True))
        assert ablation.setting == setting
        assert ablation.values == tuple(map(float, cells.pop(setting).split("/")))
        assert ablation.fixed == {name: float(value) for name, value in cells.items()}
    assert tuple(presets.ABLATIONS) == names


@pytest.mark.parametrize(("setting", "number"), [("num_samples", 10), ("lam", 11), ("gamma", 12), ("beta", 13)])
def test_ablations_of_the_papers_text(paper_table, setting, number):
    header, *lines = paper_table(number)
    ablation = presets.ABLATIONS[setting]
    sigma, expected = None, {}
    for line in lines:
        figures = [float(cell) for cell in line if cell]
        if len(figures) == 13 or figures[0] not in ablation.values:
            sigma, *figures = figures
        # The row that the text shifts by a column has lost its last one.
        value, *accuracy, acr = figures if len(figures) == 12 else [*figures, None]
        expected[sigma, value] = (tuple(accuracy), acr)
    held = {key: (row.certified_accuracy, row.acr) for key, row in ablation.rows.items()}
    assert held == expected
    assert [key for key, row in ablation.rows.items() if row.acr is None] == ([(0.5, 1.0)] if number == 13 else [])
    for row in ablation.rows.values():
        assert (row.table, row.radii) == (number, tuple(map(float, header[2:-1])))


def test_ablations_without_the_papers_text():
    assert {name: (a.table, len(a.values)) for name, a in presets.ABLATIONS.items()} == {
        "num_samples": (10, 5),
        "lam": (11, 6),
        "gamma": (12, 8),
        "beta": (13, 7),
    }
    for setting, ablation in presets.ABLATIONS.items():
        assert set(ablation.rows) == {(sigma, value) for sigma in (0.25, 0.5) for value in ablation.values}
        assert ablation.fixed == {
            name: value
            for name, value in {"num_samples": 16, "lam": 12.0, "gamma": 8.0, "beta": 16.0}.items()
            if name != setting
        }
        if setting != "lam":
            # One model, in three tables: Table 4's at sigma 0.25, and lam=12 at sigma 0.5.
            shared = {"num_samples": 16, "gamma": 8.0, "beta": 16.0}[setting]
            assert ablation.rows[0.25, shared].acr == presets.find("cifar10", 0.25).paper.acr == 0.556
            assert ablation.rows[0.5, shared].acr == 0.712
    assert presets.ABLATIONS["lam"].rows[0.5, 4.0].acr == presets.find("cifar10", 0.5).paper.acr == 0.726


@pytest.mark.parametrize(("sigma", "row"), PUBLISHED, ids=lambda value: getattr(value, "name", str(value)))
def test_published_figures_agree_with_each_other(sigma, row):
    """Certified accuracy falls with the radius, and ACR, the area under it, lies between its Riemann sums.

    A slipped column or digit would break that. Beyond the last column the curve stays at most at its height
    up to the largest radius n=100,000 allows, 3.81 sigma. Rounding: 0.005 an entry.
    """
    accuracy = row.certified_accuracy
    assert list(accuracy) == sorted(accuracy, reverse=True)
    assert all(0 <= value <= 1 for value in accuracy)
    step, limit = row.radii[1], 3.81 * sigma
    assert row.radii == tuple(step * i for i in range(len(accuracy)))
    assert all(value == 0 for radius, value in zip(row.radii, accuracy, strict=True) if radius > limit)
    if row.acr is None:
        return
    widths = [max(0.0, min(step * (i + 1), limit) - step * i) for i in range(len(accuracy))]
    widths[-1] = max(0.0, limit - step * (len(accuracy) - 1))
    upper = sum(width * (value + 0.005) for width, value in zip(widths, accuracy, strict=True))
    lower = sum(step * (value - 0.005) for value in accuracy[1:] if value)
    assert lower <= row.acr <= upper


def test_names_are_unique_and_every_level_is_there():
    names = [preset.name for preset in presets.PRESETS]
    assert len(set(names)) == len(names) == 77
    for method in ("macer", "cohen", "smoothadv"):
        for dataset in ("digits", "mnist", "svhn", "cifar10", "imagenet"):
            for sigma in ("0.25", "0.50", "1.00"):
                preset = presets.by_name(f"{method}-{dataset}-{sigma}")
                assert (preset.method, preset.dataset, preset.sigma) == (method, dataset, float(sigma))
                assert presets.find(dataset, float(sigma), method) == preset


def test_by_name_of_a_typo_names_the_nearest():
    with pytest.raises(InputError, match=r"^Unknown preset macer-cifar-0\.5\. Did you mean macer-cifar10-0\.50 or "):
        presets.by_name("macer-cifar-0.5")
    with pytest.raises(InputError, match=r"^Unknown preset \?\. See their table\.$"):
        presets.by_name("?")


def test_table_lists_every_preset():
    header, rows = presets.table()
    assert [cell.strip() for cell in header] == [
        "preset", "network", "method's settings", "epochs", "paper ACR", "table"
    ]  # fmt: skip
    listed = {row[0]: [cell.strip() for cell in row[1:]] for row in rows}
    assert list(listed) == [preset.name for preset in presets.PRESETS]
    deferred = "num_samples=16 lam=12 lam_start_epoch=200"
    assert listed["macer-cifar10-1.00"] == ["cifar_resnet110", deferred, "440", "0.792", "1"]
    assert listed["cohen-svhn-1.00"] == ["cifar_resnet110", "-", "440", "-", "-"]
    ddn = "num_samples=1 attack=ddn attack_steps=2 epsilon=1"
    assert listed["smoothadv-imagenet-0.25"] == ["resnet50", ddn, "90", "0.528", "2"]
    lines = console.table(header, rows).splitlines()
    assert len(lines) == 79
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 120


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: preset.name)
def test_settings_are_possible(preset):
    assert preset.sigma > 0
    certificates.check_can_certify(preset.n, preset.alpha)
    assert list(preset.lr_drop_epochs) == sorted(set(preset.lr_drop_epochs))
    assert max((0, *preset.lr_drop_epochs)) < preset.epochs
    if preset.method == "macer":
        assert preset.num_samples >= 1
        assert preset.lam > 0
        assert 0 < preset.gamma <= checks.MAX_GAMMA
        assert preset.beta > 0
        assert preset.lam_start_epoch < preset.epochs
    elif preset.method == "smoothadv":
        assert preset.num_samples >= 1
        assert preset.attack in ("pgd", "ddn")
        assert preset.epsilon > 0
        assert preset.attack_steps >= 1
        assert preset.warmup_epochs == 10


def test_a_preset_has_its_methods_settings_and_no_others():
    own = {
        "macer": {
            "num_samples", "lam", "gamma", "beta", "lam_start_epoch", "average_cross_entropy", "consistency", "entropy",
            "noise_steps", "noise_radius", "noise_for_all", "ramp_epochs", "samples_rise_epochs",
            "samples_rise_factor", "unlabelled",
        },
        "cohen": set(),
        "stability": {"num_samples", "stability"},
        "consistency": {"num_samples", "consistency", "entropy"},
        "smoothmix": {"num_samples", "mixup", "attack_steps", "step_size", "warmup_epochs"},
        "catrs": {"num_samples", "adversarial", "attack_steps", "noise_radius"},
        "smoothadv": {"num_samples", "attack", "attack_steps", "epsilon", "warmup_epochs"},
    }  # fmt: skip
    of_some = set().union(*own.values())
    for preset in presets.PRESETS:
        assert preset.settings.keys() & of_some == own[preset.method], preset.name
    with pytest.raises(AttributeError, match="no setting lam"):
        _ = presets.find("digits", 0.25, "cohen").lam


@pytest.mark.parametrize(
    ("dataset", "lams"),
    [
        ("digits", (12.0, 12.0, 12.0)),
        ("mnist", (16.0, 16.0, 16.0)),
        ("svhn", (12.0, 12.0, 12.0)),
        ("cifar10", (12.0, 4.0, 12.0)),
        ("imagenet", (6.0, 3.0, 3.0)),
    ],
)
def test_lam(dataset, lams):
    found = [presets.find(dataset, sigma) for sigma in (0.25, 0.5, 1.0)]
    assert tuple(preset.lam for preset in found) == lams
    # Only CIFAR-10 at sigma 1.0 defers lam (Table 4, footnote 5): until the first drop.
    deferred = [preset.name for preset in found if preset.lam_start_epoch]
    assert deferred == (["macer-cifar10-1.00"] if dataset == "cifar10" else [])
    assert found[-1].lam_start_epoch == (found[-1].lr_drop_epochs[0] if deferred else 0)


@pytest.mark.parametrize("dataset", ["mnist", "svhn", "cifar10"])
def test_recipe_of_section_5(dataset):
    for sigma in (0.25, 0.5, 1.0):
        preset = presets.find(dataset, sigma)
        assert (preset.num_samples, preset.gamma, preset.beta) == (16, 8.0, 16.0)
        assert (preset.epochs, preset.batch_size, preset.learning_rate) == (440, 64, 0.01)
        assert (preset.lr_schedule, preset.lr_drop_epochs, preset.lr_drop_factor) == ("step", (200, 400), 0.1)
        assert (preset.momentum, preset.l2) == (0.9, 5e-4)
        assert (preset.n0, preset.n, preset.alpha, preset.num_test_examples) == (100, 100_000, 0.001, 500)
        assert (preset.crop_padding, preset.flip) == ((0, False) if dataset == "mnist" else (4, True))
        # The recipe as printed collapses on MNIST: there, and only there, the gradient is clipped.
        assert preset.clip_norm == (1.0 if dataset == "mnist" else None)


def test_mnist_as_printed_is_kept_apart():
    for sigma in ("0.25", "0.50", "1.00"):
        printed, stable = presets.by_name(f"macer-mnist-{sigma}-paper"), presets.by_name(f"macer-mnist-{sigma}")
        assert (printed.batch_size, printed.learning_rate, printed.lam, printed.clip_norm) == (64, 0.01, 16.0, None)
        assert "collapses" in printed.note
        assert stable.note is None
        same = printed.but(name=stable.name, clip_norm=stable.clip_norm, note=None)
        assert same == stable


def test_150_epochs():
    for sigma in ("0.25", "0.50"):
        short, long = presets.by_name(f"macer-cifar10-{sigma}-150"), presets.by_name(f"macer-cifar10-{sigma}")
        assert (short.epochs, short.lr_drop_epochs) == (150, (60, 120))
        same = short.but(name=long.name, epochs=long.epochs, lr_drop_epochs=long.lr_drop_epochs, paper=long.paper)
        assert same == long


def test_cohen_trains_as_its_authors_or_as_macer_without_its_term():
    for dataset in ("mnist", "svhn", "digits"):
        cohen, macer = presets.find(dataset, 0.5, "cohen"), presets.find(dataset, 0.5)
        own = methods.find("macer").defaults()
        shared = {name: value for name, value in macer.settings.items() if name not in own}
        assert cohen.settings == {**shared, "method": "cohen", "clip_norm": cohen.clip_norm}
    for dataset, epochs, drops in (("cifar10", 150, (50, 100)), ("imagenet", 90, (30, 60))):
        cohen = presets.find(dataset, 0.5, "cohen")
        assert (cohen.epochs, cohen.lr_drop_epochs, cohen.batch_size) == (epochs, drops, 400)
        assert (cohen.learning_rate, cohen.l2, cohen.flip) == (0.1, 1e-4, True)


def test_smoothadv_makes_256_noisy_copies_a_step():
    for dataset in ("cifar10", "imagenet"):
        for sigma in (0.25, 0.5, 1.0):
            preset = presets.find(dataset, sigma, "smoothadv")
            assert preset.batch_size * preset.num_samples == 256
            assert (preset.learning_rate, preset.l2) == (0.1, 1e-4)


def test_imagenet_recipe():
    preset = presets.find("imagenet")
    assert (preset.network, preset.num_samples, preset.epochs) == ("resnet50", 2, 120)
    assert (preset.learning_rate, preset.lr_drop_epochs, preset.image_size) == (0.1, (30, 60, 90), 224)


def test_digits_certify_every_test_image():
    preset = presets.find("digits")
    assert (preset.sigma, preset.network, preset.lr_schedule) == (0.25, "small_cnn", "cosine")
    assert (preset.n, preset.num_test_examples, preset.clip_norm) == (10_000, None, 1.0)


@pytest.mark.parametrize(
    ("asked", "nearest"), [(0.12, 0.25), (0.3, 0.25), (0.45, 0.5), (0.7, 0.5), (0.8, 1.0), (2, 1.0)]
)
def test_another_sigma_takes_the_nearest_settings_and_no_row(asked, nearest):
    found, base = presets.find("cifar10", asked), presets.find("cifar10", nearest)
    assert (found.sigma, found.paper, found.name) == (asked, None, f"macer-cifar10-{asked:.2f}")
    assert found.but(name=base.name, sigma=nearest, paper=base.paper) == base


def test_a_name_never_claims_another_sigma():
    assert presets.find("cifar10", 0.251).name == "macer-cifar10-0.251"


def test_the_same_data_under_its_tfds_name():
    svhn = presets.find("svhn", 0.5)
    assert presets.find("svhn_cropped", 0.5) == svhn.but(dataset="svhn_cropped")
    assert presets.find("imagenet2012", 0.5).paper == presets.find("imagenet", 0.5).paper
    partial = presets.find("svhn_cropped_partial", 0.5)
    assert partial.paper is None
    assert partial.num_test_examples is None
    assert (partial.lam, partial.network, partial.flip) == (svhn.lam, svhn.network, svhn.flip)


@pytest.mark.parametrize("method", ["macer", "cohen", "smoothadv"])
def test_unknown_dataset_takes_cifar10s_hyperparameters(method):
    for sigma in (0.25, 0.5, 1.0):
        found, cifar10 = presets.find("emnist", sigma, method), presets.find("cifar10", sigma, method)
        assert (found.name, found.dataset, found.network, found.paper) == ("default", "emnist", None, None)
        assert (found.flip, found.clip_norm) == (False, 1.0)
        changed = {"dataset": "emnist", "network": None, "flip": False, "clip_norm": 1.0}
        assert found.settings == {**cifar10.settings, **changed}
        assert found.note == cifar10.note


def test_unknown_method():
    with pytest.raises(InputError, match=r"^Unknown method\. Received: trades; accepted: macer, cohen, smoothadv, "):
        presets.find("mnist", 0.5, "trades")


@pytest.mark.parametrize("sigma", [0, -0.25, math.nan, math.inf])
def test_sigma_must_be_positive(sigma):
    with pytest.raises(InputError, match=f"Received: sigma={float(sigma)}"):
        presets.find("mnist", sigma)


def test_presets_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets.find("mnist").sigma = 1.0


# What a preset describes can be built and takes steps.

SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "svhn": (32, 32, 3),
    "cifar10": (32, 32, 3),
    "imagenet": (224, 224, 3),
}


@pytest.fixture(scope="module")
def synthetic():
    """A function: data set -> `Examples` of eight random images of its shape and 10 classes, 1,000 for ImageNet."""
    from pipeline.data.examples import Examples

    def make(dataset):
        random = np.random.default_rng(0)
        classes, pixel_max = 1000 if dataset == "imagenet" else 10, 16 if dataset == "digits" else 255
        images = random.integers(0, pixel_max + 1, (8, *SHAPES[dataset]), dtype=np.uint8)
        labels = random.integers(0, classes, 8)
        return Examples({"train": images}, {"train": labels}, {}, pixel_max, tuple(map(str, range(classes))))

    return make


@pytest.fixture(scope="module")
def network_once():
    """`networks.build` that builds each network once: a ResNet-110 takes seconds, and a model only wraps it."""
    import keras

    from macer_tf import networks

    yield functools.cache(networks.build)
    keras.utils.clear_session()


def settings_of(preset):
    return preset.settings | {"seed": 3, "strategy": None}


def batches_of(preset, examples, batch_size):
    from pipeline.training import input_pipeline

    return input_pipeline.batches(
        examples, np.arange(8), batch_size=batch_size, seed=3, first_step=0, epochs=1,
        crop_padding=preset.crop_padding, flip=preset.flip,
    )  # fmt: skip


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: preset.name)
def test_a_preset_builds_its_data_model_and_optimizer(preset, synthetic, network_once, monkeypatch):
    from pipeline.training import models, schedules

    examples, shape = synthetic(preset.dataset), SHAPES[preset.dataset]
    monkeypatch.setattr("pipeline.training.models.networks.build", network_once)
    assert preset.image_size in (None, shape[0])
    ((images, labels),) = batches_of(preset, examples, preset.batch_size)
    assert (images.shape, labels.shape) == ((8, *shape), (8,))
    assert 0 <= images.numpy().min() < images.numpy().max() <= 1

    model = models.build(methods.find(preset.method).model, settings_of(preset), shape, examples.num_classes, steps=1)
    names = {"smoothadv": "SmoothAdv", "stability": "Stability", "consistency": "Consistency", "smoothmix": "SmoothMix"}
    names |= {"catrs": "CATRS"}
    assert type(model).__name__ == names.get(preset.method, "MACER") + "Model"
    options = {
        "macer": ("num_samples", "lam", "gamma", "beta", "average_cross_entropy", "consistency", "entropy"),
        "cohen": (),
        "stability": ("num_samples", "stability"),
        "consistency": ("num_samples", "consistency", "entropy"),
        "smoothmix": ("num_samples", "mixup", "attack_steps", "step_size"),
        "catrs": ("num_samples", "adversarial", "attack_steps", "noise_radius"),
        "smoothadv": ("num_samples", "attack", "epsilon", "attack_steps"),
    }[preset.method]
    for name in ("sigma", *options):
        assert getattr(model, name) == getattr(preset, name), name
    if preset.method == "cohen":
        assert (model.num_samples, model.lam) == (1, 0)
    assert model.compute_output_shape((None, *shape)) == (None, examples.num_classes)
    blocks = {"small_cnn": 0, "lenet": 0, "cifar_resnet110": 54, "resnet50": 16}[preset.network]
    # The layers that have weights: two convolutions a block of a CIFAR ResNet, three of the other, and the rest.
    convolutions = sum(variable.shape.rank == 4 for variable in (v.value for v in model.trainable_variables))
    shortcuts = {"small_cnn": 0, "lenet": 0, "cifar_resnet110": 2, "resnet50": 4}[preset.network]
    a_block = 2 if preset.network == "cifar_resnet110" else 3
    assert convolutions == (1 + a_block * blocks + shortcuts if blocks else 2)

    optimizer = model.optimizer
    assert optimizer.built
    assert optimizer.use_ema == (preset.ema > 0)
    assert (optimizer.momentum, optimizer.l2, optimizer.global_clipnorm) == (
        preset.momentum, preset.l2, preset.clip_norm
    )  # fmt: skip
    rates = {}
    # A step is an epoch here, and it is counted once it is done.
    for epoch in (0, *(drop + after for drop in preset.lr_drop_epochs for after in (-1, 0)), preset.epochs - 1):
        optimizer.iterations.assign(epoch + 1)
        rates[epoch] = schedules.learning_rate(model)
    if preset.lr_schedule == "step":
        passed = {epoch: sum(drop <= epoch for drop in preset.lr_drop_epochs) for epoch in rates}
        expected = {epoch: preset.learning_rate * 0.1**drops for epoch, drops in passed.items()}
    else:
        # A cosine over 60 epochs: 0.02 * (1 + cos(0)) / 2 and 0.02 * (1 + cos(59 pi / 60)) / 2; 20 or 30 from 0.05.
        rate, last = (0.05, preset.epochs - 1) if preset.name.endswith("-best") else (0.02, 59)
        expected = {0: rate, last: rate / 2 * (1 + math.cos(last * math.pi / (last + 1)))}
    assert rates == pytest.approx(expected, rel=1e-3)


def take_two_steps(preset, examples, batch_size, eagerly=False):
    """Two optimizer steps as the Trainer takes them; every trainable variable must move, and stay finite."""
    import keras

    from pipeline.training import models

    model = models.build(
        methods.find(preset.method).model, settings_of(preset), SHAPES[preset.dataset], examples.num_classes, steps=2
    )
    model.run_eagerly = eagerly
    before = [variable.numpy() for variable in model.trainable_variables]
    history = model.fit(
        batches_of(preset, examples, batch_size), steps_per_epoch=2, shuffle=False, verbose=0,
        callbacks=[schedule] if (schedule := methods.find(preset.method).schedule(settings_of(preset))) else [],
    )  # fmt: skip
    assert int(model.optimizer.iterations) == 2
    assert np.isfinite(history.history["loss"]).all()
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.isfinite(variable.numpy()).all(), variable.path
        assert not np.array_equal(variable.numpy(), old), variable.path
    if preset.method in ("smoothadv", "smoothmix"):
        rising = {"smoothadv": "epsilon", "smoothmix": "mixup"}[preset.method]
        assert getattr(model, rising) == pytest.approx(getattr(preset, rising) / 10)  # of ten epochs of warm-up
    elif preset.method in ("macer", "cohen"):
        assert model.lam == (preset.lam if preset.method == "macer" and not preset.lam_start_epoch else 0)
    keras.utils.clear_session()


SMALL = [preset for preset in presets.PRESETS if preset.network in ("small_cnn", "lenet")]


@pytest.mark.parametrize("preset", SMALL, ids=lambda preset: preset.name)
def test_a_small_preset_takes_two_steps(preset, synthetic):
    """Another sigma is the same graph of other numbers: it need not be traced to see what they do."""
    take_two_steps(preset, synthetic(preset.dataset), batch_size=4, eagerly=preset.sigma != 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cohen-cifar10-0.25", "macer-svhn-0.25", "smoothadv-cifar10-0.50"])
def test_a_resnet_110_takes_two_steps(name, synthetic):
    """One preset of each method: the others build the same graph. One graph, as tracing this network takes longest."""
    preset = presets.by_name(name)
    take_two_steps(preset, synthetic(preset.dataset), batch_size=2, eagerly=preset.method != "macer")


def test_every_preset_is_of_a_kind_that_takes_steps_here():
    """The ones that do not are ImageNet's, whose network is too large for a test."""
    assert {preset.network for preset in presets.PRESETS} == {"small_cnn", "lenet", "cifar_resnet110", "resnet50"}
    assert {preset.dataset for preset in presets.PRESETS if preset.network == "resnet50"} == {"imagenet"}
    assert len(SMALL) == 36


# The published row of settings as a command line gives them.


@pytest.mark.parametrize(
    ("arguments", "setting", "expected"),
    [
        # Tables 11, 10, 12 and 13.
        ([], "lam", {"0": 0.488, "1": 0.516, "2": 0.523, "4": 0.540, "8": 0.550, "16": 0.550, "3": None}),
        (["--sigma", "0.5", "--lam", "12"], "num_samples", {"1": 0.306, "2": 0.589, "4": 0.665, "8": 0.699, "3": None}),
        ([], "gamma", {"2": 0.455, "14": 0.536, "3": None}),
        (["--sigma", "0.5", "--lam", "12"], "beta", {"1": None, "2": 0.719, "64": 0.579}),
        # The presets' own: Table 1 (lam=12 and, at sigma 0.5, lam=4), and no row of the ablations for lam=4, k=4.
        (["--n", "1000"], "lam", {"12": 0.556}),
        (["--sigma", "0.5"], "lam", {"4": 0.726, "12": 0.712}),
        (["--sigma", "0.5"], "num_samples", {"4": None, "16": 0.726}),
        ([], "method", {"cohen": 0.416, "smoothadv": 0.538}),
        ([], "sigma", {"0.25": 0.556, "0.5": 0.726, "1.0": 0.792, "0.3": None}),
        # Nor for what was trained otherwise.
        (["--epochs", "3"], "lam", {"0": None, "12": None}),
        (["--network", "cifar_resnet20"], "lam", {"12": None}),
        (["--sigma", "1.0"], "lam", {"1": None}),
        # Nor for what was trained on fewer images or labels.
        (["--train_examples", "100"], "lam", {"1": None, "12": None}),
        ([], "labels", {"all": 0.556, "1000": None}),
        ([], "validation", {"none": 0.556, "1000": None}),
        ([], "train_split", {"train[:10%]": None}),
    ],
)
def test_the_reported_row_of_settings(arguments, setting, expected):
    for value, acr in expected.items():
        given = settings_lib.parse(["--dataset", "cifar10", *arguments, f"--{setting}", value])
        row = presets.reported(*given)
        assert (row and row.acr) == acr, value


def test_no_row_of_cifar10_for_other_data():
    assert presets.reported(*settings_lib.parse(["--dataset", "svhn"])).acr == 0.540
    assert presets.reported(*settings_lib.parse(["--dataset", "svhn", "--lam", "4"])) is None
    assert presets.reported(*settings_lib.parse(["--dataset", "digits"])) is None
