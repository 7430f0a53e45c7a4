import numpy as np
import pytest

from macer_tf import logs
from macer_tf.certificates import ABSTAIN, Certificates

RADII = np.array([0.1 + 0.2, 0.0, 1 / 3, np.nextafter(0.25, 1)])
PREDICTIONS = np.array([5, ABSTAIN, 2, ABSTAIN])
CERTIFICATES = Certificates(PREDICTIONS, RADII, RADII, PREDICTIONS, 0.25, 0.001, 100, 1000)


def test_what_the_file_holds(tmp_path):
    logs.write(tmp_path / "log.tsv", CERTIFICATES, np.array([5, 1, 3, -1]), np.array([0, 20, 40, 60]))
    assert (tmp_path / "log.tsv").read_bytes().decode() == (
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
        "0\t5\t5\t0.30000000000000004\t1\tnan\n"
        "20\t1\t-1\t0.0\t0\tnan\n"
        "40\t3\t2\t0.3333333333333333\t0\tnan\n"
        "60\t-1\t-1\t0.25000000000000006\t0\tnan\n"
    )


def test_it_is_read_back_to_the_last_bit(tmp_path):
    logs.write(tmp_path / "log.tsv", CERTIFICATES, [5, 1, 3, 4], [0, 20, 40, 60])
    columns = logs.read(tmp_path / "log.tsv")
    assert list(columns) == ["idx", "label", "predict", "radius", "correct"]
    np.testing.assert_array_equal(columns["radius"], RADII)
    np.testing.assert_array_equal(columns["predict"], PREDICTIONS)
    assert columns["idx"].tolist() == [0, 20, 40, 60]
    assert columns["label"].tolist() == [5, 1, 3, 4]
    assert columns["correct"].tolist() == [1, 0, 0, 0]
    assert columns["radius"].dtype == np.float64
    assert columns["predict"].dtype == np.int64


def test_an_image_is_not_dropped_silently(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        logs.write(tmp_path / "log.tsv", CERTIFICATES, [5, 1, 3], [0, 20, 40, 60])
