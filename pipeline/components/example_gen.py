"""ExampleGen: a data set by name, or anyone's folders or .npz files -> checked examples."""

import numpy as np

from pipeline.data import datasets, examples, own_images
from pipeline.orchestration.artifacts import Artifact
from pipeline.orchestration.orchestrator import Component, Resolver
from pipeline.utils.errors import InputError


def generate(execution):
    """Loads both splits, checks them once more in the form in which later components see them, and writes them."""
    parameters = execution.parameters
    train_images, test_images, validation, *of_dataset = (parameters[name] for name in EXAMPLE_GEN.parameters)
    if train_images:
        dataset = own_images.load(train_images, test_images, execution.scratch)
    else:
        dataset = datasets.load(*of_dataset, scratch=execution.scratch)
    for name in ("train", "test"):
        split = getattr(dataset, name)
        check_split(split.images, split.labels, dataset.pixel_max, dataset.num_classes, f"{dataset.name}, {name}")
    if validation:
        dataset = datasets.hold_out(dataset, validation)
    if train_images:  # only now: images that are held out, too, may be copies of those that are trained on
        dataset = own_images.telling_what_is_trained_on(dataset)
    examples.write(dataset, execution.outputs["examples"])


def check_split(images, labels, pixel_max, num_classes, name):
    """Raises InputError unless the images are uint8 [N, H, W, C] up to pixel_max, with N labels below num_classes."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) == 0:
        raise InputError(
            f"{name}: images must be uint8 [N, H, W, 1 or 3]. Received: {images.dtype} {list(images.shape)}"
        )
    if labels.shape != (len(images),):
        raise InputError(f"{name}: expected one label per image. Received: {len(images)} images, {len(labels)} labels")
    if images.max() > pixel_max:
        raise InputError(f"{name}: pixels must lie in 0..{pixel_max}. Received: {images.max()}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(f"{name}: labels must lie in 0..{num_classes - 1}. Received: {labels.min()}..{labels.max()}")


def enough_images(count):
    """A `Resolver` that looks nothing up, but raises InputError if there are fewer images to certify than `count`."""

    def check(artifacts, settings, root):
        there_are = len(examples.read(artifacts["examples"].path).labels["test"])
        if count > there_are:
            raise InputError(f"There are only {there_are:,} test images. Received: num_test_examples={count}")
        return Artifact(None, "none")

    return Resolver("enough_images", check)


def read_from(parameters):
    """Fingerprints of the images that these parameters name: name -> JSON value."""
    if parameters["train_images"]:
        return own_images.fingerprints_of_both(parameters["train_images"], parameters["test_images"])
    if parameters["dataset"] == "digits":
        return {}
    return {"dataset": datasets.fingerprint(parameters["dataset"], parameters["data_dir"])}


EXAMPLE_GEN = Component(
    name="ExampleGen",
    inputs=(),
    outputs=("examples",),
    parameters=(
        *("train_images", "test_images", "validation", "dataset", "data_dir", "train_split", "test_split"),
        "image_size",
    ),
    execute=generate,
    reads=read_from,
)
