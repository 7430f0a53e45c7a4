import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from macer_tf import networks
from macer_tf.model import MACERModel
from macer_tf.optimizers import SGD


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
