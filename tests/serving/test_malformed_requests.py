"""Malformed requests: clients send none, and a SavedModel's signatures refuse them by themselves."""

import math

import numpy as np
import pytest
import tensorflow as tf

from serving.client import GrpcClient, RestClient
from serving.validate import Server, check_certificates

# What no request may hold in the place of float32 [1 to 8 images, 8, 8, 1] in [0, 1].
_TYPES = ("f4", "f4", "f4", "f8", "f2", "i8", "i4", "u1", "?", "c8", "S3", "U2", "O", ">f4")
_NOT_PIXELS = (np.nan, np.inf, -np.inf, -1e-30, np.nextafter(np.float32(1), np.float32(2)), 255, -1, 3e38)


def malformed(random):
    """An array that is never a valid request to a model of 8x8x1 images, eight at once."""
    images = random.random((int(random.integers(1, 9)), 8, 8, 1), dtype=np.float32)
    match random.integers(4):
        case 0:  # pixels
            images.flat[random.integers(images.size)] = random.choice(_NOT_PIXELS)
        case 1:  # shape
            while images.shape[1:] == (8, 8, 1):
                images = np.zeros(tuple(random.integers(0, 10, random.integers(0, 6))), np.float32)
        case 2:  # type
            kind = random.choice([name for name in _TYPES if name != "f4"])
            images = images.astype(kind)
        case 3:  # number of images
            images = np.zeros((int(random.choice([0, 9, 100])), 8, 8, 1), np.float32)
    return images


def refused_by_clients(clients, images):
    """Whether each refuses, in one line; all that a client cannot know is how many and which images the model takes."""
    for client in clients:
        for ask in (client.certify, client.predict):
            with pytest.raises(ValueError, match="images must ") as error:
                ask(images)
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 400


def is_known_to_the_client(images):
    """Whether this is malformed whatever the model."""
    is_batch = images.dtype == np.float32 and images.dtype.isnative and images.ndim == 4 and images.size
    return not is_batch or not bool(((images >= 0) & (images <= 1)).all())


@pytest.fixture(scope="module")
def server(exported):
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        yield Server(session, exported)


def attack(server, count):
    random = np.random.default_rng(count)
    # Nobody listens there: what is sent by mistake ends in another error.
    clients = GrpcClient("127.0.0.1:1", "m", timeout=0.1), RestClient("http://127.0.0.1:1", "m", timeout=0.1)
    known = 0
    for number in range(count):
        images = malformed(random)
        if is_known_to_the_client(images):
            refused_by_clients(clients, images)
            known += 1
        if images.dtype == np.float32 and images.dtype.isnative and images.shape != (0, 8, 8, 1):
            signature = ("serving_default", "predict", "certify_custom")[number % 3]
            with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
                server(signature, images=images)
        scalars_are_refused(clients[0], random)
    clients[0].close()
    assert known > count / 3


def scalars_are_refused(client, random):
    good = np.full((1, 8, 8, 1), 0.5, np.float32)
    bad = {
        "n": (0, -1, 2**63, 1.0, True, "1", math.nan, [1], np.float32(1), b"1", {}),
        "alpha": (0.0, 1.0, -0.5, math.nan, math.inf, "0.1", 1, True, [0.1], 10**400, 0.1j, b"0.1"),
    }
    name = ("n", "alpha")[random.integers(2)]
    with pytest.raises(ValueError, match=f"{name} must be") as error:
        client.certify_custom(good, **{name: bad[name][random.integers(len(bad[name]))]})
    assert "\n" not in str(error.value)


def test_malformed_requests_are_refused(server):
    attack(server, 300)


@pytest.mark.slow  # so that -m "not slow" leaves it out, too
@pytest.mark.attack
def test_thousands_of_malformed_requests_are_refused(server):
    attack(server, 13_500)


@pytest.mark.parametrize(
    "scalars",
    [{"n": 0}, {"n": -5}, {"n": 20_001}, {"n": 2**63 - 1}, {"n": 5},
     {"n": [50, 0]}, {"n": [50, 50, 50]}, {"alpha": 0.0}, {"alpha": math.nan}, {"alpha": math.inf},
     {"alpha": -0.001}, {"alpha": 0.2}, {"alpha": 1e-7}, {"alpha": [0.001, 0.2]}, {"alpha": [0.01] * 3}, {"alpha": []}],
)  # fmt: skip
def test_scalars_that_are_none_are_refused_by_the_model(server, scalars):
    kinds = {"n": np.int64, "alpha": np.float64}
    images = np.full((2, 8, 8, 1), 0.5, np.float32)
    with pytest.raises(tf.errors.InvalidArgumentError):
        server("certify_custom", images=images, **{name: kinds[name](value) for name, value in scalars.items()})
    # And it goes on to answer.
    check_certificates(server("serving_default", images=images), {"n": 300, "alpha": 0.001, "sigma": 0.25,
                                                                   "class_names": range(10)})  # fmt: skip
