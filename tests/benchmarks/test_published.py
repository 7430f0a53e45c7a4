"""What others published for MNIST, image by image, and what is estimated from it."""

import numpy as np
import pytest

from benchmarks import published, results
from pipeline.data import datasets
from pipeline.utils.errors import InputError


def test_the_published_averages_are_those_of_the_papers():
    """Jeong and Shin (2020), Table 1, and Cohen's and MACER's logs beside them."""
    for sigma, gaussian, macer, consistency in ((0.25, 0.911, 0.920, 0.928), (0.5, 1.558, 1.590, 1.655)):
        of_method = published.read(sigma)
        told = {name: round(float(of_method[name].radius.mean()), 3) for name in ("gaussian", "macer", "consistency")}
        assert told == {"gaussian": gaussian, "macer": macer, "consistency": consistency}


def test_the_same_images_are_hard_for_a_model_and_for_those_that_were_published():
    """Under other numbers, the two would have nothing in common."""
    (cell,) = (cell for cell in results.cells() if (cell.group, cell.name) == ("mnist", "gaussian-0.50-0"))
    ours, theirs = results.kept(cell), published.read(0.5)["gaussian"]
    assert np.corrcoef(ours.radii, theirs.radius[ours.ids])[0, 1] > 0.8


def test_an_estimate_for_all_images_does_not_depend_on_how_hard_the_certified_ones_are():
    hard, easy = (
        published.Published(1, np.array(radii), np.zeros((4, 4)))
        for radii in ([0.0, 0.0, 1.0, 1.0], [0.0, 2.0, 1.0, 3.0])
    )
    of_method = {"one": hard, "other": easy}  # on average 0, 1, 1, 2
    mean, error = published.estimate(of_method, np.array([0, 3]), np.array([0.5, 2.5]))
    assert (mean, error) == (1.5, 0)
    mean, error = published.estimate(of_method, np.array([0, 3]), np.array([0.5, 1.5]))
    assert (mean, error) == pytest.approx((1.0, 0.5))


def test_a_table_is_the_mean_over_logs_in_which_a_wrong_class_has_no_radius(tmp_path):
    header = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    for seed, rows in ((7, "0\t5\t5\t1.2\t1\t0:00:01\n1\t3\t4\t0.9\t0\t0:00:01\n"),
                       (8, "0\t5\t5\t0.4\t1\t0:00:01\n1\t3\t3\t0.0\t1\t0:00:01\n")):  # fmt: skip
        (tmp_path / f"noise_0.50_{seed}").write_text(header + rows)
    for other in ("noise_1.00_7", "noise_0.50_7_acc", "noise_x_7"):
        (tmp_path / other).write_text("not read")
    paths = published.logs_in(tmp_path, 0.5)
    assert [path.name for path in paths] == ["noise_0.50_7", "noise_0.50_8"]
    columns = published.table("gaussian", 0.5, paths, np.array([9, 2])).to_pydict()
    assert columns["example_id"] == [9, 2]
    assert columns["radius"] == pytest.approx([0.8, 0])
    assert [columns[f"at_{multiple}_sigma"] for multiple in (0, 1, 2, 3)] == [[1, 0.5], [0.5, 0], [0.5, 0], [0, 0]]


def test_a_damaged_log_is_one_line(tmp_path):
    path = tmp_path / "noise_0.50_7"
    path.write_text("idx\tlabel\n0\t5\n")
    with pytest.raises(InputError, match=r"noise_0\.50_7") as error:
        published.table("gaussian", 0.5, [path], np.arange(1))
    assert "\n" not in str(error.value)


def test_logs_of_different_images_are_one_line(tmp_path):
    for seed, count in ((7, 3), (8, 2)):
        rows = [f"{image}\t5\t5\t1.2\t1\n" for image in range(count)]
        (tmp_path / f"noise_0.50_{seed}").write_text("".join(["idx\tlabel\tpredict\tradius\tcorrect\n", *rows]))
    with pytest.raises(SystemExit, match=r"^The logs of gaussian at sigma = 0\.5 are not of the same images: "):
        published.table("gaussian", 0.5, published.logs_in(tmp_path, 0.5), np.arange(3))


def test_images_are_looked_up_by_their_pixels(shared_tfds, tmp_path):
    test, _, _ = datasets.load_split("mnist", shared_tfds)
    order = np.random.default_rng(0).permutation(len(test.images))
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(bytes(16) + test.images[order].tobytes())
    assert (published.places_in_tfds(path, shared_tfds) == order).all()
    for content in (b"", bytes(16), path.read_bytes()[:-1], bytes(16 + test.images.size)):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match="must be the 10,000 test images of MNIST"):
            published.places_in_tfds(path, shared_tfds)
