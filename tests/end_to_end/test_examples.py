"""The scripts and the notebook of examples/ run, and print what they are about."""

import json
import re

import pytest

from tests import forks

EXAMPLES = forks.REPOSITORY / "examples"
ACR = re.compile(r"100 images: ACR ([\d.]+) ± ")


def printed_by(arguments, folder):
    process = forks.run(arguments, folder, MPLBACKEND="agg")
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.iterdir() if not path.name.startswith((".", "__"))} == {
        "adaptive.py",
        "digits.ipynb",
        "every_bound.py",
        "two_methods.py",
    }


@pytest.mark.slow
def test_the_two_methods_are_compared_on_the_same_images(tmp_path):
    printed = printed_by([EXAMPLES / "two_methods.py"], tmp_path)
    gaussian, macer = (float(acr) for acr in ACR.findall(printed))
    # An untrained network gets 0 for nine images of ten; n = 1,000 certifies 0.6157 at most.
    assert 0.2 < gaussian < 0.616
    assert 0.2 < macer < 0.616
    (difference,) = re.findall(r"same images: ([+-][\d.]+) ± ", printed)
    assert float(difference) == pytest.approx(macer - gaussian, abs=0.0016)  # three rounded figures


@pytest.mark.slow
def test_every_bound_certifies_the_same_votes_and_looks_cost_radius(tmp_path):
    from macer_tf import bounds

    printed = printed_by([EXAMPLES / "every_bound.py"], tmp_path)
    acr = {bound: float(acr) for bound, acr in re.findall(rf"^(\S+): {ACR.pattern}", printed, re.MULTILINE)}
    assert set(acr) == set(bounds.names())
    assert 0.1 < acr["anytime"] < acr["clopper-pearson"] <= acr["randomized-clopper-pearson"]


@pytest.mark.slow
def test_the_budget_decides_with_a_fifth_of_the_samples(tmp_path):
    printed = printed_by([EXAMPLES / "adaptive.py"], tmp_path)
    (accuracy,) = re.findall(r"at 0\.25: ([\d.]+)", printed)
    assert 0.5 < float(accuracy) <= 1
    (samples,) = re.findall(r"^([\d,]+) samples", printed, re.MULTILINE)
    assert 0 < int(samples.replace(",", "")) < 1_000_000 / 5


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    cells = json.loads((EXAMPLES / "digits.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")
    printed = printed_by(["-c", "\n".join(code)], tmp_path)
    (acr,) = ACR.findall(printed)
    assert 0.2 < float(acr) < 0.616
