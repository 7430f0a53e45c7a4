"""Anyone's folders and .npz files -> a data set to train and certify on."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from macer_tf.checks import rounding_of
from pipeline.data import datasets, image_files, sources
from pipeline.data.image_files import ImageError
from pipeline.utils import places
from pipeline.utils.errors import InputError
from serving import fingerprints

_MOST_CLASSES = 2**16


def load(train_images, test_images, scratch=None):
    """The `datasets.Dataset` of two sources that `sources.at` takes, of labelled images of one shape.

    Args:
        train_images, test_images: path of a folder or an .npz file each.
        scratch: as for `datasets.load`.

    Raises:
        InputError: in one line, if one cannot be read, lacks labels, or has an image that cannot be read or is not
            8-bit; or if the two disagree in shape or classes.
    """
    if os.path.realpath(train_images) == os.path.realpath(test_images):
        raise InputError(f"Test images must not be trained on. Received: {train_images} as both")
    for inner, outer in ((train_images, test_images), (test_images, train_images)):
        if Path(inner).is_dir() and image_files.is_among(inner, outer):
            raise InputError(
                "The folders of the images to train and to test on must lie beside each other, or one would be taken "
                f"for a class of the other. Received: {inner} in {outer}"
            )
    train = sources.at(train_images, None, is_to_train=True).open()
    shape = _image(train, train_images, 0).shape
    test = sources.at(test_images, shape).open()
    both = (("train", train_images, train), ("test", test_images, test))
    labels = [_labels(opened, path) for _, path, opened in both]
    class_names = _class_names(train, test, *labels)
    _tell_what_numbers_mean(train, test)
    splits = (
        datasets.Split(
            _images(opened, path, role, shape, scratch), own, f"images in {Path(path).name}", opened.names(opened.ids)
        )
        for (role, path, opened), own in zip(both, labels, strict=True)
    )
    return datasets.Dataset(name_of(train_images), *splits, datasets.pixel_max(None), len(class_names), class_names)


def telling_what_is_trained_on(dataset):
    """The data set; if some images to test on are trained on, too, their description says so, and a line does."""
    test = dataset.test
    trained_on = {fingerprints.short_digest(image.tobytes()) for image in dataset.train.images}
    count = sum(fingerprints.short_digest(image.tobytes()) in trained_on for image in test.images)
    if not count:
        return dataset
    print(f"  Of the images to test on, {count:,} of {len(test.images):,} are training images, too, and prove less.")
    description = f"{test.description} ({count:,} of them training images, too)"
    return dataclasses.replace(dataset, test=dataclasses.replace(test, description=description))


def name_of(train_images):
    """What a data set of anyone's images is called."""
    # A link may lead to a folder whose name is not valid text.
    return f"images-{places.short(sources.text_of(Path(os.path.realpath(train_images)).stem))}"


def fingerprint(path):
    """Identifies a folder or an .npz file: its content, and classes without an image.

    Raises:
        OSError, ValueError: if it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return fingerprints.file_digest(path)
    folders = sorted(one.name for one in path.iterdir() if one.is_dir() and not image_files.is_hidden(one.name))
    return fingerprints.fingerprint([folders, fingerprints.file_digests(path)])


def fingerprints_of_both(train_images, test_images):
    """The `fingerprint` of each, by its setting's name.

    Raises:
        InputError: if they are the same.
        OSError, ValueError: if one cannot be read.
    """
    found = {"train_images": fingerprint(train_images), "test_images": fingerprint(test_images)}
    if found["train_images"] == found["test_images"]:
        raise InputError(f"Test images must not be trained on: {train_images} and {test_images} have the same content.")
    return found


def _labels(opened, path):
    if not opened.has_labels:
        raise InputError(f"{path} has no labels: put the images into sub-folders, one for each class, or add 'labels'.")
    return np.array([opened.label(image_id) for image_id in opened.ids.tolist()], np.int64)


def _class_names(train, test, train_labels, test_labels):
    """The names of class 0, 1, ..., on which both sources agree."""
    are_folders = train.name(0) is not None and test.name(0) is not None
    of_train, of_test = (
        opened.class_names and tuple(map(image_files.spelling, opened.class_names)) for opened in (train, test)
    )
    if of_train and of_test and of_train != of_test:
        differing = sorted({*of_train} ^ {*of_test}) or list(of_test)
        remedy = "; make an empty folder for a class that has no image" if are_folders else ""
        raise InputError(
            "The training and test images must have the same classes, in the same order. They differ in "
            f"{sources.some(differing)}{remedy}."
        )
    if are_folders and bool(of_train) != bool(of_test):
        raise InputError(
            "The class folders of the training and the test images must be named alike, by numbers or by words. "
            f"Received: {sources.some(of_train or of_test)} to {'train' if of_train else 'test'} on, and numbers"
        )
    count = max(train_labels.max(), test_labels.max()) + 1
    if count > _MOST_CLASSES:
        raise InputError(f"Classes are numbered 0, 1, 2, ..., up to {_MOST_CLASSES - 1:,}. Received: {count - 1:,}")
    names = train.class_names or test.class_names or tuple(str(number) for number in range(train_labels.max() + 1))
    if count > len(names):
        raise InputError(
            f"The classes of the images to train on go up to number {len(names) - 1}, but the labels to {count - 1}: a "
            "number must mean the same class everywhere."
        )
    # A network that always answers with the only class would be certified as perfect.
    trained = [names[number] for number in np.unique(train_labels)]
    if len(trained) < 2:
        raise InputError(f"Two classes or more are needed to train. Received: {sources.some(trained)} only")
    return names


def _tell_what_numbers_mean(train, test):
    """Prints which folders an archive's numbers stand for, if the other source has folders named by words."""
    for role, numbered, named in (("train", train, test), ("test", test, train)):
        if numbered.class_names is None and numbered.name(0) is None and named.class_names and named.name(0):
            meant = [f"{number} is {name}" for number, name in enumerate(named.class_names)]
            print(f"  Labels of the images to {role} on are the numbers of the sorted folders: {sources.some(meant)}.")


def _images(opened, path, role, shape, scratch):
    images = datasets.allocate(str(path), role, (len(opened.ids), *shape), scratch)
    for image_id in opened.ids.tolist():
        pixels = _image(opened, path, image_id)
        exact = pixels.astype(np.float64) * 255
        images[image_id] = np.rint(exact)
        # The same tolerance as where images are put on the grid of the noise, whatever the float type.
        if (np.abs(exact - images[image_id]) > 255 * rounding_of(pixels.dtype)).any():
            raise InputError(
                f"{path}: image {image_id} has pixels between the 256 levels of 8 bits; save the images with 8 bits."
            )
    return images


def _image(opened, path, image_id):
    try:
        return opened.image(image_id)
    except ImageError as error:
        why = str(error).removesuffix(image_files.OR_RESIZED)
        raise InputError(f"{path}: image {image_id} cannot be used: {why}") from None
