"""Arrays in anyone's .npz files: found by the names that people give them, and sized before they are read."""

import math
import zipfile

import numpy as np

from macer_tf import files
from pipeline.data.datasets import sides
from pipeline.utils.errors import InputError, reason
from serving.terminal import printable

# What people call an array of images, and what they then call its labels.
_OF_ANY_USE = {"images": "labels", "image": "label", "x": "y", "X": "y", "data": "labels", "arr_0": "arr_1"}
_TO_TEST_ON = {"x_test": "y_test", "X_test": "y_test", "test_images": "test_labels"}
_TO_TRAIN_ON = {"x_train": "y_train", "X_train": "y_train", "train_images": "train_labels"}
_LABELS = ("Y", "target", "targets")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LARGEST_LABEL = 2**31 - 1
_BLOCK = 2**20
_MOST_NAMED = 20
_MOST_BYTES = 8 * 2**30
# No photographs compress this well; a megabyte of what does could become gigabytes.
_MOST_TIMES = 100
_ALWAYS_FINE = 2**28


def read(path, shape, is_to_train=False):
    """Images and their labels, or None, of an .npz file; each array is read once.

    Args:
        path: the file to read.
        shape: (H, W, C) that the images must have; None: any valid one.
        is_to_train: whether the images are for training, so that those called x_test are not meant.

    Returns:
        Images, uint8 or floats, [N, H, W, C]; labels int64 [N], or None; and the number of classes, None unless the
        labels are one-hot.

    Raises:
        InputError: in one line, if it cannot be read, has no such arrays or more than one, or they would take too much
            memory.
    """
    try:
        with files.open_plain(path) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise ValueError("two of its arrays have the same name")
            images, labels = _names(path, members, is_to_train)
            pixels = _images(path, images, archive, members[images], shape)
            if labels is None:
                return pixels, None, None
            return pixels, *_labels(path, labels, archive, members[labels], len(pixels))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except MemoryError:
        raise InputError(f"{path} does not fit in memory; split it into several files.") from None
    except Exception as error:  # damage to an archive raises any kind of exception
        raise InputError(f"{path} cannot be read as an .npz file of plain arrays ({reason(error)}).") from None


def _names(path, members, is_to_train):
    """The names of the images and of their labels, None if there are none."""
    pairs = _OF_ANY_USE | (_TO_TRAIN_ON if is_to_train else _TO_TEST_ON)
    named = [name for name in pairs if name in members]
    more = ", ..." if len(members) > _MOST_NAMED else ""
    held = f"It has: {', '.join(map(printable, list(members)[:_MOST_NAMED])) or 'none'}{more}"
    if not named:
        raise InputError(f"{path} has no array 'images', nor {', '.join(list(pairs)[1:])}. {held}")
    images = named[0]
    nameless = [name for name in members if name.startswith("arr_") and name not in ("arr_0", "arr_1")]
    # The name that we ask for may stand beside any others.
    if images != "images" and (len(named) > 1 or (images == "arr_0" and nameless)):
        raise InputError(f"{path}: which arrays are meant? Call them 'images' and 'labels'. {held}")
    if pairs[images] in members:
        return images, pairs[images]
    others = [
        name
        for name in dict.fromkeys((*pairs.values(), *_LABELS, "Y_train" if is_to_train else "Y_test"))
        if name in members
    ]
    if len(others) > 1:
        raise InputError(f"{path}: which array has the labels of {images!r}? Call it {pairs[images]!r}. {held}")
    return images, next(iter(others), None)


def _images(path, name, archive, member, shape):
    def check(received, dtype):
        if dtype != np.uint8 and dtype.kind != "f":
            raise InputError(f"{path}: {name} must be uint8, or floats in [0, 1]. Received: {dtype}")
        with_channel = (*received, 1) if len(received) == 3 else received
        is_fine = with_channel[1:] == shape if shape else len(with_channel) == 4 and with_channel[-1] in (1, 3)
        if not is_fine or not with_channel[0] or 0 in with_channel:
            wanted = sides(shape) if shape else "height x width x 1 or 3"
            raise InputError(
                f"{path}: one or more images of shape {wanted} are needed. Received: {sides(with_channel)}"
            )

    images = _array(path, name, archive, member, check, _MOST_TIMES)
    return images[..., None] if images.ndim == 3 else images


def _labels(path, name, archive, member, num_images):
    """int64 [num_images]; and the number of classes, None unless they are one-hot."""

    def check(received, dtype):
        if dtype.kind not in "iufb" or received[:1] != (num_images,) or len(received) > 2:
            refuse(f"{dtype} {list(received)}")

    def refuse(received):
        raise InputError(
            f"{path}: {name} must be integers, one for each of the {num_images} images, or one-hot. Received: "
            f"{received}"
        )

    # No limit on compression: one-hot labels are mostly zeros, so they compress well.
    labels = _array(path, name, archive, member, check, None)
    num_classes = None
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not (((labels == 0) | (labels == 1)).all() and (np.count_nonzero(labels, axis=1) == 1).all()):
            refuse(f"rows of {labels.shape[1]} that are not one 1 and 0 elsewhere")
        labels, num_classes = labels.argmax(axis=1), labels.shape[1]
    labels = labels.reshape(-1)
    if labels.size != num_images:
        refuse(f"{labels.size} of them")
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.floor(labels))).all():
        refuse("numbers that are not whole")
    if labels.min() < 0:
        raise InputError(
            f"{path}: {name} must be 0 or above. Leave out images without a label, or leave out {name} if none has "
            f"one. Received: {labels.min()}"
        )
    if labels.max() > _LARGEST_LABEL:
        raise InputError(f"{path}: {name} must be at most {_LARGEST_LABEL}. Received: {labels.max()}")
    return labels.astype(np.int64), num_classes


def _array(path, name, archive, member, check, most_times):
    """One array, read once, after `check` has seen its shape and type."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} is not a plain array")
        shape, is_fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"{name} is not a plain array")
        check(shape, dtype)
        size = math.prod(shape) * dtype.itemsize
        _check_size(path, name, size, member.compress_size, most_times)
        content = np.empty(size, np.uint8)
        done = 0
        while block := file.read(min(size - done, _BLOCK) or 1):  # the checksum is checked after the last byte
            if done == size:
                raise ValueError(f"{name} is longer than it says")
            content[done : done + len(block)] = np.frombuffer(block, np.uint8)
            done += len(block)
        if done < size:
            raise ValueError(f"{name} is cut off")
    return content.view(dtype).reshape(shape, order="F" if is_fortran else "C")


def _check_size(path, name, size, packed, most_times):
    if size > _MOST_BYTES:
        raise InputError(
            f"{path}: {name} would take {files.size_in_words(size)}; the most that is accepted is "
            f"{files.size_in_words(_MOST_BYTES)}: split it into several files."
        )
    if most_times and size > _ALWAYS_FINE and size > most_times * packed:
        raise InputError(
            f"{path}: {name} would grow from {files.size_in_words(packed)} to {files.size_in_words(size)}; at most "
            f"{most_times} times as much is accepted, more than photographs need. Save it uncompressed, with np.savez."
        )
