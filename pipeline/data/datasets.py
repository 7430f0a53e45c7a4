"""Names -> arrays: the embedded digits, and any TensorFlow Datasets (TFDS) image-classification builder.

The paper's data sets (section 5.1) have short names: mnist, svhn, cifar10 and imagenet. Images stay uint8; a
pixel in the paper's [0, 1] is image / pixel_max. TFDS shuffles a data set when it prepares it: CIFAR-10 and
SVHN are put back into the order of their published files, so that test image i is everybody's test image i.
MNIST and ImageNet as TFDS stores them do not reveal that order; they keep TFDS's, which is fixed.
"""

import contextlib
import dataclasses
import difflib
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pipeline.utils.errors import InputError
from serving import fingerprints
from serving.files import content_files, is_url
from serving.terminal import printable

SHORT_NAMES = {
    "digits": "digits",
    "mnist": "mnist",
    "svhn": "svhn_cropped",
    "cifar10": "cifar10",
    "imagenet": "imagenet2012",
}

_DEFAULT_TEST_SPLITS = {"imagenet2012": "validation"}
# Builders whose 'id' feature (train_00001, ...) numbers the examples as the published files do.
_BUILDERS_WITH_FILE_ORDER = ("cifar10", "svhn_cropped", "svhn_cropped_partial")
# What data sets call the text that identifies an image, best first.
_NAME_FEATURES = ("file_name", "image/file_name", "filename", "image/filename", "id")
_DIGITS_TRAIN = 1437
_DIGITS_MAX = 16
_IN_MEMORY_BYTES = 8 * 2**30
_READ_BATCH = 256
_CONNECT_SECONDS = 10
_NAMED = 10
_REASON_CHARACTERS = 500
_RENEW = "Finish copying it, or delete it to have it prepared again"
_TENSORFLOW_NOISE = re.compile(r"\{\{.*?\}\}|\[Op:.*", re.DOTALL)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_BUILDER_NAME = re.compile(r"\w+(/[\w.\-]+)?")


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set.

    images: uint8 [N, H, W, C], an array or, for a very large split, a memory map; C is 1 or 3.
    labels: int64 [N], each in [0, num_classes).
    description: what the images are, e.g. "test split of mnist 3.0.1 (10,000 images)".
    names: each image's file name, or what the data set calls it; None if they have none.
    """

    images: np.ndarray
    labels: np.ndarray
    description: str
    names: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A train and a test split of one data set.

    name: as the user gave it. pixel_max: a pixel in [0, 1] is image / pixel_max. class_names: [num_classes].
    """

    name: str
    train: Split
    test: Split
    pixel_max: int
    num_classes: int
    class_names: tuple[str, ...]


def load(
    dataset: str,
    data_dir: str | os.PathLike | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    image_size: int | None = None,
    scratch: str | os.PathLike | None = None,
) -> Dataset:
    """Loads a data set by name; the network is used only if data_dir does not hold it prepared.

    Args:
      dataset: "digits", a short name (SHORT_NAMES), the name of any TFDS image-classification builder ("name"
        or "name/config"), or the name of data prepared in data_dir, whether or not TFDS knows its code.
      data_dir: directory of prepared TFDS data (<data_dir>/<name>/<version>/); what is downloaded is prepared
        there too. Default: TFDS's own (TFDS_DATA_DIR, or ~/tensorflow_datasets).
      train_split, test_split: TFDS splits, including slices such as "train[:80%]". Default: "train" and "test"
        ("validation" for imagenet).
      image_size: resize the shorter side to this many pixels (antialiased) and crop the centre square.
        Default: keep the images, which must then all have one shape.
      scratch: an existing directory for the memory map of a split above 8 GiB, written there as
        train-images.npy or test-images.npy.

    Raises:
      InputError: in one line: unknown data set or split, not image classification, damaged or unfinished
        data, or data that cannot be downloaded (with where to put the files instead).
    """
    if dataset == "digits":
        check_choice(dataset, train_split=train_split, test_split=test_split, image_size=image_size)
        return _digits()

    builder, label = _builder_and_label(dataset, data_dir, image_size)
    train_split, test_split = train_split or "train", test_split or _default_test_split(dataset)
    _check_splits(dataset, builder, train_split, test_split)
    train, test = (
        _read_split(dataset, builder, role, split, label.num_classes, image_size, scratch)
        for role, split in (("train", train_split), ("test", test_split))
    )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{dataset}: train images are {sides(train.images.shape[1:])}, test images "
            f"{sides(test.images.shape[1:])}; give image_size to bring them to one shape"
        )
    return Dataset(dataset, train, test, pixel_max(dataset), label.num_classes, tuple(map(printable, label.names)))


def check_name(dataset: str, data_dir: str | os.PathLike | None = None) -> None:
    """Raises a one-line InputError if there is no data set of this name, as far as that shows without its data."""
    if dataset == "digits":
        return
    root = _root(data_dir)
    if dataset not in SHORT_NAMES and _found(dataset, root) is None:
        _check_known(dataset, root)


def check_choice(dataset: str, **chosen: Any) -> None:
    """Raises a one-line InputError if splits or a size are chosen (not None) where there is only one."""
    received = [f"{name}={value}" for name, value in chosen.items() if value is not None]
    if dataset == "digits" and received:
        raise InputError(
            "digits are embedded: 8x8 images, the first 1,437 to train, the last 360 to test; leave out "
            f"{', '.join(chosen)}. Received: {', '.join(received)}"
        )


def fingerprint(dataset: str, data_dir: str | os.PathLike | None = None) -> str | None:
    """Identifies the prepared data that `load` would read; None if it would have to prepare them.

    Data up to 256 MiB are identified by their content, larger ones by each file's path, size and modification time.

    Raises:
      InputError, OSError, ValueError: if they cannot be read.
    """
    directory = _found(dataset, _root(data_dir))
    if directory is None:
        return None
    found = {path: os.stat(path) for _, path in content_files(directory)}
    if sum(file.st_size for file in found.values()) <= fingerprints.SOON_DIGESTED_BYTES:
        return fingerprints.directory_fingerprint(directory)
    return fingerprints.fingerprint(
        {os.path.realpath(path): [file.st_size, file.st_mtime_ns] for path, file in found.items()}
    )


def is_soon_read(dataset: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Whether `load` would neither download nor read more than a gigabyte."""
    if dataset == "digits":
        return True
    directory = _found(dataset, _root(data_dir))
    return directory is not None and sum(os.stat(path).st_size for _, path in content_files(directory)) <= 2**30


def hold_out(dataset: Dataset, count: int) -> Dataset:
    """The data set for choosing settings: its test images are `count` of the training images, evenly spaced.

    These are no longer trained on, and the original test images are left out.

    Raises:
      InputError: fewer than 2 of either kind would be left.
    """
    total = len(dataset.train.labels)
    if not 2 <= count <= total - 2:
        raise InputError(
            f"{dataset.name}: 2 to {total - 2:,} of its {total:,} training images can be held out for validation. "
            f"Received: {count:,}"
        )
    held_out = np.zeros(total, bool)
    held_out[np.arange(count) * total // count] = True
    names = dataset.train.names
    train, test = (
        Split(
            dataset.train.images[chosen],
            dataset.train.labels[chosen],
            f"{chosen.sum():,} {role}, of the {dataset.train.description.removeprefix('the ')}",
            names and tuple(itertools.compress(names, chosen)),
        )
        for chosen, role in ((~held_out, "not held out"), (held_out, "held out for validation, evenly spaced"))
    )
    return dataclasses.replace(dataset, train=train, test=test)


def load_split(
    dataset: str, data_dir: str | os.PathLike | None = None, split: str | None = None, image_size: int | None = None
) -> tuple[Split, int, tuple[str, ...]]:
    """Loads one split, by default the test split. Returns it, pixel_max and class_names.

    Args and Raises: as in `load`.
    """
    if dataset == "digits":
        check_choice(dataset, split=split, image_size=image_size)
        digits = _digits()
        return digits.test, digits.pixel_max, digits.class_names
    builder, label = _builder_and_label(dataset, data_dir, image_size)
    split = split or _default_test_split(dataset)
    _check_split(dataset, builder, "split", split)
    return (
        _read_split(dataset, builder, "test", split, label.num_classes, image_size, None),
        pixel_max(dataset),
        tuple(map(printable, label.names)),
    )


def pixel_max(dataset: str | None) -> int:
    """What a stored pixel of this data set, or of image files (None), is divided by."""
    return _DIGITS_MAX if dataset == "digits" else 255


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    train, test = (
        Split(images[chosen], labels[chosen], f"the {which} {len(labels[chosen]):,} of scikit-learn's digits")
        for which, chosen in (("first", slice(_DIGITS_TRAIN)), ("last", slice(_DIGITS_TRAIN, None)))
    )
    return Dataset("digits", train, test, _DIGITS_MAX, 10, tuple(str(name) for name in bunch.target_names))


def _builder_name(dataset: str) -> str:
    return SHORT_NAMES.get(dataset, dataset)


def _default_test_split(dataset: str) -> str:
    return _DEFAULT_TEST_SPLITS.get(_builder_name(dataset), "test")


def _builder_and_label(dataset: str, data_dir: str | os.PathLike | None, image_size: int | None) -> tuple[Any, Any]:
    """The `_builder` of image-classification data, and its ClassLabel."""
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size must be a positive number of pixels. Received: {image_size}")
    builder = _builder(dataset, data_dir)
    return builder, _classification_label(dataset, builder)


def _builder(dataset: str, data_dir: str | os.PathLike | None) -> Any:
    """The TFDS builder of prepared data: found in data_dir, or otherwise downloaded and prepared there."""
    import tensorflow_datasets as tfds

    root = _root(data_dir)
    directory = _found(dataset, root)
    if directory is None:
        _check_known(dataset, root)
        directory = _download(dataset, root)
    missing = [file for file in ("dataset_info.json", "features.json") if not (directory / file).is_file()]
    if missing:
        raise InputError(f"{dataset}: {directory} was not finished: it has no {' and no '.join(missing)}. {_RENEW}")
    with _told_in_one_line(f"{dataset}: cannot read the description of the data in {directory}", _RENEW):
        return tfds.builder_from_directory(directory)


def _root(data_dir: str | os.PathLike | None) -> Path:
    """Where prepared data are: TFDS's own folder by default."""
    if not data_dir:
        from tensorflow_datasets.core import constants

        data_dir = constants.DATA_DIR
    if is_url(data_dir):
        raise InputError(f"data_dir must be a directory on this machine, not a URL. Received: {data_dir}")
    root = Path(data_dir).expanduser()
    if root.exists() and not root.is_dir():
        raise InputError(f"data_dir must be a directory of prepared TFDS data. Received the file {root}")
    return root


def _found(dataset: str, root: Path) -> Path | None:
    """The directory of prepared data, finished or not, or None."""
    name = _builder_name(dataset)
    with _told_in_one_line(f"{dataset}: cannot look into {root / name}", "Copy the data again"):
        return _prepared_directory(root, name) if _BUILDER_NAME.fullmatch(name) else None


def _check_known(dataset: str, root: Path) -> None:
    import tensorflow_datasets as tfds

    name = _builder_name(dataset)
    known = tfds.list_builders(with_community_datasets=False)
    if not _BUILDER_NAME.fullmatch(name) or name.split("/")[0] not in known:
        raise InputError(_unknown(dataset, known, root))


def _prepared_directory(root: Path, name: str) -> Path | None:
    """<root>/<name>/<newest version>, finished or not, or None. With several configs, that of the default one."""
    parent = root / name
    metadata = parent / ".config" / "metadata.json"
    if not _versions(parent) and metadata.is_file():
        parent = parent / json.loads(metadata.read_text())["default_config_name"]
    versions = _versions(parent)
    return parent / versions[-1] if versions else None


def _versions(directory: Path) -> list[str]:
    """Versions under directory, oldest first. TFDS works in incomplete.*_<version>, which is not a version."""
    if not _is_readable(directory):
        return []
    found = [entry.name for entry in directory.iterdir() if _VERSION.fullmatch(entry.name) and entry.is_dir()]
    return sorted(found, key=lambda version: [int(number) for number in version.split(".")])


def _prepared_names(root: Path) -> list[str]:
    """Every "name" and "name/config" with a version under root."""
    builders = [entry for entry in root.iterdir() if not entry.name.startswith(".")] if root.is_dir() else []
    configs = [entry for builder in builders if _is_readable(builder) for entry in builder.iterdir()]
    return sorted(str(entry.relative_to(root)) for entry in builders + configs if _versions(entry))


def _is_readable(directory: Path) -> bool:
    return os.access(directory, os.R_OK | os.X_OK) and directory.is_dir()


def _unknown(dataset: str, known: list[str], root: Path) -> str:
    prepared = _prepared_names(root)
    names = sorted({*SHORT_NAMES, *known, *prepared})
    nearest = difflib.get_close_matches(dataset.lower(), names, n=3)
    hint = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    return (
        f"Unknown dataset {dataset!r}. {hint}Accepted: {', '.join(SHORT_NAMES)}, any image-classification "
        f"builder of TFDS by its name, or what is prepared in {root}: {', '.join(prepared) or 'nothing'}"
    )


def _download(dataset: str, root: Path) -> Path:
    """Has TFDS download and prepare a builder under root, after checks that save its minutes of retries."""
    import tensorflow_datasets as tfds

    name = _builder_name(dataset)
    with _told_in_one_line(f"{dataset}: TFDS cannot make its builder {name}", "Choose another data set"):
        builder = tfds.builder(name, data_dir=root)
    _classification_label(dataset, builder)
    manual = root / "downloads" / "manual"
    prepared = f"point data_dir at a directory that holds it prepared (<data_dir>/{name}/{builder.version}/)"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (manual.is_dir() and any(manual.iterdir())):
        raise InputError(
            f"{dataset}: TFDS cannot download {name}. Put its files in {manual}, which is its manual_dir "
            f"({_one_line(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)}), or {prepared}"
        )

    urls = builder.url_infos or {}
    with _told_in_one_line(f"{dataset}: cannot read the .INFO files in {root / 'downloads'}", "Delete them"):
        cached = _cached_urls(root / "downloads")
    missing = [
        url
        for url, info in urls.items()
        if url not in cached and not (info.filename and (manual / info.filename).is_file())
    ]

    def remedy(wanted: Iterable[str]) -> str:
        files = sorted({urls[url].filename for url in wanted if urls[url].filename})
        by_hand = f"put {_some(files)} in {manual} (TFDS checks them by SHA-256), or " if files else ""
        return f"To continue without downloading, {by_hand}{prepared}"

    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS and (reason := _unreachable(missing)):
        raise InputError(f"{dataset}: cannot download {_some(missing)} ({reason}). {remedy(missing)}")
    with _told_in_one_line(f"{dataset}: TFDS could not prepare {name}", remedy(urls)):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_dir)


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _cached_urls(downloads: Path) -> set[str]:
    """URLs that TFDS has downloaded before: it writes a <file>.INFO beside each finished download."""
    urls: set[str] = set()
    for info in downloads.rglob("*.INFO"):
        urls.update(json.loads(info.read_text()).get("urls", []))
    return urls


def _unreachable(urls: list[str]) -> str | None:
    """Why a host of these URLs cannot be reached, or None.

    TFDS tries each URL ten times without a connection timeout: three minutes offline, longer behind a silent
    firewall. Any answer counts as reachable, even an HTTP error: TFDS then reports itself what is wrong.
    """
    import requests

    hosts = {urlsplit(url).netloc: url for url in urls if url.startswith("http")}
    for host, url in hosts.items():
        try:
            requests.get(url, stream=True, timeout=_CONNECT_SECONDS).close()
        except requests.RequestException as error:
            return f"{host} cannot be reached: {type(error).__name__}"
    return None


def _classification_label(dataset: str, builder: Any) -> Any:
    """The ClassLabel of an image-classification builder.

    Raises:
      InputError: no uint8 'image', or no 'label' that is a ClassLabel with a known number of classes.
    """
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        received = ", ".join(f"{key} ({type(features[key]).__name__})" for key in sorted(features))
        raise InputError(
            f"{dataset} is not an image-classification data set: accepted are builders with an 'image' "
            f"(Image) and a 'label' (ClassLabel). Received: {received}"
        )
    if image.np_dtype != np.uint8:
        raise InputError(f"{dataset}: images must be uint8. Received: {image.np_dtype}")
    if image.shape[-1] not in (1, 3, None):
        raise InputError(f"{dataset}: images must have 1 or 3 channels. Received: {image.shape[-1]}")
    if not label.num_classes:
        raise InputError(f"{dataset}: its description does not say how many classes there are; prepare it again")
    return label


def _check_splits(dataset: str, builder: Any, train_split: str, test_split: str) -> None:
    """Checks that both splits can be read and share no example."""
    train_files = _check_split(dataset, builder, "train_split", train_split)
    test_files = _check_split(dataset, builder, "test_split", test_split)
    for a in train_files:
        for b in test_files:
            if a.filename == b.filename and a.skip < b.skip + b.take and b.skip < a.skip + a.take:
                raise InputError(
                    f"{dataset}: train_split {train_split!r} and test_split {test_split!r} share images; "
                    "test images must not be trained on: choose splits or slices that do not overlap"
                )


def _check_split(dataset: str, builder: Any, setting: str, split: str) -> list[Any]:
    """Checks that a split, chosen by `setting`, exists, has examples and all its files. Returns file instructions."""
    try:
        files = builder.info.splits[split].file_instructions
    except (KeyError, ValueError):
        raise InputError(
            f"{dataset} has no split {split!r} for {setting}. Accepted: "
            f"{', '.join(builder.info.splits) or 'none'}, or a slice such as "
            f"{next(iter(builder.info.splits), 'train')}[:80%]"
        ) from None
    if not builder.info.splits[split].num_examples:
        raise InputError(f"{dataset}: split {split!r} is empty; choose another by {setting}")
    lost = [file.filename for file in files if not Path(file.filename).is_file()]
    if lost:
        raise InputError(
            f"{dataset}: {builder.data_dir} was not finished: {lost[0]} is missing ({len(lost)} of "
            f"{len(files)} files of split {split!r}). {_RENEW}"
        )
    return files


def _read_split(
    dataset: str,
    builder: Any,
    role: str,
    split: str,
    num_classes: int,
    image_size: int | None,
    scratch: str | os.PathLike | None,
) -> Split:
    """Reads one split in full and checks all of it."""
    count = builder.info.splits[split].num_examples
    where = f"{dataset}: split {split!r} in {builder.data_dir}"
    images, labels = None, np.empty(0, np.int64)
    ids: list[bytes] = []
    names: list[bytes] = []
    name_feature = _name_feature(builder)
    end = 0
    with _told_in_one_line(f"{where} cannot be read", _RENEW):
        for batch in _batches(builder, split, image_size):
            start, end = end, end + len(batch["label"])
            shape = batch["image"].shape[1:]
            if images is None:
                images = allocate(dataset, role, (count, *shape), scratch)
                labels = np.empty(count, np.int64)
            if shape != images.shape[1:]:
                raise InputError(
                    f"{dataset}: the images of split {split!r} have several shapes, {sides(images.shape[1:])} "
                    f"(image 0) and {sides(shape)} (image {start}); give image_size to bring them to one shape"
                )
            if end > count:
                break
            images[start:end] = batch["image"]
            labels[start:end] = batch["label"]
            if builder.name in _BUILDERS_WITH_FILE_ORDER:
                ids.extend(batch["id"])
            if name_feature:
                names.extend(batch[name_feature])
    if images is None or end != count:
        raise InputError(
            f"{where} holds {'at least ' if end > count else ''}{end:,} examples where its description says "
            f"{count:,}. {_RENEW}"
        )
    _check_labels(where, labels, num_classes)
    if ids:
        order = np.argsort(ids)
        images, labels = images[order], labels[order]
        names = [names[place] for place in order]
    full_name = " ".join(builder.info.full_name.rsplit("/", 1))
    description = printable(f"{split} split of {full_name} ({count:,} images)")
    return Split(images, labels, description, tuple(name.decode(errors="backslashreplace") for name in names) or None)


def _name_feature(builder: Any) -> str | None:
    """The feature that identifies an example's image, or None."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    return next((name for name in _NAME_FEATURES if isinstance(features.get(name), tfds.features.Text)), None)


def _check_labels(where: str, labels: np.ndarray, num_classes: int) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise InputError(
            f"{where} has labels outside 0..{num_classes - 1}: {outside.size:,} of {len(labels):,}, the first is "
            f"{labels[outside[0]]} (image {outside[0]}); choose a split that has labels"
        )


def _batches(builder: Any, split: str, image_size: int | None) -> Iterator[dict[str, np.ndarray]]:
    """Batches of image, label and, if there are any, id and name; of one example each if shapes may differ."""
    import tensorflow_datasets as tfds

    name = _name_feature(builder)
    keys = {"image", "label", *(["id"] if builder.name in _BUILDERS_WITH_FILE_ORDER else []), *([name] if name else [])}
    read_config = tfds.ReadConfig(
        try_autocache=False,
        interleave_cycle_length=1,
        assert_cardinality=False,  # _read_split counts
    )
    examples = builder.as_dataset(split=split, read_config=read_config, shuffle_files=False)

    def select(example):
        selected = {key: example[key] for key in keys}
        if image_size is not None:
            selected["image"] = _square(selected["image"], image_size)
        return selected

    examples = examples.map(select, num_parallel_calls=os.cpu_count())
    fixed_shape = image_size is not None or None not in builder.info.features["image"].shape
    return without_tuner(examples.batch(_READ_BATCH if fixed_shape else 1)).as_numpy_iterator()


def without_tuner(dataset: Any) -> Any:
    """The same `tf.data.Dataset`, but without TensorFlow's tuning of its parallelism.

    The tuner's thread may miss that it should end, and then whoever drops the iterator waits, for up to a minute
    (TensorFlow 2.21: `Model::OptimizeLoop` checks whether it is cancelled before the cancellation is complete).
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _square(image: Any, size: int) -> Any:
    """uint8 [H, W, C] -> [size, size, C]: shorter side resized to size (antialiased bilinear), centre."""
    import tensorflow as tf

    height_width = tf.cast(tf.shape(image)[:2], tf.float64)
    resized = tf.image.resize(
        image, tf.cast(tf.round(height_width * size / tf.reduce_min(height_width)), tf.int32), antialias=True
    )
    square = tf.image.resize_with_crop_or_pad(resized, size, size)
    return tf.cast(tf.clip_by_value(tf.round(square), 0, 255), tf.uint8)


def allocate(dataset: str, role: str, shape: tuple[int, ...], scratch: str | os.PathLike | None) -> np.ndarray:
    """uint8 array of this shape, in memory or, above 8 GiB, a memory map in scratch."""
    if shape[-1] not in (1, 3):
        raise InputError(f"{dataset}: images must have 1 or 3 channels. Received: {shape[-1]}")
    size = math.prod(shape)
    if size <= _IN_MEMORY_BYTES:
        return np.empty(shape, np.uint8)
    needed = f"{dataset}: the decoded {role} images {sides(shape)} take {size / 1e9:.1f} GB"
    if scratch is None:
        raise InputError(
            f"{needed}, too much for memory; choose a smaller image_size or a slice of the split, such as test[:10%]"
        )
    # A memory map is sparse: on a full disk, the process would be killed by SIGBUS long after this line.
    free = shutil.disk_usage(scratch).free
    if free < size:
        raise InputError(
            f"{needed} and {scratch} has {free / 1e9:.1f} GB free; make room or choose a smaller image_size"
        )
    return np.lib.format.open_memmap(Path(scratch) / f"{role}-images.npy", mode="w+", dtype=np.uint8, shape=shape)


@contextlib.contextmanager
def _told_in_one_line(problem: str, remedy: str) -> Iterator[None]:
    """Turns whatever TFDS, TensorFlow or a builder's code raises into the line "problem (why). remedy"."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = _one_line(_TENSORFLOW_NOISE.sub("", str(error)))[:_REASON_CHARACTERS]
        raise InputError(f"{problem} ({type(error).__name__}: {reason}). {remedy}") from error


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def sides(shape: tuple[int, ...]) -> str:
    """The sides of a shape in words, such as 28x28x1."""
    return "x".join(str(side) for side in shape)
