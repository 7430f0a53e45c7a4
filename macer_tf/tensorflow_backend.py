"""Imported before Keras: if another backend is set, says in one line that macer_tf needs TensorFlow's.

Raises:
    ImportError: if Keras has, or would have, another backend.
"""

import json
import os
import sys
from pathlib import Path


def _backend():
    """The backend that Keras uses or, if it is not imported yet, will use."""
    if hasattr(sys.modules.get("keras"), "config"):
        return sys.modules["keras"].config.backend()
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    # As Keras does it, also where there is no home, or none that may be written to.
    home = os.path.expanduser("~")
    folder = os.environ.get("KERAS_HOME") or os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    try:
        return json.loads(Path(os.path.expanduser(folder), "keras.json").read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


if _backend() != "tensorflow":
    raise ImportError(
        "macer_tf needs Keras' TensorFlow backend: set the environment variable KERAS_BACKEND=tensorflow, or unset it, "
        f"before Keras is imported. Received: {_backend()}"
    )
