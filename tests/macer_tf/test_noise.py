import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from macer_tf import noise

SHAPES = [(5, 5, 1), (3, 3, 3), (28, 28, 1), (32, 32, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_any_slice_is_that_slice_of_one_long_draw(shape):
    whole = noise.gaussian(shape, 7, 11, noise.ESTIMATION, 0, 60).numpy()
    assert whole.shape == (60, *shape)
    for start, count in [(0, 1), (1, 1), (7, 13), (17, 43), (59, 1), (0, 60)]:
        part = noise.gaussian(shape, 7, 11, noise.ESTIMATION, start, count).numpy()
        np.testing.assert_array_equal(part, whole[start : start + count])


def test_a_graph_with_tensor_arguments_draws_the_same_noise():
    @tf.function
    def draw(seed, example_id, stream, start, count):
        return noise.gaussian((5, 5, 1), seed, example_id, stream, start, count)

    arguments = (2**32 - 1, 2**31 + 5, noise.ESTIMATION, 2**31, 6)
    in_graph = draw(*(tf.constant(value, tf.int64) for value in arguments))
    np.testing.assert_array_equal(in_graph, noise.gaussian((5, 5, 1), *arguments))


def test_no_sample_appears_twice_over_seeds_ids_streams_and_offsets():
    # Around 2**31 and 2**32 a 32-bit key or counter would wrap.
    draws = [
        noise.gaussian((5, 5, 1), seed, example_id, stream, start, 40).numpy().reshape(40, 25)
        for seed in (0, 1, 2**31, 2**32 - 1)
        for example_id in (0, 1, 2**31, 2**32 - 1)
        for stream in noise.STREAMS
        for start in (0, 40, 2**31, 2**32, 2**40)
    ]
    samples = np.concatenate(draws)
    # Two of these 6,400 samples agree in their first two normals by chance with probability about 3e-7.
    assert len(np.unique(samples[:, :2], axis=0)) == len(samples) == 4 * 4 * 2 * 5 * 40


def test_streams_do_not_overlap_whatever_the_alignment():
    # A shared run of the generator would show as one stream's normals among the other's, at any position.
    selection = noise.gaussian((32, 32, 3), 3, 4, noise.SELECTION, 0, 200).numpy().ravel()
    estimation = noise.gaussian((32, 32, 3), 3, 4, noise.ESTIMATION, 0, 200).numpy().ravel()
    # Two normals side by side, read as one integer; of 23 random bits each, chance would make 2e-4 pairs equal.
    assert not np.isin(selection[:100_000].view(np.int64), estimation.view(np.int64)).any()
    assert abs(np.corrcoef(selection, estimation)[0, 1]) < 5 / np.sqrt(selection.size)


def test_it_is_standard_normal():
    sample = noise.gaussian((28, 28, 1), 12, 5, noise.SELECTION, 0, 400).numpy().astype(np.float64)
    values, size = sample.ravel(), sample.size
    # Standard errors of mean, variance, skewness and excess kurtosis of N(0, 1): sqrt(1, 2, 6, 24) / sqrt(size).
    moments = np.array([values.mean(), values.var() - 1, stats.skew(values), stats.kurtosis(values)])
    assert (np.abs(moments) < 4.5 * np.sqrt(np.array([1, 2, 6, 24]) / size)).all()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    # Neighbouring pixels, the two normals of a Box-Muller pair and neighbouring samples are uncorrelated.
    for lag in (1, 2, 4, 28, 784):
        assert abs(np.mean(values[lag:] * values[:-lag])) < 4.5 / np.sqrt(size)


def test_tails_are_not_cut_off():
    # P(|N| > 4) = 6.33e-5: of 3.1 million, 196 +- 14.
    values = noise.gaussian((28, 28, 1), 1, 5, noise.ESTIMATION, 0, 4000).numpy().ravel()
    expected = 2 * stats.norm.sf(4) * values.size
    assert abs((np.abs(values) > 4).sum() - expected) < 4.5 * np.sqrt(expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_every_noisy_copy_minus_its_noise_is_its_image_pixel_by_pixel(channels, num_samples):
    # Multiples of 1/16, so that float32 adds and subtracts them without rounding.
    rng = np.random.default_rng(0)
    images = rng.integers(0, 17, (4, 6, 5, channels)).astype(np.float32) / 16
    drawn = rng.integers(-32, 33, (4, num_samples, 6, 5, channels)).astype(np.float32) / 16
    noisy = noise.noisy_copies(tf.constant(images), tf.constant(drawn)).numpy()
    assert noisy.shape == (4 * num_samples, 6, 5, channels)
    for i in range(4):
        for j in range(num_samples):
            np.testing.assert_array_equal(noisy[i * num_samples + j] - drawn[i, j], images[i])


def test_uniforms_are_uniform_and_each_belongs_to_its_seed_and_id():
    drawn = noise.uniforms(3, range(2000))
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    assert noise.uniforms(3, [7, 1999, 0]).tolist() == drawn[[7, 1999, 0]].tolist()
    assert len({*drawn, *noise.uniforms(4, range(2000))}) == 4000
    # Their words are none of those that a sample of another stream begins with.
    first = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[4], key=np.array([(3 << 32) + 7], np.uint64), counter=np.array([0, 4], np.uint64), alg=1, dtype=tf.uint64
    ).numpy()
    assert drawn[7] == (int(first[0]) >> 11) / 2**53


def test_uniforms_of_another_seed_or_id_are_not_given():
    assert noise.uniforms(np.int32(7), np.array([3], np.uint8)) == noise.uniforms(7, [3])  # seed * 2^32 wrapped to 0
    for seed, ids, received in [
        (2**32, [0], "seed=4294967296"),
        (0, [2**32], "4294967296"),
        (1, [-1], "-1"),
        (0, [0.5], "0.5"),
    ]:
        with pytest.raises(ValueError, match=f"whole numbers? from 0 to 4294967295. Received: {received}$"):
            noise.uniforms(seed, ids)
