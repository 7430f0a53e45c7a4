import mpmath
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from macer_tf import noise
from macer_tf.checks import levels_of
from macer_tf.grid_noise import GridNoise, to_grid

SHAPES = [(5, 5, 1), (3, 3, 3), (28, 28, 1), (32, 32, 3)]
GRIDS = [(0.25, 255), (1.0, 255), (0.25, 16)]


@pytest.mark.parametrize(("sigma", "levels"), [*GRIDS, (0.5, 256), (0.001, 255), (0.25, 4080)])
def test_each_value_has_the_probability_that_a_rounded_normal_has(sigma, levels):
    values, probabilities = GridNoise(sigma, levels).probabilities()
    width = levels * sigma
    # By the lower tail on both sides, where SciPy is accurate.
    lower, upper = (special.ndtr((-np.abs(values) + half) / width) for half in (-0.5, 0.5))
    expected = np.where(values == 0, 1 - 2 * lower, upper - lower)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-15)
    assert values[0] == -values[-1]
    assert sum(probabilities) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("times", [1, 16])
def test_the_rarest_values_have_their_probabilities_too(times):
    values, probabilities = GridNoise(0.25, 255 * times).probabilities()
    for value in times * np.array([-500, -362, -100, 31, 400, 600]):  # 362 is 5.678 standard deviations
        with mpmath.workdps(40):
            width = times * mpmath.mpf("63.75")
            lower, upper = (mpmath.ncdf((-abs(int(value)) + half) / width) for half in (-0.5, 0.5))
            # To the rounding of both thresholds.
            error = abs(mpmath.mpf(probabilities[values == value][0]) - (upper - lower))
            assert error < mpmath.mpf(2) ** -96 + (upper - lower) * 2**-52


def test_the_error_in_total_variation_is_what_the_docstring_says():
    noise_of = GridNoise(0.25, 255)
    values, _ = noise_of.probabilities()
    assert len(values) <= 23 * 255 * 0.25
    # What lies beyond the last values has no probability here.
    assert 2 * special.ndtr((values[0] - 0.5) / 63.75) < 2.0**-95


def test_a_fine_grid_takes_no_integral_for_each_value(monkeypatch):
    """For the finest, which 16-bit images have, 190,000 integrals took minutes before the first sample."""
    integrals, ncdf = [], mpmath.ncdf
    monkeypatch.setattr(mpmath, "ncdf", lambda x: integrals.append(x) or ncdf(x))
    values, _ = GridNoise(0.2503, 1020).probabilities()
    assert len(values) > 5000
    assert len(integrals) < 50


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "levels"), GRIDS)
def test_a_hundred_million_draws_have_the_distribution_by_a_chi_square_test_over_all_values(sigma, levels):
    grid = GridNoise(sigma, levels)
    values, probabilities = grid.probabilities()
    observed = np.zeros(len(values))
    draw = tf.function(lambda start: grid.draw((28, 28, 1), 2, 3, noise.ESTIMATION, start, 4000))
    total = 32 * 4000 * 784
    for block in range(32):
        drawn = draw(tf.constant(block * 4000, tf.int64)).numpy().astype(np.int32).ravel()
        observed += np.bincount(drawn - values[0], minlength=len(values))
    assert observed.sum() == total > 1e8
    expected = probabilities * total
    # Rare values are taken together, on each side: the tails beyond 5.2 standard deviations or so.
    rare = expected < 10
    tails = [rare & (values < 0), rare & (values > 0)]
    observed = np.array([*observed[~rare], *(observed[tail].sum() for tail in tails)])
    expected = np.array([*expected[~rare], *(expected[tail].sum() for tail in tails)])
    assert stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.slow
def test_draws_go_beyond_where_tensorflows_normals_end():
    # P(|N| > 5.678) = 1.36e-8: of 6.4e8, 8.7. TensorFlow's normals never get there. 0 has probability 1.6e-4.
    grid = GridNoise(0.25, 255)

    def beyond(start):
        return tf.reduce_sum(
            tf.cast(tf.abs(grid.draw((32, 32, 3), 5, 6, noise.SELECTION, start, 1000)) > 362, tf.int64)
        )

    draw = tf.function(beyond)
    count = sum(int(draw(tf.constant(block * 1000, tf.int64))) for block in range(208))
    assert 1 <= count <= 24


def philox(key, counter):
    """Philox4x32-10 (Salmon et al., SC 2011): key int, counter int [blocks] of 128 bits -> [blocks, 4] words."""
    keys = [key & 0xFFFFFFFF, key >> 32]
    words = [np.array([(c >> 32 * i) & 0xFFFFFFFF for c in counter], np.uint64) for i in range(4)]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * words[0], np.uint64(0xCD9E8D57) * words[2]
        low = np.uint64(0xFFFFFFFF)
        words = [
            (second >> np.uint64(32)) ^ words[1] ^ np.uint64(keys[0]),
            second & low,
            (first >> np.uint64(32)) ^ words[3] ^ np.uint64(keys[1]),
            first & low,
        ]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(words, axis=1)


def test_each_draw_is_what_its_96_bits_of_philox_say():
    # Of a fine grid, so that 32 bits leave some open: about 3 in a million.
    sigma, levels, seed, example_id, start, count, size = 0.25, 4080, 2**32 - 5, 77, 13, 5000, 784
    drawn = GridNoise(sigma, levels).draw((28, 28, 1), seed, example_id, noise.ESTIMATION, start, count)
    drawn = drawn.numpy().astype(np.int64).ravel()
    key = (seed << 32) + example_id
    first = start * size // 4  # block
    words = philox(key, [(noise.ESTIMATION << 64) + first + i for i in range(count * size // 4)]).ravel()
    # K = round(width * z) for z = Phi^-1 of the word, with the float64 error of either of its ends.
    width = levels * sigma
    lower = np.floor(width * special.ndtri(words / 2**32) * (1 + 1e-12) - 1e-6 + 0.5)
    upper = np.floor(width * special.ndtri((words + 1.0) / 2**32) * (1 + 1e-12) + 1e-6 + 0.5)
    is_open = lower != upper
    np.testing.assert_array_equal(drawn[~is_open], lower[~is_open])
    further = 0
    for place in np.flatnonzero(is_open):
        rest = philox(key, [((noise.ESTIMATION + 2**32) << 64) + (first * 4 + int(place))])[0]
        # TensorFlow's signed 64 bits, low word first.
        signed = (int(rest[1]) << 32) + int(rest[0])
        signed -= 2**64 if signed >= 2**63 else 0
        word = (int(words[place]) << 64) + signed + 2**63
        with mpmath.workdps(60):
            k = int(drawn[place])
            ends = [mpmath.ncdf((k + half) / mpmath.mpf(width)) * mpmath.mpf(2) ** 96 for half in (-0.5, 0.5)]
            assert mpmath.nint(ends[0]) <= word < mpmath.nint(ends[1])
            further += int(ends[0]) >> 64 == int(words[place]) or int(ends[1]) >> 64 == int(words[place])
    assert further >= 2  # some needed more than 32 bits


@pytest.mark.parametrize("shape", SHAPES)
def test_any_slice_is_that_slice_of_one_long_draw(shape):
    grid = GridNoise(0.5, 255)
    whole = grid.draw(shape, 7, 11, noise.ESTIMATION, 0, 60).numpy()
    assert whole.shape == (60, *shape)
    for start, count in [(0, 1), (1, 1), (7, 13), (17, 43), (59, 1), (0, 60)]:
        part = grid.draw(shape, 7, 11, noise.ESTIMATION, start, count).numpy()
        np.testing.assert_array_equal(part, whole[start : start + count])


def test_a_graph_with_tensor_arguments_draws_the_same_noise():
    grid = GridNoise(0.25, 255)

    @tf.function
    def draw(seed, example_id, stream, start, count):
        return grid.draw((5, 5, 1), seed, example_id, stream, start, count)

    arguments = (2**32 - 1, 2**31 + 5, noise.ESTIMATION, 2**31, 6)
    in_graph = draw(*(tf.constant(value, tf.int64) for value in arguments))
    np.testing.assert_array_equal(in_graph, grid.draw((5, 5, 1), *arguments))


def test_no_sample_appears_twice_over_seeds_ids_streams_and_offsets():
    grid = GridNoise(1.0, 255)
    draws = [
        grid.draw((5, 5, 1), seed, example_id, stream, start, 40).numpy().reshape(40, 25)
        for seed in (0, 1, 2**31, 2**32 - 1)
        for example_id in (0, 1, 2**31, 2**32 - 1)
        for stream in noise.STREAMS
        for start in (0, 40, 2**31, 2**32, 2**40)
    ]
    samples = np.concatenate(draws)
    # A pixel agrees with another by chance with probability 1.1e-3: 6 of them, of 2e7 pairs, 4e-11.
    assert len(np.unique(samples[:, :6], axis=0)) == len(samples) == 4 * 4 * 2 * 5 * 40


def test_pixels_samples_ids_and_streams_are_uncorrelated():
    grid = GridNoise(0.25, 255)
    draws = {
        (example_id, stream): grid.draw((28, 28, 1), 3, example_id, stream, 0, 400).numpy().ravel() / 63.75
        for example_id in (4, 5)
        for stream in noise.STREAMS
    }
    first, *others = draws.values()
    bound = 4.5 / np.sqrt(first.size)
    for lag in (1, 2, 3, 4, 28, 784):
        assert abs(np.mean(first[lag:] * first[:-lag])) < bound
    for other in others:
        assert abs(np.mean(first * other)) < bound
        assert abs(np.mean((first**2 - 1) * (other**2 - 1))) < 2 * bound


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_8_bit_image_lies_on_the_grid_whatever_its_float_type(dtype):
    pixels = np.arange(256).astype(dtype)
    np.testing.assert_array_equal(to_grid(pixels / dtype(255), 255), np.arange(256))
    np.testing.assert_array_equal(to_grid((np.arange(17) / 16).astype(dtype), 256), np.arange(17) * 16)


@pytest.mark.parametrize("pixel", [0.0015, 0.5, 1 / 255 + 2e-6])
def test_a_pixel_off_the_grid_is_refused_and_named(pixel):
    with pytest.raises(ValueError, match=r"multiples of 1/255.*Received: .*0\.\d+"):
        to_grid(np.array([[0.0, pixel]]), 255)


@pytest.mark.parametrize("pixel", [np.nan, np.inf, -np.inf, -1 / 255, 256 / 255, 1e9])
def test_a_pixel_outside_the_range_is_refused_and_named(pixel):
    with pytest.raises(ValueError, match=r"Pixels must be finite and lie in \[0, 1\]\. Received: (nan|-?inf|-0|1)"):
        to_grid(np.array([[0.0, pixel]]), 255)


@pytest.mark.parametrize(
    ("sigma", "levels"),
    [(0.25, 0), (0.25, 2.5), (0.25, 65536), (0, 255), (-1, 255), (np.nan, 255), (1.0, 20000), (1e-4, 255), (0.04, 1)],
)
def test_a_grid_out_of_range_is_refused(sigma, levels):
    with pytest.raises(ValueError, match="Received: "):
        GridNoise(sigma, levels)


def test_floats_too_coarse_for_the_grid_are_refused():
    # The spacing of float16 below 1 is a whole step of 1/1023.
    with pytest.raises(ValueError, match="float16 cannot resolve levels of 1/1023; use float32"):
        to_grid(np.array([0.3], np.float16), 1023)
    with pytest.raises(ValueError, match=r"divide bytes by 255. Received: dtype=uint8"):
        to_grid(np.array([3], np.uint8), 255)


def test_the_grid_of_a_data_set_holds_its_pixels():
    assert [levels_of(pixel_max) for pixel_max in (1, 16, 255, 65535)] == [255, 256, 255, 65535]


@pytest.mark.parametrize("pixel_max", [0, -1, 65536, 1.5, "255", None, True, float("nan")])
def test_what_is_no_largest_pixel_is_refused(pixel_max):
    with pytest.raises(
        ValueError, match=r"pixel_max, .* must be a whole number from 1 to 65535\. Received: pixel_max="
    ):
        levels_of(pixel_max)
