"""Tests of the report: what the figures draw, read back from them, and what the page contains."""

import io
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from PIL import Image

from pipeline.report import figures, page


@dataclass(frozen=True)
class Paper:
    name: str = "MACER-0.25, paper Table 1"
    radii: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    certified_accuracy: tuple[float, ...] = (0.81, 0.71, 0.59, 0.43, 0.0, 0.0)
    acr: float = 0.556


@dataclass(frozen=True)
class GalleryExample:
    image: np.ndarray
    noisy: list[np.ndarray]
    label: str = "3"
    prediction: str = "3"
    radius: float | None = 0.5
    vote_share: float = 0.9876


def example(height=8, width=8, channels=1, copies=2, **kwargs):
    image = np.linspace(0.0, 1.0, height * width * channels).reshape(height, width, channels)
    return GalleryExample(image, [image + 0.5 * (-1) ** i for i in range(copies)], **kwargs)


def size(png):
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return image.size


def texts(figure):
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return [text for text in found if text]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def curve(figure):
    line = figure.axes[0].lines[0]
    assert line.get_drawstyle() == "steps-pre"
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


# radius_accuracy


def test_step_curve_is_exact():
    # One image wrong, two with radius 0.1, one with 0.3. mean(radii >= r) is 3/4 up to and including r = 0.1,
    # 1/4 up to and including 0.3, then 0. The plot ends at 1.06 * 0.3.
    x, y = curve(figures.radius_accuracy(np.array([0.1, -1.0, 0.3, 0.1]), label="ours"))
    np.testing.assert_allclose(x, [0.0, 0.1, 0.3, 0.318], rtol=1e-12)
    np.testing.assert_array_equal(y, [0.75, 0.75, 0.25, 0.0])


def test_step_curve_agrees_with_the_definition_everywhere():
    rng = np.random.default_rng(1)
    radii = np.where(rng.random(500) < 0.2, -1.0, rng.choice(np.linspace(0.0, 0.9, 40), 500))
    x, y = curve(figures.radius_accuracy(radii, label="ours"))
    asked = np.concatenate([rng.uniform(0.0, x[-1], 1000), x])
    drawn = y[np.searchsorted(x, asked, side="left")]  # a "steps-pre" segment holds on (x[i - 1], x[i]]
    np.testing.assert_allclose(drawn, (radii[None] >= asked[:, None]).mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(np.sum(np.diff(x) * y[1:]), np.maximum(radii, 0.0).mean(), rtol=1e-12)


def test_radius_zero_is_certified_at_zero_only():
    x, y = curve(figures.radius_accuracy(np.array([0.0, 0.5]), label="ours"))
    np.testing.assert_allclose(x, [0.0, 0.5, 0.53])
    np.testing.assert_array_equal(y, [1.0, 0.5, 0.0])


def test_band_is_one_binomial_standard_error():
    figure = figures.radius_accuracy(np.array([0.1, -1.0, 0.3, 0.1]), label="ours")
    drawn = figure.axes[0].collections[0].get_paths()[0].vertices
    at_zero = drawn[np.isclose(drawn[:, 0], 0.0), 1]
    # sqrt(0.75 * 0.25 / 4) = 0.21651
    np.testing.assert_allclose([at_zero.min(), at_zero.max()], [0.75 - 0.21651, 0.75 + 0.21651], atol=1e-5)
    at_end = drawn[drawn[:, 0] > 0.25, 1]
    assert at_end.min() == 0.0
    np.testing.assert_allclose(at_end.max(), 0.25 + 0.21651, atol=1e-5)


def test_paper_is_drawn_as_markers_and_named():
    paper = Paper()
    figure = figures.radius_accuracy(np.array([0.1, 0.3]), paper, label="ours")
    markers = figure.axes[0].lines[1]
    assert markers.get_linestyle() == "None"
    assert markers.get_marker() == "D"
    np.testing.assert_array_equal(markers.get_xdata(), paper.radii)
    np.testing.assert_array_equal(markers.get_ydata(), paper.certified_accuracy)
    measured, _, reported = (text.replace("\n", " ") for text in legend(figure))
    assert measured == "Measured here: ours, ACR 0.200 (2 images)"
    assert reported == "Reported in the paper, not measured here: MACER-0.25, paper Table 1, ACR 0.556"
    # The last of its points above 0 is at 0.75; the columns of zeros do not stretch the axis to 1.25.
    assert figure.axes[0].get_xlim()[1] == pytest.approx(0.75 * 1.06)


def test_without_paper_nothing_is_said_about_it():
    assert not any("paper" in text for text in texts(figures.radius_accuracy(np.array([0.1]), label="ours")))


def test_all_abstained():
    figure = figures.radius_accuracy(np.full(5, -1.0), label="ours")
    x, y = curve(figure)
    np.testing.assert_array_equal(x, [0.0, 1.0])
    np.testing.assert_array_equal(y, [0.0, 0.0])
    assert "No image has a radius above 0" in texts(figure)
    assert "ACR 0.000" in legend(figure)[0]
    size(figures.save_png(figure))


def test_single_image():
    figure = figures.radius_accuracy(np.array([0.2]), label="ours")
    np.testing.assert_array_equal(curve(figure)[1], [1.0, 1.0, 0.0])
    assert "(1 image)" in legend(figure)[0]
    size(figures.save_png(figure))


def test_names_are_not_read_as_formulas():
    figure = figures.radius_accuracy(np.array([0.2]), replace(Paper(), name="$\\bad{$"), label="$\\frac$")
    assert "$\\frac$" in legend(figure)[0]
    size(figures.save_png(figure))


def test_long_names_stay_inside_the_figure():
    figure = figures.radius_accuracy(np.array([0.2]), replace(Paper(), name="long " * 30), label="name " * 30)
    figures.save_png(figure)  # lays the figure out
    assert figure.legends[0].get_window_extent().x1 < figure.bbox.x1


@pytest.mark.parametrize("radii", [[], [[0.1]], [np.nan], [np.inf]])
def test_bad_radii_are_refused(radii):
    with pytest.raises(ValueError, match="Received: shape"):
        figures.radius_accuracy(np.array(radii), label="ours")


# p_a_distribution

NORMAL = NormalDist()
CEILING = NORMAL.cdf(2.4)  # so that the 24 bins from 1/2 to the ceiling are 0.1 wide


def bars(axes):
    """Left edge -> count, of the bins that are not empty."""
    return {round(bar.get_x(), 6): bar.get_height() for bar in axes.patches[1:] if bar.get_height()}


def test_bounds_fall_into_their_bins():
    p_lower = np.array([NORMAL.cdf(z) for z in (1.05, 1.05, 2.4, 2.35, 0.55, -0.05)])
    correct = np.array([True, False, True, True, False, False])
    figure = figures.p_a_distribution(p_lower, correct, ceiling=CEILING)
    upper, lower = figure.axes
    assert bars(upper) == {1.0: 1, 2.3: 2}
    assert bars(lower) == {-0.1: 1, 0.5: 1, 1.0: 1}
    assert upper.get_ylabel() == "Correct\n3 of 6 images"
    assert lower.get_ylabel() == "Not correct\n3 of 6 images"
    for axes in (upper, lower):
        half, ceiling = (line.get_xdata()[0] for line in axes.lines)
        assert half == 0.0
        assert ceiling == pytest.approx(2.4)
    assert "largest attainable bound 0.9918" in texts(figure)  # Phi(2.4) = 0.991802
    assert "first bin" not in lower.get_xlabel()


def test_bounds_left_of_the_axis_are_counted_and_said():
    figure = figures.p_a_distribution(np.array([0.0, 0.9]), np.array([False, False]), ceiling=CEILING)
    upper, lower = figure.axes
    assert bars(upper) == {}
    assert sum(bars(lower).values()) == 2
    assert "counted in the first bin: 1" in lower.get_xlabel()
    size(figures.save_png(figure))


@pytest.mark.parametrize("n", [1, 9, 10, 100_000])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_image_is_counted_whatever_n(n, share):
    ceiling = 0.001 ** (1 / n)  # at or below 1/2 for n < 10: nothing can be certified
    p_lower = np.full(7, share * ceiling)
    figure = figures.p_a_distribution(p_lower, np.arange(7) < 3, ceiling=ceiling)
    assert [sum(bars(axes).values()) for axes in figure.axes] == [3, 4]
    size(figures.save_png(figure))


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
        figures.p_a_distribution(np.array(p_lower), np.array(correct), ceiling=ceiling)


# training_curves


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def test_one_panel_for_each_quantity_there_is():
    history = {"learning_rate": [0.01, 0.001], "loss": [2.0, 0.5], "val_loss": [1.0], "soft_radius": []}
    drawn = panels(figures.training_curves(history))
    assert list(drawn) == ["loss", "learning rate"]
    np.testing.assert_array_equal(drawn["loss"].lines[0].get_xdata(), [1, 2])
    np.testing.assert_array_equal(drawn["loss"].lines[0].get_ydata(), [2.0, 0.5])
    assert drawn["loss"].get_title(loc="right") == "0.500"
    assert drawn["learning rate"].get_yscale() == "log"
    assert drawn["learning rate"].get_title(loc="right") == "0.001"


def test_all_quantities():
    figure = figures.training_curves({name: [0.1, 0.2, 0.3] for name in figures.CURVES})
    drawn = panels(figure)
    assert [name.replace(" ", "_") for name in drawn] == list(figures.CURVES)
    assert {name for name, axes in drawn.items() if axes.get_xlabel() == "epoch"} == {
        "hinge fraction",
        "soft radius",
        "learning rate",
    }
    size(figures.save_png(figure))


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1.0, float("nan")], [1.0, float("inf"), 2.0]])
def test_unusual_histories_are_drawn(values):
    size(figures.save_png(figures.training_curves({"loss": values, "learning_rate": values})))


def test_empty_history_is_refused():
    with pytest.raises(ValueError, match="Received"):
        figures.training_curves({"loss": [], "something_else": [1.0]})


# example_gallery


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (224, 224, 3), (96, 64, 3)])
@pytest.mark.parametrize("count", [1, 8])
def test_gallery_shapes(shape, count):
    figure = figures.example_gallery([example(*shape) for _ in range(count)])
    assert len(figure.axes) == 3 * count
    drawn = figure.axes[1].images[0].get_array()
    assert drawn.shape[:2] == shape[:2]
    assert drawn.min() >= 0.5  # first noisy copy is image + 0.5 ...
    assert drawn.max() == 1.0  # ... clipped
    size(figures.save_png(figure))


def test_outcomes_differ_without_colour():
    figure = figures.example_gallery(
        [
            example(),
            example(prediction="5", radius=0.25),
            example(prediction="ABSTAIN", radius=None, copies=3),
        ]
    )
    said = texts(figure)
    assert "✓ 3 → 3" in said
    assert "✗ 3 → 5" in said
    assert "? 3 → ABSTAIN" in said
    assert "correct, certified radius 0.500, 98.76 % of votes" in said
    assert "wrong, certified radius 0.250, 98.76 % of votes" in said
    assert "abstained, no radius, 98.76 % of votes" in said
    clean = [figure.axes[i] for i in (0, 3, 6)]
    assert len({axes.spines["left"].get_linestyle() for axes in clean}) == 3


def test_gallery_survives_any_class_name():
    figure = figures.example_gallery([example(label="$\\bad{$", prediction="a class name that is very long")])
    assert "✗ $\\bad{$ → a class name t…" in texts(figure)
    size(figures.save_png(figure))


@pytest.mark.parametrize("count", [0, 9])
def test_gallery_of_the_wrong_size_is_refused(count):
    with pytest.raises(ValueError, match=f"Received: {count}"):
        figures.example_gallery([example()] * count)


# save_png


def test_png_is_wide_enough_and_reproducible():
    first, second = (figures.save_png(figures.radius_accuracy(np.array([0.1]), label="ours")) for _ in range(2))
    assert size(first)[0] == 1440
    assert first == second


# page

PNG = figures.save_png(figures.training_curves({"loss": [1.0, 0.5]}))
EVIL = "<script>alert(1)</script>\"'&"


def sample(text="plain", png=PNG):
    """A page whose every string is `text`."""
    return page.render(
        title=text,
        summary=[page.Fact(text, text, (text, text)), page.Fact("n", "1000")],
        settings={
            text: [page.Setting(text, text, text)],
            "Training": [page.Setting("lam", "12.0", "weight")],
        },
        metrics=page.MetricsTable(
            radii=(0.0, 0.25),
            rows=(
                page.MetricRow(text, (0.9375, None), text),
                page.MetricRow("MACER-0.25", (0.81, 0.0), "0.556", paper_caveat=text),
            ),
        ),
        figures=[
            page.PageFigure("curve", text, text, png, text),
            page.PageFigure("training", "Training", "By epoch.", png, "A falling line."),
        ],
        notes=[text, "ACR must never be compared across n."],
    )


class Outline(HTMLParser):
    """Collects the tags of a page and checks that they nest."""

    VOID = ("meta", "img")

    def __init__(self, html):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(html)
        self.close()
        assert self.open == []

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
    assert len(outline.having("src")) == 2
    assert all(src.startswith("data:image/png;base64,") for src in outline.having("src"))
    ids = outline.having("id")
    assert len(set(ids)) == len(ids)
    assert outline.having("href")
    assert all(href[0] == "#" and href[1:] in ids for href in outline.having("href"))
    assert not re.search(r"https?:|url\(|@import|srcset|<script|<link|<iframe", html)
    assert "default-src 'none'" in html


def test_everything_is_escaped():
    html = sample(EVIL)
    plain, evil = Outline(sample()), Outline(html)
    assert "<script" not in html
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attrs) for _, attrs in evil.tags] == [sorted(attrs) for _, attrs in plain.tags]
    assert evil.named("img")[0]["alt"] == EVIL  # in full, once unescaped


def test_page_is_semantic():
    outline = Outline(sample())
    tables = len(outline.named("table"))
    assert tables == 3
    assert len(outline.named("caption")) == tables
    assert len(outline.named("h1")) == len(outline.named("main")) == 1
    assert len(outline.named("h2")) == len(outline.named("section")) == 5
    assert all(cell.get("scope") in ("row", "col") for cell in outline.named("th"))
    assert [image["alt"] for image in outline.named("img")] == ["plain", "A falling line."]
    width, height = size(PNG)
    assert outline.named("img")[0]["width"] == str(width)
    assert outline.named("img")[0]["height"] == str(height)
    assert outline.named("html") == [{"lang": "en"}]
    assert "prefers-color-scheme: dark" in page.STYLE


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
    html = page.render("t", [], {}, page.MetricsTable((), ()), [], [])
    assert Outline(html).named("h1")


def test_row_of_the_wrong_length_is_refused():
    table = page.MetricsTable((0.0, 0.5), (page.MetricRow("ours", (1.0,), "1"),))
    with pytest.raises(ValueError, match=r"'ours'.*Received: 1"):
        page.render("t", [], {}, table, [], [])


@pytest.mark.parametrize("ids", [("a", "a"), ("",), ("a b",), ('a"b',)])
def test_bad_figure_ids_are_refused(ids):
    with pytest.raises(ValueError, match="Received"):
        page.render("t", [], {}, page.MetricsTable((), ()), [page.PageFigure(i, "h", "c", PNG, "a") for i in ids], [])


def test_bytes_that_are_no_png_are_refused():
    with pytest.raises(ValueError, match="'curve' must be a PNG"):
        sample(png=b"GIF89a" + bytes(100))


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
