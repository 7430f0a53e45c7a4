import gzip
import os
import urllib.parse

import numpy as np
import pytest

from macer_tf import certification_log, evaluation
from macer_tf.certificates import ABSTAIN, Certificates

RADII = np.array([0.1 + 0.2, 0.0, 1 / 3, np.nextafter(0.25, 1)])
PREDICTIONS = np.array([5, ABSTAIN, 2, ABSTAIN])
CERTIFICATES = Certificates(PREDICTIONS, RADII, RADII, PREDICTIONS, 0.25, 0.001, 100, 1000)

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
COHEN = HEADER + "0\t3\t3\t0.378\t1\t15.4\n20\t7\t-1\t0.0\t0\t15.6\n40\t2\t0\t0.941\t0\t16.9\n"


@pytest.fixture
def log(tmp_path):
    """A function: text or bytes -> the path of a file that holds them."""

    def write(content):
        path = tmp_path / "log.tsv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_what_the_file_holds(tmp_path):
    certification_log.write(tmp_path / "log.tsv", CERTIFICATES, np.array([5, 1, 3, -1]), np.array([0, 20, 40, 60]))
    assert (tmp_path / "log.tsv").read_bytes().decode() == (
        "idx\tlabel\tpredict\tradius\tcorrect\n"
        "0\t5\t5\t0.30000000000000004\t1\n"
        "20\t1\t-1\t0.0\t0\n"
        "40\t3\t2\t0.3333333333333333\t0\n"
        "60\t-1\t-1\t0.25000000000000006\t0\n"
    )


NAMES = ["dog/a.png", 'tab\t"quoted" #1, 100%.png', "caf\u00e9/\udcff\n.png", None]


def test_the_last_column_names_the_images_as_a_url_would(tmp_path):
    certification_log.write(tmp_path / "log.tsv", CERTIFICATES, [5, 1, 3, 4], [0, 20, 40, 60], NAMES)
    lines = (tmp_path / "log.tsv").read_text().splitlines()
    assert lines[0] == "idx\tlabel\tpredict\tradius\tcorrect\tfile"
    assert [line.split("\t")[5] for line in lines[1:]] == [
        "dog/a.png",
        "tab%09%22quoted%22%20%231%2C%20100%25.png",
        "caf%C3%A9/%FF%0A.png",
        "",
    ]
    told = [os.fsdecode(urllib.parse.unquote_to_bytes(line.split("\t")[5])) for line in lines[1:]]
    assert told == [name or "" for name in NAMES]


def test_names_change_nothing_for_those_who_read_the_columns_before_them(tmp_path):
    """By header, as the field does with pandas, at tabs or at any white space; and by place with NumPy."""
    arguments = (CERTIFICATES, [5, 1, 3, 4], [0, 20, 40, 60])
    certification_log.write(tmp_path / "bare.tsv", *arguments)
    certification_log.write(tmp_path / "named.tsv", *arguments, [name or "x" for name in NAMES])
    bare, named = (certification_log.read(tmp_path / name) for name in ("bare.tsv", "named.tsv"))
    for name in ("ids", "labels", "predictions", "radii", "seconds", "correct"):
        np.testing.assert_array_equal(getattr(named, name), getattr(bare, name))
    for separator in ("\t", None):
        with open(tmp_path / "named.tsv", newline="") as file:
            header, *rows = (line.rstrip("\n").split(separator) for line in file)
        assert {len(row) for row in rows} == {len(header)} == {6}
        assert [float(row[header.index("radius")]) for row in rows] == RADII.tolist()
    columns = np.genfromtxt(tmp_path / "named.tsv", delimiter="\t", skip_header=1, usecols=(0, 3, 4))
    np.testing.assert_array_equal(columns[:, 1], RADII)


def test_the_time_is_written_where_it_is_known(tmp_path, log):
    read = certification_log.read(log(COHEN))
    certification_log.write(tmp_path / "again.tsv", read, read.labels, read.ids, ["a", "b", "c"])
    lines = (tmp_path / "again.tsv").read_text().splitlines()
    assert lines[0].split("\t")[5:] == ["time", "file"]
    assert [line.split("\t")[5:] for line in lines[1:]] == [["15.4", "a"], ["15.6", "b"], ["16.9", "c"]]
    assert certification_log.read(tmp_path / "again.tsv").seconds.tolist() == [15.4, 15.6, 16.9]


@pytest.mark.parametrize(
    ("labels", "ids", "message"),
    [
        ([5, 1, 3, 4], [0, 1.7, 2, 3], "ids must be one whole number per image. Received: float64"),
        ([0.7, 1, 3, 4], [0, 1, 2, 3], "labels must be one whole number per image. Received: float64"),
        ([np.nan, 1, 3, 4], [0, 1, 2, 3], "labels must be one whole number per image. Received: float64"),
        (["a", "b", "c", "d"], [0, 1, 2, 3], "labels must be one whole number per image. Received: <U1"),
        ([5, 1, 3], [0, 1, 2, 3], r"labels must be one whole number per image. Received: int64 \(3,\) for 4 images"),
        ([5, 1, 3, 4], [0, 1, 1, 3], "No two images may have the same id. Received: 3 ids for 4 images"),
        (
            [5, 1, 3, 4],
            [0, -1, 2, 3],
            "Image -1: idx must be 0 or above, and predict a class .* Received: idx -1",
        ),
        ([2**63, 1, 3, 4], [0, 1, 2, 3], "Image 0: not a 64-bit number: '9223372036854775808'"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, labels, ids, message):
    with pytest.raises(ValueError, match=message):
        certification_log.write(tmp_path / "log.tsv", CERTIFICATES, labels, ids)
    with pytest.raises(ValueError, match=r"names must be one per image\. Received: 'abcd' for 4 images"):
        certification_log.write(tmp_path / "log.tsv", CERTIFICATES, range(4), range(4), names="abcd")
    with pytest.raises(ValueError, match=r"names are text, or None for an image without one\. Received: nan"):
        certification_log.write(tmp_path / "log.tsv", CERTIFICATES, range(4), range(4), names=["a", None, np.nan, "b"])
    with pytest.raises(ValueError, match=r"Expected `Certificates` or a `CertificationLog`\. Received: list"):
        certification_log.write(tmp_path / "log.tsv", [1], [1], [1])
    assert not (tmp_path / "log.tsv").exists()
    certification_log.write(tmp_path / "log.tsv", CERTIFICATES, [5.0, 1, 3, 4], np.arange(4.0))
    assert certification_log.read(tmp_path / "log.tsv").labels.tolist() == [5, 1, 3, 4]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"radii": np.array([-0.5, 0.2])},
            "Image 3: the radius of a correct prediction must be finite, .* -0.5",
        ),
        ({"radii": np.array([0.5, np.nan])}, "Image 4: the radius of a correct prediction must be finite, .* nan"),
        ({"seconds": np.ones(1)}, r"seconds must be one number per image\. Received: float64 \(1,\) for 2 images"),
        ({"seconds": np.array(["1", "2"])}, r"seconds must be one number per image\. Received: <U1"),
    ],
)
def test_a_log_that_could_not_be_read_back_is_not_written(tmp_path, changed, message):
    whole = {"ids": np.array([3, 4]), "labels": np.arange(2), "predictions": np.arange(2), "radii": np.ones(2)}
    log = certification_log.CertificationLog(**whole | {"seconds": np.ones(2)} | changed)
    with pytest.raises(ValueError, match=message):
        certification_log.write(tmp_path / "log.tsv", log, log.labels, log.ids)
    assert not (tmp_path / "log.tsv").exists()


@pytest.mark.parametrize("cut", [1, 2, 3, 12])
def test_a_log_of_ours_that_was_cut_off_is_read_up_to_the_cut(tmp_path, cut):
    certification_log.write(tmp_path / "log.tsv", CERTIFICATES, [5, 1, 3, 4], [0, 20, 40, 60])
    content = (tmp_path / "log.tsv").read_text()
    (tmp_path / "log.tsv").write_text(content[: len(content) - cut])
    read = certification_log.read(tmp_path / "log.tsv")
    # Without its last newline it is whole.
    assert (read.ids.tolist(), read.cut_off) == (([0, 20, 40, 60], None) if cut == 1 else ([0, 20, 40], 5))


def test_it_is_read_back_to_the_last_bit(tmp_path):
    certification_log.write(tmp_path / "log.tsv", CERTIFICATES, [5, 1, 3, 4], [0, 20, 40, 60])
    read = certification_log.read(tmp_path / "log.tsv")
    np.testing.assert_array_equal(read.radii, RADII)
    np.testing.assert_array_equal(read.predictions, PREDICTIONS)
    assert read.ids.tolist() == [0, 20, 40, 60]
    assert read.labels.tolist() == [5, 1, 3, 4]
    assert np.isnan(read.seconds).all()
    assert (read.radii.dtype, read.predictions.dtype) == (np.float64, np.int64)
    certification_log.write(tmp_path / "again.tsv", read, read.labels, read.ids)
    assert (tmp_path / "again.tsv").read_bytes() == (tmp_path / "log.tsv").read_bytes()


def test_an_image_is_not_dropped_silently(tmp_path):
    with pytest.raises(ValueError, match="labels must be one whole number per image"):
        certification_log.write(tmp_path / "log.tsv", CERTIFICATES, [5, 1, 3], [0, 20, 40, 60])
    with pytest.raises(ValueError, match=r"names must be one per image\. Received: 1 for 4 images"):
        certification_log.write(tmp_path / "log.tsv", CERTIFICATES, [5, 1, 3, 4], [0, 20, 40, 60], ["a"])
    assert not (tmp_path / "log.tsv").exists()


@pytest.mark.parametrize(
    "content",
    [
        COHEN,
        COHEN.removeprefix(HEADER),
        COHEN.replace("\n", "\r\n"),
        COHEN + "\n \n\n",
        COHEN.removesuffix("\n"),
        "\ufeff" + COHEN,
        gzip.compress(COHEN.encode(), mtime=0),
        # Columns in another order and one more, as logs of sample-wise noise levels have it.
        "predict\tidx\tlabel\tradius\tcorrect\tsigma\ttime\n"
        "3\t0\t3\t0.378\t1\t0.25\t15.4\n-1\t20\t7\t0.0\t0\t0.25\t15.6\n0\t40\t2\t0.941\t0\t0.5\t16.9\n",
        COHEN.replace("\t", ","),
        COHEN.removeprefix(HEADER).replace("\t", ", "),
        "# sigma 0.25\n" + COHEN.replace("40\t2", "  # resumed\n40\t2") + "# done",
        COHEN.replace("40\t2", HEADER + "40\t2"),
        COHEN.replace("\t1\t15", "\tTrue\t15").replace("\t0\t1", "\tfalse\t1"),
        COHEN.replace("\n", "\r"),
        COHEN.encode("utf-16"),
        # As pandas writes a data frame with its index, and a column that once held a gap.
        ",idx,label,predict,radius,correct,time\n"
        "0,0,3.0,3,0.378,True,15.4\n1,20,7.0,-1,0.0,False,15.6\n2,40,2.0,0,0.941,False,16.9\n",
        # As NumPy writes a header.
        "# idx,predict,label,correct,radius,time\n0,3,3,1,0.378,15.4\n20,-1,7,0,0.0,15.6\n40,0,2,0,0.941,16.9\n",
    ],
    ids=[
        "as Cohen's",
        "no header",
        "CRLF",
        "blank lines",
        "no last newline",
        "BOM",
        "gzip",
        "other columns",
        "CSV",
        "CSV without header",
        "comments",
        "second header",
        "True and False",
        "CR",
        "UTF-16",
        "pandas",
        "NumPy",
    ],
)
def test_the_kinds_of_log_in_the_wild_say_the_same(log, content):
    read = certification_log.read(log(content))
    assert read.ids.tolist() == [0, 20, 40]
    assert read.labels.tolist() == [3, 7, 2]
    assert read.predictions.tolist() == [3, ABSTAIN, 0]
    assert read.radii.tolist() == [0.378, 0.0, 0.941]
    assert read.seconds.tolist() == [15.4, 15.6, 16.9]
    assert read.cut_off is None


def test_time_on_a_clock(log):
    read = certification_log.read(
        log("0\t3\t3\t0.5\t1\t0:00:13.126220\n1\t8\t8\t0.9\t1\t2:03:04\n2\t8\t8\t1\t1\t1 day, 0:00:01\n")
    )
    # 2 h 3 min 4 s = 7200 + 180 + 4; a day is 86,400 s.
    np.testing.assert_allclose(read.seconds, [13.12622, 7384, 86401], rtol=1e-15)


@pytest.mark.parametrize("header", ["idx\tlabel\tpredict\tradius\tcorrect\n", ""])
def test_time_may_be_missing(log, header):
    read = certification_log.read(log(header + "0\t3\t3\t0.5\t1\n1\t8\t2\t0.9\t0\n"))
    assert read.predictions.tolist() == [3, 2]
    assert np.isnan(read.seconds).all()


def test_only_the_radius_of_a_correct_prediction_counts(log):
    """Wrong with radius 2, abstained with radius 3, and a label of -1 abstained on: ACR = 0.6 / 4."""
    read = certification_log.read(
        log("0\t1\t1\t0.6\t1\t1\n1\t1\t0\t2.0\t0\t1\n2\t1\t-1\t3.0\t0\t1\n3\t-1\t-1\tnan\t0\t1\n")
    )
    result = evaluation.evaluate(read, read.labels, (0, 0.6, 0.7))
    assert result.acr == pytest.approx(0.15, abs=1e-15)
    assert result.certified_accuracy == (0.25, 0.25, 0.0)
    assert result.abstained == 0.5
    assert read.correct.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "end", ["60", "60\t1\t1", "60\t1\t1\t0.7", "60\t1\t1\t0.7\t1", "60\t1\t1\t0.7\t1\t", "60\t1\t1\t0.7\t1\t0:00:"]
)
@pytest.mark.parametrize("newline", ["", "\n"])
def test_a_last_line_that_was_cut_off_is_left_out_and_told(log, end, newline):
    read = certification_log.read(log(COHEN + end + newline))
    assert read.ids.tolist() == [0, 20, 40]
    assert read.cut_off == 5


@pytest.mark.parametrize("end", ["", "T", "Tru", "f", "FALS"])
def test_a_truth_that_was_cut_off_is_left_out_and_told(log, end):
    content = "idx\tlabel\tpredict\tradius\tcorrect\n0\t3\t3\t0.5\tTrue\n20\t7\t7\t0.5\t"
    read = certification_log.read(log(content + end))
    assert (read.ids.tolist(), read.cut_off) == ([0], 3)


@pytest.mark.parametrize("last", ["idx", "label", "predict", "radius"])
def test_a_last_field_whose_first_digits_are_another_value_counts_only_with_the_lines_end(log, last):
    """1.2345e-05 may be cut to 1.2345."""
    names = [name for name in ("idx", "label", "predict", "correct", "radius") if name != last] + [last]
    rows = [{"idx": idx, "label": 1, "predict": 1, "correct": 1, "radius": 0.5} for idx in (0, 20)]
    text = "\n".join("\t".join(str(row[name]) for name in names) for row in rows)
    content = "\t".join(names) + "\n" + text
    cut, whole = certification_log.read(log(content)), certification_log.read(log(content + "\n"))
    assert (cut.ids.tolist(), cut.cut_off) == ([0], 3)
    assert (whole.ids.tolist(), whole.cut_off) == ([0, 20], None)


def test_a_kill_inside_the_time_loses_no_image(log):
    assert certification_log.read(log(COHEN + "60\t1\t1\t0.7\t1\t15.")).ids.tolist() == [0, 20, 40, 60]
    # Hours that no float holds are no time.
    assert certification_log.read(log(COHEN + "60\t1\t1\t0.7\t1\t" + "9" * 400 + ":00:00")).cut_off == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "log.tsv is empty: it holds no certificates."),
        ("\n\n", "log.tsv is empty: it holds no certificates."),
        (HEADER, "log.tsv holds no certificates, only a header or a line that was cut off."),
        (HEADER + "0\t1", "log.tsv holds no certificates, only a header or a line that was cut off."),
        (
            '{"id": 0}\n',
            "is not a certification log: its first line is '{\"id\": 0}'. Accepted: lines of",
        ),
        (b"\x89PNG\r\n\x1a\n\xff", "is not a certification log: it is not text."),
        (gzip.compress(COHEN.encode(), mtime=0)[:-9], "is a damaged gzip file"),
        ("idx\tlabel\tpredict\tcorrect\ttime\n0\t1\t1\t1\t2\n", "is not a certification log: no column radius."),
        (COHEN + "60\t1\t0\t0.7\t1\t2\n", "log.tsv:5: correct must be 0 for label 1 and prediction 0. Received: 1"),
        (COHEN + "60\t1\t1\t0.7\t0\t2\n", "log.tsv:5: correct must be 1 for label 1 and prediction 1. Received: 0"),
        (COHEN + "60\t-1\t-1\t0.7\t1\t2\n", "log.tsv:5: correct must be 0 for label -1 and prediction -1. Received: 1"),
        (COHEN + "20\t1\t1\t0.7\t1\t2\n", "log.tsv:5: image 20 is already on line 3."),
        (COHEN.replace("-1\t0.0\t0", "-1\t0"), "log.tsv:3: a line must have 6 fields. Received: '20\\t7"),
        (COHEN.replace("0.378", "far"), "log.tsv:2: could not convert string to float: 'far'. Received: '0\\t3\\t3"),
        (COHEN.replace("0.378", "nan"), "log.tsv:2: the radius of a correct prediction must be finite, from 0"),
        (COHEN.replace("0.378", "1e300"), "from 0 and at most 1e+06. Received: 1e+300"),
        (COHEN.replace("0.378", "-0.1"), "log.tsv:2: the radius of a correct prediction must be finite, from 0"),
        (COHEN.replace("0.378", "3_7"), "log.tsv:2: not a number: '3_7'. Received: '0\\t3\\t3"),
        (COHEN.replace("20\t7", "20\t7.5"), "log.tsv:3: not a whole number: '7.5'."),
        (COHEN.replace("20\t7", f"{2**63}\t7"), f"log.tsv:3: not a 64-bit number: '{2**63}'."),
        (
            COHEN.replace("20\t7", "-20\t7"),
            "log.tsv:3: idx must be 0 or above, and predict a class from 0, or -1 to abstain",
        ),
        (
            COHEN + "60\t-2\t-2\t0.7\t1\t2\n",
            "log.tsv:5: idx must be 0 or above, and predict a class from 0, or -1 to abstain",
        ),
        (COHEN.replace("20\t7", "True\t7"), "log.tsv:3: not a whole number: 'True'."),
        (COHEN.replace("\t1\t15", "\tyes\t15"), "log.tsv:2: not a whole number: 'yes'."),
        (COHEN.replace("0\t3", "0,3", 1), "log.tsv:2: a line must have 6 fields. Received: '0,3"),
        (COHEN.replace("\t", ";"), "is not a certification log: its first line is 'idx;label"),
        (COHEN + "idx\tpredict\tlabel\tradius\tcorrect\ttime\n", "log.tsv:5: a different header from the first;"),
        (COHEN.replace("time", "label"), "is not a certification log: it has two columns named label."),
        (gzip.compress(bytes(2**28 + 1), 1, mtime=0), "log.tsv unpacks to more than 256 MiB, the most accepted."),
        (COHEN.replace("20\t7", "2" * 30 + "\t7"), "log.tsv:3: not a 64-bit number: "),
    ],
)
def test_what_is_not_accepted_is_told_in_one_line(log, content, message):
    with pytest.raises(ValueError, match=r"log\.tsv") as caught:
        certification_log.read(log(content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_the_operating_systems_to_tell(tmp_path):
    with pytest.raises(FileNotFoundError):
        certification_log.read(tmp_path / "log.tsv")


@pytest.mark.parametrize(
    ("name", "everywhere", "images_500_to_999"),
    [("0.25", 0.531, 0.555), ("0.5", 0.691, 0.725), ("1.0", 0.744, 0.793)],
)
def test_published_logs_give_the_published_figures(published_logs, name, everywhere, images_500_to_999):
    """MACER on CIFAR-10: the ACR of all 10,000 test images, and of those that the paper's Table 1 took."""
    read = certification_log.read(published_logs / f"macer-cifar10-resnet110-sigma{name}.tsv")
    radii = np.maximum(evaluation.correct_radii(read, read.labels), 0)
    assert len(radii) == 10_000
    assert radii.mean() == pytest.approx(everywhere, abs=5e-4)
    assert radii[(read.ids >= 500) & (read.ids <= 999)].mean() == pytest.approx(images_500_to_999, abs=5e-4)


def test_a_quoted_time_of_a_csv_file_may_have_a_comma(log):
    read = certification_log.read(
        log('idx,label,predict,radius,correct,time\n0,3,3,0.5,1,"1 day, 0:00:01"\n1,3,3,0.5,1,"1 day, 0:')
    )
    assert (read.seconds.tolist(), read.cut_off) == ([86401], 3)


def test_what_never_ends_is_refused_and_a_pipe_is_read(tmp_path):
    with pytest.raises(ValueError, match="/dev/zero is a pipe or a device, not a plain file"):
        certification_log.read("/dev/zero")
    os.mkfifo(tmp_path / "nobody-writes")
    with pytest.raises(ValueError, match="nobody-writes is empty"):
        certification_log.read(tmp_path / "nobody-writes")
    end, written = os.pipe()
    os.write(written, COHEN.encode())
    os.close(written)
    assert certification_log.read(f"/dev/fd/{end}").ids.tolist() == [0, 20, 40]
    os.close(end)
    with open(tmp_path / "large.tsv", "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(ValueError, match=r"large\.tsv is larger than 256 MiB, the most that is accepted\.$"):
        certification_log.read(tmp_path / "large.tsv")
