import os
import platform
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from macer_tf import networks
from macer_tf.baselines.smoothadv import SmoothAdvModel
from macer_tf.model import MACERModel
from macer_tf.optimizers import SGD


def run(program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize(
    "first",
    [
        "import macer_tf, keras",
        "import keras; from macer_tf import SmoothedClassifier",
        "import macer_tf.smoothing, keras",
        "import macer_tf.model, keras",
    ],
)
def test_importing_the_package_is_enough_to_load_what_its_models_saved(first, tmp_path):
    for kind, options in ((MACERModel, {}), (SmoothAdvModel, {"epsilon": 0.5})):
        model = kind(networks.small_cnn(), 0.25, **options)
        model.compile(SGD(0.1))
        model.save(tmp_path / f"{kind.__name__}.keras")
    program = f"import sys; {first}\nfor path in sys.argv[1:]: print(type(keras.models.load_model(path)).__name__)"
    process = run(program, *sorted(tmp_path.iterdir()))
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["MACERModel", "SmoothAdvModel"]


def test_importing_the_package_does_not_import_tensorflow():
    process = run("import sys, macer_tf; print('tensorflow' in sys.modules or 'keras' in sys.modules)")
    assert process.stdout == "False\n", process.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN is turned on for x86-64 only")
@pytest.mark.parametrize(
    ("first", "given", "is_on"),
    [
        ("import macer_tf, keras", {}, True),
        ("import macer_tf.networks", {}, True),
        ("import pipeline.jobs.forecast", {}, True),
        ("import serving.local", {}, True),
        ("import macer_tf, keras", {"TF_ENABLE_ONEDNN_OPTS": "0"}, False),
    ],
)
def test_tensorflow_computes_with_onednn_unless_told_otherwise(first, given, is_on):
    tell = "from tensorflow.python.util._pywrap_util_port import IsMklEnabled; print(IsMklEnabled())"
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    process = subprocess.run(
        [sys.executable, "-c", f"{first}; {tell}"],
        env={**environment, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **given},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert process.stdout == f"{is_on}\n", process.stderr


@pytest.mark.parametrize("module", ["layers", "model", "smoothing", "baselines.smoothadv", "noisy_training"])
@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_another_backend_of_keras_is_told_in_one_line(module, backend):
    process = run(f"import macer_tf.{module}", KERAS_BACKEND=backend)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        "ImportError: macer_tf needs Keras' TensorFlow backend: set the environment variable KERAS_BACKEND=tensorflow, "
        f"or unset it, before Keras is imported. Received: {backend}"
    )


def test_a_command_line_tells_of_another_backend_in_one_line():
    process = run("from pipeline.cli.console import import_tensorflow; import_tensorflow()", KERAS_BACKEND="jax")
    assert process.stderr.splitlines()[-1].startswith(
        "pipeline.utils.errors.InputError: macer_tf needs Keras' TensorFlow"
    )


def test_a_command_line_tells_of_docstrings_that_are_left_out_in_one_line():
    """Beam, which reads its own, would end in an AttributeError."""
    process = run("from pipeline.cli.console import import_tensorflow; import_tensorflow()", PYTHONOPTIMIZE="2")
    assert process.stderr.splitlines()[-1] == (
        "pipeline.utils.errors.InputError: Python must keep docstrings, which Beam reads: leave out PYTHONOPTIMIZE=2, "
        "or -OO."
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_fresh_process_that_imports_the_model_class_alone_loads_all_that_a_model_holds(tmp_path):
    model = MACERModel(networks.cifar_resnet(8, (8, 8, 1), 3), sigma=0.25)
    model.compile(SGD(keras.optimizers.schedules.CosineDecay(0.1, 10), l2=1e-4))
    model.save(tmp_path / "model.keras")
    program = (
        "import sys, keras; from macer_tf import MACERModel; model = keras.models.load_model(sys.argv[1]);"
        "print(type(model).__name__, type(model.optimizer).__module__, model.optimizer.l2)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "model.keras"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["MACERModel", "macer_tf.optimizers", "0.0001"]
