"""The recipes of CONTRIBUTING.md work as they are written, and are as short as they say."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from macer_tf import bounds

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = re.findall(r"^python -m pipeline\.run (.*)$", TEXT, re.MULTILINE)
TINY = shlex.split(
    "--epochs 1 --n0 10 --n 50 --serving_n 20 --num_test_examples 4 --num_workers 1 --pipeline_root root"
)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The files of the page, in the current folder; the bound that they register is forgotten at the end."""
    monkeypatch.setattr("macer_tf.bounds.BOUNDS", dict(bounds.BOUNDS))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def test_no_recipe_takes_30_lines():
    assert set(FILES) == {"make_data.py", "spread.py", "wide.py", "hoeffding_of_counts.py"}
    for name, text in FILES.items():
        assert len([line for line in text.splitlines() if line]) < 30, name


def test_the_settings_of_the_page_are_accepted_and_the_methods_own_are_told(written):
    from pipeline.experiments import settings as settings_lib

    for command in COMMANDS:
        settings, preset = settings_lib.parse(shlex.split(command))
        listing = {name: value for group in settings_lib.listing(settings).values() for name, value, _ in group}
        assert preset.paper is None or settings["method"] == "macer"
        if settings["method"] != "macer":
            assert (listing["weight"], listing["num_samples"], "lam" in listing) == ("0.5", "4", False)
            assert preset.epochs == 60  # the data set's


def test_a_method_a_network_a_bound_and_a_data_set_of_ones_own_are_trained_and_certified(written):
    """All that the page's commands give, at once."""
    from pipeline.certification import certificate_files
    from pipeline.components import trainer
    from pipeline.components.certifier import CERTIFIER
    from pipeline.components.example_gen import EXAMPLE_GEN
    from pipeline.experiments import settings as settings_lib
    from pipeline.orchestration import orchestrator
    from pipeline.training import models

    exec(FILES["make_data.py"], {})
    flags = shlex.split(" ".join(command.replace("--dataset digits", "") for command in COMMANDS))
    settings, _ = settings_lib.parse([*flags, *TINY])
    (written / "root").mkdir()
    components = (EXAMPLE_GEN, trainer.component(settings), CERTIFIER)
    artifacts = orchestrator.run(components, settings, written / "root", 1)
    model = models.load(artifacts["model"].path / "model.keras")
    assert (type(model).__name__, model.weight, model.num_samples) == ("SpreadModel", 0.5, 4)
    assert model.classifier.layers[1].name.startswith("rescaling")
    assert model.classifier.input_shape == (None, 8, 8, 1)
    assert model.classifier.output_shape == (None, 2)
    _, ids, votes, kinds = certificate_files.read(artifacts["certificates"].path)
    ((kind, certified),) = kinds.items()
    assert (kind, certified.bound) == ("hoeffding-of-counts", "hoeffding-of-counts")
    # By hand: the share of the votes less sqrt(ln 1000 / 100).
    shares = votes.estimation[np.arange(4), certified.selected] / 50
    np.testing.assert_allclose(certified.p_lower, np.maximum(shares - np.sqrt(np.log(1000) / 100), 0), atol=1e-12)
    assert ids.tolist() == [0, 2, 4, 6]
    assert np.all(votes.n0 == 10)

    # The same again is cached; another loss trains anew, another comment does not.
    def trainings(text):
        (written / "spread.py").write_text(text)
        sys.modules.pop("spread", None)
        importlib.invalidate_caches()
        orchestrator.run(components[:2], settings, written / "root", 1)
        return len(list((written / "root").glob("Trainer-*")))

    assert trainings(FILES["spread.py"] + "# why\n") == 1
    assert trainings(FILES["spread.py"].replace("* spread", "* spread**2")) == 2


def test_a_bound_of_ones_own_certifies(written, monkeypatch):
    from macer_tf import certificates
    from macer_tf.votes import Votes

    monkeypatch.syspath_prepend(str(written))
    importlib.import_module("hoeffding_of_counts")
    votes = Votes(np.array([[10, 0], [9, 1]]), np.array([[1000, 0], [800, 200]]))
    certified = certificates.certify(votes, 0.25, 0.001, "hoeffding-of-counts")
    # By hand: 1 - sqrt(ln 1000 / 2000) and 0.8 less the same.
    np.testing.assert_allclose(certified.p_lower, np.array([1, 0.8]) - np.sqrt(np.log(1000) / 2000), atol=1e-12)
    assert certified.predictions.tolist() == [0, 0]
