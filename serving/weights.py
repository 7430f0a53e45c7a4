"""The weights of a SavedModel, identified without loading anything but numbers."""

import re
import sys
from pathlib import Path

from serving.files import for_tensorflow
from serving.fingerprints import weights_fingerprint
from serving.terminal import first_line, import_tensorflow

_NAME = re.compile(r"model_variables/([0-9]+)/\.ATTRIBUTES/VARIABLE_VALUE")


def fingerprint_of_saved_model(directory):
    """The fingerprint of the weights that a SavedModel of `serving.export` restores, read from its variables.

    Nothing is loaded but numbers. It equals `serving.card.fingerprint` of the Keras model that was exported.

    Raises:
        ValueError: in one line, if there are none, or if they are damaged.
    """
    if "tensorflow" not in sys.modules:  # a command's first import of it, which would write a page
        import_tensorflow()
    import tensorflow as tf

    try:
        with for_tensorflow(directory) as folder:
            reader = tf.train.load_checkpoint(str(Path(folder) / "variables" / "variables"))
            return weights_fingerprint(_weights(reader))
    except (tf.errors.OpError, ValueError, TypeError, RuntimeError, OSError) as error:
        raise ValueError(f"its variables cannot be read ({first_line(error)[:200]})") from None


def _weights(reader):
    """The weights that a reader of variables finds, in order."""
    found = {int(match[1]): match[0] for match in map(_NAME.fullmatch, reader.get_variable_to_shape_map()) if match}
    if not found or sorted(found) != list(range(len(found))):
        raise ValueError("they are not named as serving.export names them")
    return (reader.get_tensor(found[number]) for number in sorted(found))
