"""The pages in a real browser: both colour schemes, a phone's width, what its script does, and an accessibility check.

Chromium must be installed as a program or by playwright; without either these tests are skipped and say so.
"""

import shutil

import numpy as np
import pytest

from macer_tf import Votes, certify, evaluation
from macer_tf.certification_log import CertificationLog
from pipeline.report import certification_report, comparison, single_images, table

playwright = pytest.importorskip("playwright.sync_api", reason="No browser test: playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="No browser test: axe is not installed")

RNG = np.random.default_rng(0)
NUM_IMAGES, N, ALPHA, SIGMA = 150, 1000, 0.001, 0.5
LABELS = RNG.integers(0, 10, NUM_IMAGES)
SIZES = {"desktop": {"width": 1100, "height": 900}, "phone": {"width": 390, "height": 844}}
PAGES = ("report", "report without labels", "comparison")


def votes():
    """Of labels with many votes, but for some images with other classes, or with none that has many; none: the last."""
    share, others = RNG.beta(5, 1, NUM_IMAGES), RNG.integers(1, 10, NUM_IMAGES)
    most = np.where(RNG.random(NUM_IMAGES) < 0.15, (LABELS + others) % 10, LABELS)
    chances = np.full((NUM_IMAGES, 10), (1 - share[:, None]) / 9)
    chances[np.arange(NUM_IMAGES), most] = share
    estimation = np.array([RNG.multinomial(N, one) for one in chances])
    selection = np.array([RNG.multinomial(20, one) for one in chances])
    estimation[-5:] = 0
    return Votes(selection, estimation)


VOTES = votes()
CERTIFIED = certify(VOTES, SIGMA, ALPHA, fixed_n=np.where(np.arange(NUM_IMAGES) < NUM_IMAGES - 5, N, 0))
CORRECT_RADII = evaluation.correct_radii(CERTIFIED, LABELS)


def evaluated(labels):
    result = evaluation.evaluate(CERTIFIED, labels, (0.0, 0.25, 0.5))
    names = ("acr", "acr_standard_error", "abstained", "unestimated", "radii", "certified_accuracy")
    figures = {name: getattr(result, name) for name in names}
    history = {"epoch": [1.0, 2.0], "loss": [2.5, 1.5], "learning_rate": [0.01, 0.001]}
    has_labels = (labels >= 0).all()
    return certification_report.Evaluated(
        title="MACER, a_network_with_a_name_that_is_very_long_indeed on digits, sigma = 0.5",
        metrics={
            **{"sigma": SIGMA, "n0": 20, "n": N, "alpha": ALPHA, "bound": "clopper-pearson"},
            **{"image_set": "all images", "samples_per_image": 1020.0, "difference_to_last_blessed": None},
            **figures,
            "certificates": {"hard": figures, "soft": figures},
        },
        listing={"Training": [["a_setting_with_a_long_name", "a/path/to/" + "x" * 60, "what it is, in pixels"]] * 9},
        correct_radii={"hard": CORRECT_RADII, "soft": CORRECT_RADII * 0.9} if has_labels else {"hard": CERTIFIED.radii},
        certificates=CERTIFIED,
        votes=VOTES,
        ids=np.arange(NUM_IMAGES),
        labels=labels,
        class_names=[f"class {i}" for i in range(10)],
        image=lambda position: np.full((32, 32, 3), position / NUM_IMAGES),
        noise=lambda position: np.zeros((32, 32, 3)),
        command="python -m pipeline.run --dataset=digits --network=" + "x" * 80,
        names=[f"a folder/{'y' * 50}-{i}.png" for i in range(NUM_IMAGES)],
        blessing={"blessed": True, "reasons": []} if has_labels else None,
        paper={
            "name": "MACER-0.5", "table": 1, "radii": (0.0, 0.25, 0.5), "certified_accuracy": (0.8, 0.7, 0.5),
            "acr": 0.7, "image_set": "500 images",
        } if has_labels else None,
        history=history if has_labels else None,
        finished_at=1e9,
    )  # fmt: skip


def compared():
    ids = np.arange(NUM_IMAGES)
    log = CertificationLog(ids, LABELS, CERTIFIED.predictions, CERTIFIED.radii, np.full(NUM_IMAGES, np.nan))
    names = [f"certificates_of_a_model_in_a_folder_{'z' * 40}_{i}" for i in range(9)]
    entries = [comparison.Entry(name, log, sigma=SIGMA, n=N, alpha=ALPHA) for name in names]
    return comparison.html("Certified accuracy of 9 models", entries, comparison.default_radii(entries))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> address of a page."""
    contents = (
        certification_report.html(evaluated(LABELS)),
        certification_report.html(evaluated(np.full(NUM_IMAGES, -1))),
        compared(),
    )
    found = {}
    for name, content in zip(PAGES, contents, strict=True):
        path = tmp_path_factory.mktemp("pages") / f"{name}.html"
        path.write_text(content)
        found[name] = path.as_uri()
    return found


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as started:
        try:
            # As root it has no sandbox; it opens nothing but the pages of this test.
            opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"No browser test: there is no Chromium to start ({str(error).splitlines()[0]})")
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, pages):
    """A function: a page's name, how it is seen -> the page, opened; what it said or asked for is in `said`."""
    opened = []

    def visit(name, size="desktop", **seen):
        context = browser.new_context(viewport=SIZES[size], **seen)
        opened.append(context)
        tab = context.new_page()
        tab.said = []
        tab.on("console", lambda message: tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("request", lambda request: request.url.startswith(("data:", "file:")) or tab.said.append(request.url))
        tab.goto(pages[name])
        return tab

    yield visit
    for context in opened:
        context.close()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_says_no_error_and_is_accessible(visit, name, size, scheme):
    tab = visit(name, size, color_scheme=scheme)
    width, room = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= room
    # Nothing sticks out of the page but what lies in something that scrolls.
    sticking_out = tab.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((one) => !one.closest(".scroll, .bar ul")
           && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert sticking_out == []
    sizes = tab.evaluate("[...document.querySelectorAll('svg text')].map((one) => getComputedStyle(one).fontSize)")
    assert min(float(size.removesuffix("px")) for size in sizes) >= 12
    found = axe.Axe().run(tab).response["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found] == []
    assert tab.said == []


def test_colours_follow_the_scheme(visit):
    colours = {
        scheme: visit("report", color_scheme=scheme).evaluate(
            "['body', '.curve'].map((one) => getComputedStyle(document.querySelector(one)))"
            ".map((style) => style.backgroundColor + style.stroke)"
        )
        for scheme in ("light", "dark")
    }
    assert all(one != other for one, other in zip(*colours.values(), strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_the_acr_is_always_in_sight(visit, size):
    tab = visit("report", size)
    acr = tab.locator(".bar b")
    assert acr.text_content() == f"{evaluated(LABELS).metrics['acr']:.3f} ± " + acr.text_content().split("± ")[1]
    for place in (0.3, 0.6, 1.0):
        tab.evaluate(f"window.scrollTo({{top: {place} * document.body.scrollHeight, behavior: 'instant'}})")
        box = acr.bounding_box()
        assert 0 <= box["y"] < 60
    # In a table that does not fit as well.
    tab = visit("comparison", size)
    boxes = [cell.bounding_box() for cell in tab.locator("td.acr").all()]
    assert all(box["x"] + box["width"] <= SIZES[size]["width"] for box in boxes)


@pytest.mark.parametrize("size", SIZES)
def test_the_curve_is_read_off_by_pointer_and_by_keys(visit, size):
    tab = visit("report", size)
    plot = tab.locator(".plot[data-end]").first
    plot.scroll_into_view_if_needed()
    box, end = plot.bounding_box(), float(plot.get_attribute("data-end"))
    for share in (0.0, 0.33, 0.7, 0.99):
        tab.mouse.move(box["x"] + share * box["width"], box["y"] + 0.5 * box["height"])
        told = tab.locator(".reading output").first.text_content()
        radius = float(told.removeprefix("At radius ").removesuffix(":"))
        assert radius == pytest.approx(share * end, abs=2e-3 + end / box["width"])
        value = tab.locator(".legend .value").first.text_content()
        assert value == f"{np.mean(np.greater_equal(CORRECT_RADII, radius)):.3f}"
    plot.focus()
    tab.keyboard.press("ArrowLeft")
    assert tab.locator(".reading output").first.text_content() == f"At radius {radius - 0.001:.3f}:"


def test_text_of_a_chart_can_be_selected(visit):
    tab = visit("report")
    tab.evaluate("getSelection().selectAllChildren(document.querySelector('.plot'))")
    assert f"limit of n = {N:,}" in tab.evaluate("getSelection().toString()")


def test_images_are_filtered_by_class_outcome_and_radius(visit):
    tab = visit("report")
    outcomes = table.outcomes(CERTIFIED, LABELS)
    assert {*outcomes} == {"correct", "wrong", "abstained", "unestimated"}
    shown = single_images.chosen(single_images.worst_first(CERTIFIED, LABELS))
    cards = tab.locator(".card:visible")

    def expected(chosen):
        return [f"image {i}" for i in shown if chosen[i]]

    def seen():
        while tab.locator("#more").is_visible():
            tab.locator("#more").click()
        return [text.split(",")[0] for text in cards.locator(".name").all_text_contents()]

    assert cards.count() == 20
    assert seen() == expected(np.full(NUM_IMAGES, True))
    tab.locator("#of-outcome").select_option("wrong")
    assert seen() == expected(outcomes == "wrong")
    tab.locator("#of-outcome").select_option("")
    tab.locator("#of-class").select_option("class 3")
    assert seen() == expected(LABELS == 3)
    tab.locator("#radius-from").fill("0.2")
    tab.locator("#radius-to").fill("0.8")
    assert seen() == expected((LABELS == 3) & (CERTIFIED.radii >= 0.2) & (CERTIFIED.radii <= 0.8))
    assert tab.locator("#shown").text_content() == f"{len(seen())} of {len(seen())}"
    assert tab.said == []


def test_the_page_is_whole_without_its_script(visit):
    tab = visit("report", java_script_enabled=False)
    assert tab.locator(".card:visible").count() == single_images.MAX_IMAGES
    assert not tab.locator(".filters").is_visible()
    assert tab.locator(".legend").first.is_visible()
