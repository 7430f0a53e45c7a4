"""Logs side by side: hand-computed tables, the published figures, and a warning where they are not of one kind."""

import errno
import gzip
import json
import os
import re

import numpy as np
import pytest

from pipeline.jobs import compare
from pipeline.report import comparison, figures
from pipeline.utils.errors import InputError
from tests.kills import Ended

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
# Images 0..3: credited radii 0.5, 0 (wrong), 0 (abstained), 1.5.
FIRST = [(0, 3, 3, 0.5), (1, 3, 4, 2.0), (2, 5, -1, 0.0), (3, 7, 7, 1.5)]
# Images 3 and 0 too, in another order: credited radii 2.0 and 0.75; image 9 is of this one only.
SECOND = [(3, 7, 7, 2.0), (0, 3, 3, 0.75), (9, 1, 1, 0.25)]


@pytest.fixture
def write_log(tmp_path):
    """A function: name, rows (idx, label, predict, radius) -> path of a log."""

    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{i}\t{label}\t{made}\t{radius}\t{int(label == made)}\t0.1" for i, label, made, radius in rows]
        path.write_text("\n".join([HEADER, *lines]) + "\n")
        return path

    return write


@pytest.fixture
def write_evaluation(write_log, tmp_path):
    """A function: folder, settings -> the folder, with an evaluation of FIRST at those settings in it."""

    def write(folder, **settings):
        write_log(f"{folder}/certificates.tsv", FIRST)
        metrics = {"sigma": 0.25, "n": 1000, "alpha": 0.001, "num_images": 4, **settings}
        (tmp_path / folder / "metrics.json").write_text(json.dumps(metrics))
        return tmp_path / folder

    return write


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A function: arguments -> what the command prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = compare.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert (status, printed.err) == (0, "")
        return printed.out

    return run


@pytest.fixture
def line(capsys, tmp_path, monkeypatch):
    """A function: bad arguments -> the one line that the command has to say; nothing is written."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        assert compare.main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert not (tmp_path / "comparison.html").exists()
        (only,) = printed.err.splitlines()
        assert only.startswith("error: ")
        return only

    return run


def entries(*paths):
    return [compare.load(path, path.stem) for path in paths]


# The table


def test_table_is_the_hand_computed_one(write_log):
    header, rows = comparison.table(
        entries(write_log("a.tsv", FIRST), write_log("b.tsv", SECOND)), (0.0, 0.5, 1.0)
    )  # fmt: skip
    assert header == ["radius", "0", "0.5", "1", "ACR", "vs first", "sigma", "n", "alpha", "images"]
    # a: 2 of 4 at 0 and at 0.5, 1 of 4 at 1; ACR 2 / 4; squared deviations 0, 1/4, 1/4, 1 over 3 is 1/2,
    # so the standard error is sqrt(1/2 / 4) = 0.35355.
    assert rows[0] == ["a", "0.500", "0.500", "0.250", "0.5000 ± 0.3536", "", "?", "?", "?", "4 (0-3)"]
    # b: ACR 3 / 3; squared deviations 1, 1/16, 9/16 over 2 is 13/16, so sqrt(13/16 / 3) = 0.52042.
    # On images 0 and 3 its radii are 0.25 and 0.5 larger: mean 3/8, variance 2 / 64, so sqrt(1/32 / 2) = 1/8.
    difference = "+0.3750 ± 0.1250 (2)"
    assert rows[1] == ["b", "1.000", "0.667", "0.333", "1.0000 ± 0.5204", difference, "?", "?", "?", "3 (0-9)"]


def test_paired_difference_is_of_credited_radii_on_the_same_images(write_log):
    """Against a dictionary's arithmetic, at random, in another order and on other images."""
    rng = np.random.default_rng(0)
    rows = {}
    for name in "ab":
        ids = rng.permutation(300)[:200]
        rows[name] = [
            (i, i % 7, [i % 7, -1, 8][k], r)
            for i, k, r in zip(ids, rng.integers(0, 3, 200), rng.random(200), strict=True)
        ]
    a, b = entries(*(write_log(f"{name}.tsv", rows[name]) for name in "ab"))
    credited = {name: {i: r if label == made else 0 for i, label, made, r in rows[name]} for name in "ab"}
    gains = np.array([credited["b"][i] - credited["a"][i] for i in credited["a"].keys() & credited["b"].keys()])
    difference = comparison.paired_difference(b, a)
    assert difference.num_images == len(gains) < 200
    assert difference.mean == pytest.approx(gains.mean(), abs=1e-12)
    assert difference.standard_error == pytest.approx(gains.std(ddof=1) / len(gains) ** 0.5, rel=1e-12)
    back = comparison.paired_difference(a, b)
    assert (back.mean, back.standard_error) == pytest.approx((-difference.mean, difference.standard_error))


def test_no_difference_without_common_images_or_with_other_labels(write_log):
    first, elsewhere, one, relabelled = entries(
        write_log("first.tsv", FIRST),
        write_log("elsewhere.tsv", [(50, 1, 1, 0.5), (51, 1, 1, 0.5)]),
        write_log("one.tsv", FIRST[:1]),
        write_log("relabelled.tsv", [(0, 3, 3, 0.5), (1, 2, 2, 2.0)]),
    )
    for other in (elsewhere, one, relabelled):
        assert comparison.paired_difference(other, first) is None
    (said,) = [remark for remark in comparison.remarks([first, relabelled]) if "labels" in remark]
    assert said.startswith("Warning: relabelled has other labels than first for 1 of the 2 images that both have")


@pytest.mark.parametrize(
    ("largest", "radii"),
    [
        (0.0, (0.0,)),
        (0.9, (0.0, 0.25, 0.5, 0.75)),
        (1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
        (3.8, tuple(0.5 * i for i in range(8))),
        (40.0, tuple(8.0 * i for i in range(6))),
    ],
)
def test_default_radii_reach_the_largest_one_in_at_most_ten(write_log, largest, radii):
    # Wrong predictions have no say, however large their radius.
    assert comparison.default_radii(entries(write_log("a.tsv", [(0, 1, 1, largest), (1, 1, 2, 99.0)]))) == radii


@pytest.mark.parametrize(
    ("name", "everywhere", "images_500_to_999"),
    [("0.25", 0.531, 0.555), ("0.5", 0.691, 0.725), ("1.0", 0.744, 0.793)],
)
def test_published_logs_give_the_published_figures(published_logs, run, name, everywhere, images_500_to_999):
    log = published_logs / f"macer-cifar10-resnet110-sigma{name}.tsv"

    def printed(*arguments):
        row = run(log, "--radii", "0", "--names", "macer", *arguments).splitlines()[3].split()
        return row[0], float(row[2]), " ".join(row[-2:])

    assert printed() == ("macer", pytest.approx(everywhere, abs=5.5e-4), "10,000 (0-9999)")
    some = printed("--ids", "500-999")
    assert some == ("macer", pytest.approx(images_500_to_999, abs=5.5e-4), "500 (500-999)")


# What keeps figures from being compared


def test_settings_of_our_own_evaluations_are_told_and_their_differences_warned_of(write_evaluation):
    few, many = entries(write_evaluation("few"), write_evaluation("many", n=100_000, alpha=0.01))
    _, rows = comparison.table([few, many], (0.0,))
    assert rows[0][-4:] == ["0.25", "1,000", "0.001", "4 (0-3)"]
    assert rows[1][-4:] == ["0.25", "100,000", "0.01", "4 (0-3)"]
    (warning,) = comparison.remarks([few, many])
    assert warning.startswith("Warning: these differ in n and alpha. ")


def test_like_with_like_needs_no_remark(write_evaluation):
    assert comparison.remarks(entries(write_evaluation("a"), write_evaluation("b"))) == []


def test_bounds_that_differ_are_told_as_no_difference_between_models(write_evaluation, tmp_path):
    """At the same n, the anytime-valid bound, of an n that was chosen after a look, gives smaller radii."""
    one, other = write_evaluation("a", bound="clopper-pearson"), write_evaluation("b", bound="anytime")
    assert comparison.remarks(entries(one, one, write_evaluation("before"))) == []  # an earlier version told no bound
    (warning,) = comparison.remarks(entries(one, other, one))
    assert warning.startswith("Warning: these differ in their bounds, clopper-pearson and anytime: differences between")
    # Each log of an evaluation has its own.
    of_soft = {"soft-bernstein-16": {"bound": "empirical-bernstein", "beta": 16.0}}
    write_evaluation("a", bound="clopper-pearson", beta=None, certificates=of_soft)
    soft = one / "certificates-soft-bernstein-16.tsv"
    soft.write_text((one / "certificates.tsv").read_text())
    assert [entry.bound for entry in entries(one, soft)] == ["clopper-pearson", "empirical-bernstein at beta=16"]


def test_radii_that_only_decide_are_told(write_evaluation, run):
    """They are no larger than what was asked for, which says nothing about the model."""
    whole, decided = write_evaluation("whole"), write_evaluation("decided", decided_radii=[0, 0.25])
    (warning,) = comparison.remarks(entries(whole, decided))
    assert warning == (
        "Warning: decided was sampled only to decide at 0 and 0.25: its radii, and so its ACR, could be larger."
    )
    assert warning in run(whole, decided)
    assert warning in (whole.parent / "comparison.html").read_text()


def test_unknown_settings_and_other_images_are_told(write_log, write_evaluation):
    """Of an unknown n nobody can say that it differs: no warning is made of it, and no silence."""
    ours, theirs = entries(write_evaluation("ours"), write_log("theirs.tsv", FIRST[:3]))
    warning, unknown = comparison.remarks([ours, theirs])
    assert warning.startswith("Warning: these differ in images. ")
    assert unknown == "?: a log does not state its sigma, n and alpha; make sure that they are the same."


def test_a_line_cut_off_is_told(write_log):
    path = write_log("a.tsv", FIRST)
    path.write_text(path.read_text()[:-12])
    remarks = comparison.remarks(entries(path))
    assert "Warning: a is incomplete: line 5 was cut off and is left out." in remarks


def test_settings_of_every_log_of_an_evaluation_and_of_a_sweep_are_known(write_evaluation, write_log, tmp_path):
    of_kind = {"soft-hoeffding-16": {"acr": 0.1}}
    folder = write_evaluation("ours", certificates={"hard": {}, **of_kind})
    soft = compare.load(write_log("ours/certificates-soft-hoeffding-16.tsv", FIRST), "soft")
    assert (soft.sigma, soft.n, soft.alpha) == (0.25, 1000, 0.001)
    with pytest.raises(InputError, match=r"metrics\.json is damaged"):
        compare.load(write_log("ours/certificates-other.tsv", FIRST), "other")
    members = [{"sigma": 0.25 * i, "n": 10 * i, "alpha": 0.01, "num_images": 4} for i in (1, 2)]
    (folder / "sweep.json").write_text(json.dumps({"members": members}))
    for place in (1, 2):
        member = compare.load(write_log(f"ours/{place}-lam-4.0.tsv", FIRST), "member")
        assert (member.sigma, member.n, member.alpha) == (0.25 * place, 10 * place, 0.01)
    with pytest.raises(InputError, match=r"sweep\.json is damaged"):
        compare.load(write_log("ours/3-lam-4.0.tsv", FIRST), "none")
    # Of anyone's log whose name happens to be like these, nothing is known.
    assert compare.load(write_log("theirs/1-lam-4.0.tsv", FIRST), "theirs").sigma is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "null", '{"sigma": "x", "n": 1, "alpha": 0.1, "num_images": 4}', "[" * 100_000, "\xff",
     '{"sigma": NaN, "n": 1, "alpha": 0.1, "num_images": 4}', '{"sigma": 1, "n": true, "alpha": 0.1, "num_images": 4}',
     '{"sigma": 1, "n": -1, "alpha": 0.1, "num_images": 4}', '{"sigma": 1, "n": 1, "num_images": 4}',
     '{"sigma": 1, "n": 1, "alpha": 0.1, "num_images": 4, "decided_radii": 1}',
     '{"sigma": 1, "n": 1, "alpha": 0.1, "num_images": 4, "decided_radii": [-1]}'],
)  # fmt: skip
def test_a_damaged_description_beside_a_log_is_one_line(write_evaluation, line, content):
    (write_evaluation("ours") / "metrics.json").write_bytes(content.encode("latin-1"))
    assert "metrics.json is damaged; make the evaluation again." in line("ours")


def test_names_of_files_command_no_terminal_and_are_no_formulas(write_log, run, tmp_path):
    names = ["\x1b[2J\u202eb.tsv", "$\\frac{$.tsv", "\u65e5\u672c.tsv", "two\nlines.tsv"]
    printed = run(*(write_log(name, FIRST) for name in names), "--output", tmp_path / "\x1b[2J.png")
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert r"\x1b[2J\u202eb" in printed
    assert r"two\nlines" in printed


def test_ctrl_c_is_status_130(write_log, monkeypatch, ctrl_c, capsys):
    path = write_log("a.tsv", FIRST)
    monkeypatch.setattr("pipeline.jobs.compare.load", lambda *_: ctrl_c())
    with pytest.raises(Ended, match="130"):
        compare.main([str(path)])
    assert capsys.readouterr().err == "\nInterrupted. Nothing was written; run the same command again.\n"


# Where logs are found


def test_run_folders_are_found_wherever_the_evaluation_lies(write_evaluation, tmp_path):
    write_evaluation("root/Evaluator-0123/evaluation")
    for folder in ("root", "root/Evaluator-0123", "root/Evaluator-0123/evaluation"):
        entry = compare.load(tmp_path / folder, "name")
        assert (entry.sigma, entry.n, entry.alpha, len(entry.log.ids)) == (0.25, 1000, 0.001, 4)


def test_what_is_unfinished_is_no_evaluation(write_evaluation, tmp_path, run):
    write_evaluation("root/Evaluator-0123/evaluation")
    write_evaluation("root/Evaluator-4567.unfinished/evaluation")
    assert compare.load(tmp_path / "root", "name").sigma == 0.25
    with pytest.raises(InputError, match="is neither an evaluation nor a pipeline root"):
        compare.load((tmp_path / "root" / "Evaluator-0123").rename(tmp_path / "root" / ".old").parent, "name")


def test_one_image_has_no_standard_error(write_log, run):
    printed = run(write_log("one.tsv", FIRST[:1]), "--radii", "0")
    assert "nan" not in printed
    (row,) = re.findall(r"^one .*$", printed, re.MULTILINE)
    assert re.fullmatch(r"one +\d\.\d{3}  \d\.\d{4} .*", row)
    assert "±" not in row


def test_names_are_as_short_as_tells_them_apart(tmp_path):
    ours = ["sigma0.25/macer/certificates.tsv", "sigma0.5/macer", "sigma0.25/cohen.tsv.gz"]
    assert compare.names_of(ours[1:]) == ["macer", "cohen"]
    assert compare.names_of(ours[:2]) == ["sigma0.25/macer", "sigma0.5/macer"]
    assert compare.names_of(["a.tsv", "a.tsv"]) == ["a (1)", "a (2)"]
    assert compare.names_of(["a.tsv", "b.tsv", "a.tsv"]) == ["a (1)", "b", "a (2)"]


def test_ids_and_names_reach_the_table(write_log, run, tmp_path):
    path = write_log("a.tsv", FIRST)
    packed = tmp_path / "b.tsv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    printed = run(path, packed, "--ids", "1-3", "--names", "plain,packed", "--radii", "0,1.5").splitlines()
    # Of images 1, 2 and 3 the last is right, with radius 1.5; the ACR's standard error is 1.5 / 3.
    assert printed[1].split() == ["radius", "0", "1.5", "ACR", "vs", "first", "sigma", "n", "alpha", "images"]
    assert printed[3].split() == ["plain", "0.333", "0.333", "0.5000", "±", "0.5000", "?", "?", "?", "3", "(1-3)"]
    assert printed[4].startswith("packed")
    assert "0.5000 ± 0.5000  +0.0000 ± 0.0000" in printed[4]
    assert printed[-1] == "Figure: comparison.html"
    page = (tmp_path / "comparison.html").read_text()
    assert 'role="img" aria-label="Curves of certified accuracy of ' in page
    assert "packed" in page


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("deep/b.svg", b"<?xml"), ("c.html", b"<!DOCTYPE")])
def test_the_output_is_what_its_name_says(write_log, run, tmp_path, name, magic):
    printed = run(write_log("a.tsv", FIRST), "--output", tmp_path / name)
    assert printed.endswith(f"Figure: {tmp_path / name}\n")
    content = (tmp_path / name).read_bytes()
    assert content.lower().startswith(magic.lower())
    run(write_log("a.tsv", FIRST), "--output", tmp_path / name)
    assert (tmp_path / name).read_bytes() == content


def test_names_are_escaped(write_log):
    html = comparison.html("<t>", [compare.load(write_log("a.tsv", FIRST), "<script>x</script>")], (0.0,))
    assert "<script>x" not in html
    assert "&lt;script&gt;x" in html


# The figure


def test_curves_are_the_entries_in_order():
    figure = figures.radius_accuracy_curves({"a": np.array([0.5, -1.0, 1.5, 0.5]), "b": np.array([2.0])})
    first, second = figure.axes[0].lines
    # 3 of 4 up to 0.5, 1 of 4 up to 1.5, then none; the axis ends at 1.06 * 2.
    np.testing.assert_allclose(first.get_xdata(), [0.0, 0.5, 1.5, 2.12])
    np.testing.assert_array_equal(first.get_ydata(), [0.75, 0.75, 0.25, 0.0])
    np.testing.assert_array_equal(second.get_ydata(), [1.0, 1.0, 0.0])
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[:2] == ["a, ACR 0.625 (4 images)", "b, ACR 2.000 (1 image)"]


def test_every_curve_looks_different():
    curves = {str(i): np.array([0.5]) for i in range(figures.MAX_CURVES)}
    lines = figures.radius_accuracy_curves(curves).axes[0].lines
    assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == figures.MAX_CURVES


@pytest.mark.parametrize("name", ["model {}", "a name too long for two columns of them side by side, number {}"])
def test_a_long_legend_leaves_the_axes_their_room(name):
    figure = figures.radius_accuracy_curves({name.format(i): np.array([0.5]) for i in range(figures.MAX_CURVES)})
    figure.draw_without_rendering()  # lays it out
    axes, texts = figure.axes[0].get_window_extent(), figure.legends[0].get_texts()
    assert min(text.get_window_extent().y0 for text in texts) >= axes.y1
    assert max(text.get_window_extent().x1 for text in texts) <= figure.bbox.x1
    assert axes.height / figure.dpi > 2.5


# Bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give 1 to 28 logs, or folders of runs. Received: 0"),
        (["nowhere.tsv"], "There is no file or folder nowhere.tsv; give a log, or a folder of a run."),
        (["a.tsv", ""], "Each of the paths must be a path. Received: ''"),
        (["a.tsv", "--radii", "0.5,0.25"], "--radii must be rising radii such as 0,0.25,0.5. Received: 0.5,0.25"),
        (["a.tsv", "--radii", "0,nan"], "--radii must be rising radii such as 0,0.25,0.5. Received: 0,nan"),
        (["a.tsv", "--ids", "9-5"], "--ids must be a range such as 500-999. Received: 9-5"),
        (["a.tsv", "--ids", "7-90"], "a has no image from 7 to 90: its 4 images are from 0 to 3."),
        (["a.tsv", "--names", "x,y"], "--names needs one name for each log (1), none empty and no two the same."),
        (["a.tsv", "--names", ""], "--names needs one name for each log (1), none empty and no two the same."),
        (
            ["a.tsv", "a.tsv", "--names", "x,x"],
            "--names needs one name for each log (2), none empty and no two the same.",
        ),
        (["a.tsv", "--output", "a.pdf"], "--output must be a file that ends in .html, .png, .svg. Received: a.pdf"),
        (["a.tsv", "--radius", "1"], "Unknown argument --radius. Did you mean --radii"),
        (["empty"], "empty is neither an evaluation nor a pipeline root with one: it has no certificates.tsv."),
        (["unlabelled"], "unlabelled has certificates without labels; give the folder of the Evaluator"),
        (
            ["a.tsv", "unknown.tsv"],
            "unknown.tsv has no labels, but -1 in their place: neither certified accuracy nor the",
        ),
        (["two"], "two holds 2 evaluations; name one: two/Evaluator-1/evaluation/certificates.tsv, two/"),
        (["damaged"], "damaged/metrics.json is damaged; make the evaluation again."),
        (["mixed"], "mixed/metrics.json covers 7 images, mixed/certificates.tsv 4: they are not from the same run."),
        (["picture.tsv"], "picture.tsv is not a certification log"),
        (["x" * 300], f"Cannot read {'x' * 300} ({os.strerror(errno.ENAMETOOLONG)})."),
    ],
)
def test_bad_input_is_one_line(line, write_log, write_evaluation, tmp_path, arguments, said):
    write_log("a.tsv", FIRST)
    write_log("unknown.tsv", [(0, -1, 3, 0.5), (1, -1, 5, 0.25)])
    (tmp_path / "picture.tsv").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "unlabelled").mkdir()
    (tmp_path / "unlabelled" / "certificates.jsonl").touch()
    for number in (1, 2):
        write_evaluation(f"two/Evaluator-{number}/evaluation")
    (write_evaluation("damaged") / "metrics.json").write_text("[1]")
    write_evaluation("mixed", num_images=7)
    assert said in line(*arguments)


def test_an_output_that_cannot_be_written_is_one_line(write_log, capsys, tmp_path):
    path = write_log("a.tsv", FIRST)
    assert compare.main([str(path), "--output", str(path / "x.html")]) == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert only.startswith(f"error: Cannot write {path / 'x.html'} (")
    (tmp_path / "a.html").mkdir()
    assert compare.main([str(path), "--output", str(tmp_path / "a.html")]) == 2
    assert {found.name for found in tmp_path.iterdir()} == {"a.tsv", "a.html"}


def test_a_missing_log_is_no_traceback(tmp_path):
    with pytest.raises(InputError, match=r"There is no file or folder .*none\.tsv"):
        compare.load(tmp_path / "none.tsv", "none")
