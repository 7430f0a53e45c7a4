"""Every report as one HTML page that needs no network and no other file.

The contents of a page are data here; how they look is in `templates`, where all text is escaped. The page's own content
security policy admits its style sheet and its script, by their digests, and images as data, and nothing else.
"""

import base64
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from pipeline.report.charts import Chart

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Fact:
    """A number or verdict for the top of the page; `details` are lines in small print below it, `short` is its label
    where space is short.
    """

    label: str
    value: str
    details: tuple[str, ...] = ()
    short: str = ""


@dataclass(frozen=True)
class Setting:
    """One parameter of the run. `meaning` gives its unit and what it stands for."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class MetricRow:
    """Certified accuracy of one model at the radii of its table, in [0, 1], None where there is no number.

    `details` and `acr_details` are small print below the name and the ACR.
    `paper_caveat` makes it a row of the paper: it is then marked as reported, it shows this text (how that
    experiment differs from ours), and its accuracies show two decimals, as many as the paper gives. `behind` are the
    texts of the columns after the ACR.
    """

    name: str
    certified_accuracy: tuple[float | None, ...]
    acr: str
    paper_caveat: str | None = None
    behind: tuple[str, ...] = ()
    details: str = ""
    acr_details: str = ""


@dataclass(frozen=True)
class MetricsTable:
    """Rows that share one header of l2 radii, in [0, 1] pixel units. `what` says what the numbers are.

    `behind` names the columns after the ACR; `remarks` are what to know before comparing the rows, a paragraph each.
    """

    radii: tuple[float, ...]
    rows: tuple[MetricRow, ...]
    behind: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    what: str = (
        "Share of images that are classified correctly and certified at each l2 radius (columns, in [0, 1] pixel "
        "units), and the average certified radius (ACR)."
    )

    def __post_init__(self):
        for row in self.rows:
            for what, given, wanted in (
                ("accuracy per radius", row.certified_accuracy, self.radii),
                ("text per column after the ACR", row.behind, self.behind),
            ):
                if len(given) != len(wanted):
                    raise ValueError(f"row {row.name!r} must have one {what}, {len(wanted)}. Received: {len(given)}")


@dataclass(frozen=True)
class Figure:
    """One or several charts under a heading; `alt` describes them in words; `small` ones stand side by side.

    `id` is its anchor in the page: a letter, then letters, digits, `_` and `-`.
    """

    id: str
    heading: str
    caption: str
    charts: Sequence[Chart]
    alt: str
    small: bool = False


@dataclass(frozen=True)
class Confusion:
    """How often images of one class (a row) had another one selected (a column): a table, or the most frequent pairs.

    cells: for each class its name, and for each selected class (count, its share of the row, from 0 to 4).
    pairs: [label, selected class, count], if there are too many classes for a table.
    """

    class_names: Sequence[str]
    cells: Sequence[tuple[str, Sequence[tuple[int, int]]]]
    pairs: Sequence[tuple[str, str, int]]


@dataclass(frozen=True)
class ImageCard:
    """One image: its outcome in a word, text about it, and small pictures as (PNG as a data URI, what it shows)."""

    name: str
    label: str | None
    outcome: str
    radius: float
    heading: str
    lines: Sequence[str]
    pictures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Images:
    """A browser of single images, worst first; `caption` says which images they are."""

    caption: str
    cards: Sequence[ImageCard]

    @property
    def labels(self):
        return sorted({card.label for card in self.cards if card.label is not None})

    @property
    def outcomes(self):
        return list(dict.fromkeys(card.outcome for card in self.cards))


def accuracy_curves(chart, alt, what="certified class is their label"):
    """The `Figure` of certified accuracy by radius; `alt` describes it in words."""
    caption = (
        f"Share of the images whose {what}, at each l2 radius or beyond. The area under a curve is the mean radius"
    )
    caption += ", the ACR." if "ACR" in chart.curves[0].name else "."
    if any("band" in path.looks for path in chart.paths):
        caption += " Bands are one binomial standard error at each radius."
    if chart.lines:
        caption += " The dashed line is the largest radius that this many samples can certify."
    return Figure("radius_accuracy", "Certified accuracy by radius", caption, [chart], alt)


def data_uri(png: bytes) -> str:
    """A PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def render(
    title: str,
    summary: Sequence[Fact],
    settings: Mapping[str, Sequence[Setting]],
    metrics: MetricsTable | None,
    figures: Sequence[Figure],
    notes: Sequence[str],
    *,
    images: Images | None = None,
    confusion: Confusion | None = None,
    footer: Sequence[tuple[str, str]] = (),
    accent: int = 0,
) -> str:
    """The whole page, as HTML text to be written as UTF-8; the same for the same arguments.

    Args:
        title: heading of the page.
        summary: shown large at the top, the first one largest and always visible; may be empty.
        settings: group name -> the settings of that group; may be empty.
        metrics: the table of certified accuracies.
        figures: shown in this order, each in its own section, the first one above the table.
        notes: what the numbers guarantee and what they do not, one paragraph each.
        images, confusion: see the classes.
        footer: how the page was made, as (name, value).
        accent: place of the page's own colour in the list of colours.

    Raises:
        ValueError: figure ids are malformed or repeated.
    """
    ids = [figure.id for figure in figures]
    if len(set(ids)) != len(ids) or not all(re.fullmatch(r"[A-Za-z][\w-]*", i, re.ASCII) for i in ids):
        raise ValueError(f"figure ids must be distinct anchors. Received: {ids}")
    style, script = ((TEMPLATES / name).read_text() for name in ("style.css", "page.js"))
    return _template().render(
        title=title,
        summary=summary,
        settings=settings,
        metrics=metrics,
        figures=figures,
        notes=notes,
        images=images,
        confusion=confusion,
        footer=footer,
        accent=accent,
        # Between the tags there must be nothing that the digests do not cover.
        style=jinja2.utils.markupsafe.Markup(style),
        script=jinja2.utils.markupsafe.Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'",
    )


def _source(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


@functools.cache
def _template():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["radius"] = _radius
    return environment.get_template("page.html")


def _radius(radius: float) -> str:
    return f"{radius:.2f}" if round(radius, 2) == radius else str(float(radius))
