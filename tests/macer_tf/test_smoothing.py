import copy
import json
import multiprocessing
import os
import pickle
import signal
import threading
import warnings

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers, ops
from scipy import stats

from macer_tf import certificates, networks, noise, smoothing
from macer_tf.certificates import ABSTAIN
from macer_tf.grid_noise import GridNoise
from macer_tf.inference import InferenceGraph
from macer_tf.layers import FusedBatchNormalization
from macer_tf.model import MACERModel
from macer_tf.smoothing import SmoothedClassifier
from tests import forks

SIGMA = 0.5


def linear_classifier(weights, bias=0.0):
    """Two classes: logit of class 1 is w.x + b, of class 0 zero; w has the shape of an image."""
    inputs = keras.Input(weights.shape)
    dense = layers.Dense(2)
    model = keras.Model(inputs, dense(layers.Flatten()(inputs)))
    dense.set_weights([np.stack([np.zeros(weights.size), weights.ravel()], axis=1), np.array([0.0, bias])])
    return model


def exact_top(weights, bias, images, sigma):
    """The smoothed linear classifier's class, its probability, and the true distance to the decision boundary."""
    margin = (images.reshape(len(images), -1) @ weights.ravel() + bias) / np.linalg.norm(weights)
    return (margin > 0).astype(int), stats.norm.cdf(np.abs(margin) / sigma), np.abs(margin)


@pytest.fixture(scope="module")
def linear():
    """Weights [2, 2, 1] and bias, for which images in [0, 1] lie within about one sigma of the boundary."""
    weights = np.array([1.0, -2.0, 0.5, 1.5], np.float32).reshape(2, 2, 1)
    return weights, -0.5


def random_images(count, shape=(2, 2, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.float32) / np.float32(255)


def noisy_copies(image, sigma, seed, example_id, stream, start, count):
    """What a classifier is to see: multiples of 1/255, rounded to float32 once."""
    noise_of = GridNoise(sigma).draw(image.shape, seed, example_id, stream, start, count).numpy()
    return (np.rint(image * 255) + noise_of) / np.float32(255)


def test_votes_are_what_the_exact_probabilities_say(linear):
    images = random_images(20)
    classes, p_top, _ = exact_top(*linear, images, SIGMA)
    votes = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=1).votes(images, 400, 4000)
    assert (votes.n0 == 400).all()
    assert (votes.n == 4000).all()
    for counts, n in ((votes.selection, 400), (votes.estimation, 4000)):
        hits = counts[np.arange(20), classes]
        assert (np.abs(hits - n * p_top) < 4.5 * np.sqrt(n * p_top * (1 - p_top))).all()


def test_a_certified_radius_never_exceeds_the_distance_to_the_boundary(linear):
    # A false radius has probability at most 0.001 an image: of 300, 0.3 are expected at most; this seed has none.
    images = random_images(300, seed=1)
    classes, _, distance = exact_top(*linear, images, SIGMA)
    result = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=2).certify(images, n0=50, n=1000, alpha=0.001)
    certified = result.predictions != ABSTAIN
    assert certified.mean() > 0.6
    np.testing.assert_array_equal(result.predictions[certified], classes[certified])
    assert (result.radii <= distance).all()
    # ... and is not idle either: half of the largest possible where the image is far from the boundary.
    far = distance > SIGMA
    assert far.sum() > 10
    assert (result.radii[far] > 0.5 * SIGMA).all()


def test_coverage_over_thousands_of_certifications(linear):
    images = random_images(2500, seed=3)
    classes, _, distance = exact_top(*linear, images, SIGMA)
    alpha = 0.05
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=3)
    result = smoothed.certify(images, n0=60, n=60, alpha=alpha)
    certified = result.predictions != ABSTAIN
    false = certified & ((result.predictions != classes) | (result.radii > distance))
    assert false.mean() <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 2500)
    assert false.mean() > 0.005  # the test would see a bound that is too high: some do fail
    # Reusing the selection votes would be one way to fail: the two sets of votes are uncorrelated given p_A.
    p_one = np.where(classes == 1, 1, -1) * distance / SIGMA
    votes = smoothed.votes(images[:800], 60, 60)
    expected = 60 * stats.norm.cdf(p_one[:800])
    residuals = [counts[:, 1] - expected for counts in (votes.selection, votes.estimation)]
    assert abs(np.corrcoef(*residuals)[0, 1]) < 4 / np.sqrt(800)


@pytest.mark.parametrize("network", ["linear", "convolutional"])
def test_votes_do_not_depend_on_batching(linear, network):
    if network == "linear":
        model, images = linear_classifier(*linear), random_images(3)
    else:
        keras.utils.set_random_seed(0)
        model, images = networks.small_cnn((5, 5, 3), 4), random_images(3, (5, 5, 3))
    ids = [5, 2**32 - 1, 0]
    reference = SmoothedClassifier(model, SIGMA, seed=2**32 - 1, microbatch=500).votes(images, 30, 1001, ids)
    for microbatch in (1, 7, 2000):
        some = slice(0, 1) if microbatch == 1 else slice(None)
        other = SmoothedClassifier(model, SIGMA, seed=2**32 - 1, microbatch=microbatch)
        votes = other.votes(images[some], 30, 1001, ids[some])
        np.testing.assert_array_equal(votes.selection, reference.selection[some])
        np.testing.assert_array_equal(votes.estimation, reference.estimation[some])
    alone = other.votes(images[1:2], 30, 1001, ids[1:2])
    np.testing.assert_array_equal(alone.estimation, reference.estimation[1:2])
    # The same image under another id, or another seed, gets other noise.
    assert (other.votes(images[:1], 30, 1001, [6]).estimation != reference.estimation[:1]).any()
    other_seed = SmoothedClassifier(model, SIGMA, seed=3).votes(images[:1], 30, 1001, [5])
    assert (other_seed.estimation != reference.estimation[:1]).any()


def test_counts_over_split_ranges_add_up(linear):
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=4, microbatch=64)
    image = random_images(1)[0]
    whole = smoothed.count(image, 9, noise.ESTIMATION, 0, 1000)
    parts = [
        smoothed.count(image, 9, noise.ESTIMATION, a, b - a) for a, b in ((0, 1), (1, 333), (333, 999), (999, 1000))
    ]
    assert whole.sum() == 1000
    assert whole.dtype == np.int64
    np.testing.assert_array_equal(sum(parts), whole)
    np.testing.assert_array_equal(whole, smoothed.votes(image[None], 5, 1000, [9]).estimation[0])
    assert (smoothed.count(image, 9, noise.SELECTION, 0, 1000) != whole).any()
    assert smoothed.count(image, 9, noise.ESTIMATION, 2**33, 10).sum() == 10


def probe(outputs=lambda images: tf.zeros([tf.shape(images)[0], 2])):
    """A classifier and the list of batches that it gets to see."""
    seen = []

    class Probe(keras.Model):
        def call(self, images):
            tf.py_function(lambda batch: seen.append(batch.numpy()), [images], [])
            return outputs(images)

    return Probe(), seen


def test_the_classifier_sees_the_image_plus_sigma_times_the_addressed_noise():
    model, seen = probe()
    images = random_images(3, (5, 3, 3))
    # Up to a multiple of 96.
    smoothed = SmoothedClassifier(model, 0.25, seed=8, microbatch=3)
    smoothed.draw(images, [77, 2**32 - 1, 5], noise.SELECTION, [2, 0, 2**33], [10, 21, 4])
    expected = [
        noisy_copies(image, 0.25, 8, example_id, noise.SELECTION, start, count)
        for image, example_id, start, count in zip(images, (77, 2**32 - 1, 5), (2, 0, 2**33), (10, 21, 4), strict=True)
    ]
    drawn = seen[9:]  # it was tried on nine batches before
    assert [len(batch) for batch in drawn] == [96]
    np.testing.assert_allclose(np.concatenate(drawn)[:35], np.concatenate(expected), atol=1e-7)


def test_passes_are_filled_across_images():
    assert list(smoothing.passes([60], 576)) == [[(0, 0, 60)]]
    assert list(smoothing.passes([1300], 576)) == [[(0, 0, 576)], [(0, 576, 576)], [(0, 1152, 148)]]
    assert list(smoothing.passes([200, 1, 500], 576)) == [[(0, 0, 200), (1, 0, 1), (2, 0, 375)], [(2, 375, 125)]]
    assert list(smoothing.passes([576, 1], 576)) == [[(0, 0, 576)], [(1, 0, 1)]]


@pytest.mark.parametrize(("microbatch", "rows"), [(1, 96), (96, 96), (97, 192), (512, 576), (None, 768)])
def test_a_microbatch_is_rounded_up_to_a_multiple_of_96_rows(linear, monkeypatch, microbatch, rows):
    seen, draw_pass = [], smoothing.draw_pass
    monkeypatch.setattr(smoothing, "draw_pass", lambda *given: seen.append(given[2]) or draw_pass(*given))
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=1, microbatch=microbatch)
    assert smoothed.count(random_images(1)[0], 0, noise.ESTIMATION, 0, 800).sum() == 800
    assert seen == [rows]


@pytest.mark.parametrize("rows", [96, 192, 576])
def test_passes_draw_each_sample_once(rows):
    rng = np.random.default_rng(rows)
    for _ in range(50):
        counts = rng.integers(1, 300, rng.integers(1, 12)).tolist()
        drawn = [[] for _ in counts]
        sizes = []
        for pieces in smoothing.passes(counts, rows):
            sizes.append(sum(samples for *_, samples in pieces))
            assert len({image for image, *_ in pieces}) == len(pieces)
            for image, offset, samples in pieces:
                drawn[image] += range(offset, offset + samples)
        assert drawn == [list(range(count)) for count in counts]
        assert all(size == rows for size in sizes[:-1])
        assert 0 < sizes[-1] <= rows


def test_images_drawn_together_get_the_votes_that_each_gets_alone():
    keras.utils.set_random_seed(3)
    model = networks.small_cnn((5, 5, 3), 3)
    images, ids = random_images(5, (5, 5, 3)), [9, 2, 2**32 - 1, 0, 4]
    starts, counts = [0, 7, 2**33, 1000, 3], [300, 1, 77, 120, 500]
    smoothed = SmoothedClassifier(model, SIGMA, seed=2, microbatch=128, betas=(1.0, 16.0))
    together = smoothed.draw(images, ids, noise.ESTIMATION, starts, counts)
    assert together.counts.dtype == np.int64
    assert together.counts.sum(axis=1).tolist() == counts
    for i in range(5):
        # In two parts, which add up, soft votes to the last bit.
        half = counts[i] // 2
        parts = [(starts[i], half), (starts[i] + half, counts[i] - half)]
        drawn = [
            smoothed.draw(images[i : i + 1], ids[i : i + 1], noise.ESTIMATION, [start], [count])
            for start, count in parts
            if count
        ]
        np.testing.assert_array_equal(sum(part.counts[0] for part in drawn), together.counts[i])
        for beta, moments in together.soft.items():
            for moment, whole in enumerate(moments):
                np.testing.assert_array_equal(sum(part.soft[beta][moment][0] for part in drawn), whole[i])
        np.testing.assert_array_equal(
            smoothed.count(images[i], ids[i], noise.ESTIMATION, starts[i], counts[i]), together.counts[i]
        )


def test_soft_votes_by_hand():
    # Level outputs: softmax is 1/2, or the float32 below it, and u = 2**19, or 1 less, at any beta.
    model, _ = probe()
    drawn = SmoothedClassifier(model, SIGMA, seed=1, betas=(1.0, 4.0)).draw(
        GOOD, [0, 1], noise.ESTIMATION, [0, 0], [3, 5]
    )
    assert list(drawn.soft) == [1.0, 4.0]
    for sums, squares in drawn.soft.values():
        assert (sums.dtype, squares.dtype) == (np.int64, np.int64)
        u = sums[0, 0] // 3
        assert 2**19 - u in (0, 1)
        assert sums.tolist() == [[3 * u] * 2, [5 * u] * 2]
        assert squares.tolist() == [[3 * u**2] * 2, [5 * u**2] * 2]
    # All ties go to class 0.
    assert drawn.counts.tolist() == [[3, 0], [5, 0]]


def test_soft_votes_are_those_of_the_softmax(linear):
    model, beta, n = linear_classifier(*linear), 3.0, 700
    image = random_images(1)
    sums, squares = (
        SmoothedClassifier(model, SIGMA, seed=4, betas=(beta,)).draw(image, [7], noise.ESTIMATION, [0], [n]).soft[beta]
    )
    noisy = noisy_copies(image[0], SIGMA, 4, 7, noise.ESTIMATION, 0, n).astype(np.float64)
    weights, bias = linear
    margin = noisy.reshape(n, -1) @ weights.ravel() + bias
    p = 1 / (1 + np.exp(-beta * np.stack([-margin, margin], axis=1)))
    # Rounded down to 2**-20, and float32 knows p to about 1e-6.
    np.testing.assert_allclose(sums[0] / 2**20, p.sum(axis=0), atol=n * 2e-6)
    np.testing.assert_allclose(squares[0] / 2**40, (p**2).sum(axis=0), atol=n * 4e-6)
    assert (sums.sum(axis=1) <= n * 2**20).all()


BITS = """
import json, sys
import keras
import numpy as np
import tensorflow as tf

threads = int(sys.argv[1])
tf.config.threading.set_intra_op_parallelism_threads(threads)
from macer_tf import networks, noise
from macer_tf.grid_noise import GridNoise
from macer_tf.inference import InferenceGraph
from macer_tf.smoothing import SmoothedClassifier

rng = np.random.default_rng(0)
drawn, logits = [], []
for name, shape, precision in (("small_cnn", (9, 9, 1), "float32"), ("cifar_resnet8", (8, 8, 3), "bfloat16")):
    keras.utils.set_random_seed(0)
    model = networks.build(name, shape, 5)
    graph = tf.function(InferenceGraph(model, precision))
    rows = rng.normal(0.5, 0.5, (768, *shape)).astype(np.float32)
    whole, order = graph(rows).numpy(), rng.permutation(768)
    for size in (768, 288, 96):
        parts = np.concatenate([graph(rows[order[i : i + size]]).numpy() for i in range(0, 768 - size + 1, size)])
        logits.append(bool((parts == whole[order[: len(parts)]]).all()))
    images = rng.integers(0, 256, (3, *shape)).astype(np.float32) / np.float32(255)
    for microbatch in (32, 300):
        smoothed = SmoothedClassifier(model, 0.5, 1, microbatch, precision, betas=(4.0,))
        votes = smoothed.draw(images, [3, 1, 2], noise.ESTIMATION, [0, 5, 0], [200, 70, 330])
        drawn.append([votes.counts.tolist(), *(moment.tolist() for moment in votes.soft[4.0])])
print(json.dumps([logits, drawn]))
"""


def run_script(script, *arguments):
    """What a process of its own prints on its last line, as JSON."""
    process = forks.run(["-c", script, *arguments])
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


def test_votes_do_not_depend_on_threads_microbatch_place_or_company_to_the_bit():
    # A soft vote sees any bit of an output: it is rounded to 2**-20, and there are thousands.
    runs = [run_script(BITS, threads) for threads in ("1", "3")]
    for logits, drawn in runs:
        assert all(logits), logits
        assert drawn[0] == drawn[1]
        assert drawn[2] == drawn[3]
    assert runs[0] == runs[1]


MEMORY = r"""
import json, re
from pathlib import Path
import keras
import numpy as np
from macer_tf.smoothing import SmoothedClassifier

inputs = keras.Input((32, 32, 3))
model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
images = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3)) / np.float32(255)
smoothed = SmoothedClassifier(model, 0.5, seed=0, microbatch=128)
peaks = []
for count, n in ((4, 128), (4, 128), (48, 128), (4, 3000)):
    smoothed.votes(images[:count], 32, n)
    # Not getrusage: its peak is the parent's, where that was larger when it started this process.
    peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
print(json.dumps(peaks))
"""


def test_peak_memory_grows_neither_with_n_nor_with_images():
    # In MiB; the noise of 12,000 samples alone would be 141, that of 48 images 72.
    _, before, images, samples = run_script(MEMORY)
    assert images - before < 24
    assert samples - before < 24


def test_another_precision_is_another_classifier():
    keras.utils.set_random_seed(1)
    model = networks.small_cnn((8, 8, 1), 10)
    image = random_images(1, (8, 8, 1))
    noisy = noisy_copies(image[0], SIGMA, 1, 0, noise.ESTIMATION, 0, 1000)
    for precision in ("float32", "bfloat16"):
        smoothed = SmoothedClassifier(model, SIGMA, seed=1, precision=precision)
        assert smoothed.precision == precision
        outputs = tf.function(InferenceGraph(model, precision))(noisy).numpy()
        expected = np.bincount(outputs.argmax(axis=1), minlength=10)
        np.testing.assert_array_equal(smoothed.votes(image, 1, 1000).estimation[0], expected)
    assert SmoothedClassifier(model, SIGMA).precision == "float32"


def test_a_macer_model_is_taken_apart(linear):
    model = linear_classifier(*linear)
    smoothed = SmoothedClassifier(MACERModel(model, 0.25), seed=1)
    assert smoothed.classifier is model
    assert smoothed.sigma == 0.25
    assert SmoothedClassifier(MACERModel(model, 0.25), sigma=0.5).sigma == 0.5
    plain = SmoothedClassifier(model, 0.25, seed=1)
    np.testing.assert_array_equal(
        smoothed.votes(random_images(2), 5, 50).estimation, plain.votes(random_images(2), 5, 50).estimation
    )


def test_without_a_seed_every_classifier_draws_its_own(linear):
    seeds = {SmoothedClassifier(linear_classifier(*linear), SIGMA).seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize("name", ["sigma", "seed", "classifier", "precision", "betas"])
def test_what_the_traced_graph_holds_cannot_be_changed_behind_it(linear, name):
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA)
    with pytest.raises(AttributeError, match="no setter"):
        setattr(smoothed, name, 1)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused_in_one_line(linear, duplicate):
    with pytest.raises(TypeError, match=r"^A SmoothedClassifier cannot be copied or pickled\. Save its classifier, "):
        duplicate(SmoothedClassifier(linear_classifier(*linear), 0.25))


def test_predict(linear):
    images = random_images(40, seed=5)
    classes, p_top, _ = exact_top(*linear, images, SIGMA)
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=1)
    predictions = smoothed.predict(images, n=1000, alpha=0.001)
    answered = predictions != ABSTAIN
    np.testing.assert_array_equal(predictions[answered], classes[answered])
    assert answered[p_top > 0.6].all()
    assert answered.mean() < 1


def test_a_tie_is_abstained_on():
    # p_A is exactly 1/2 everywhere: the sign of one pixel's noise.
    weights = np.array([1.0, 0.0, 0.0, 0.0], np.float32).reshape(2, 2, 1)
    images = np.zeros((200, 2, 2, 1), np.float32)
    smoothed = SmoothedClassifier(linear_classifier(weights), SIGMA, seed=6)
    assert (smoothed.predict(images, n=100, alpha=0.001) == ABSTAIN).all()
    assert (smoothed.certify(images, n0=20, n=100, alpha=0.001).predictions == ABSTAIN).all()


class Recorder(keras.Model):
    """Fails the test if it is ever called."""

    def call(self, images):
        raise AssertionError("the classifier was called")


GOOD = np.full((2, 4, 4, 1), 128 / 255, np.float32)


def changed(value, dtype=np.float32):
    images = GOOD.astype(dtype)
    images[1, 2, 3, 0] = value
    return images


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (changed(1.001), {}, r"lie in \[0, 1\]. Received: values from 0.50\d+ to 1.00"),
        (changed(-0.001), {}, r"lie in \[0, 1\]"),
        (changed(np.nan), {}, "finite"),
        (changed(np.inf), {}, "finite"),
        (GOOD.astype(np.uint8), {}, "divide bytes by 255. Received: dtype=uint8"),
        (
            [np.ma.masked_array(one, mask=one > 0) for one in GOOD],
            {},
            "Pixels must not be masked; .* Received: 32 masked",
        ),
        (GOOD[0], {}, r"shape \[images, height, width, channels\]. Received: \(4, 4, 1\)"),
        (tf.data.Dataset.from_tensor_slices(GOOD), {}, r"channels\]. Received: \w*Dataset$"),
        (GOOD[:0], {}, r"shape \[images, height, width, channels\]. Received: \(0, 4, 4, 1\)"),
        (GOOD, {"example_ids": [3, 3]}, "example_ids must be different whole numbers from 0 to 4294967295"),
        (GOOD, {"example_ids": [-1, 3]}, "different whole numbers"),
        (GOOD, {"example_ids": [0, 2**32]}, "different whole numbers"),
        (GOOD, {"example_ids": [0, np.ma.masked]}, "example_ids must not be masked"),
        (GOOD, {"example_ids": [0]}, "one whole number per image"),
        (GOOD, {"example_ids": [0.0, 1.0]}, "one whole number per image. Received: float64"),
        (GOOD, {"n": 9}, "n must be at least 1"),
        (GOOD, {"n": 0}, "n, a number of samples, must be a whole number from 1. Received: n=0"),
        (GOOD, {"n": "100"}, "n, a number of samples, must be a whole number from 1. Received: n=100"),
        (GOOD, {"n": None}, "n, a number of samples, must be a whole number from 1. Received: n=None"),
        (GOOD, {"n": 5.0}, "n, a number of samples, must be a whole number from 1. Received: n=5.0"),
        (GOOD[:, :0], {}, r"of one pixel or more, must have shape .*Received: \(2, 0, 4, 1\)"),
        (GOOD, {"n": 1e5}, "n, a number of samples, must be a whole number from 1. Received: n=100000.0"),
        (
            GOOD,
            {"n": 10**19},
            "n, a number of samples, must be at most 1,099,511,627,776. Received: n=10000000000000000000",
        ),
        (GOOD, {"n": 2**40 + 1}, "n, a number of samples, must be at most 1,099,511,627,776"),
        (GOOD, {"alpha": 0}, "alpha"),
        (GOOD, {"alpha": 1}, "alpha"),
    ],
)
def test_bad_input_is_said_before_any_sampling(images, options, message):
    smoothed = SmoothedClassifier(Recorder(), SIGMA, seed=0)
    for method in (smoothed.certify, smoothed.predict):
        with pytest.raises(ValueError, match=message) as caught:
            method(images, **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n0", [0, -5, 2.5])
def test_bad_n0(n0):
    smoothed = SmoothedClassifier(Recorder(), SIGMA)
    # For `certify`, 0 says that the estimation samples choose the class, too.
    for method in (smoothed.votes, smoothed.certify) if n0 else (smoothed.votes,):
        with pytest.raises(ValueError, match="n0, a number of samples, must be a whole number from 1"):
            method(GOOD, n0=n0, n=1000)


@pytest.mark.parametrize(
    "arguments",
    [(2**32, 0, 0, 5), (-1, 0, 0, 5), (0, 2, 0, 5), (0, 0, -1, 5), (0, 0, 0, 0)],
)
def test_count_does_not_reach_beyond_its_address(arguments):
    with pytest.raises(ValueError, match="Received"):
        SmoothedClassifier(Recorder(), SIGMA).count(GOOD[0], *arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0}, r"sigma, the noise level in \[0, 1\] pixel units, must be above 0. Received: sigma=0"),
        ({"sigma": "0.25"}, r"must be above 0. Received: sigma='0.25'"),
        ({"sigma": [0.25]}, r"must be above 0. Received: sigma=\[0.25\]"),
        ({"sigma": 1e-4}, r"must lie in \[0.05, 16,384\]. Received: levels=255, sigma=0.0001"),
        ({"seed": "a"}, "seed must be a whole number from 0 to 4294967295. Received: seed='a'"),
        ({"seed": float("nan")}, "seed must be a whole number from 0 to 4294967295. Received: seed=nan"),
        ({"levels": None}, "must be a whole number from 1 to 65535. Received: levels=None"),
        ({"levels": "255"}, "must be a whole number from 1 to 65535. Received: levels='255'"),
        ({"microbatch": 2.5}, "microbatch must be a whole number from 1. Received: microbatch=2.5"),
        ({"sigma": np.nan}, "sigma"),
        ({"sigma": np.inf}, "sigma"),
        ({"sigma": None}, "sigma"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295. Received: seed=-1"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"microbatch": 0}, "microbatch must be a whole number from 1"),
        ({"betas": (1.0, 0.0)}, "beta, the inverse temperature, must be above 0. Received: beta=0.0"),
        ({"precision": "half"}, "precision must be one of float32, bfloat16. Received: precision=half"),
        ({"precision": "bfloat16"}, "computes in float32; only functional and sequential models"),
        ({"classifier": lambda images: images}, "must be a keras.Model. Received: function"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SmoothedClassifier(**{"classifier": Recorder(), "sigma": SIGMA, **options})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_classifier_that_returns_nan_is_refused(linear, bad):
    model = linear_classifier(*linear)
    model.layers[-1].set_weights([np.zeros((4, 2)), np.array([0.0, bad])])
    with pytest.raises(ValueError, match="NaN or infinite outputs for image 3; it cannot be certified"):
        SmoothedClassifier(model, SIGMA).certify(random_images(1), example_ids=[3])


def test_of_several_images_the_one_with_bad_outputs_is_named():
    # NaN where the image is bright, in the middle of a pass.
    model, seen = probe(lambda images: tf.math.sqrt(0.7 - tf.reduce_mean(images, [1, 2])) * [[1.0, 2.0]])
    images = np.stack([np.full((4, 4, 1), value, np.float32) for value in (0.2, 0.4, 0.8, 0.2)])
    smoothed = SmoothedClassifier(model, 0.01, seed=1)
    with pytest.raises(ValueError, match="NaN or infinite outputs for image 31; it cannot be certified") as caught:
        smoothed.votes(images, 10, 20, [5, 8, 31, 2])
    assert "\n" not in str(caught.value)
    assert len(seen) == 9 + 1  # it was tried on nine batches before
    assert smoothed.votes(images[[0, 1, 3]], 10, 20).n.tolist() == [20] * 3


def test_rows_that_fill_a_pass_are_neither_counted_nor_judged():
    # The outputs are NaN from some sample on; up to there all is well.
    first = noisy_copies(GOOD[0], 1.0, 3, 0, noise.ESTIMATION, 0, 128)[:, 0, 0, 0]
    bad = int(np.argmax(first > 2.0))
    assert 2 < bad < 100
    model, _ = probe(lambda images: tf.math.sqrt(2.0 - images[:, 0, 0]) * [[1.0, 2.0]])
    smoothed = SmoothedClassifier(model, 1.0, seed=3)
    assert smoothed.count(GOOD[0], 0, noise.ESTIMATION, 0, bad).tolist() == [0, bad]
    with pytest.raises(ValueError, match="NaN or infinite outputs for image 0"):
        smoothed.count(GOOD[0], 0, noise.ESTIMATION, 0, bad + 1)


@pytest.mark.parametrize(
    "head",
    [
        [layers.Flatten(), layers.Dense(1)],
        [layers.Flatten(), layers.Dense(4), layers.Reshape((2, 2))],
        [layers.Dense(2)],
    ],
    ids=["one output", "rank 3", "rank 4"],
)
def test_an_output_that_is_not_batch_by_classes_is_refused(head):
    # A single output would have class 0 as its largest everywhere, and everything would be certified.
    model = keras.Sequential([keras.Input((4, 4, 1)), *head])
    with pytest.raises(ValueError, match=r"must return \[batch, classes\] for two classes or more. Received"):
        SmoothedClassifier(model, SIGMA).certify(GOOD)


def test_it_runs_in_inference_mode():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4, 4, 1))
    norm = layers.BatchNormalization()
    x = layers.Dropout(0.9)(layers.Flatten()(norm(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(x))
    before = [weight.copy() for weight in model.get_weights()]
    votes = SmoothedClassifier(model, SIGMA, seed=1).votes(GOOD, 10, 200)
    for weight, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    noisy = noisy_copies(GOOD[0], SIGMA, 1, 0, noise.ESTIMATION, 0, 200)
    expected = np.bincount(model.predict(noisy, verbose=0).argmax(axis=1), minlength=3)
    np.testing.assert_array_equal(votes.estimation[0], expected)


def test_images_of_other_sizes_through_one_classifier():
    inputs = keras.Input((None, None, 1))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    smoothed = SmoothedClassifier(keras.Model(inputs, layers.Dense(3)(x)), SIGMA, seed=1)
    for side in (4, 5, 7):
        assert smoothed.votes(random_images(1, (side, side, 1)), 5, 20).n.tolist() == [20]


def test_one_trace_serves_every_image_range_and_rest():
    calls = []

    class Counting(keras.Model):
        def call(self, images):
            calls.append(1)
            return tf.reshape(images, [-1, 16])[:, :2]

    smoothed = SmoothedClassifier(Counting(), SIGMA, seed=1, microbatch=7)
    for example_id in (0, 1, 2**31, 2**32 - 1):
        smoothed.votes(GOOD[:1], 10, 50 + example_id % 3, [example_id])
    assert len(calls) == 7 + 1 + 1  # before, it was tried on seven batches and its graph was looked at


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_classifiers(policy):
    keras.utils.set_random_seed(0)
    dense = layers.Dense(3, dtype=policy)
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), dense])
    votes = SmoothedClassifier(model, SIGMA, seed=1).votes(GOOD, 10, 100)
    assert votes.n.tolist() == [100, 100]


def test_several_threads_count_as_one_does():
    # As Beam's workers do, on a fresh classifier: its first trace happens in all threads at once.
    keras.utils.set_random_seed(0)
    model = networks.small_cnn((8, 8, 1), 5)
    images = random_images(8, (8, 8, 1))
    expected = SmoothedClassifier(model, SIGMA, seed=5).votes(images, 1, 300).estimation
    for _ in range(3):
        smoothed = SmoothedClassifier(model, SIGMA, seed=5, microbatch=100)
        results, start = [None] * 8, threading.Barrier(8)

        def work(i, smoothed=smoothed, results=results, start=start):
            start.wait()
            results[i] = smoothed.count(images[i], i, noise.ESTIMATION, 0, 300)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(np.stack(results), expected)


def test_votes_carry_the_soft_moments_that_are_drawn(linear):
    smoothed = SmoothedClassifier(linear_classifier(*linear), sigma=0.5, seed=1, betas=(1.0, 16.0))
    images = random_images(2)
    votes = smoothed.votes(images, n0=20, n=50)
    drawn = smoothed.draw(images, [0, 1], noise.ESTIMATION, [0, 0], [50, 50])
    selection = smoothed.draw(images, [0, 1], noise.SELECTION, [0, 0], [20, 20])
    assert set(votes.soft) == {1.0, 16.0}
    for beta, moments in votes.soft.items():
        np.testing.assert_array_equal(moments.sums, drawn.soft[beta][0])
        np.testing.assert_array_equal(moments.squares, drawn.soft[beta][1])
        np.testing.assert_array_equal(moments.selection_sums, selection.soft[beta][0])
    certified = certificates.certify(votes, 0.5, 0.001, "empirical-bernstein", beta=16.0)
    assert (certified.p_lower <= votes.soft[16.0].mean(votes.n).max(axis=1)).all()


def test_more_soft_votes_than_their_sums_hold_are_refused_before_any_sampling(linear):
    smoothed = SmoothedClassifier(linear_classifier(*linear), sigma=0.5, seed=1, betas=(1.0,))
    for n0, n in ((10, 2**22 + 1), (2**22 + 1, 10)):
        with pytest.raises(ValueError, match=r"Soft votes hold up to 4,194,304 samples per image\. Received: n0="):
            smoothed.votes(random_images(1), n0, n)


def test_scores_that_overflow_at_a_beta_are_those_of_the_limit():
    """A class that is masked by the smallest float has a softmax of 0, and the larger of two distant logits of 1."""
    inputs = keras.Input((1, 1, 1))
    logits = layers.Lambda(lambda x: tf.concat([x, 2 * x, 0 * x + tf.float32.min], axis=-1))(layers.Flatten()(inputs))
    smoothed = SmoothedClassifier(keras.Model(inputs, logits), sigma=1e-3, seed=1, betas=(16.0, 1e38))
    votes = smoothed.votes(np.ones((1, 1, 1, 1)), 10, 50)
    assert votes.soft[16.0].sums[0, 2] == 0
    assert votes.soft[16.0].mean(votes.n)[0, 1] == pytest.approx(1 / (1 + np.exp(-16)), abs=1e-5)
    # Of one class alone softmax is 1, or, on processors without AVX-512, the float32 below it.
    (of_others, sums, of_masked), squares = votes.soft[1e38].sums[0], votes.soft[1e38].squares[0, 1]
    assert of_others == of_masked == 0
    assert (sums, squares) in [(50 * u, 50 * u**2) for u in (2**20, 2**20 - 1)]
    with pytest.raises(ValueError, match="beta must be a number that float32 holds"):
        SmoothedClassifier(keras.Model(inputs, logits), sigma=1e-3, betas=(1e300,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [255]}, r"levels, .* must be a whole number from 1 to 65535\. Received: levels=\[255\]"),
        ({"levels": np.array(255)}, "levels, .* must be a whole number"),
        ({"betas": 1.0}, r"betas must be several numbers, such as \(1\.0, 16\.0\)\. Received: betas=1\.0"),
        ({"betas": None}, "betas must be several numbers"),
        ({"betas": "16"}, "betas must be several numbers"),
        ({"microbatch": True}, "microbatch must be a whole number from 1"),
    ],
)
def test_options_of_another_type_are_refused_in_one_line(linear, options, message):
    with pytest.raises(ValueError, match=message):
        SmoothedClassifier(linear_classifier(*linear), sigma=0.5, **options)


def test_a_classifier_that_returns_whole_numbers_is_refused():
    inputs = keras.Input((2, 2, 1))
    outputs = keras.ops.cast(layers.Dense(2)(layers.Flatten()(inputs)), "int32")
    with pytest.raises(ValueError, match=r"The classifier must return floats\. Received: outputs of int32"):
        SmoothedClassifier(keras.Model(inputs, outputs), SIGMA)


# What the base classifier must be


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_a_classifier_that_takes_no_floats_is_refused(dtype):
    inputs = keras.Input((2, 2, 1), dtype=dtype)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Rescaling(1 / 255)(inputs))))
    with pytest.raises(ValueError, match=rf"input is {dtype}, which truncates pixels .* Received: input dtype {dtype}"):
        SmoothedClassifier(model, SIGMA)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_classifier_of_other_floats_is_certified(dtype):
    # A function of rounded pixels is a function of pixels.
    inputs = keras.Input((2, 2, 1), dtype=dtype)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(inputs)))
    assert SmoothedClassifier(model, SIGMA, seed=1).votes(random_images(2), 10, 20).n.tolist() == [20, 20]


def heads(outputs):
    """A model whose outputs are made of three dense layers by `outputs`."""
    inputs = keras.Input((2, 2, 1))
    flat = layers.Flatten()(inputs)
    return keras.Model(inputs, outputs(*(layers.Dense(2, name=name)(flat) for name in "abc")))


@pytest.mark.parametrize(
    ("outputs", "received"),
    [
        (lambda a, b, c: {"a": a, "b": b}, "a dict of a, b"),
        (lambda a, b, c: {"a": a}, "a dict of a"),
        (lambda a, b, c: [a, b, c], r"outputs of shapes \(None, 2\), \(None, 2\), \(None, 2\)"),
    ],
)
def test_several_outputs_are_refused(outputs, received):
    with pytest.raises(ValueError, match=rf"must return one tensor \[batch, classes\]; .* Received: {received}$") as e:
        SmoothedClassifier(heads(outputs), SIGMA)
    assert "\n" not in str(e.value)
    assert SmoothedClassifier(heads(lambda a, b, c: [a]), SIGMA).classifier


@pytest.mark.parametrize("outputs", [lambda flat: {"a": flat, "b": flat}, lambda flat: (flat, flat)])
def test_several_outputs_that_show_only_in_a_call_are_refused_then(outputs):
    model, _ = probe(lambda images: outputs(tf.reshape(images, [-1, 4])))
    with pytest.raises(
        ValueError, match=r"must return one tensor \[batch, classes\]. Received: (dict of a, b|tuple), 2"
    ):
        SmoothedClassifier(model, SIGMA).certify(random_images(1))


@pytest.mark.parametrize(
    "wrong", [lambda rows: None, tf.sparse.from_dense, tf.RaggedTensor.from_tensor], ids=["nothing", "sparse", "ragged"]
)
def test_what_is_no_tensor_is_refused(wrong):
    model, _ = probe(lambda images: wrong(tf.reshape(images, [-1, 4])))
    with pytest.raises(ValueError, match=r"must return one tensor \[batch, classes\]. Received: \w+$"):
        SmoothedClassifier(model, SIGMA).certify(random_images(1))


@pytest.mark.parametrize(
    ("outputs", "rows"),
    [
        (lambda rows: tf.concat([rows, -rows], axis=0), 32),
        (lambda rows: tf.reshape(rows, [-1, 2]), 32),
        (lambda rows: tf.reshape(rows, [-1, 8]), 8),
        (lambda rows: rows[:1], 1),
    ],
)
def test_an_image_has_one_row_of_outputs(outputs, rows):
    # Otherwise, two rows of one image are two votes for one noisy copy.
    model, _ = probe(lambda images: outputs(tf.reshape(images, [-1, 4])))
    with pytest.raises(ValueError, match=f"one row of outputs for each image. Received: {rows} rows for 16 images$"):
        SmoothedClassifier(model, SIGMA).certify(random_images(1))


@pytest.mark.parametrize(
    "end",
    [
        lambda x: layers.Dense(3, activation="softmax")(x),
        lambda x: layers.Softmax()(layers.Dense(3)(x)),
        lambda x: keras.ops.softmax(layers.Dense(3)(x)),
        lambda x: layers.Activation("linear")(layers.Softmax()(layers.Dense(3)(x))),
    ],
)
def test_soft_votes_of_probabilities_are_refused_and_hard_ones_are_not(end):
    inputs = keras.Input((2, 2, 1))
    model = keras.Model(inputs, end(layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="Soft votes need logits, but the classifier returns probabilities"):
        SmoothedClassifier(model, SIGMA, betas=(1.0,))
    assert SmoothedClassifier(model, SIGMA).votes(random_images(1), 10, 20).n.tolist() == [20]


def test_a_classifier_of_images_of_any_size_is_tried_when_the_first_are_drawn():
    inputs = keras.Input((None, None, 1))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 2)(inputs))
    model = keras.Model(inputs, pooled - keras.ops.mean(pooled, axis=0, keepdims=True))
    with pytest.raises(ValueError, match="depends on the rest of its batch"):
        SmoothedClassifier(model, SIGMA).certify(random_images(1))


def test_one_set_of_samples_that_chooses_and_bounds(linear):
    images = random_images(4)
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=1)
    result = smoothed.certify(images, n0=0, n=500, alpha=0.01)
    votes = smoothed.votes(images, 10, 500)
    expected = certificates.certify_without_selection(votes, SIGMA, 0.01)
    np.testing.assert_array_equal(result.predictions, expected.predictions)
    np.testing.assert_array_equal(result.radii, expected.radii)
    assert result.n0 == 0


def test_progress_is_shown_when_it_is_asked_for_and_changes_nothing(linear, capsys):
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=1)
    images = random_images(3)
    silent = smoothed.certify(images, n0=20, n=300)
    assert capsys.readouterr().out == ""
    shown = smoothed.certify(images, n0=20, n=300, verbose=1)
    # Three images of 20 and 300 samples.
    assert "960/960" in capsys.readouterr().out
    np.testing.assert_array_equal(shown.radii, silent.radii)


def test_progress_counts_each_pass_once(linear):
    smoothed, drawn = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=1, microbatch=64), []
    smoothed.draw(random_images(2), [0, 1], noise.ESTIMATION, [0, 0], [100, 50], drawn.append)
    assert drawn == [96, 54]


class OfItsBatch(keras.layers.Layer):
    """Normalises by the mean and deviation of its batch, at inference too."""

    def call(self, images):
        mean, variance = tf.nn.moments(images, [0])
        return (images - mean) / tf.sqrt(variance + 1e-3)


@pytest.mark.parametrize("offset", [[0, 0, 0, -1e9], [0, 0, 0, -100], [1e5, 1e5, 1e5, 1e5]])
def test_a_dependence_on_the_batch_is_found_beside_masked_classes_and_offsets(offset):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 1))
    flat = layers.Flatten()(OfItsBatch()(inputs))
    bias = keras.initializers.Constant(np.array(offset, np.float32))
    model = keras.Model(inputs, layers.Dense(4, bias_initializer=bias)(flat))
    with pytest.raises(ValueError, match="depends on the rest of its batch"):
        SmoothedClassifier(model, SIGMA)
    sound = keras.Model(inputs, layers.Dense(4, bias_initializer=bias)(layers.Flatten()(inputs)))
    assert SmoothedClassifier(sound, SIGMA).certify(GOOD, n0=10, n=20, alpha=0.1).n == 20


def test_votes_of_a_masked_image_are_not_counted(linear):
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA)
    with pytest.raises(ValueError, match="Pixels must not be masked"):
        smoothed.count(np.ma.masked_array(random_images(1)[0], mask=True), 0, noise.ESTIMATION, 0, 10)


@pytest.mark.parametrize(
    "call",
    [
        lambda smoothed, images: smoothed.certify(images, n0=10, n=20, alpha=0.1),
        lambda smoothed, images: smoothed.certify(random_images(2), n0=0, n=20, alpha=0.1),
        lambda smoothed, images: smoothed.predict(images, n=20, alpha=0.1),
        lambda smoothed, images: smoothed.count(images[0], 0, noise.ESTIMATION, 0, 10),
        lambda smoothed, images: smoothed.draw(images, [0, 1], noise.ESTIMATION, [0, 0], [10, 10]),
    ],
)
def test_a_call_while_a_graph_is_traced_is_refused(linear, call):
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA)
    traced = tf.function(lambda images: call(smoothed, images), autograph=False)
    with pytest.raises(ValueError, match="cannot be called while TensorFlow traces a graph"):
        traced(tf.constant(random_images(2)))
    assert call(smoothed, random_images(2)) is not None


class Drifts(keras.layers.Layer):
    """Subtracts a mean that it updates outside training, too, by less than rounding at first."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.mean.assign(0.9999999 * self.mean + 1e-7 * tf.reduce_mean(x))
        return x - self.mean


class Turns(keras.layers.Layer):
    """Turns its sign after many calls, by a variable that Keras does not know."""

    def __init__(self):
        super().__init__()
        self.calls = tf.Variable(0.0)

    def call(self, x):
        self.calls.assign_add(1.0)
        return tf.where(self.calls > 1000.0, -x, x)


class Notes(keras.layers.Layer):
    """Writes into a table that it never reads."""

    def __init__(self):
        super().__init__()
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)

    def call(self, x):
        self.table.insert([0], [0.0])
        return x


def activated():
    """A layer of Keras' own whose activation is not."""
    calls = tf.Variable(0.0)

    def turns(x):
        calls.assign_add(1.0)
        return tf.where(calls > 1000.0, -x, x)

    return layers.Activation(turns)


class CountsUp(keras.layers.Layer):
    def build(self, _):
        self.calls = tf.Variable(0, trainable=False)

    def call(self, x):
        calls = tf.raw_ops.ResourceCountUpTo(resource=self.calls.handle, limit=10**9, T=tf.int32)
        return tf.where(calls > 1000, -x, x)


class Skips(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.generator = tf.random.Generator.from_seed(0)

    def call(self, x):
        self.generator.skip(1)
        return tf.where(self.generator.state[0] > 10**6, -x, x)


class AddsNoise(keras.layers.Layer):
    """Noise far below rounding, which other weights after it may enlarge."""

    def __init__(self):
        super().__init__()
        self.generator = tf.random.Generator.from_seed(0)

    def call(self, x):
        return x + 1e-9 * self.generator.normal(tf.shape(x))


class TossesCoin(keras.layers.Layer):
    """One coin for a whole pass, far below rounding, which decides all its votes where outputs are equal."""

    def call(self, x):
        return x + 1e-9 * tf.sign(tf.random.uniform([]) - 0.5)


class TurnsLater(keras.layers.Layer):
    def call(self, x):
        return tf.where(tf.timestamp() > 1e11, -x, x)


class Iterates(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.numbers = iter(tf.data.Dataset.range(10**9))

    def call(self, x):
        return tf.where(next(self.numbers) > 1000, -x, x)


class Dequeues(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.queue = tf.queue.FIFOQueue(1000, [tf.float32], shapes=[()])
        self.queue.enqueue_many([tf.range(1000.0)])

    def call(self, x):
        return tf.where(self.queue.dequeue() > 900.0, -x, x)


class Stages(keras.layers.Layer):
    """Keeps a tensor from one pass to the next, where no variable is."""

    def __init__(self):
        super().__init__()
        tf.raw_ops.Stage(values=[tf.zeros(())], shared_name="calls")

    def call(self, x):
        (calls,) = tf.raw_ops.Unstage(dtypes=[tf.float32], shared_name="calls")
        tf.raw_ops.Stage(values=[calls + 1.0], shared_name="calls")
        return tf.where(tf.reshape(calls, []) > 1000.0, -x, x)


class InPlace(keras.layers.Layer):
    def call(self, x):
        return x + tf.raw_ops.InplaceAdd(x=tf.zeros([1]), i=[0], v=[0.0])


class PoolsAtRandom(keras.layers.Layer):
    """The regions are those of a whole pass, although TensorFlow does not count the operation as stateful."""

    def call(self, x):
        pooled, _, _ = tf.nn.fractional_max_pool(x, [1, 1.3, 1.3, 1], pseudo_random=True)
        return x + 1e-9 * tf.reduce_mean(pooled, axis=(1, 2), keepdims=True)


class ReadsFile(keras.layers.Layer):
    """What it reads may be other numbers the next time."""

    def call(self, x):
        return x + 0.0 * tf.cast(tf.strings.length(tf.io.read_file(__file__)), tf.float32)


class ReadsTable(keras.layers.Layer):
    """A table that lasts no longer than the run, of a file that may be another the next time."""

    def call(self, x):
        table = tf.raw_ops.AnonymousHashTable(key_dtype=tf.int64, value_dtype=tf.string)
        of_file = {"filename": __file__, "key_index": -1, "value_index": -2, "vocab_size": 1}
        with tf.control_dependencies([tf.raw_ops.InitializeTableFromTextFileV2(table_handle=table, **of_file)]):
            line = tf.raw_ops.LookupTableFindV2(table_handle=table, keys=np.int64(0), default_value="")
        return x + 0.0 * tf.cast(tf.strings.length(tf.ensure_shape(line, [])), tf.float32)


class JoinsRows(keras.layers.Layer):
    """With those of other threads."""

    def call(self, x):
        return tf.ensure_shape(tf.nondifferentiable_batch_function(1, 1000, 1000)(tf.negative)(x), x.shape)


class StaysAsItIs(keras.layers.Layer):
    """Has operations with names or with state like those that are refused, but only reads, and keeps nothing."""

    def __init__(self):
        super().__init__()
        pairs = tf.lookup.KeyValueTensorInitializer([0], [0.0])
        self.table, self.offset = tf.lookup.StaticHashTable(pairs, 1.0), tf.Variable([0.0, 0.0])

    def call(self, x):
        array = tf.TensorArray(tf.float32, 1).write(0, self.table.lookup(tf.constant(0)))
        shuffled = tf.raw_ops.RandomIndexShuffle(index=0, seed=[1, 2, 3], max_index=5)
        zeros = tf.scatter_nd([[0]], [0.0], [1]) + 0.0 * tf.cast(shuffled, tf.float32) + tf.gather(self.offset, 1)
        x = tf.while_loop(lambda i, _: i < 1, lambda i, x: (i + 1, x + array.read(0)), (0, x))[1]
        x, _, _ = tf.nn.fractional_avg_pool(x, [1, 1.3, 1.3, 1], pseudo_random=True, seed=1)
        return tf.debugging.check_numerics(x + zeros, "not finite")


@pytest.mark.parametrize(
    ("layer", "by"),
    [
        (Drifts, "AssignVariableOp"),
        (Turns, "AssignAddVariableOp"),
        (activated, "AssignAddVariableOp"),
        (Notes, "LookupTableInsertV2"),
        (CountsUp, "ResourceCountUpTo"),
        (Skips, "RngReadAndSkip"),
        (AddsNoise, "RngReadAndSkip"),
        (TossesCoin, "RandomUniform"),
        (TurnsLater, "Timestamp"),
        (Iterates, "IteratorGetNext"),
        (Dequeues, "QueueDequeueV2"),
        (Stages, "Stage, Unstage"),
        (InPlace, "InplaceAdd"),
        (PoolsAtRandom, "FractionalMaxPool"),
        (ReadsFile, "ReadFile"),
        (ReadsTable, "InitializeTableFromTextFileV2"),
        (JoinsRows, "BatchFunction"),
    ],
)
def test_a_classifier_that_changes_when_it_runs_is_refused(layer, by):
    def model(layer):
        return keras.Sequential([keras.Input((4, 4, 1)), layer(), layers.Flatten(), layers.Dense(2)])

    with pytest.raises(ValueError, match=f"changes variables whenever it runs, .* Received: {by}$") as caught:
        SmoothedClassifier(model(layer), SIGMA)
    assert "\n" not in str(caught.value)
    assert SmoothedClassifier(model(StaysAsItIs), SIGMA)


def test_a_dependence_on_the_number_of_rows_is_found():
    class OfItsRows(keras.layers.Layer):
        def call(self, logits):
            return logits + tf.cast(tf.shape(logits)[0], tf.float32) * [1.0, 0.0]

    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, OfItsRows()(layers.Dense(2)(layers.Flatten()(inputs))))
    with pytest.raises(ValueError, match="depends on the rest of its batch"):
        SmoothedClassifier(model, SIGMA)


class TakesPixels(keras.layers.Layer):
    def call(self, x):
        with tf.control_dependencies([tf.debugging.assert_less_equal(tf.reduce_max(x), 1.0)]):
            return tf.identity(x)


class TakesFew(keras.layers.Layer):
    def call(self, x):
        if x.shape[0] and x.shape[0] > 500:
            raise RuntimeError("too\nmany")
        return x


@pytest.mark.parametrize(
    ("first", "received"),
    [
        ([layers.Reshape((4, 4)), layers.GRU(2, stateful=True)], "16 images: ValueError: .*If an RNN is stateful"),
        ([TakesPixels()], "16 images: InvalidArgumentError"),
        ([TakesFew()], "768 images: RuntimeError: .*too many"),
    ],
)
def test_a_classifier_that_cannot_run_on_passes_of_noisy_images_is_refused_in_one_line(first, received):
    inputs = keras.Input(batch_shape=(96, 4, 4, 1)) if len(first) > 1 else keras.Input((4, 4, 1))
    model = keras.Sequential([inputs, *first, layers.Flatten(), layers.Dense(2)])
    line = r"^The classifier must take any number of noisy images \(4, 4, 1\), .*\. Received, for "
    with pytest.raises(ValueError, match=line + received) as caught:
        SmoothedClassifier(model, SIGMA)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 520


class TurnsLateRows(keras.layers.Layer):
    """Treats rows otherwise beyond a number that only whole passes reach."""

    def call(self, x):
        return tf.where(tf.range(tf.shape(x)[0])[:, None] < 90, x, -x)


class CentresLargeBatches(keras.layers.Layer):
    def call(self, x):
        return x - tf.where(tf.shape(x)[0] > 64, tf.reduce_mean(x, axis=0), 0.0)


class Routes(keras.layers.Layer):
    """A mixture of two experts, each of which takes five eighths of the images at most."""

    def call(self, x):
        chosen = tf.one_hot(tf.argmax(x[:, :2], axis=-1), 2)
        most = 0.625 * tf.cast(tf.shape(x)[0], tf.float32)
        is_taken = tf.reduce_sum(tf.cast(tf.cumsum(chosen, axis=0) <= most, tf.float32) * chosen, axis=-1)
        return x * is_taken[:, None]


class TurnsLateRowsAsOperation(keras.Operation):
    def call(self, x):
        return TurnsLateRows.call(self, x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def routes():
    """Two experts, each of which takes a hundred images at most; Keras' own operations alone."""

    def routed(x):
        chosen = ops.one_hot(ops.argmax(x[:, :2], axis=-1), 2)
        place = ops.sum(ops.cumsum(chosen, axis=0) * chosen, axis=-1, keepdims=True)
        return x * ops.cast(place <= 100.0, "float32")

    return routed


@pytest.mark.parametrize("layer", [TurnsLateRows, CentresLargeBatches, Routes, TurnsLateRowsAsOperation, routes])
def test_a_dependence_that_only_passes_of_full_size_show_is_found(layer):
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4, 4, 1))
    model = keras.Model(inputs, layers.Dense(3)(layer()(layers.Dense(8)(layers.Flatten()(inputs)))))
    with pytest.raises(ValueError, match="depends on the rest of its batch") as caught:
        SmoothedClassifier(model, SIGMA)
    assert "\n" not in str(caught.value)


class Centres(keras.layers.Layer):
    def call(self, x):
        return x - tf.reduce_mean(x, axis=0)


class Drops(keras.layers.Layer):
    """Drops by Python code, which the graph does not show."""

    def call(self, x):
        kept = tf.numpy_function(lambda x: np.float32(np.random.default_rng().random(x.shape) < 0.5), [x], tf.float32)
        return x * tf.ensure_shape(kept, x.shape)


@pytest.mark.parametrize(
    ("layer", "line"), [(Centres, "depends on the rest of its batch"), (Drops, "different outputs")]
)
@pytest.mark.parametrize("hidden", ["by zeros", "by NaN", "before there are weights"])
def test_what_the_first_weights_hide_is_found_once_there_are_others(layer, line, hidden):
    keras.utils.set_random_seed(0)
    images, first = GOOD[:2, :4, :4, :1], np.nan if hidden == "by NaN" else 0.0
    model = keras.Sequential([layer(), layers.Flatten(), layers.Dense(2, kernel_initializer="zeros")])
    if hidden == "before there are weights":
        smoothed = SmoothedClassifier(model, SIGMA, seed=0)
    else:
        model.build((None, 4, 4, 1))
        kernel = model.layers[-1].kernel
        kernel.assign(np.full(kernel.shape, first))
        smoothed = SmoothedClassifier(model, SIGMA, seed=0)
        kernel.assign(np.zeros(kernel.shape))
    smoothed.certify(images, n0=5, n=20)  # all outputs are equal
    kernel = model.layers[-1].kernel
    kernel.assign(np.random.default_rng(0).normal(0, 1, kernel.shape))
    for draw in (
        lambda: smoothed.certify(images, n0=5, n=20),
        lambda: smoothed.certify(images, n0=0, n=20),
        lambda: smoothed.predict(images, n=20),
        lambda: smoothed.count(images[0], 0, noise.ESTIMATION, 0, 20),
    ):
        with pytest.raises(ValueError, match=line) as caught:
            draw()
        assert "\n" not in str(caught.value)


def test_a_classifier_is_probed_again_only_with_other_weights(linear, monkeypatch):
    model, calls = linear_classifier(*linear), []
    kernel = model.layers[-1].kernel
    monkeypatch.setattr(smoothing, "probe", lambda *arguments: calls.append(0) or np.zeros((16, 2)))
    smoothed = SmoothedClassifier(model, SIGMA, seed=0)
    for expected in (1, 1, 2, 2):
        if expected > len(calls):
            kernel.assign_add(np.ones(kernel.shape))
        smoothed.certify(GOOD[:, :2, :2], n0=5, n=20)
        assert len(calls) == expected


def test_weights_that_change_while_votes_are_drawn_are_refused(linear, monkeypatch):
    model = linear_classifier(*linear)
    kernel, images = model.layers[-1].kernel, GOOD[:, :2, :2]
    smoothed = SmoothedClassifier(model, SIGMA, seed=0)

    def train(_=None):
        kernel.assign_add(np.ones(kernel.shape))

    def train_once(bar, samples):  # as a thread would between the two streams
        if bar not in shown:
            shown.append(bar)
            train()

    line = "weights changed while its votes were drawn, .* Received: changed dense.*/kernel$"
    with pytest.raises(ValueError, match=line) as caught:
        smoothed.draw(images, [0, 1], noise.SELECTION, [0, 0], [500, 500], train)
    assert "\n" not in str(caught.value)
    trained, averaged = model.get_weights(), [-weight for weight in model.get_weights()]
    swaps = iter([averaged, trained, trained])  # as keras.callbacks.SwapEMAWeights does
    with pytest.raises(ValueError, match=line):
        smoothed.draw(images, [0, 1], noise.SELECTION, [0, 0], [900, 900], lambda _: model.set_weights(next(swaps)))
    model.set_weights(trained)
    shown = []
    monkeypatch.setattr(keras.utils.Progbar, "add", train_once)
    for call in (smoothed.votes, smoothed.certify):
        with pytest.raises(ValueError, match=line):
            call(images, 5, 100)
    assert len(shown) == 2
    monkeypatch.undo()
    kernel.assign(np.full(kernel.shape, np.nan))
    with InferenceGraph(model).held_still():  # NaN is not equal to itself, and has not changed
        kernel.assign(np.full(kernel.shape, np.nan))


def test_a_forked_process_does_not_wait_for_ever(linear):
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=0)
    ours, its = multiprocessing.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, from 3.12 on, of what is tried here
        child = os.fork()
    if not child:
        try:
            smoothed.certify(GOOD[:, :2, :2], 5, 100)
        except ValueError as error:
            its.send(str(error))
        os._exit(0)
    try:
        assert ours.poll(60)
        line = ours.recv()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert "cannot be used in a fork of the process that made it" in line
    assert line.endswith(f"Received: process {child}, made in {os.getpid()}")


@pytest.mark.parametrize("shape", [(8, 4, 1), (4, 8), (4, 8, 3), (32, 1, 1)])
def test_images_of_another_shape_than_the_classifier_takes_are_refused(shape):
    model = keras.Sequential([keras.Input((4, 8, 1)), layers.Flatten(), layers.Dense(2)])
    smoothed = SmoothedClassifier(model, SIGMA, seed=0)
    with pytest.raises(
        ValueError, match=r"The classifier takes images \(4, 8, 1\)|Images, at least one and of .* must have shape"
    ) as error:
        smoothed.certify(np.zeros((1, *shape), np.float32))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        {"example_ids": [1.5]}, {"example_ids": [True]}, {"starts": [2**61]}, {"starts": [2**63]}, {"starts": [0.5]},
        {"stream": True}, {"stream": 1.0}, {"stream": 2}, {"example_ids": []}, {"example_ids": [1, 2]}, {"counts": []},
    ],
)  # fmt: skip
def test_an_address_whose_noise_would_be_that_of_another_is_refused(linear, address):
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=0)
    good = {"example_ids": [1], "stream": noise.ESTIMATION, "starts": [0], "counts": [40]}
    with pytest.raises(ValueError, match="Received: "):
        smoothed.draw(random_images(1), **{**good, **address})


def test_a_series_of_ids_is_taken_in_its_order_and_not_by_its_labels(linear):
    smoothed, images = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=0), random_images(2)
    expected = smoothed.draw(images, [7, 8], noise.ESTIMATION, [0, 0], [40, 40]).counts
    for labels in ([1, 0], [5, 9]):
        ids = pd.Series([7, 8], index=labels)
        found = smoothed.draw(images, ids, noise.ESTIMATION, [0, 0], [40, 40]).counts
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint64])
def test_narrow_whole_numbers_are_taken_for_what_they_are(linear, kind):
    """NumPy's wrap when they are added up, and a uint64 plus an int64 is a float: another sample's address."""
    model, images = linear_classifier(*linear), random_images(3)
    reference = SmoothedClassifier(model, SIGMA, seed=0, microbatch=120)
    smoothed = SmoothedClassifier(model, SIGMA, seed=0, microbatch=kind(120))
    starts = [2**56 + 1] * 3 if kind == np.uint64 else [120] * 3
    drawn = smoothed.draw(images, [0, 1, 2], noise.ESTIMATION, np.array(starts, kind), np.array([7, 100, 99], kind))
    expected = reference.draw(images, [0, 1, 2], noise.ESTIMATION, starts, [7, 100, 99])
    np.testing.assert_array_equal(drawn.counts, expected.counts)
    np.testing.assert_array_equal(
        smoothed.certify(images, kind(100), kind(120)).p_lower, reference.certify(images, 100, 120).p_lower
    )
    np.testing.assert_array_equal(smoothed.predict(images, kind(120)), reference.predict(images, 120))


def test_without_selection_bad_numbers_are_told_in_the_same_words(linear):
    smoothed = SmoothedClassifier(linear_classifier(*linear), SIGMA, seed=1)
    for n0 in (False, 0.0, None):
        with pytest.raises(ValueError, match=r"n0, a number of samples, must be a whole number from 1\. Received: n0="):
            smoothed.certify(GOOD[:, :2, :2], n0=n0)
    for alpha in ("0.1", None):
        with pytest.raises(ValueError, match=r"alpha, the failure probability, must be above 0 and below 1\. Received"):
            smoothed.certify(GOOD[:, :2, :2], n0=0, alpha=alpha)
    with pytest.raises(ValueError, match=r"with alpha=0\.1, 50 % of it for this bound, .*n=3; n must be at least 5"):
        smoothed.certify(GOOD[:, :2, :2], n0=0, n=3, alpha=0.1)


def test_a_changed_setting_of_a_layer_of_ours_is_refused():
    norm = FusedBatchNormalization()
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 3), norm, layers.Flatten(), layers.Dense(2)])
    smoothed = SmoothedClassifier(model, SIGMA, seed=0)
    norm.epsilon = 0.5
    with pytest.raises(ValueError, match="layers have changed since"):
        smoothed.votes(GOOD, 5, 20)


@pytest.mark.parametrize("shape", [(0, 4, 1), (4, 4), (4,)])
def test_images_without_pixels_or_of_another_shape_are_refused_by_draw_too(shape):
    smoothed = SmoothedClassifier(keras.Sequential([layers.Flatten(), layers.Dense(2)]), SIGMA, seed=0)
    with pytest.raises(ValueError, match=r"must have shape \[images, height, width, channels\]\. Received: "):
        smoothed.count(np.zeros(shape), 0, noise.ESTIMATION, 0, 10)


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("change", ["layer", "adapter", "activation", "rate", "adapted", "scale", "arguments"])
def test_what_a_changed_classifier_would_be_certified_as_is_refused(change, with_norm):
    """The graph that votes are drawn by is that of the layers as they were."""
    keras.utils.set_random_seed(0)
    norm = [keras.layers.BatchNormalization()] if with_norm else []
    slope = keras.layers.LeakyReLU(0.1)
    last = keras.layers.Dense(3)
    scale, normalization = keras.layers.Rescaling([2.0]), keras.layers.Normalization()
    normalization.adapt(GOOD)
    of_arguments = keras.layers.Lambda(lambda x, factors: x * factors["of"], arguments={"factors": {"of": [1.0]}})
    firsts = {"adapted": [scale, normalization], "scale": [scale, normalization], "arguments": [of_arguments]}
    first = firsts.get(change, [])
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), *first, keras.layers.Flatten(), keras.layers.Dense(8), *norm, slope, last]
    )
    unused, used = (SmoothedClassifier(model, SIGMA, seed=0) for _ in range(2))
    used.votes(GOOD, 5, 20)
    if change == "layer":
        model.pop()
        model.add(keras.layers.Dense(5))
    elif change == "adapter":
        last.enable_lora(2)
    elif change == "adapted":
        normalization.adapt(1 - GOOD)
    elif change == "scale":
        scale.scale[0] = 3.0
    elif change == "arguments":
        of_arguments.arguments["factors"]["of"][0] = 3.0
    elif change == "activation":
        last.activation = keras.activations.tanh
    else:
        slope.negative_slope = 0.5
    for smoothed in (unused, used):
        with pytest.raises(
            ValueError, match=r"layers have changed since .*Make a new object from the changed"
        ) as error:
            smoothed.votes(GOOD, 5, 20)
        assert "\n" not in str(error.value)
    assert SmoothedClassifier(model, SIGMA, seed=0).votes(GOOD, 5, 20).n.tolist() == [20, 20]


def test_training_on_is_no_change_of_layers():
    keras.utils.set_random_seed(0)
    x = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(inputs := keras.Input((4, 4, 1))))
    classifier = keras.Model(
        inputs, keras.layers.Dense(3)(keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x)))
    )
    smoothed = SmoothedClassifier(classifier, SIGMA, seed=0)
    before = smoothed.votes(GOOD, 5, 200)
    model = MACERModel(classifier, SIGMA, num_samples=2, seed=0)
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(GOOD, np.array([0, 2]), epochs=5, verbose=0)
    classifier.layers[-1].trainable = False
    after = smoothed.votes(GOOD, 5, 200)
    assert (before.estimation != after.estimation).any()
    np.testing.assert_array_equal(
        after.estimation, SmoothedClassifier(classifier, SIGMA, seed=0).votes(GOOD, 5, 200).estimation
    )


def test_what_cannot_run_here_is_told_in_one_line():
    inputs = keras.Input((1, 4, 4))
    # In float64, because in float32 oneDNN takes the channels first, too.
    x = keras.layers.Conv2D(2, 3, data_format="channels_first", dtype="float64")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("Channels may come first on a GPU.")
    with pytest.raises(ValueError, match=r"The classifier cannot run on this machine\. TensorFlow says: ") as error:
        SmoothedClassifier(model, SIGMA, seed=0)
    assert "\n" not in str(error.value)
