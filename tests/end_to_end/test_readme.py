"""The scripts and commands of README.md and of the pages do what they are said to do."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tests import forks
from tests.forks import REPOSITORY


def page(name):
    return (REPOSITORY / name).read_text()


def scripts_of(name):
    return re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)


def run(arguments, folder, **environment):
    """What a command printed that was run in `folder`; it must succeed."""
    process = forks.run(arguments, folder, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_the_readmes_script_trains_certifies_and_saves_what_both_its_commands_and_the_quickstarts_certify(tmp_path):
    (script,) = scripts_of("README.md")
    printed = run(["-c", script], tmp_path)
    (acr,) = re.findall(r"100 images: ACR ([\d.]+) ± ", printed)
    # The most that n=1,000 can certify is 0.6157 an image; an untrained network gets 0 for nine images of ten.
    assert 0.3 < float(acr) < 0.616

    # The pages' commands as they stand, but for a smaller n. On the images of the folder as on the data set's.
    (make_folder,) = scripts_of("docs/quickstart.md")
    (tmp_path / "make_folder.py").write_text(make_folder)
    run(["make_folder.py"], tmp_path)
    certify = r"^python (-m pipeline\.certify --model digits\.keras .*?)(?:  #.*)?$"
    for name, images in (("README.md", "360"), ("docs/quickstart.md", "36")):
        (command,) = re.findall(certify, page(name), re.MULTILINE)
        assert command.endswith("--n 10000")
        arguments = shlex.split(command.removesuffix("10000") + "1000")
        printed = run([*arguments, "--output", f"of-{images}"], tmp_path)
        (acr,) = re.findall(r"^hard .* ([\d.]+) ± [\d.]+$", printed, re.MULTILINE)
        assert 0.3 < float(acr) < 0.616
        assert f"Certificates: of-{images}/certificates.tsv" in printed
        lines = (tmp_path / f"of-{images}" / "certificates.tsv").read_text().splitlines()
        assert len(lines) == 1 + int(images)


@pytest.mark.slow
def test_the_tutorials_keras_script_trains_saves_loads_and_certifies_mnist(shared_tfds, tmp_path):
    (script,) = scripts_of("docs/tutorials/wrap-your-model.md")
    assert len([line for line in script.splitlines() if line.strip()]) <= 25
    # Where the data are is read when TFDS is imported, which a fork has done.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TFDS_DATA_DIR": str(shared_tfds)}
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    printed = process.stdout
    assert (tmp_path / "mnist.keras").is_file()
    (acr,) = re.findall(r"20 images: ACR ([\d.]+) ± ", printed)
    assert re.search(r"^l2 radius +0\.00 +0\.25 +0\.50$", printed, re.MULTILINE)
    # As above, of 20 images.
    assert 0.3 < float(acr) < 0.616


@pytest.mark.slow
def test_a_released_model_is_served_by_the_tutorials_commands(shared_tfds, tmp_path):
    """The server's classes are the card's, and its radii those of its votes by Cohen's Eq. (3) and Clopper-Pearson."""
    from macer_tf import released
    from pipeline.data import datasets
    from serving.client import GrpcClient
    from serving.local import LocalServer

    name = "docs/tutorials/serve-and-query.md"
    (export,) = (script for script in scripts_of(name) if "load_released" in script)
    run(["-c", export], tmp_path)
    (publish,) = re.findall(r"^python (-m serving\.publish publish released .*?)  #", page(name), re.MULTILINE)
    run(shlex.split(publish), tmp_path)
    (base,) = re.findall(r"^python -m serving\.local (served/.*)$", page(name), re.MULTILINE)
    card = released.card("macer-mnist-0.50")
    images = [image for image in card["verified"]["images"] if image["share"] > 0.99]
    test, _, _ = datasets.load_split("mnist", shared_tfds)
    with LocalServer(tmp_path / base / "1") as server, GrpcClient(server.grpc_address, "classifier") as client:
        answer = client.certify((test.images[[image["example_id"] for image in images]] / 255).astype("float32"))
    assert answer.predictions.tolist() == [image["prediction"] for image in images]
    votes = answer.votes.max(axis=1)
    # Of 1,000 votes fewer than 960 are for the class with a probability below 1e-13 at a share of 0.99.
    assert votes.min() >= 960
    lower = stats.beta.ppf(0.001, votes, 1000 - votes + 1)
    np.testing.assert_allclose(answer.radii, 0.5 * stats.norm.ppf(lower), rtol=1e-5)
