import itertools
import struct
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from macer_tf import early_exit, noise
from macer_tf.certificates import ABSTAIN
from macer_tf.smoothing import SmoothedClassifier, default_microbatch
from serving import signatures as signatures_lib
from serving.signatures import SmoothedSignatures
from serving.siphash import siphash as siphash_in_the_graph

SIGMA, LEVELS = 0.5, 200
TAKE_IMAGES = ("serving_default", "certify_custom", "predict")


def signatures(classifier, n0=50, n=100, alpha=0.01, max_n=5000, max_batch_size=100):
    """Name -> function: keyword arguments -> name -> array. What is left out takes its default."""
    module = SmoothedSignatures(classifier, SIGMA, LEVELS, n0, n, alpha, max_n, max_batch_size, "the card")

    def answer(signature):
        return lambda **inputs: {name: values.numpy() for name, values in signature(**inputs).items()}

    return {name: answer(signature) for name, signature in module.signatures().items()}


@pytest.fixture(scope="module")
def served(linear_classifier):
    """The signatures of one classifier, at alpha = 0.01 and n = 100."""
    return signatures(linear_classifier(), n0=10)


def constant_images(*values):
    return np.array(values, np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)


def test_answers_agree_with_the_exact_probability_of_a_linear_classifier(linear_classifier):
    # The class probability is known: p_0 = Phi((sum + bias) / (sigma * |w|)) with |w| = 2.
    values = (0.0, 0.15, 0.25, 0.5, 0.9)
    served = signatures(linear_classifier(bias=-1.0), n0=1000, n=4000, alpha=1e-6)
    answers = served["serving_default"](images=constant_images(*values))
    p_0 = stats.norm.cdf((4 * np.array(values) - 1) / (2 * SIGMA))
    likeliest = np.where(p_0 > 0.5, 0, 1)
    true_radius = np.abs(4 * np.array(values) - 1) / 2
    assert answers["predicted_class"][[0, 1, 3, 4]].tolist() == likeliest[[0, 1, 3, 4]].tolist()
    assert answers["predicted_class"][2] == ABSTAIN  # p_0 = 1/2
    assert answers["radius"][2] == 0
    assert (answers["radius"] <= true_radius + 1e-6).all()
    assert (answers["votes"].sum(axis=1) == 4000).all()
    error = answers["votes"][:, 0] / 4000 - p_0
    assert (np.abs(error) <= 5 * np.sqrt(p_0 * (1 - p_0) / 4000) + 1e-6).all()
    predicted = served["predict"](images=constant_images(*values))
    assert predicted["predicted_class"][[0, 1, 3, 4]].tolist() == likeliest[[0, 1, 3, 4]].tolist()
    assert predicted["samples"][4] <= 64
    assert ((predicted["p_value"] <= 1e-6) == (predicted["predicted_class"] != ABSTAIN)).all()


def test_the_radius_follows_from_the_votes(linear_classifier):
    n = 1500
    answers = signatures(linear_classifier(-0.6), n=n)["serving_default"](
        images=constant_images(*np.linspace(0, 1, 11))
    )
    columns = (answers[name] for name in ("predicted_class", "radius", "p_lower", "votes"))
    for prediction, radius, p_lower, votes in zip(*columns, strict=True):
        # The bound is that of the class that selection chose, which near 1/2 may be either.
        bounds = np.where(votes > 0, stats.beta.ppf(0.01, np.maximum(votes, 1), n - votes + 1), 0)
        selected = np.abs(bounds - p_lower).argmin()
        assert bounds[selected] - 1e-10 <= p_lower <= bounds[selected]
        assert prediction == (selected if p_lower > 0.5 else ABSTAIN)
        expected = SIGMA * stats.norm.ppf(p_lower) if p_lower > 0.5 else 0.0
        assert radius == pytest.approx(expected, abs=1e-6)
        assert radius <= expected


def test_the_library_repeats_votes_and_predictions_from_the_seed(linear_classifier):
    classifier = linear_classifier(-0.9)
    served = signatures(classifier, n=700)
    images = constant_images(0.3, 0.2, 0.05, 1.0, 0.225)
    certified, predicted = (served[name](images=images) for name in ("serving_default", "predict"))
    for image, seed, votes in zip(images, certified["seed"], certified["votes"], strict=True):
        library = SmoothedClassifier(classifier, SIGMA, seed=seed[0], levels=LEVELS)
        assert library.count(image, int(seed[1]), noise.ESTIMATION, 0, 700).tolist() == votes.tolist()
    ends = [0, *early_exit.looks(1400, default_microbatch((2, 2, 1)))]
    samples = []
    for i, (image, seed) in enumerate(zip(images, predicted["seed"], strict=True)):
        library = SmoothedClassifier(classifier, SIGMA, seed=seed[0], levels=LEVELS)
        blocks = [
            library.count(image, int(seed[1]), noise.ESTIMATION, start, end - start)
            for start, end in itertools.pairwise(ends)
        ]
        expected = early_exit.anytime_predict(np.cumsum(blocks, axis=0)[None], alpha=0.01)
        assert predicted["predicted_class"][i] == expected.predictions[0]
        assert predicted["samples"][i] == expected.samples[0]
        assert predicted["p_value"][i] == pytest.approx(expected.p_values[0], rel=1e-8)
        samples.append(int(expected.samples[0]))
    assert min(samples) == 32
    assert max(samples) > 32


def test_a_hundred_concurrent_requests_get_a_hundred_seeds(served):
    image = constant_images(0.3)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: served["serving_default"](images=image), range(100)))
    seeds = {tuple(answer["seed"][0].tolist()) for answer in answers}
    assert len(seeds) == 100
    assert len({half for seed in seeds for half in seed}) == 200
    assert all(0 <= half < 2**32 for seed in seeds for half in seed)
    assert len({tuple(answer["votes"][0].tolist()) for answer in answers}) > 5


def test_images_of_one_request_have_seeds_of_their_own(served):
    answers = served["serving_default"](images=constant_images(*[0.3] * 20))
    assert len({tuple(seed) for seed in answers["seed"].tolist()}) == 20
    assert len(set(answers["votes"][:, 0].tolist())) > 5


def test_custom_samples_and_alpha_are_the_requests_own(linear_classifier):
    custom = signatures(linear_classifier(bias=8.0), n=300, alpha=0.001)["certify_custom"]
    images = constant_images(1.0, 1.0, 1.0)
    # p_0 = Phi(12): all votes are for class 0, so p_lower = alpha^(1 / n).
    expected = {
        (): [0.001 ** (1 / 300)] * 3,
        (50, 0.01): [0.01 ** (1 / 50)] * 3,
        ((20, 100, 5000), (0.1, 0.01, 1e-6)): [0.1 ** (1 / 20), 0.01 ** (1 / 100), 1e-6 ** (1 / 5000)],
    }
    for given, p_lower in expected.items():
        inputs = {"n": np.int64(given[0]), "alpha": np.float64(given[1])} if given else {}
        answers = custom(images=images, **inputs)
        np.testing.assert_allclose(answers["p_lower"], p_lower, atol=1e-10)
        assert answers["votes"].sum(axis=1).tolist() == np.broadcast_to(given[0] if given else 300, 3).tolist()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"n": 5001}, r"n must lie in \[1, 5000\]"),
        ({"n": 0}, r"n must lie in \[1, 5000\]"),
        ({"n": -(2**63)}, r"n must lie in \[1, 5000\]"),
        ({"n": [100, 5001]}, r"n must lie in \[1, 5000\]"),
        ({"n": 9, "alpha": 0.001}, "too small to certify"),
        ({"alpha": 0.11}, "alpha must lie in"),
        ({"alpha": 1e-7}, "alpha must lie in"),
        ({"alpha": 0.0}, "alpha must lie in"),
        ({"alpha": np.nan}, "alpha must lie in"),
        ({"alpha": [0.01, 0.01, 0.01]}, "shapes"),
    ],
)
def test_bad_custom_requests_are_refused(served, inputs, message):
    types = {"n": np.int64, "alpha": np.float64}
    given = {name: np.array(value, types[name]) for name, value in inputs.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served["certify_custom"](images=constant_images(0.2, 0.9), **given)


@pytest.mark.parametrize("name", TAKE_IMAGES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.01, 1.01])
def test_bad_pixels_are_refused_without_showing_them(served, name, bad):
    images = constant_images(0.123456, 0.5)
    images[1, 0, 0, 0] = bad
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"images must be finite and lie in \[0, 1\]") as error:
        served[name](images=images)
    assert "123456" not in str(error.value)


@pytest.mark.parametrize("name", TAKE_IMAGES)
def test_pixels_off_the_grid_are_refused_without_showing_them(served, name):
    images = constant_images(0.5, 0.123456)
    with pytest.raises(tf.errors.InvalidArgumentError, match="pixels must be multiples of 1/200, where") as error:
        served[name](images=images)
    assert "123456" not in str(error.value)


@pytest.mark.parametrize("name", TAKE_IMAGES)
def test_more_images_than_the_limit_are_refused(served, name):
    assert len(served[name](images=constant_images(*[0.5] * 100))["seed"]) == 100
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 100 images"):
        served[name](images=constant_images(*[0.5] * 101))


@pytest.mark.parametrize("name", TAKE_IMAGES)
def test_a_classifier_that_returns_nan_certifies_nothing(linear_classifier, name):
    classifier = linear_classifier()
    classifier.set_weights([np.full((4, 2), np.nan, np.float32), np.zeros(2, np.float32)])
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN or infinity"):
        signatures(classifier, n0=10)[name](images=constant_images(0.5))


@pytest.mark.parametrize("name", TAKE_IMAGES)
def test_an_empty_batch_has_empty_answers(served, name):
    answers = served[name](images=np.zeros((0, 2, 2, 1), np.float32))
    assert [len(values) for values in answers.values()] == [0] * len(answers)


def test_metadata_is_batch_major(served):
    metadata = served["metadata"]
    assert metadata()["model_card"].tolist() == [b"the card"]
    assert metadata(query=np.array(["", "a", "b"]))["model_card"].tolist() == [b"the card"] * 3


def test_more_queries_than_the_limit_are_refused(served):
    """One value may stand for many, so a few bytes would be answered with as many cards as memory holds."""
    with pytest.raises(tf.errors.InvalidArgumentError, match="one request takes at most 100 queries"):
        served["metadata"](query=np.full(101, ""))


@pytest.mark.parametrize("alpha", [0.2, 1e-7])
def test_an_alpha_that_no_request_may_ask_for_is_refused(linear_classifier, alpha):
    with pytest.raises(ValueError, match=r"alpha must lie in \[1e-06, 0\.1\] to be served\. Received: alpha="):
        signatures(linear_classifier(), n=1000, alpha=alpha)


def test_seeds_are_a_keyed_hash_of_what_tensorflow_draws(monkeypatch):
    """TensorFlow's own numbers tell the next ones; a client sees the hash, and not its key."""
    drawn, time = np.array([3, -5], np.int64), 1.5
    monkeypatch.setattr(tf.raw_ops, "NonDeterministicInts", lambda shape, dtype: tf.constant(drawn, dtype))
    monkeypatch.setattr(tf, "timestamp", lambda: tf.constant(time, tf.float64))
    secret = (2**64 - 1, 7)
    seeds = signatures_lib._fresh_seeds(tf.zeros([2, 1, 1, 1]), secret).numpy()
    for seed, number in zip(seeds.tolist(), drawn.tolist(), strict=True):
        expected = siphash(secret, struct.pack("<q", number) + struct.pack("<d", time))
        assert seed == [expected % 2**32, expected >> 32]


def test_each_export_has_a_key_of_its_own(linear_classifier):
    made = [SmoothedSignatures(linear_classifier(), SIGMA, LEVELS, 10, 100, 0.01, 100, 9, "") for _ in range(2)]
    keys = {half for module in made for half in module._secret}
    assert len(keys) == 4
    assert all(0 <= key < 2**64 for key in keys)


def siphash(key, message):
    """SipHash-2-4 in Python's whole numbers, from the paper (Aumasson and Bernstein, 2012)."""
    mask = 2**64 - 1
    v = [half ^ start for half, start in zip(key * 2, (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261,
                                                       0x7465646279746573), strict=True)]  # fmt: skip

    def add(i, j):
        v[i] = (v[i] + v[j]) & mask

    def rotate(i, bits, j=None):
        v[i] = ((v[i] << bits) | (v[i] >> (64 - bits))) & mask
        v[i] ^= 0 if j is None else v[j]

    def rounds(number):
        for _ in range(number):
            add(0, 1), add(2, 3), rotate(1, 13, 0), rotate(3, 16, 2), rotate(0, 32)
            add(2, 1), add(0, 3), rotate(1, 17, 2), rotate(3, 21, 0), rotate(2, 32)

    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_the_hash_is_the_published_one():
    """Of the paper's Appendix A: the bytes 0, 1, ..., 14 under the key of the bytes 0, 1, ..., 15."""
    key = struct.unpack("<QQ", bytes(range(16)))
    assert siphash(key, bytes(range(15))) == 0xA129CA6149BE45E5
    words = [tf.constant([word], tf.uint64) for word in struct.unpack("<QQ", bytes(range(16)))]
    assert siphash_in_the_graph(key, *words).numpy().tolist() == [siphash(key, bytes(range(16)))]


def test_settings_that_could_never_answer_are_refused(linear_classifier):
    with pytest.raises(ValueError, match="n must be at least 10"):
        signatures(linear_classifier(), n=9, alpha=0.001)
    with pytest.raises(ValueError, match=r"n must be at most max_n.*n=100, max_n=99"):
        signatures(linear_classifier(), n=100, max_n=99)
    with pytest.raises(ValueError, match=r"n and max_n must be at most 10,000,000.*n=100, max_n=10000001"):
        signatures(linear_classifier(), n=100, max_n=10_000_001)


def test_a_classifier_of_one_class_is_refused():
    inputs = keras.Input((2, 2, 1))
    single = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="two classes or more"):
        signatures(single)
