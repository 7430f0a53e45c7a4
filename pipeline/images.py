"""Images to certify, wherever they lie: a TFDS split, a folder of PNG and JPEG files, an .npz archive.

A source is a few plain values, which any worker can be sent and opens by itself. An image's id is its place in its
source. Images are never resized, cropped or padded unless a source says so: a radius is one of the pixels certified.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from macer_tf.grid_noise import levels_of
from pipeline import datasets
from pipeline.artifacts import short_digest
from pipeline.errors import InputError

_SUFFIXES = (".png", ".jpg", ".jpeg")
# Exact in the wanted number of channels. A transparent, a printer's or a 16-bit image is not.
_EXACT_MODES = {1: ("L", "1"), 3: ("RGB", "P", "L", "1")}
_PIL_MODES = {1: "L", 3: "RGB"}
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH = 24  # byte of the file
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class ImageError(ValueError):
    """One image that cannot be certified, and the reason; the others can."""


@dataclass(frozen=True, eq=False)
class Images:
    """An opened source.

    Attributes:
        ids: int64 [images], each image's place in the source.
        class_names: the name of class 0, 1, ...; None if the source does not tell.
        has_labels: whether the source tells the images' classes.
        levels: pixels are multiples of 1 / levels.
    """

    ids: np.ndarray
    class_names: tuple[str, ...] | None
    has_labels: bool
    levels: int
    _read: Callable
    _label: Callable
    _content: Callable

    def image(self, image_id):
        """float32 [H, W, C] in [0, 1], of the source's shape.

        Raises:
            ImageError: if the image is damaged, of another shape or kind, not finite or outside [0, 1].
        """
        return self._read(self._checked(image_id))

    def label(self, image_id):
        """The image's class, from 0; None if the source does not tell."""
        return self._label(self._checked(image_id))

    def digest(self, image_id):
        """What tells this image from others, wherever it lies: a whole number from 0, below 2**63.

        Raises:
            ImageError: if it cannot be read.
        """
        return short_digest(self._content(self._checked(image_id)))

    def _checked(self, image_id):
        # A negative index would be another image's.
        if not 0 <= image_id < len(self.ids):
            raise IndexError(f"Ids are from 0 to {len(self.ids) - 1}. Received: {image_id}")
        return int(image_id)


@dataclass(frozen=True)
class TFDSSplit:
    """A split of a data set that `datasets` knows by name; the split to test on unless another is named.

    shape: (H, W, C) that the images must have. image_size: resize to it as `datasets.load` does; None keeps them.
    """

    dataset: str
    shape: tuple[int, int, int]
    data_dir: str | None = None
    split: str | None = None
    image_size: int | None = None

    def open(self):
        """`Images`; reads all of the split.

        Raises:
            InputError: as `datasets.load`, or if the images have another shape.
        """
        split, pixel_max, class_names = datasets.load_split(self.dataset, self.data_dir, self.split, self.image_size)
        return _of_arrays(self.dataset, split.images, split.labels, self.shape, pixel_max, class_names)


@dataclass(frozen=True)
class Folder:
    """A folder of .png, .jpg and .jpeg files, in the order of their paths; other files and hidden ones are passed over.

    If they lie in sub-folders these are the classes, numbered by sorted name ("10" comes before "2"), empty ones too.
    If they lie in the folder itself there are no labels. Greyscale is taken as colour where the shape asks for colour.

    shape: (H, W, C) that the images must have.
    """

    path: str
    shape: tuple[int, int, int]

    def open(self):
        """`Images`; reads the names only.

        Raises:
            InputError: if it is no folder, has no such file, or has some in sub-folders and some not.
        """
        shape = _checked_shape(self.shape)
        root = Path(self.path)
        try:
            classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
            files = sorted(_image_files(root), key=lambda file: file.relative_to(root).parts)
        except OSError as error:
            raise InputError(f"Cannot read the folder {error.filename or root} ({error.strerror}).") from None
        if not files:
            raise InputError(f"{root} holds no image. Accepted: files that end in {', '.join(_SUFFIXES)}.")
        loose = [file.name for file in files if file.parent == root]
        if loose and len(loose) < len(files):
            raise InputError(
                f"{root} has {len(loose):,} images of its own, such as {loose[0]}, and {len(files) - len(loose):,} "
                "in sub-folders: put all into sub-folders, one a class, or none."
            )
        labels = None if loose else [classes.index(file.relative_to(root).parts[0]) for file in files]
        return Images(
            ids=np.arange(len(files)),
            class_names=None if loose else tuple(classes),
            has_labels=not loose,
            levels=255,
            _read=lambda i: _read_file(files[i], shape),
            _label=lambda i: None if labels is None else labels[i],
            _content=lambda i: _content_of(files[i]),
        )


@dataclass(frozen=True)
class Archive:
    """An .npz file: `images`, uint8 or floats in [0, 1], [N, H, W, C] or [N, H, W]; and `labels` [N], if it has them.

    shape: (H, W, C) that the images must have.
    """

    path: str
    shape: tuple[int, int, int]

    def open(self):
        """`Images`; reads the whole file.

        Raises:
            InputError: if there is no such file, it is damaged, or its arrays are not as above.
        """
        images, labels = self._load()
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise InputError(f"{self.path}: images must be uint8, or floats in [0, 1]. Received: {images.dtype}")
        if images.ndim == 3:
            images = images[..., None]
        if labels is not None:
            if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
                raise InputError(
                    f"{self.path}: labels must be integers, one for each of the {len(images)} images. Received: "
                    f"{labels.dtype} {list(labels.shape)}"
                )
            if labels.size and labels.min() < 0:
                raise InputError(f"{self.path}: labels are from 0. Received: {labels.min()}")
        return _of_arrays(self.path, images, labels, self.shape, 255, None)

    def _load(self):
        try:
            # np.load leaves open what it cannot read.
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                names = archive.files
                images, labels = (archive[name] if name in names else None for name in ("images", "labels"))
        except FileNotFoundError:
            raise InputError(f"There is no file {self.path}.") from None
        except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{self.path} cannot be read as an .npz file of plain arrays ({reason}).") from None
        if images is None:
            raise InputError(f"{self.path} has no array 'images'. It has: {', '.join(names) or 'none'}")
        return images, labels


def select(ids, *, skip=1, start=0, max=None):
    """Every `skip`-th of the ids, by id and not by place: from `start` on, and below `max` unless that is None.

    So images 0, skip, 2 skip, ... are taken, as the field's logs have them (Cohen et al.'s certify.py, whose `max`
    bounds the image's index too, not how many are taken; there it stops nothing unless it is a multiple of `skip`).

    Raises:
        InputError: if no image is left, or skip is below 1.
    """
    if skip < 1:
        raise InputError(f"--skip must be a whole number from 1. Received: {skip}")
    chosen = [int(i) for i in ids if i % skip == 0 and i >= start and (max is None or i < max)]
    if not chosen:
        below = "" if max is None else f", --max {max}"
        raise InputError(f"--skip {skip}, --start {start}{below} leave none of the {len(ids):,} images.")
    return np.array(chosen, np.int64)


def _of_arrays(name, images, labels, shape, pixel_max, class_names):
    """`Images` of uint8 [N, H, W, C] up to `pixel_max`, or of floats."""
    shape = _checked_shape(shape)
    if images.shape[1:] != shape or not len(images):
        raise InputError(f"{name}: one or more images of shape {_by(shape)} are needed. Received: {_by(images.shape)}")

    def read(i):
        if images.dtype == np.uint8:
            return images[i].astype(np.float32) / np.float32(pixel_max)
        return _checked_pixels(images[i])

    def content(i):
        image = np.ascontiguousarray(images[i])
        return image.tobytes() + f" {image.dtype.str} {image.shape} {pixel_max}".encode()

    return Images(
        ids=np.arange(len(images)),
        class_names=class_names,
        has_labels=labels is not None,
        levels=levels_of(pixel_max),
        _read=read,
        _label=lambda i: None if labels is None else int(labels[i]),
        _content=content,
    )


def _checked_shape(shape):
    shape = tuple(shape)
    if len(shape) != 3 or shape[-1] not in _EXACT_MODES or min(shape) < 1:
        raise InputError(f"Images are of shape (height, width, 1 or 3). Received: {shape}")
    return shape


def _checked_pixels(image):
    if not np.isfinite(image).all():
        raise ImageError(f"{np.count_nonzero(~np.isfinite(image))} of its values are not finite")
    if image.min() < 0 or image.max() > 1:
        raise ImageError(f"its pixels must be in [0, 1]; they are from {image.min():g} to {image.max():g}")
    return image.astype(np.float32)


def _image_files(root):
    def refuse(error):
        raise error

    # Followed links: a class that is a link to a folder must not vanish without a word.
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        yield from (
            Path(folder, name) for name in names if not _is_hidden(name) and name.lower().endswith(_SUFFIXES)
        )  # fmt: skip


def _is_hidden(name):
    return name.startswith(".")


def _read_file(path, shape):
    height, width, channels = shape
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            # Looked at before a pixel is decoded: a few bytes can claim to be gigabytes.
            if image.size != (width, height):
                raise ImageError(f"{path} is {image.height}x{image.width}, not {height}x{width}")
            # Pillow reads 16 bits a colour without a word, and drops half of them.
            is_deep = content.startswith(_PNG_MAGIC) and content[_PNG_BIT_DEPTH] == 16
            if is_deep or image.mode not in _EXACT_MODES[channels] or "transparency" in image.info:
                kind = "16 bits deep" if is_deep else f"of the kind {image.mode}"
                clear = ", with transparency" if "transparency" in image.info else ""
                raise ImageError(f"{path} is {kind}{clear}; accepted for {channels} channels: 8-bit "
                                 f"{', '.join(_EXACT_MODES[channels])}, opaque")  # fmt: skip
            pixels = np.asarray(image.convert(_PIL_MODES[channels]))
    except ImageError:
        raise
    except _DAMAGE as error:
        raise ImageError(f"{path} cannot be read ({' '.join(str(error).split())})") from None
    return pixels.reshape(shape).astype(np.float32) / np.float32(255)


def _content_of(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror})") from None


def _by(shape):
    return "x".join(str(side) for side in shape)
