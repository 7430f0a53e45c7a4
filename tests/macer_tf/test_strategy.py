import json
from pathlib import Path

import numpy as np
import pytest

from tests import forks

SCRIPT = Path(__file__).with_name("strategy_script.py")


@pytest.fixture(scope="module")
def result():
    """What strategy_script.py printed: two logical devices can only be made before a process uses TensorFlow."""
    done = forks.run([SCRIPT])
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("images", ["12", "10", "9", "3", "clipped", "beyond", "hinge alone"])
def test_two_replicas_train_as_one(result, images):
    # Batches of 4: an even split; a last batch of 2, one image per replica; of 1, so that one replica gets nothing; a
    # first batch of 3. Clipped: the norm of the gradients' sum, not of each replica's part. Beyond: all that MACERModel
    # has beyond Eq. (17), and averaged weights; and with the worse noise in the hinge alone.
    (one, one_history, one_evaluation), (two, two_history, two_evaluation) = result[images]
    np.testing.assert_allclose(two, one, atol=2e-6)
    assert set(two_history) == set(one_history)
    for name in one_history:
        assert two_history[name] == pytest.approx(one_history[name], rel=1e-5, abs=1e-6), name
    for name in one_evaluation:
        assert two_evaluation[name] == pytest.approx(one_evaluation[name], rel=1e-5, abs=1e-6), name
    assert one_history["robustness_loss"][0] > 0


@pytest.mark.slow
def test_the_uneven_batches_made_a_difference(result):
    # Otherwise the comparison above would hold for any treatment of the last batch.
    weights = [np.array(result[images][0][0]) for images in ("12", "10", "9")]
    assert np.abs(weights[0] - weights[1]).max() > 1e-3
    assert np.abs(weights[1] - weights[2]).max() > 1e-3


@pytest.mark.slow
def test_clipping_made_a_difference(result):
    clipped, free = (np.array(result[case][0][0]) for case in ("clipped", "10"))
    assert np.abs(clipped - free).max() > 1e-3


@pytest.mark.slow
def test_float16_skips_the_step_where_any_replicas_gradients_are_infinite(result):
    unchanged, scale, iterations = result["float16"]
    assert all(unchanged)
    # Half of the initial 2^15.
    assert (scale, iterations) == (2**14, 0)


@pytest.mark.slow
def test_replicas_draw_different_noise_and_new_noise_at_every_step(result):
    draws = np.array(result["noise"])
    assert draws.shape == (4, 2 * 3 * 36)
    assert len(np.unique(draws)) == draws.size


@pytest.mark.slow
def test_a_data_set_without_images_is_refused_in_one_line(result):
    assert result["empty"] == "Expected one or more images. Received: a dataset without any"


@pytest.mark.slow
def test_jit_compile_is_refused_in_one_line(result):
    assert result["jit"].startswith("jit_compile=True does not work under a distribution strategy")
    assert "\n" not in result["jit"]
