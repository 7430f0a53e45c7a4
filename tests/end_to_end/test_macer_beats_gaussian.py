import json

import pytest

from tests import forks

SHORT = ("--epochs", "20", "--n", "1000")


def run(root, *flags):
    process = forks.run(["-m", "pipeline.run", "--dataset", "digits", "--pipeline_root", root, *SHORT, *flags])
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_macer_beats_gaussian_training_on_the_same_digits(tmp_path):
    """Same network, seed, epochs and images: the paired difference of ACR is beyond two standard errors."""
    run(tmp_path)
    printed = run(tmp_path, "--lam", "0", "--num_samples", "1")
    metrics = [json.loads(path.read_text()) for path in tmp_path.glob("Evaluator-*/evaluation/metrics.json")]
    (difference,) = [m["difference_to_last_blessed"] for m in metrics if m["difference_to_last_blessed"]]
    assert difference["mean"] < -2 * difference["standard_error"]
    assert "Not pushed: not blessed: ACR is" in printed
    assert len(list(tmp_path.glob("serving/digits-0.25/*"))) == 1
