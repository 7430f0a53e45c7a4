"""The whole job on the paper's data sets, very small: that it runs and says what it ran on, not how well."""

import json

import pytest

pytestmark = pytest.mark.slow

SMALL = ("--epochs", "1", "--num_samples", "2", "--n0", "10", "--serving_n", "20", "--num_workers", "2", "--verbose")


@pytest.fixture
def metrics(command, shared_tfds, tmp_path):
    """A function that runs the job -> its metrics, what it printed, and its examples' description."""

    def run(*arguments):
        done = command(*arguments, *SMALL, "--data_dir", shared_tfds, "--pipeline_root", tmp_path).run()
        assert (done.status, done.err) == (0, ""), done.err
        (evaluation,) = tmp_path.glob("Evaluator-*/evaluation")
        (examples,) = tmp_path.glob("ExampleGen-*/examples/examples.json")
        return json.loads((evaluation / "metrics.json").read_text()), done.out, json.loads(examples.read_text())

    return run


def test_mnist(metrics):
    result, out, _ = metrics("--dataset", "mnist", "--train_examples", "512", "--num_test_examples", "10", "--n", "500")
    assert result["image_set"] == "10, evenly spaced, of the test split of mnist 3.0.1 (10,000 images)"
    assert result["num_images"] == 10
    assert "network=lenet" in out
    assert "paper's MACER-0.25 *" in out
    assert "* as reported, at n=100,000 and alpha=0.001" in out


def test_cifar10(metrics):
    result, out, examples = metrics(
        "--dataset", "cifar10", "--network", "cifar_resnet8", "--train_examples", "64", "--num_test_examples", "6",
        "--n", "200",
    )  # fmt: skip
    assert result["image_set"] == "6, evenly spaced, of the test split of cifar10 3.0.2 (10,000 images)"
    assert "crop_padding=4" in out
    assert "flip=yes" in out
    assert examples["class_names"][0] == "airplane"


def test_partial_svhn_is_never_called_the_test_set(metrics):
    result, out, examples = metrics(
        "--dataset", "svhn_cropped_partial", "--test_split", "holdout", "--network", "small_cnn",
        "--train_examples", "64", "--num_test_examples", "6", "--n", "200",
    )  # fmt: skip
    assert result["image_set"] == "6, evenly spaced, of the holdout split of svhn_cropped_partial 3.1.0 (183 images)"
    assert "paper's" not in out.partition("\nCertified")[2]
    assert examples["descriptions"]["train"] == "train split of svhn_cropped_partial 3.1.0 (900 images)"


def test_svhn_without_a_network_is_one_line(command, tmp_path, monkeypatch):
    # A proxy that refuses at once stands for no network, wherever this runs.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    done = command("--dataset", "svhn", "--data_dir", tmp_path / "data", "--pipeline_root", tmp_path / "root").run()
    assert done.status == 2
    (line,) = done.err.splitlines()
    for file in ("train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"):
        assert file in line
    assert "cannot be reached" in line
    assert str(tmp_path / "data" / "downloads" / "manual") in line
    assert done.seconds < 60
