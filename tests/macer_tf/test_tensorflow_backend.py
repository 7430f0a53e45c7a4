"""Which backend Keras would use is found where Keras looks for it, also where there is no home."""

import json
import pwd
import runpy
import sys

import pytest

from macer_tf import tensorflow_backend


@pytest.fixture
def check(monkeypatch):
    """A function that does what importing the module does where neither it nor Keras was imported before."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    for name in ("HOME", "KERAS_HOME", "KERAS_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    return lambda: runpy.run_path(tensorflow_backend.__file__)


def test_a_user_without_a_home_has_keras_default(check, monkeypatch):
    def nobody(_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    check()


def test_the_backend_in_keras_settings_is_refused_unless_it_is_tensorflow(check, monkeypatch, tmp_path):
    (tmp_path / ".keras").mkdir()
    settings = tmp_path / ".keras" / "keras.json"
    monkeypatch.setenv("HOME", str(tmp_path))
    for backend in ("jax", "tensorflow"):
        settings.write_text(json.dumps({"backend": backend}))
        if backend == "jax":
            with pytest.raises(ImportError, match=r"needs Keras' TensorFlow backend.*Received: jax"):
                check()
        else:
            check()
    settings.write_text(json.dumps({"backend": "jax"}))
    (tmp_path / "another").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "another"))
    monkeypatch.setenv("KERAS_HOME", "~/../.keras")
    with pytest.raises(ImportError, match="Received: jax"):
        check()
