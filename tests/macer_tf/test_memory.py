"""What a training step needs in memory, as the operating system saw it, each in a process of its own."""

import json

import pytest

from tests import forks

SCRIPT = r"""
import json
import re
import sys
from pathlib import Path

import keras
import numpy as np

from macer_tf import networks
from macer_tf.model import MACERModel

name, side, channels, num_samples = sys.argv[1], *map(int, sys.argv[2:])
shape = (side, side, channels)
if name == "lenet":
    classifier = networks.lenet(shape)
else:
    inputs = keras.Input(shape)
    classifier = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
images = np.random.default_rng(0).integers(0, 256, (64, *shape)) / np.float32(255)


def peak(num_samples):
    model = MACERModel(classifier, 0.25, num_samples=num_samples, seed=0)
    model.compile("sgd")
    model.fit(images, np.zeros(64, int), batch_size=64, epochs=3, verbose=0)
    # Not getrusage: its peak is the parent's, where that was larger when it started this process.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


values = sum(int(np.prod(layer.output.shape[1:])) for layer in classifier.layers)
print(json.dumps([peak(1), peak(num_samples), values]))
"""
BATCH, FLOAT = 64, 4


def measure(*arguments):
    """(peak resident bytes with one copy of each of 64 images, with num_samples, outputs of all layers per copy)."""
    process = forks.run(["-c", SCRIPT, *arguments])
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
def test_lenet_with_64_copies_of_64_images_stays_under_2_gigabytes():
    one, many, values = measure("lenet", 28, 1, 64)
    assert many < 2e9
    # All that the layers put out, and the gradients of it, would be in memory at once; a fifth more for the rest.
    assert many - one < 1.2 * 2 * values * FLOAT * 64 * BATCH
    # Otherwise the copies were not what was measured: the first convolution's outputs, 24 * 24 * 20 a copy, are kept.
    assert many - one > 24 * 24 * 20 * FLOAT * 64 * BATCH


@pytest.mark.slow
def test_the_noise_is_in_memory_once():
    # Images large, network tiny: 128 noisy copies of 64 images of 64 * 64 * 3 floats are 403 MB, and nothing else is.
    one, many, _ = measure("linear", 64, 3, 128)
    copies = 64 * 64 * 3 * FLOAT * 128 * BATCH
    assert copies < many - one < 1.5 * copies
