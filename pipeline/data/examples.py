"""The examples artifact: what ExampleGen writes and every later component reads."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from macer_tf.checks import levels_of
from pipeline.utils.atomic_files import write_text, writing
from serving.fingerprints import short_digest

_SPLITS = ("train", "test")
_NAMES = "test_names.json"


@dataclass(frozen=True)
class Examples:
    """Images and labels of both splits, memory-mapped.

    Attributes:
        images, labels: split name -> uint8 [N, H, W, C] and int64 [N].
        descriptions: split name -> what the images are, in words.
        pixel_max: a pixel in [0, 1] is image / pixel_max.
        class_names: one for each class.
        names: each test image's file name, or what the data set calls it; None if they have none.
        name: name of the data set.
    """

    images: dict
    labels: dict
    descriptions: dict
    pixel_max: int
    class_names: tuple
    names: tuple | None = None
    name: str = "images"

    @property
    def num_classes(self):
        return len(self.class_names)

    @property
    def image_shape(self):
        return self.images["train"].shape[1:]

    @property
    def levels(self):
        """Pixels in [0, 1] are multiples of 1 / levels."""
        return levels_of(self.pixel_max)

    def scaled(self, split, ids):
        """float32 [len(ids), H, W, C] in [0, 1]."""
        return self.images[split][ids].astype(np.float32) / np.float32(self.pixel_max)

    def names_of(self, ids):
        """The names of the test images `ids`, or None."""
        return self.names and [self.names[example_id] for example_id in ids]

    def image(self, example_id, digest=None):
        """float32 [H, W, C] in [0, 1], of the test split, read once.

        Raises:
            ValueError: if it is not the image of this digest.
        """
        pixels = np.array(self.images["test"][example_id])
        if digest is not None and self._digest_of(pixels) != digest:
            raise ValueError("the image was changed while it was certified")
        return pixels.astype(np.float32) / np.float32(self.pixel_max)

    def digest(self, example_id):
        """Identifies this image of the test split: a whole number from 0, below 2**63."""
        return self._digest_of(self.images["test"][example_id])

    def _digest_of(self, pixels):
        return short_digest(f"{self.pixel_max} {self.image_shape} ".encode() + pixels.tobytes())


@dataclass(frozen=True)
class Source:
    """The test images of the examples artifact in a directory, to be opened by any worker."""

    path: str

    def open(self):
        """`Examples`."""
        return read(Path(self.path))


def write(dataset, directory):
    """Writes a `datasets.Dataset` as an examples artifact. Raises InputError if the disk is full."""
    for name in _SPLITS:
        split = getattr(dataset, name)
        with writing(directory, "the data are read again"):
            _save(directory / f"{name}_images.npy", split.images)
            _save(directory / f"{name}_labels.npy", split.labels)
    about = {
        "dataset": dataset.name,
        "descriptions": {name: getattr(dataset, name).description for name in _SPLITS},
        "pixel_max": dataset.pixel_max,
        "class_names": list(dataset.class_names),
    }
    write_text(directory / "examples.json", json.dumps(about, indent=1))
    write_text(directory / _NAMES, json.dumps(dataset.test.names))


def _save(path, array):
    with open(path, "wb") as file:
        # Not to the file itself: NumPy would write to it in C, and not notice if the disk fills up at the array's end.
        np.save(SimpleNamespace(write=file.write), array)


def read(directory):
    """The `Examples` in an artifact's directory."""
    about, names = (json.loads((directory / name).read_text()) for name in ("examples.json", _NAMES))
    return Examples(
        images={name: np.load(directory / f"{name}_images.npy", mmap_mode="r") for name in _SPLITS},
        labels={name: np.load(directory / f"{name}_labels.npy") for name in _SPLITS},
        descriptions=about["descriptions"],
        pixel_max=about["pixel_max"],
        class_names=tuple(about["class_names"]),
        names=names and tuple(names),
        name=about["dataset"],
    )


def stratified(labels, count, seed):
    """Ascending places of `count` labels: each class's share, to within one; `seed` determines which."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[evenly_spaced(len(order), count)])


def evenly_spaced(total, count):
    """Indices of `count` of `total` examples, evenly spread; all of them if count is None or too large."""
    if count is None or count >= total:
        return np.arange(total)
    return np.arange(count) * total // count
