"""What a file or folder must be to hold a model that can be certified, as far as can be seen without TensorFlow."""

import zipfile
from pathlib import Path

from pipeline.utils.errors import InputError

HDF5 = (".h5", ".hdf5")
_KERAS_3 = ".keras"
_SUFFIXES = (_KERAS_3, *HDF5)
_GRAPH = "saved_model.pb"


def check(path, name=None):
    """Raises a one-line InputError unless a path is a model's file or folder; `name` is what it is called."""
    path = Path(path)
    name = name or str(path)
    if not path.exists():
        raise InputError(f"There is no model {name}.")
    if not (path.is_dir() and (path / _GRAPH).exists()) and not (path.suffix in _SUFFIXES and path.is_file()):
        raise InputError(f"A model is a {', '.join(_SUFFIXES)} file or a SavedModel's folder. Received: {name}")


def check_whole(path):
    """Raises a one-line InputError as `check`, or if a file is incomplete or not of the kind that its name says."""
    check(path)
    path = Path(path)
    if path.is_file() and not _is_whole(path):
        raise InputError(f"{path} is not a {path.suffix} file, or was not written completely.")


def _is_whole(path):
    if path.suffix == _KERAS_3:
        return zipfile.is_zipfile(path)
    import h5py

    return h5py.is_hdf5(path)
