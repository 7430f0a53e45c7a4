"""Shared fixtures: quiet TensorFlow, the real data beside the repository where it is there."""

import gc
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What a shell starts in the background ignores Ctrl-C, and a test that presses it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

import macer_tf  # noqa: F401  before TensorFlow: it turns oneDNN on

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
# The files that take longest, which begin first: or one of two processes would end long after the other.
_LONGEST = (
    "end_to_end/test_stability.py",
    "pipeline/training/test_training.py",
    "macer_tf/test_keras_manners.py",
    "end_to_end/test_digits.py",
    "pipeline/certification/test_driver.py",
    "pipeline/jobs/test_certify.py",
    "end_to_end/test_readme.py",
    "pipeline/experiments/test_presets.py",
    "end_to_end/test_real_data.py",
    "cluster/test_portable.py",
    "serving/test_publish.py",
    "end_to_end/test_examples.py",
    "macer_tf/test_model.py",
)


def pytest_collection_modifyitems(items):
    rank = {HERE / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_runtest_setup():
    """Once TensorFlow is imported: no tuner for any tf.data iterator, Keras's, too, and fewer garbage collections.

    Where a tuner missed that its iterator was dropped, a test took a minute longer: see `datasets.without_tuner`.
    """
    if "tensorflow" in sys.modules:
        from tensorflow.python.data.ops import dataset_ops

        from pipeline.data import datasets

        # TensorFlow calls it on what it makes an iterator of; it is its own way to take the tuner off in debug mode.
        if dataset_ops.DatasetV2._apply_debug_options is not datasets.without_tuner:
            dataset_ops.DatasetV2._apply_debug_options = datasets.without_tuner
            # TensorFlow's modules stay, so no collection need look at them; and graphs make a great many objects.
            gc.freeze()
            gc.set_threshold(50_000)


@pytest.fixture(scope="module")
def small_heap():
    """For tests that clear Keras's session, which collects garbage: it does not look at what earlier tests left.

    That is much, as TensorFlow keeps a graph of every `fit`: a collection took a second late in the suite.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def shared_tfds():
    """The folder of prepared TFDS data beside the repository; the test is skipped where there is none."""
    folder = SHARED / "tfds"
    if not folder.is_dir():
        pytest.skip("NEEDS REAL DATA: no ../shared/tfds beside the repository")
    return folder


@pytest.fixture
def published_logs():
    """The folder of published certification logs beside the repository; the test is skipped where there is none."""
    folder = SHARED / "published_logs"
    if not folder.is_dir():
        pytest.skip("NEEDS PUBLISHED LOGS: no ../shared/published_logs beside the repository")
    return folder


@pytest.fixture(scope="session")
def digits():
    """Images float32 [1797, 8, 8, 1] in [0, 1] and labels int64 of scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images[..., None] / 16).astype("float32"), data.target.astype("int64")
