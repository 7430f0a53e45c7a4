"""MACER in Keras 3 / TensorFlow: train, certify and evaluate classifiers that are provably robust in l2.

    model = macer_tf.MACERModel(macer_tf.networks.small_cnn(), sigma=0.25)
    model.compile(macer_tf.SGD(0.01))
    model.fit(images, labels, batch_size=64, epochs=20)
    certificates = macer_tf.SmoothedClassifier(model).certify(test_images)
    print(macer_tf.evaluate(certificates, test_labels))

Names are loaded when they are first used, so that `import macer_tf` does not wait for TensorFlow. Once Keras is
imported too, `keras.models.load_model` knows the models.
"""

import importlib
import os
import platform
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if platform.machine() == "x86_64":
    # Left alone, TensorFlow uses oneDNN only on processors with VNNI instructions; on one without, training steps were
    # 1.8 times as fast with it (docs/results.md). This is read when TensorFlow is imported, and has no effect later.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

if TYPE_CHECKING:
    from macer_tf import bounds, budgets, certification_log, networks, released
    from macer_tf.baselines.catrs import CATRSModel
    from macer_tf.baselines.consistency import ConsistencyModel
    from macer_tf.baselines.smoothadv import SmoothAdvModel
    from macer_tf.baselines.smoothmix import SmoothMixModel
    from macer_tf.baselines.stability import StabilityModel
    from macer_tf.budgets import FixedBudget, RadiusBudget, ToleranceBudget
    from macer_tf.certificates import ABSTAIN, Certificates, certify
    from macer_tf.evaluation import Evaluation, evaluate
    from macer_tf.model import MACERModel
    from macer_tf.noisy_training import NoisyTrainingModel
    from macer_tf.optimizers import SGD
    from macer_tf.released import load_released
    from macer_tf.semi_supervised import SemiSupervisedMACERModel
    from macer_tf.smoothing import SmoothedClassifier
    from macer_tf.votes import Votes

__version__ = "0.1.0"

__all__ = [
    "ABSTAIN",
    "SGD",
    "CATRSModel",
    "Certificates",
    "ConsistencyModel",
    "Evaluation",
    "FixedBudget",
    "MACERModel",
    "NoisyTrainingModel",
    "RadiusBudget",
    "SemiSupervisedMACERModel",
    "SmoothAdvModel",
    "SmoothMixModel",
    "SmoothedClassifier",
    "StabilityModel",
    "ToleranceBudget",
    "Votes",
    "bounds",
    "budgets",
    "certification_log",
    "certify",
    "evaluate",
    "load_released",
    "networks",
    "released",
]

# Name -> the module that defines it; a name not listed here is itself a module.
_HOMES = {
    "CATRSModel": "baselines.catrs",
    "ConsistencyModel": "baselines.consistency",
    **dict.fromkeys(("ABSTAIN", "Certificates", "certify"), "certificates"),
    **dict.fromkeys(("Evaluation", "evaluate"), "evaluation"),
    **dict.fromkeys(("FixedBudget", "RadiusBudget", "ToleranceBudget"), "budgets"),
    "MACERModel": "model",
    "NoisyTrainingModel": "noisy_training",
    "SGD": "optimizers",
    "SemiSupervisedMACERModel": "semi_supervised",
    "SmoothAdvModel": "baselines.smoothadv",
    "SmoothMixModel": "baselines.smoothmix",
    "SmoothedClassifier": "smoothing",
    "StabilityModel": "baselines.stability",
    "Votes": "votes",
    "load_released": "released",
}

# Importing these registers the classes that `keras.models.load_model` must find in a file that was saved here.
_SAVED = (
    "macer_tf.model",
    "macer_tf.semi_supervised",
    *(f"macer_tf.{home}" for home in _HOMES.values() if home.startswith("baselines.")),
)


def __getattr__(name: str) -> Any:
    # On demand, because the version and the statistics do not need TensorFlow.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    value = getattr(module, name) if name in _HOMES else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def _register(_: ModuleType) -> None:
    # If one of these two modules is the first to import Keras, those that derive classes from its own must wait until
    # it is fully imported.
    unfinished = {"macer_tf.noisy_training", "macer_tf.model"} - _FULLY_IMPORTED
    if sys.modules["keras"].config.backend() == "tensorflow" and unfinished.isdisjoint(sys.modules):
        for module in _SAVED:
            importlib.import_module(module)


def _register_after(module: ModuleType) -> None:
    _FULLY_IMPORTED.add(module.__name__)
    _register(module)


# Registered when Keras is imported, and not before: command lines print their help without TensorFlow.
_FULLY_IMPORTED: set[str] = set()
wrapt.register_post_import_hook(_register, "keras")
wrapt.register_post_import_hook(_register_after, "macer_tf.noisy_training")
wrapt.register_post_import_hook(_register_after, "macer_tf.model")
