"""Shared fixtures: quiet TensorFlow, the real data beside the repository where it is there."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


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
