"""Folders and .npz files of anyone's -> a data set to train and to certify on."""

from pathlib import Path

import numpy as np

from pipeline.data import datasets, image_files, sources
from pipeline.data.image_files import ImageError
from pipeline.utils.errors import InputError
from serving import fingerprints


def load(train_images, test_images, scratch=None):
    """The `datasets.Dataset` of two sources that `sources.at` takes, of images of one shape with labels.

    Args:
        train_images, test_images: paths of a folder or an .npz file each.
        scratch: as for `datasets.load`.

    Raises:
        InputError: in one line, if one cannot be read, lacks labels, or holds an image that cannot be read or is not
            8-bit, or if the two disagree in shape or classes.
    """
    if Path(train_images).resolve() == Path(test_images).resolve():
        raise InputError(f"Test images must not be trained on. Received: {train_images} as both")
    train = sources.at(train_images, None).open()
    shape = _image(train, train_images, 0).shape
    test = sources.at(test_images, shape).open()
    labels = [_labels(opened, path) for opened, path in ((train, train_images), (test, test_images))]
    class_names = _class_names(train, test, *labels)
    splits = [
        datasets.Split(
            _images(opened, path, role, shape, scratch),
            of_split,
            f"images in {Path(path).name}",
            opened.names(opened.ids),
        )
        for role, opened, of_split, path in zip(
            ("train", "test"), (train, test), labels, (train_images, test_images), strict=True
        )
    ]
    return datasets.Dataset(name_of(train_images), *splits, 255, len(class_names), class_names)


def name_of(train_images):
    """What a data set of anyone's images is called."""
    return f"images-{Path(train_images).resolve().stem}"


def fingerprint(path):
    """Tells a folder or an .npz file from others: its content, and the classes without an image.

    Raises:
        OSError, ValueError: if it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return fingerprints.file_digest(path)
    folders = sorted(one.name for one in path.iterdir() if one.is_dir() and not image_files.is_hidden(one.name))
    return fingerprints.fingerprint([folders, fingerprints.file_digests(path)])


def _labels(opened, path):
    if not opened.has_labels:
        raise InputError(f"{path} has no labels: put the images into sub-folders, one for each class, or add 'labels'.")
    return np.array([opened.label(image_id) for image_id in opened.ids.tolist()], np.int64)


def _class_names(train, test, train_labels, test_labels):
    """The names of class 0, 1, ..., on which both sources agree."""
    if train.class_names and test.class_names and train.class_names != test.class_names:
        differing = sorted({*train.class_names} ^ {*test.class_names}) or list(test.class_names)
        raise InputError(
            f"The images to train and to test on must have the same classes, in one order. They differ in "
            f"{sources.some(differing)}; make an empty folder for a class that has no image."
        )
    count = max(train_labels.max(), test_labels.max()) + 1
    names = train.class_names or test.class_names or tuple(str(number) for number in range(train_labels.max() + 1))
    if count > len(names):
        raise InputError(
            f"The images to train on have {len(names)} classes, and the labels are up to {count - 1}: numbers must "
            "mean the same."
        )
    if len(names) < 2:
        raise InputError(f"Two classes or more are needed to train. Received: {sources.some(names)}")
    return names


def _images(opened, path, role, shape, scratch):
    images = datasets.allocate(str(path), role, (len(opened.ids), *shape), scratch)
    for image_id in opened.ids.tolist():
        pixels = _image(opened, path, image_id)
        images[image_id] = np.round(pixels * 255)
        if not np.array_equal(images[image_id].astype(np.float32) / np.float32(255), pixels):
            raise InputError(
                f"{path}: image {image_id} has pixels between the 256 levels of 8 bits; save the images with 8 bits."
            )
    return images


def _image(opened, path, image_id):
    try:
        return opened.image(image_id)
    except ImageError as error:
        raise InputError(f"{path}: image {image_id} cannot be used: {error}") from None
