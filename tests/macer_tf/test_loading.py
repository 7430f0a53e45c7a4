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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Paths of a MACERModel, a SmoothAdvModel, and a MACERModel with our layers and a decaying learning rate."""
    folder = tmp_path_factory.mktemp("saved")
    resnet = MACERModel(networks.cifar_resnet(8, (8, 8, 1), 3), sigma=0.25)
    resnet.compile(SGD(keras.optimizers.schedules.CosineDecay(0.1, 10), l2=1e-4))
    resnet.save(folder / "resnet.keras")
    for kind, options in ((MACERModel, {}), (SmoothAdvModel, {"epsilon": 0.5})):
        model = kind(networks.small_cnn(), 0.25, **options)
        model.compile(SGD(0.1))
        model.save(folder / f"{kind.__name__}.keras")
    return sorted(folder.iterdir())


LOADS = """
import keras
for path in sys.argv[1:]:
    model = keras.models.load_model(path)
    print(type(model).__name__, type(model.optimizer).__module__, model.optimizer.l2)
"""
LOADED = [
    "MACERModel macer_tf.optimizers 0.0",
    "SmoothAdvModel macer_tf.optimizers 0.0",
    "MACERModel macer_tf.optimizers 0.0001",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_fresh_process_that_imports_the_package_loads_all_that_its_models_hold(saved):
    process = run(f"import sys, macer_tf, keras\n{LOADS}", *saved)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == LOADED


@pytest.mark.slow
def test_so_does_one_that_imports_any_part_of_it(saved):
    """Each in a fork of a process that has imported Keras alone."""
    imports = [
        *("from macer_tf import SmoothedClassifier", "from macer_tf import MACERModel"),
        *("import macer_tf.smoothing", "import macer_tf.model"),
    ]
    program = f"""import os, sys, keras
for first in {imports}:
    if os.fork() == 0:
        exec(first)
        break
    assert os.wait()[1] == 0, first
else:
    sys.exit()
{LOADS}"""
    process = run(program, *saved)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == LOADED * len(imports)


def test_importing_the_package_does_not_import_tensorflow():
    process = run("import sys, macer_tf; print('tensorflow' in sys.modules or 'keras' in sys.modules)")
    assert process.stdout == "False\n", process.stderr


ONE_DNN = pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN is turned on for x86-64 only")


@ONE_DNN
@pytest.mark.slow
@pytest.mark.parametrize(("given", "is_on"), [({}, True), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, False)])
def test_tensorflow_computes_with_onednn_unless_told_otherwise(monkeypatch, given, is_on):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    tell = "from tensorflow.python.util._pywrap_util_port import IsMklEnabled; print(IsMklEnabled())"
    process = run(f"import macer_tf, keras; {tell}", **given)
    assert process.stdout == f"{is_on}\n", process.stderr


@ONE_DNN
@pytest.mark.parametrize(
    "module", ["macer_tf.networks", "macer_tf.smoothing", "pipeline.jobs.forecast", "serving.local", "serving.export"]
)
def test_modules_turn_onednn_on_before_tensorflow_is_imported(monkeypatch, module):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    program = f"""import os, sys
class Asked:
    def find_spec(name, path, target=None):
        if name == "tensorflow":
            print(os.environ.get("TF_ENABLE_ONEDNN_OPTS"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Asked)
import {module}
import tensorflow  # which some import only when they need it
"""
    process = run(program)
    assert process.stdout == "1\n", process.stderr


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
