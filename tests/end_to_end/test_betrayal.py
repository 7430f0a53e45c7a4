"""Classifiers made to tell from the last bits of a noisy image which image it was, in every way of certifying.

Where votes are those of Gaussian smoothing, Phi^-1(p(x)) is 1/sigma-Lipschitz in x, whatever the classifier (Salman et
al. 2019, Lemma 2): here, two images sqrt(pixels)/255 apart cannot get contradictory certificates.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from macer_tf import certificates, confidence, noise
from macer_tf.smoothing import SmoothedClassifier
from macer_tf.votes import Votes
from pipeline.certification import driver, workers
from pipeline.certification.sampling_plan import SamplingPlan
from pipeline.certification.vote_store import VoteStore
from pipeline.data import sources
from serving.export import export

SIGMA, N, CENTRE, BESIDE = 0.25, 4000, 32, 31


@keras.saving.register_keras_serializable("betrayal")
class Betraying(keras.layers.Layer):
    """Logit 1 where (z - a) + a gives back z in every pixel: always, if z is the rounded sum of a and something."""

    def build(self, shape):
        # A weight, so that no optimiser of graphs cancels it.
        centre = keras.initializers.Constant(CENTRE / 255)
        self.centre = self.add_weight(shape=shape[1:], initializer=centre, trainable=False, name="centre")

    def call(self, z):
        is_from_centre = keras.ops.all(keras.ops.equal((z - self.centre) + self.centre, z), axis=(1, 2, 3))
        from_centre = keras.ops.cast(is_from_centre, "float32")
        return keras.ops.stack([1 - from_centre, from_centre], axis=1)


def betraying(pixels):
    inputs = keras.Input((1, pixels, 1))
    return keras.Model(inputs, Betraying()(inputs))


def two_images(pixels):
    """The image that the classifier looks for, and the one beside it, in levels."""
    return np.stack([np.full((1, pixels, 1), level, np.uint8) for level in (CENTRE, BESIDE)])


def by_float_noise(model, levels, tmp_path):
    scaled = levels.astype(np.float32) / 255

    def count(image, example_id):
        drawn = SIGMA * noise.gaussian(image.shape, 1, example_id, noise.ESTIMATION, 0, N)
        return np.bincount(model(image + drawn).numpy().argmax(axis=1), minlength=2)

    return np.stack([count(image, example_id) for example_id, image in enumerate(scaled)])


def by_the_library(model, levels, tmp_path):
    return SmoothedClassifier(model, SIGMA, seed=1).votes(levels.astype(np.float32) / 255, 1, N).estimation


def by_beam(model, levels, tmp_path):
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "two.npz", images=levels)
    source = sources.Archive(str(tmp_path / "two.npz"), levels.shape[1:])
    plan = SamplingPlan(1, N, 0.001)
    store = VoteStore(tmp_path / "votes" / "of", {}, plan.first_look, 2)
    sampler = workers.Sampler(str(tmp_path / "model.keras"), source, SIGMA, 1)
    return driver.run(sampler, np.arange(2), 2, plan, store, num_workers=2).votes.estimation


def by_a_saved_model(model, levels, tmp_path):
    from macer_tf.model import MACERModel

    trained = MACERModel(logits(model), SIGMA, seed=0)
    export(trained, tmp_path / "saved", n0=10, n=N, alpha=0.001)
    served = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    return served(images=tf.constant(levels.astype(np.float32) / 255))["votes"].numpy()


def logits(model):
    """The same classifier; its outputs 0 and 1 might be taken for probabilities."""
    return keras.Model(model.inputs, keras.layers.Rescaling(10.0)(model.outputs[0]))


@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_float_noise_certifies_both_images_as_different_classes(pixels):
    """What was wrong: the certificates contradict each other, far inside their radii."""
    counts = by_float_noise(betraying(pixels), two_images(pixels), None)
    assert counts[0].tolist() == [0, N]
    found = certificates.certify(Votes(counts, counts), SIGMA, 0.001)
    assert found.predictions[0] == 1
    assert found.radii[0] > 50 * np.sqrt(pixels) / 255
    # One pixel is given back by chance, too, more often than not.
    assert pixels == 1 or found.predictions[1] == 0


@pytest.mark.parametrize("way", [by_the_library, by_beam, by_a_saved_model])
@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_noise_on_the_grid_tells_nothing_of_where_it_was_added(pixels, way, tmp_path):
    counts = way(betraying(pixels), two_images(pixels), tmp_path)
    distance = np.sqrt(pixels) / 255
    # Each of 18 comparisons fails by chance with probability 2e-6 at most.
    lower = confidence.clopper_pearson_lower(counts, N, 1e-6)
    upper = confidence.clopper_pearson_upper(counts, N, 1e-6)
    for one, other in ((0, 1), (1, 0)):
        for kind in (0, 1):
            gap = stats.norm.ppf(lower[one, kind]) - stats.norm.ppf(upper[other, kind])
            assert gap <= distance / SIGMA
