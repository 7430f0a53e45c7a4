"""Images to certify, wherever they are: a TFDS split, a folder of image files, an .npz archive.

A source is a few plain values, which can be sent to any worker; the worker opens it by itself. An image's id is its
place in its source. Images are never resized, cropped or padded unless a source says so, because a radius is about the
pixels that were certified.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from macer_tf.checks import levels_of
from pipeline.data import archives, datasets, image_files
from pipeline.data.datasets import sides
from pipeline.data.image_files import ImageError
from pipeline.utils import places
from pipeline.utils.errors import InputError
from serving.fingerprints import short_digest
from serving.terminal import printable

_CHANNELS = (1, 3)
_ARCHIVE = ".npz"
_NUMBER = re.compile("[0-9]{1,9}")
_NAMED = 5


@dataclass(frozen=True, eq=False)
class Images:
    """An opened source.

    Attributes:
        ids: int64 [images], each image's place in the source.
        class_names: the name of class 0, 1, ...; None if the source does not give them.
        has_labels: whether the source gives the images' classes.
        levels: pixels are multiples of 1 / levels.
    """

    ids: np.ndarray
    class_names: tuple[str, ...] | None
    has_labels: bool
    levels: int
    _label: Callable
    _content: Callable
    _pixels: Callable
    _name: Callable = lambda _: None

    def image(self, example_id, digest=None):
        """float32 [H, W, C] in [0, 1], of the source's shape, read once.

        Args:
            example_id: which image.
            digest: what `digest` returned for the image that is meant.

        Raises:
            ImageError: if it cannot be read, is damaged, has another shape or kind, is not finite or outside [0, 1], or
                is not the image of this digest.
        """
        example_id = self._checked(example_id)
        content = self._content(example_id)
        if digest is not None and short_digest(content) != digest:
            raise ImageError("the image was changed while it was certified")
        return self._pixels(example_id, content)

    def label(self, example_id):
        """The image's class, from 0; None if the source does not give it."""
        return self._label(self._checked(example_id))

    def name(self, example_id):
        """The path of the image's file in its folder, or what its data set calls it; None if it has no name."""
        return self._name(self._checked(example_id))

    def names(self, ids):
        """The names of these images, or None if none has one."""
        names = tuple(self.name(example_id) for example_id in ids.tolist())
        return names if any(names) else None

    def digest(self, example_id):
        """Identifies this image, wherever it is: a whole number from 0, below 2**63.

        Raises:
            ImageError: if it cannot be read.
        """
        return short_digest(self._content(self._checked(example_id)))

    def _checked(self, example_id):
        # A negative index would mean another image.
        if not 0 <= example_id < len(self.ids):
            raise IndexError(f"Ids run from 0 to {len(self.ids) - 1}. Received: {example_id}")
        return int(example_id)


@dataclass(frozen=True)
class TFDSSplit:
    """A split of a data set that `datasets` knows by name; by default, the test split.

    shape: (H, W, C) that the images must have. image_size: resize to it as `datasets.load` does; None keeps them.
    """

    dataset: str
    shape: tuple[int, int, int]
    data_dir: str | None = None
    split: str | None = None
    image_size: int | None = None

    def open(self):
        """`Images`; reads the whole split.

        Raises:
            InputError: as `datasets.load`, or if the images have another shape.
        """
        split, pixel_max, class_names = datasets.load_split(self.dataset, self.data_dir, self.split, self.image_size)
        return _of_arrays(self.dataset, split.images, split.labels, self.shape, pixel_max, class_names, split.names)


@dataclass(frozen=True)
class Folder:
    """A folder of PNG, JPEG, WebP and BMP files, in the order of their paths; others and hidden ones are skipped.

    Sub-folders are the classes, including empty ones. `classes` may give their numbers. Otherwise, if all names are
    numbers, each is its class's number; if not, classes are numbered by sorted name. Files in the folder itself have
    no labels. `image_files.decode` determines how a file is decoded.

    shape: (H, W, C) that the images must have; None: that of the first one. classes: a sub-folder's name -> its class,
    from 0. resize: whether images are resized to the shape.
    """

    path: str
    shape: tuple[int, int, int] | None = None
    classes: dict[str, int] | None = None
    resize: bool = False

    def open(self):
        """`Images`; reads the names only.

        Raises:
            InputError: if it is not a folder, has no such file, has some in sub-folders and some not, has a folder or a
                file that can be reached in two ways, two folders of one number, or one without a number in `classes`.
        """
        root = Path(self.path)
        try:
            entries = sorted(root.iterdir(), key=image_files.in_order)
            names = [entry.name for entry in entries if entry.is_dir() and not image_files.is_hidden(entry.name)]
            files = image_files.find(root)
        except OSError as error:
            raise InputError(f"Cannot read the folder {error.filename or root} ({error.strerror}).") from None
        if not files:
            raise InputError(f"{root} holds no image. Accepted: files that end in {', '.join(image_files.SUFFIXES)}.")
        labels = self._labels(root, files, names)
        shape = _checked_shape(self.shape or _shape_of(files[0]))
        rule = image_files.resized_to(shape) if self.resize else image_files.UPRIGHT
        _check_spellings(root, names)
        are_named = labels is not None and self.classes is None and not _are_numbers(names)
        return Images(
            ids=np.arange(len(files)),
            class_names=tuple(map(text_of, names)) if are_named else None,
            has_labels=labels is not None,
            levels=255,
            _label=lambda i: None if labels is None else labels[i],
            _content=lambda i: image_files.content(files[i], rule),
            _pixels=lambda i, content: image_files.decode(files[i], content, shape, rule),
            _name=lambda i: text_of(files[i].relative_to(root).as_posix()),
        )

    def _labels(self, root, files, names):
        """One for each file, or None."""
        loose = [file.name for file in files if file.parent == root]
        if loose and len(loose) < len(files):
            raise InputError(
                f"{root} has images of its own, such as {loose[0]}, and others in sub-folders: put all into "
                "sub-folders, one for each class, or none."
            )
        if self.classes is None:
            places = _numbers(root, names) if _are_numbers(names) else {name: i for i, name in enumerate(names)}
            return None if loose else [places[file.relative_to(root).parts[0]] for file in files]
        if loose:
            raise InputError(f"Class numbers are for sub-folders, but the images lie in {root} itself.")
        # The file, too, may spell an accent in another way than the file system.
        numbers = {image_files.spelling(name): number for name, number in self.classes.items()}
        without = [name for name in names if image_files.spelling(name) not in numbers]
        if without:
            raise InputError(f"No class number is given for the sub-folders {some(without)} of {root}.")
        return [numbers[image_files.spelling(file.relative_to(root).parts[0])] for file in files]


def text_of(name):
    """The name of a file or folder as text, which it need not be."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _check_spellings(root, names):
    """Raises InputError for two sub-folders that look the same, because accents can be spelt in two ways."""
    for spelling, times in Counter(map(image_files.spelling, names)).items():
        if times > 1:
            raise InputError(f"{root} has two sub-folders {spelling}, whose accents are spelt in two ways; merge them.")


def _are_numbers(names):
    return all(_NUMBER.fullmatch(name) for name in names)


def _numbers(root, names):
    """Sub-folder -> the number in its name."""
    folders = {}
    for name in names:
        before = folders.setdefault(int(name), name)
        if before != name:
            raise InputError(f"The sub-folders {before} and {name} of {root} are the same number; merge them.")
    return {name: number for number, name in folders.items()}


@dataclass(frozen=True)
class Archive:
    """An .npz file: `images`, uint8 or floats in [0, 1], [N, H, W, C] or [N, H, W]; and `labels` [N], if it has them.

    Other usual names, such as x_test and y_test, are accepted if they are unambiguous; labels may be one-hot.

    shape: (H, W, C) that the images must have; None: whatever they have. is_to_train: whether they are for training:
    then x_train is a usual name, and x_test is not.
    """

    path: str
    shape: tuple[int, int, int] | None = None
    is_to_train: bool = False

    def open(self):
        """`Images`; reads the whole file.

        Raises:
            InputError: as `archives.read`.
        """
        shape = self.shape and _checked_shape(self.shape)
        images, labels, num_classes = archives.read(self.path, shape, self.is_to_train)
        names = None if num_classes is None else tuple(str(number) for number in range(num_classes))
        return _of_arrays(self.path, images, labels, self.shape or images.shape[1:], 255, names)


@dataclass(frozen=True)
class AtURL:
    """A `Folder` or an `Archive` at a URL, which each machine copies once; `fingerprint` is that of its content.

    shape, classes, resize: as in those. An image's digest is compared whenever it is read, so the copy as a whole is
    not checked again.
    """

    url: str
    fingerprint: str
    shape: tuple[int, int, int] | None = None
    classes: dict[str, int] | None = None
    resize: bool = False

    def open(self):
        """`Images`, of the copy.

        Raises:
            InputError: as for those, or if something else is at the URL by now.
        """
        local = str(places.local(self.url, self.fingerprint, is_checked=False))
        return at(local, self.shape, self.classes, self.resize).open()


def at(path, shape, classes=None, resize=False, is_to_train=False):
    """The source of images at a path or URL: a `Folder`, or an `Archive` for an .npz file.

    Args:
        path: path or URL of either.
        shape: (H, W, C) that the images must have; None: that of the first one.
        classes, resize: see `Folder`.
        is_to_train: see `Archive`.

    Raises:
        InputError: if it is neither, or has no folders that `classes` could number, or no files to resize.
    """
    if places.is_url(path):
        return AtURL(path, places.fetched(path), shape, classes, resize)
    if Path(path).is_dir():
        return Folder(path, shape, classes, resize)
    if not Path(path).exists():
        raise InputError(f"There is no folder or file {path}.")
    if Path(path).suffix.lower() != _ARCHIVE:
        raise InputError(
            f"Images are in a folder of {', '.join(image_files.SUFFIXES)} files, or in an .npz file with the arrays "
            f"images and labels, as np.savez writes it. Received: {path}"
        )
    if classes is not None:
        raise InputError(f"Class numbers are for a folder's sub-folders; an .npz file has its own. Received: {path}")
    if resize:
        raise InputError(
            f"Only files in a folder can be resized, not arrays; resize those beforehand. Received: {path}"
        )
    return Archive(path, shape, is_to_train)


def anywhere(source):
    """The source for a process with another current folder: its paths are made absolute."""
    own = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    paths = {name: places.absolute(own[name]) for name in ("path", "data_dir") if own.get(name)}
    return dataclasses.replace(source, **paths)


def some(names):
    """A few names in words."""
    more = len(names) - _NAMED
    return ", ".join(map(printable, names[:_NAMED])) + (f" and {more:,} more" if more > 0 else "")


def select(ids, *, skip=1, start=0, max=None):
    """Every `skip`-th of the ids, by id, not by place: from `start` on, and below `max` unless that is None.

    So images 0, skip, 2 skip, ... are taken, as in the field's logs (in Cohen et al.'s certify.py, `max` also bounds
    the image's index, not how many are taken; there it stops nothing unless it is a multiple of `skip`).

    Raises:
        InputError: if no image is left, or skip is below 1.
    """
    if skip < 1:
        raise InputError(f"skip must be a whole number from 1. Received: {skip}")
    chosen = [int(i) for i in ids if i % skip == 0 and i >= start and (max is None or i < max)]
    if not chosen:
        bounds = [("skip", skip, 1), ("start", start, 0), ("max", max, None)]
        given = [f"{name}={value}" for name, value, default in bounds if value != default]
        raise InputError(
            f"{', '.join(given)} {'leaves' if len(given) == 1 else 'leave'} none of the {len(ids):,} images, which are "
            f"numbered from 0 to {len(ids) - 1}."
        )
    return np.array(chosen, np.int64)


def _of_arrays(name, images, labels, shape, pixel_max, class_names, names=None):
    """`Images` of uint8 [N, H, W, C] up to `pixel_max`, or of floats."""
    shape = _checked_shape(shape)
    if images.shape[1:] != shape or not len(images):
        raise InputError(
            f"{name}: one or more images of shape {sides(shape)} are needed. Received: {sides(images.shape)}"
        )

    def content(i):
        return images[i].tobytes() + f" {images.dtype.str} {shape} {pixel_max}".encode()

    def pixels(_, content):
        image = np.frombuffer(content, images.dtype, np.prod(shape)).reshape(shape)
        if images.dtype == np.uint8:
            return image.astype(np.float32) / np.float32(pixel_max)
        return _checked_pixels(image)

    return Images(
        ids=np.arange(len(images)),
        class_names=class_names,
        has_labels=labels is not None,
        levels=levels_of(pixel_max),
        _label=lambda i: None if labels is None else int(labels[i]),
        _content=content,
        _pixels=pixels,
        _name=lambda i: names and names[i],
    )


def _shape_of(file):
    try:
        return image_files.shape(file, image_files.content(file))
    except ImageError as error:
        raise InputError(str(error)) from None


def _checked_shape(shape):
    shape = tuple(shape)
    if len(shape) != 3 or shape[-1] not in _CHANNELS or min(shape) < 1:
        raise InputError(f"Images are of shape (height, width, 1 or 3). Received: {shape}")
    return shape


def _checked_pixels(image):
    if not np.isfinite(image).all():
        raise ImageError(f"{np.count_nonzero(~np.isfinite(image))} of its values are not finite")
    if image.min() < 0 or image.max() > 1:
        # With all their digits, because 1.0000001 is not in [0, 1] either.
        ends = " to ".join(str(end).removesuffix(".0") for end in (image.min(), image.max()))
        raise ImageError(f"its pixels must be in [0, 1]; they are from {ends}")
    # Half floats stay half floats, in this machine's byte order: their rounding shows which level is meant.
    return image.astype(np.float16 if image.dtype.newbyteorder("=") == np.float16 else np.float32)
