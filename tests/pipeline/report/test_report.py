"""Tests of the report: what the charts and figures draw, read back from them, and what the page contains."""

import base64
import hashlib
import io
import re
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from macer_tf import certificates as certificates_lib
from macer_tf.votes import Votes
from pipeline.report import certification_report, charts, figures, page, radii, single_images, table, words

PAPER = {
    "name": "MACER-0.25, paper Table 1",
    "radii": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25),
    "certified_accuracy": (0.81, 0.71, 0.59, 0.43, 0.0, 0.0),
    "acr": 0.556,
}


def size(png):
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image.size


def vertices(path):
    """[points, 2] of a path of straight lines, in thousandths of the plot's width and height."""
    return np.array([[float(number) for number in point.split(",")] for point in path[1:].split()])


# Curves


def test_step_curve_is_exact():
    # One image wrong, two with radius 0.1, one with 0.3. mean(radii >= r) is 3/4 up to and including r = 0.1,
    # 1/4 up to and including 0.3, then 0.
    x, y = radii.steps_of(np.array([0.1, -1.0, 0.3, 0.1]), 0.4)
    np.testing.assert_array_equal(x, [0.0, 0.1, 0.3, 0.4])
    np.testing.assert_array_equal(y, [0.75, 0.75, 0.25, 0.0])


def test_step_curve_agrees_with_the_definition_everywhere():
    rng = np.random.default_rng(1)
    given = np.where(rng.random(500) < 0.2, -1.0, rng.choice(np.linspace(0.0, 0.9, 40), 500))
    x, y = radii.steps_of(given, 1.0)
    asked = np.concatenate([rng.uniform(0.0, x[-1], 1000), x])
    drawn = y[np.searchsorted(x, asked, side="left")]  # a step holds on (x[i - 1], x[i]]
    np.testing.assert_allclose(drawn, (given[None] >= asked[:, None]).mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(np.sum(np.diff(x) * y[1:]), np.maximum(given, 0.0).mean(), rtol=1e-12)


def test_the_curve_is_drawn_where_it_is():
    """The plot ends at 1.06 * 0.3: 0.1 lies at 314.5 thousandths, 0.3 at 943.4; heights count from above."""
    chart = charts.certified_accuracy({"ours": np.array([0.1, -1.0, 0.3, 0.1])})
    curve = vertices(chart.paths[-1].line)
    np.testing.assert_allclose(
        curve, [[0, 250], [0, 250], [314.5, 250], [314.5, 750], [943.4, 750], [943.4, 1000], [1000, 1000]], atol=0.11
    )
    assert chart.curves[0].name == "ours, ACR 0.125 (4 images)"


def test_a_curve_of_very_many_images_stays_small_and_right():
    given = np.random.default_rng(0).uniform(0, 1, 200_000)
    chart = charts.certified_accuracy({"ours": given})
    curve = vertices(chart.paths[-1].line)
    assert len(curve) < 25_000
    # The accuracy at r is 1 - r: below the diagonal by the end of the axis, and by a tenth of a thousandth.
    np.testing.assert_allclose(curve[:, 1], np.minimum(curve[:, 0] * chart.end, 1000), atol=5)
    assert (np.diff(curve, axis=0) >= 0).all()


def test_the_band_is_one_binomial_standard_error():
    chart = charts.certified_accuracy({"ours": np.array([0.1, -1.0, 0.3, 0.1])})
    line = chart.paths[0].line
    assert "band" in chart.paths[0].looks
    points = vertices(line.replace("L", " ").removesuffix("Z"))
    at_zero = points[points[:, 0] == 0, 1]
    # sqrt(0.75 * 0.25 / 4) = 0.21651, and heights are from above.
    np.testing.assert_allclose([at_zero.min(), at_zero.max()], [250 - 216.51, 250 + 216.51], atol=0.1)


@pytest.mark.parametrize("given", [[0.3, 0.1, -1.0, 0.1, 0.7, 0.0], [-1.0], [0.29999999999999993], [1e-9, 2], [5e-324]])
def test_what_is_read_off_is_the_certified_accuracy_at_that_radius(given):
    """At every thousandth, also where a radius is one itself."""
    given = np.array(given)
    (curve,) = charts.certified_accuracy({"ours": given}).curves
    for thousandths in range(int(1000 * max(given.max(), 0)) + 3):
        later = [count for place, count in zip(curve.at, curve.counts, strict=True) if place >= thousandths]
        assert (later[0] if later else 0) == (given >= float(f"{thousandths / 1000:.3f}")).sum()
    assert curve.num_images == given.size


def test_the_limit_and_the_papers_numbers_are_in_the_plot_and_named():
    limit = (0.9, charts.name_of_limit(0.90099, 10_000))
    chart = charts.certified_accuracy({"ours": np.array([0.1, 0.3])}, paper=PAPER, limit=limit)
    assert chart.end == pytest.approx(1.06 * 0.9)
    (line,) = chart.lines
    assert (line.at, line.text) == (pytest.approx(100 / 1.06, abs=0.01), "limit of n = 10,000: 0.900")
    # Those beyond the end are left out; the plot is not stretched to them.
    assert chart.points == [
        (pytest.approx(100 * r / chart.end, abs=0.01), pytest.approx(100 * (1 - a), abs=0.01))
        for r, a in zip(PAPER["radii"][:4], PAPER["certified_accuracy"], strict=False)
    ]
    assert chart.points_name == "Reported in the paper, not measured here: MACER-0.25, paper Table 1, ACR 0.556"
    without = charts.certified_accuracy({"ours": np.array([0.1])}, paper=PAPER | {"acr": None})
    assert without.points_name.endswith("MACER-0.25, paper Table 1")


def test_without_paper_nothing_is_said_about_it():
    assert charts.certified_accuracy({"ours": np.array([0.1])}).points_name == ""


def test_all_abstained():
    chart = charts.certified_accuracy({"ours": np.full(5, -1.0)})
    assert chart.note == "No image has a radius above 0"
    np.testing.assert_allclose(vertices(chart.paths[-1].line)[:, 1], 1000)
    assert "ACR 0.000" in chart.curves[0].name
    size(figures.save_png(figures.radius_accuracy_curves({"ours": np.full(5, -1.0)})))


def test_every_curve_looks_different():
    names = [str(place) for place in range(charts.COLORS * charts.DASHES)]
    drawn = charts.certified_accuracy({name: np.array([0.5]) for name in names})
    assert len({curve.looks for curve in drawn.curves}) == len(names) == figures.MAX_CURVES
    assert len({curve.looks.split()[1] for curve in drawn.curves[:4]}) == 4  # without any colour, too
    assert not any("band" in path.looks for path in drawn.paths)


def test_radii_as_large_as_a_log_may_have_take_no_more_memory_than_others():
    """Not an array of all thousandths up to them: of 1e6, 16 GB."""
    tracemalloc.start()
    (curve,) = charts.certified_accuracy({"ours": np.array([1e6, 0.5])}).curves
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (curve.at, curve.counts) == ([500, 10**9], [2, 1])
    assert peak < 2**24


@pytest.mark.parametrize("given", [[], [[0.1]], [np.nan], [np.inf]])
@pytest.mark.parametrize("draw", [charts.certified_accuracy, figures.radius_accuracy_curves])
def test_bad_radii_are_refused(given, draw):
    with pytest.raises(ValueError, match="Received: shape"):
        draw({"ours": np.array(given)})
    with pytest.raises(ValueError, match="must not be empty"):
        draw({})


def test_names_are_not_read_as_formulas():
    figure = figures.radius_accuracy_curves({"$\\bad{$": np.array([0.2])})
    assert "$\\bad{$" in figure.legends[0].get_texts()[0].get_text()
    size(figures.save_png(figure))


def test_long_names_stay_inside_the_figure():
    figure = figures.radius_accuracy_curves({"name " * 30: np.array([0.2])})
    figures.save_png(figure)  # lays the figure out
    assert figure.legends[0].get_window_extent().x1 < figure.bbox.x1


def test_png_is_wide_enough_and_reproducible():
    first, second = (figures.save_png(figures.radius_accuracy_curves({"ours": np.array([0.1])})) for _ in range(2))
    assert size(first)[0] == 1440
    assert first == second


# Lower bounds

NORMAL = NormalDist()
CEILING = NORMAL.cdf(2.4)  # so that the 24 bins from 1/2 to the ceiling are 0.1 wide


def bars(chart):
    """Left edge in units of sigma -> count, of the bins that are not empty."""
    (path,) = chart.paths
    zero = next(line.at for line in chart.lines if line.text.startswith("abstains"))
    top = next(line.at for line in chart.lines if line.text.startswith("at most"))
    highest = chart.y_ticks[-1]
    found = re.findall(r"M([\d.e+-]+),1000V([\d.e+-]+)", path.line)
    return {
        round((float(left) / 10 - zero) / (top - zero) * 2.4, 1): round(
            (100 - float(height) / 10) / (100 - highest.at) * int(highest.text.replace(",", ""))
        )
        for left, height in found
    }


def test_bounds_fall_into_their_bins():
    p_lower = np.array([NORMAL.cdf(z) for z in (1.05, 1.05, 2.4, 2.35, 0.55, -0.05)])
    correct = np.array([True, False, True, True, False, False])
    upper, lower = charts.lower_bounds(p_lower, correct, ceiling=CEILING)
    assert bars(upper) == {1.0: 1, 2.3: 2}
    assert bars(lower) == {-0.1: 1, 0.5: 1, 1.0: 1}
    assert upper.y_label == "Correct: 3 of 6 images"
    assert lower.y_label == "Not correct: 3 of 6 images"
    assert "at most 0.9918" in [line.text for line in upper.lines]  # Phi(2.4) = 0.991802
    assert "first bin" not in lower.x_label


def test_bounds_without_labels_are_one_histogram():
    (chart,) = charts.lower_bounds(np.array([NORMAL.cdf(1.05), 0.4]), None, ceiling=CEILING)
    assert chart.y_label == "Images: 2 of 2 images"
    assert sum(bars(chart).values()) == 2


def test_bounds_left_of_the_axis_are_counted_and_said():
    upper, lower = charts.lower_bounds(np.array([0.0, 0.9]), np.array([False, False]), ceiling=CEILING)
    assert bars(upper) == {}
    assert sum(bars(lower).values()) == 2
    assert "1 further left, counted in the first bin" in lower.x_label


@pytest.mark.parametrize("n", [1, 9, 10, 100_000])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_image_is_counted_whatever_n(n, share):
    ceiling = 0.001 ** (1 / n)  # at or below 1/2 for n < 10: nothing can be certified
    drawn = charts.lower_bounds(np.full(7, share * ceiling), np.arange(7) < 3, ceiling=ceiling)
    assert [chart.y_ticks[-1].text for chart in drawn] == ["3", "4"]
    for chart in drawn:
        assert [tick.at for tick in chart.top_ticks] == sorted(tick.at for tick in chart.top_ticks)
        places = [tick.at for tick in (*chart.x_ticks, *chart.top_ticks, *chart.lines)]
        assert all(-0.01 <= place <= 100.01 for place in places)


@pytest.mark.parametrize(
    ("p_lower", "correct", "ceiling"),
    [
        ([], [], 0.9),
        ([0.5], [True, False], 0.9),
        ([0.95], [True], 0.9),
        ([-0.1], [True], 0.9),
        ([np.nan], [True], 0.9),
        ([0.5], [True], 1.0),
    ],
)
def test_bad_bounds_are_refused(p_lower, correct, ceiling):
    with pytest.raises(ValueError, match="Received"):
        charts.lower_bounds(np.array(p_lower), np.array(correct), ceiling=ceiling)


# Training


def test_one_chart_for_each_quantity_there_is():
    history = {"learning_rate": [0.01, 0.001], "loss": [2.0, 0.5], "val_loss": [1.0], "soft_radius": []}
    loss, rate = charts.training(history)
    assert (loss.y_label, rate.y_label) == ("loss 0.500", "learning rate 0.001")
    assert [tick.text for tick in loss.x_ticks] == ["1", "2"]
    assert [tick.text for tick in loss.y_ticks] == ["0.5", "2"]
    first, last = vertices(loss.paths[0].line.removesuffix("h0"))
    assert (first[0], last[0]) == (0, 1000)
    assert last[1] > first[1]  # it falls
    assert len(charts.training({name: [0.1, 0.2, 0.3] for name in charts.CURVES})) == len(charts.CURVES)


@pytest.mark.parametrize(
    "values", [[0.5], [0.0, 0.0], [1.0, float("nan")], [1.0, float("inf"), 2.0], [float("nan")], [1e-300, 1e300]]
)
def test_unusual_histories_are_drawn(values):
    for chart in charts.training({"loss": values, "learning_rate": values}):
        (path,) = chart.paths
        assert path.line.count("M") == (2 if np.isinf(values).any() else int(np.isfinite(values).any()))
        assert "nan" not in path.line
        assert "inf" not in path.line


def test_empty_history_is_refused():
    with pytest.raises(ValueError, match="Received"):
        charts.training({"loss": [], "something_else": [1.0]})


# Single images

# Correct at 0.5; wrong at 0.2; abstained; correct at 0.1; wrong at 0.9; not estimated; label not known.
CERTIFIED = certificates_lib.Certificates(
    predictions=np.array([0, 1, -1, 1, 2, -1, 2]),
    radii=np.array([0.5, 0.2, 0.0, 0.1, 0.9, 0.0, 0.3]),
    p_lower=np.array([0.9, 0.7, 0.4, 0.6, 0.99999, 0.0, 0.8]),
    selected=np.array([0, 1, 0, 1, 2, 0, 2]),
    sigma=0.25,
    alpha=0.001,
    n0=10,
    n=np.array([100, 100, 100, 100, 100, 0, 100]),
)
LABELS = np.array([0, 0, 0, 1, 0, 1, -1])
OUTCOMES = ["correct", "wrong", "abstained", "correct", "wrong", "unestimated", "certified"]
VOTES = Votes(
    np.tile([6, 3, 1], (7, 1)),
    np.array([[95, 5, 0], [10, 80, 10], [50, 50, 0], [30, 65, 5], [0, 0, 100], [0, 0, 0], [5, 5, 90]]),
)


def evaluated(shape=(8, 8, 1), **changed):
    return SimpleNamespace(
        **{
            "certificates": CERTIFIED,
            "votes": VOTES,
            "labels": LABELS,
            "ids": np.arange(7) * 10,
            "class_names": ("cat", "dog", "emu"),
            "names": None,
            "image": lambda position: np.full(shape, position / 7),
            "noise": lambda position: np.full(shape, 0.5),
        }
        | changed
    )


def test_the_worst_image_is_the_wrong_one_that_is_most_certain():
    assert single_images.worst_first(CERTIFIED, LABELS).tolist() == [4, 1, 5, 2, 3, 0, 6]
    browser = single_images.browser(evaluated())
    assert [card.outcome for card in browser.cards] == [OUTCOMES[i] for i in (4, 1, 5, 2, 3, 0, 6)]
    worst = browser.cards[0]
    assert worst.heading == "✗ emu, not cat"
    assert worst.lines == ["radius 0.900", "p_A ≥ 0.9999", "votes emu: 100"]  # a bound is not rounded up
    assert browser.cards[2].lines == ["not estimated", "selection votes cat: 6, dog: 3, emu: 1"]
    assert browser.cards[3].lines == ["no radius", "p_A ≥ 0.4000", "votes cat: 50, dog: 50"]
    assert (browser.labels, worst.name) == (["cat", "dog"], "image 40")
    assert single_images.browser(evaluated(names=list("abcdefg"))).cards[0].name == "image 40, e"


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (224, 224, 3), (96, 48, 3)])
def test_pictures_are_small_and_show_the_image_and_its_noisy_copy(shape):
    (clean, said), (noisy, _) = single_images.browser(evaluated(shape)).cards[0].pictures
    assert said == "image 40, cat"
    contents = [base64.b64decode(uri.removeprefix("data:image/png;base64,")) for uri in (clean, noisy)]
    shrunk = max(1.0, max(shape) / single_images.MAX_SIDE)
    for content, value in zip(contents, (round(255 * 4 / 7), 255), strict=True):  # clipped to 1
        assert size(content) == (shape[1] / shrunk, shape[0] / shrunk)
        assert set(np.unique(np.asarray(Image.open(io.BytesIO(content))))) == {value}


def test_an_image_that_cannot_be_had_any_more_has_no_picture():
    assert single_images.browser(evaluated(image=lambda position: None)).cards[0].pictures == ()


def test_of_many_images_the_worst_and_some_of_all_others_are_shown():
    order = np.arange(10_000)
    shown = single_images.chosen(order)
    half = single_images.MAX_IMAGES // 2
    assert len(shown) == len(set(shown.tolist())) == single_images.MAX_IMAGES
    assert shown[:half].tolist() == list(range(half))
    assert shown[-1] == 9999
    assert np.diff(shown[half:]).max() - np.diff(shown[half:]).min() <= 1
    for count in range(single_images.MAX_IMAGES, single_images.MAX_IMAGES + 3):
        assert len(set(single_images.chosen(np.arange(count)).tolist())) == single_images.MAX_IMAGES


def test_selected_classes_against_labels():
    """Labels 0, 0, 0, 1, 0, 1 with 0, 1, 0, 1, 2, 0 selected; the last image has no label."""
    found = single_images.confusion(CERTIFIED.selected, LABELS, ("cat", "dog", "emu"))
    assert found.cells == [
        ("cat", [(2, 2), (1, 1), (1, 1)]),
        ("dog", [(1, 2), (1, 2), (0, 0)]),
        ("emu", [(0, 0), (0, 0), (0, 0)]),
    ]
    assert single_images.confusion(CERTIFIED.selected, np.full(7, -1), ("a", "b", "c")) is None
    many = [f"class {i}" for i in range(1000)]
    labels, selected = np.array([0, 0, 0, 7, 7, 9]), np.array([5, 5, 0, 999, 7, 9])
    found = single_images.confusion(selected, labels, many)
    assert found.cells == ()
    assert found.pairs == [("class 0", "class 5", 2), ("class 7", "class 999", 1)]


@pytest.mark.parametrize(
    ("value", "digits", "told"),
    # The float nearest to 0.3 is below it.
    [(0.99999, 4, "0.9999"), (0.3, 3, "0.299"), (0.0, 3, "0.000"), (0.9009999, 3, "0.900"), (12.3456, 2, "12.34")],
)
def test_a_lower_bound_is_rounded_down(value, digits, told):
    assert words.at_least(value, digits) == told
    assert Fraction(told) <= Fraction(value)


def test_a_page_without_labels_shows_no_larger_median_radius_than_is_certified():
    votes = Votes(np.array([[20, 0]]), np.array([[950, 50]]))
    certified = certificates_lib.certify(votes, 0.5, 0.001)
    html = certification_report.html(
        certification_report.Evaluated(
            title="t",
            metrics={
                **{"sigma": 0.5, "n0": 20, "n": 1000, "alpha": 0.001, "bound": "clopper-pearson", "abstained": 0.0},
                **{"image_set": "one image", "samples_per_image": 1020.0, "unestimated": 0.0},
            },
            listing={},
            correct_radii={"hard": certified.radii},
            certificates=certified,
            votes=votes,
            ids=np.arange(1),
            labels=np.array([-1]),
            class_names=["a", "b"],
            image=lambda position: np.zeros((8, 8, 1)),
            noise=lambda position: np.zeros((8, 8, 1)),
            command="c",
        )
    )
    (shown,) = re.findall(r"Median radius</dt>\s*<dd[^>]*>([\d.]+)", html)
    assert f"{certified.radii[0]:.3f}" > shown  # rounded to the nearest, it would be larger
    assert 0 <= Fraction(certified.radii[0]) - Fraction(shown) < Fraction(1, 1000)


# Tables


def test_a_parquet_file_has_every_digit_of_every_certificate(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    names = [f"{i}.png" for i in range(7)]
    table.write(tmp_path / "a.parquet", CERTIFIED, VOTES, LABELS, np.arange(7) * 10, names)
    read = pq.read_table(tmp_path / "a.parquet")
    assert read.to_pydict() == {
        "example_id": [0, 10, 20, 30, 40, 50, 60],
        "file": names,
        "label": [0, 0, 0, 1, 0, 1, None],
        "prediction": CERTIFIED.predictions.tolist(),
        "outcome": OUTCOMES,
        "radius": CERTIFIED.radii.tolist(),
        "p_lower": CERTIFIED.p_lower.tolist(),
        "votes": VOTES.estimation.tolist(),
    }
    assert {str(read.schema.field(name).type) for name in ("radius", "p_lower")} == {"double"}
    about = {name.decode(): value.decode() for name, value in read.schema.metadata.items()}
    assert about == {"sigma": "0.25", "alpha": "0.001", "n0": "10", "n": "100", "bound": "clopper-pearson"}
    first = (tmp_path / "a.parquet").read_bytes()
    table.write(tmp_path / "a.parquet", CERTIFIED, VOTES, LABELS, np.arange(7) * 10, names)
    assert (tmp_path / "a.parquet").read_bytes() == first


# page

PNG = page.data_uri(figures.save_png(figures.radius_accuracy_curves({"ours": np.array([0.1])})))
EVIL = "<script>alert(1)</script>\"'&"


def sample(text="plain"):
    """A page whose every string is `text`."""
    chart = charts.certified_accuracy(
        {text: np.array([0.1, 0.4])}, paper=PAPER | {"name": text}, limit=(0.5, text), y_label=text
    )
    card = page.ImageCard(text, text, text, 0.5, text, [text], [(PNG, text)])
    return page.render(
        title=text,
        summary=[page.Fact(text, text, (text, text), text), page.Fact("n", "1000")],
        settings={
            text: [page.Setting(text, text, text)],
            "Training": [page.Setting("lam", "12.0", "weight")],
        },
        metrics=page.MetricsTable(
            radii=(0.0, 0.25),
            rows=(
                page.MetricRow(text, (0.9375, None), text, details=text, acr_details=text, behind=(text,)),
                page.MetricRow("MACER-0.25", (0.81, 0.0), "0.556", paper_caveat=text, behind=("",)),
            ),
            behind=(text,),
            remarks=(text,),
            what=text,
        ),
        figures=[
            page.Figure("curve", text, text, [chart], text),
            page.Figure("training", "Training", "By epoch.", charts.training({"loss": [1, 2]}), "A line.", small=True),
        ],
        notes=[text, "ACR must never be compared across n."],
        images=page.Images(text, [card, page.ImageCard(text, None, "correct", 0.0, text, [], ())]),
        confusion=page.Confusion((text,), [(text, [(3, 4)])], ()),
        footer=[(text, text)],
    )


class Outline(HTMLParser):
    """Collects the tags of a page and checks that they nest."""

    VOID = ("meta", "img", "input", "line", "path")

    def __init__(self, html):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def having(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_is_self_contained():
    html = sample()
    outline = Outline(html)
    assert outline.having("src") == [PNG]
    ids = outline.having("id")
    assert len(set(ids)) == len(ids)
    assert outline.having("href")
    assert all(href[0] == "#" and href[1:] in ids for href in outline.having("href"))
    assert not re.search(r"https?:|url\(|@import|srcset|<link|<iframe| style=| on\w+=", html)


def test_the_pages_policy_lets_in_its_own_style_and_script_only():
    html = sample(EVIL)
    (policy,) = (attrs["content"] for attrs in Outline(html).named("meta") if "http-equiv" in attrs)
    directives = dict(directive.split(" ", 1) for directive in policy.split("; "))
    assert directives["default-src"] == directives["base-uri"] == directives["form-action"] == "'none'"
    assert directives["img-src"] == "data:"
    for directive, tag in (("style-src", "style"), ("script-src", "script")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert directives[directive] == f"'sha256-{digest}'"


def test_everything_is_escaped():
    html = sample(EVIL)
    plain, evil = Outline(sample()), Outline(html)
    assert EVIL not in html
    assert html.count("<script") == 1
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in evil.tags] == [sorted(attrs) for _, attrs in plain.tags]
    assert evil.named("img")[0]["alt"] == EVIL  # in full, once unescaped


def test_the_same_page_for_the_same_data():
    assert sample() == sample()


def test_page_is_semantic():
    outline = Outline(sample())
    tables = len(outline.named("table"))
    assert tables == 4
    assert len(outline.named("caption")) == tables
    assert len(outline.named("h1")) == len(outline.named("main")) == len(outline.named("footer")) == 1
    assert len(outline.named("h2")) == len(outline.named("section")) == 7
    assert all(cell.get("scope") in ("row", "col") for cell in outline.named("th"))
    drawn = [attrs for attrs in outline.named("svg") if attrs.get("role") == "img"]
    assert [attrs["aria-label"] for attrs in drawn] == ["plain", "A line."]
    assert outline.named("html") == [{"lang": "en"}]
    assert "prefers-color-scheme: dark" in (page.TEMPLATES / "style.css").read_text()


def test_only_rows_of_the_paper_are_marked_as_such():
    rows = re.findall(r"<tr.*?</tr>", sample("our words"), re.DOTALL)
    ours = next(row for row in rows if "0.938" in row)
    papers = next(row for row in rows if "MACER-0.25" in row)
    assert "reported in the paper" not in ours
    assert 'aria-label="no number"' in ours
    assert "reported in the paper" in papers
    assert "our words" in papers
    assert "<td>0.81</td><td>0.00</td>" in papers  # no third digit, which the paper does not give


def test_page_without_optional_parts():
    for metrics in (page.MetricsTable((), ()), None):
        assert Outline(page.render("t", [], {}, metrics, [], [])).named("h1")


def test_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"'ours'.*Received: 1"):
        page.MetricsTable((0.0, 0.5), (page.MetricRow("ours", (1.0,), "1"),))


@pytest.mark.parametrize("ids", [("a", "a"), ("",), ("a b",), ('a"b',)])
def test_bad_figure_ids_are_refused(ids):
    with pytest.raises(ValueError, match="Received"):
        page.render("t", [], {}, page.MetricsTable((), ()), [page.Figure(i, "h", "c", [], "a") for i in ids], [])


def test_report_stands_alone():
    # In a fresh interpreter, since other tests import all of these.
    root = Path(__file__).parents[3]
    code = (
        "import sys, pipeline.report.figures, pipeline.report.page\n"
        "heavy = {'tensorflow', 'keras', 'apache_beam', 'macer_tf', 'serving', 'matplotlib.pyplot'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, text=True, stdout=subprocess.PIPE)
    assert done.stdout.strip() == "[]"
