"""The certification report as one HTML page that needs no network and no other file.

Figures are embedded as PNG, the style sheet is inline, and the page's own content security policy forbids
everything else. All text is escaped here; callers pass plain strings.
"""

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Fact:
    """A number or verdict for the top of the page; `details` are lines in small print below it."""

    label: str
    value: str
    details: tuple[str, ...] = ()


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
    experiment differs from ours), and its accuracies show two decimals, all that the paper gives. `behind` are the
    texts of the columns behind the ACR.
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
    """Rows that share one header of l2 radii, in [0, 1] pixel units.

    `behind` names columns behind the ACR; `remarks` are what to know before comparing the rows, a paragraph each.
    """

    radii: tuple[float, ...]
    rows: tuple[MetricRow, ...]
    behind: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageFigure:
    """A PNG figure. `id` is its anchor in the page: a letter, then letters, digits, `_` and `-`."""

    id: str
    heading: str
    caption: str
    png: bytes
    alt: str


def accuracy_curves(png, alt):
    """The `PageFigure` of several models' certified accuracy by radius; `alt` says what it shows in words."""
    return PageFigure(
        "radius_accuracy",
        "Certified accuracy by radius",
        "Share of the images whose certified class is their label, at each l2 radius or beyond. The area under a curve "
        "is its ACR.",
        png,
        alt,
    )


def render(
    title: str,
    summary: Sequence[Fact],
    settings: Mapping[str, Sequence[Setting]],
    metrics: MetricsTable,
    figures: Sequence[PageFigure],
    notes: Sequence[str],
) -> str:
    """The whole page, as HTML text to be written as UTF-8.

    Args:
        title: heading of the page.
        summary: shown large at the top, the first one largest; may be empty.
        settings: group name -> the settings of that group; may be empty.
        metrics: the table of certified accuracies.
        figures: shown in this order, each in its own section.
        notes: what the numbers guarantee and what they do not, one paragraph each.

    Raises:
        ValueError: a row of `metrics` has not one accuracy per radius, a figure is not a PNG file, or figure
            ids are malformed or repeated.
    """
    ids = [figure.id for figure in figures]
    if len(set(ids)) != len(ids) or not all(re.fullmatch(r"[A-Za-z][\w-]*", i, re.ASCII) for i in ids):
        raise ValueError(f"figure ids must be distinct anchors. Received: {ids}")
    sections = [
        ("certified-accuracy", "Certified accuracy", _metrics(metrics)),
        ("guarantee", "What is guaranteed, and what is not", _notes(notes)),
        *((f"figure-{figure.id}", figure.heading, _figure(figure)) for figure in figures),
    ]
    if settings:
        sections.append(
            ("settings", "Settings of this run", "\n".join(_settings(*group) for group in settings.items()))
        )
    facts = f'<dl class="summary">\n{"".join(map(_fact, summary))}</dl>\n' if summary else ""
    contents = "\n".join(f'<li><a href="#{i}">{escape(heading)}</a></li>' for i, heading, _ in sections)
    body = "\n".join(
        f'<section id="{i}" aria-labelledby="{i}-heading">\n'
        f'<h2 id="{i}-heading">{escape(heading)}</h2>\n{inner}\n</section>'
        for i, heading, inner in sections
    )
    return _document(title, facts, contents, body)


def _document(title: str, facts: str, contents: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{facts}<nav aria-label="Sections of this report"><ul>
{contents}
</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _fact(fact: Fact) -> str:
    details = "".join(f'<dd class="detail">{escape(line)}</dd>' for line in fact.details)
    return f"<div><dt>{escape(fact.label)}</dt><dd>{escape(fact.value)}</dd>{details}</div>\n"


def _metrics(metrics: MetricsTable) -> str:
    header = "".join(f'<th scope="col">{_radius(radius)}</th>' for radius in metrics.radii)
    behind = "".join(f'<th scope="col">{escape(name)}</th>' for name in metrics.behind)
    rows = "\n".join(_metric_row(row, metrics) for row in metrics.rows)
    remarks = "".join(f'\n<p class="remark">{escape(remark)}</p>' for remark in metrics.remarks)
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="Table of certified accuracies">
<table class="numbers">
<caption><span>Share of images that are classified correctly and certified at each l2 radius (columns, in [0, 1]
pixel units), and the average certified radius (ACR).</span></caption>
<thead><tr><th scope="col">Model</th>{header}<th scope="col">ACR</th>{behind}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>{remarks}"""


def _radius(radius: float) -> str:
    return f"{radius:.2f}" if round(radius, 2) == radius else f"{radius:g}"


def _metric_row(row: MetricRow, metrics: MetricsTable) -> str:
    for what, given, wanted in (
        ("accuracy per radius", row.certified_accuracy, metrics.radii),
        ("text per column behind the ACR", row.behind, metrics.behind),
    ):
        if len(given) != len(wanted):
            raise ValueError(f"row {row.name!r} must have one {what}, {len(wanted)}. Received: {len(given)}")
    digits, opening, mark = 3, "<tr>", ""
    if row.paper_caveat is not None:
        digits, opening = 2, '<tr class="paper">'
        mark = f'<span class="badge">reported in the paper</span><span class="caveat">{escape(row.paper_caveat)}</span>'
    details, acr_details = (
        f'<span class="caveat">{escape(text)}</span>' if text else "" for text in (row.details, row.acr_details)
    )
    cells = "".join(
        '<td><span aria-label="no number">—</span></td>' if value is None else f"<td>{value:.{digits}f}</td>"
        for value in row.certified_accuracy
    )
    name = f'<th scope="row">{escape(row.name)}{details}{mark}</th>'
    behind = "".join(f"<td>{escape(text)}</td>" for text in row.behind)
    return f'{opening}{name}{cells}<td class="acr">{escape(row.acr)}{acr_details}</td>{behind}</tr>'


def _notes(notes: Sequence[str]) -> str:
    return '<ul class="notes">\n' + "\n".join(f"<li>{escape(note)}</li>" for note in notes) + "\n</ul>"


def _figure(figure: PageFigure) -> str:
    if not figure.png.startswith(PNG_SIGNATURE):
        raise ValueError(f"figure {figure.id!r} must be a PNG file. Received: bytes {figure.png[:8]!r}...")
    # The size stands in the PNG's header chunk; with it the page does not jump while the image is decoded.
    width, height = struct.unpack(">II", figure.png[16:24])
    data = base64.b64encode(figure.png).decode("ascii")
    return f"""<figure>
<div class="scroll plate" role="region" tabindex="0" aria-label="{escape(figure.heading)}">
<img src="data:image/png;base64,{data}" alt="{escape(figure.alt)}" width="{width}" height="{height}">
</div>
<figcaption>{escape(figure.caption)}</figcaption>
</figure>"""


def _settings(group: str, settings: Sequence[Setting]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(setting.name)}</th><td class="value">{escape(setting.value)}</td>'
        f"<td>{escape(setting.meaning)}</td></tr>"
        for setting in settings
    )
    return f"""<div class="scroll" role="region" tabindex="0" aria-label="Settings: {escape(group)}">
<table class="settings">
<caption>{escape(group)}</caption>
<thead>
<tr><th scope="col">Name</th><th scope="col">Value</th><th scope="col">Unit and meaning</th></tr>
</thead>
<tbody>
{rows}
</tbody>
</table>
</div>"""


STYLE = """
:root {
  color-scheme: light dark;
  --page: #fafaf8; --card: #ffffff; --ink: #22262a; --soft: #5a626c; --line: #dfe2e6; --accent: #00609a;
  --paper: #f4f1ea; --paper-line: #8a6d1f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181b; --card: #1d2125; --ink: #e6e8ea; --soft: #a3abb4; --line: #343a41; --accent: #6cb8ea;
    --paper: #26241e; --paper-line: #cfae58;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; padding: 0 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
header, main { max-width: 58rem; margin: 0 auto; }
h1 { margin: 2.5rem 0 1.5rem; font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.1rem); line-height: 1.2;
  text-wrap: balance; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.25rem; line-height: 1.3; }
section { margin-top: 3rem; scroll-margin-top: 1rem; }
a { color: var(--accent); text-underline-offset: .2em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

.summary { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: 1px; margin: 0;
  background: var(--line); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
.summary > div { background: var(--card); padding: 1rem 1.2rem; }
.summary dt { font-size: .85rem; color: var(--soft); }
.summary dd { margin: .1rem 0 0; font-size: 1.3rem; line-height: 1.3; font-weight: 600;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.summary > div:first-child { grid-column: 1 / -1; }
.summary > div:first-child dd:not(.detail) { font-size: clamp(2rem, 1.5rem + 2.5vw, 2.9rem);
  line-height: 1.15; color: var(--accent); }
.summary dd.detail { margin-top: .3rem; font-size: .85rem; line-height: 1.45; font-weight: 400;
  color: var(--soft); }
nav ul { display: flex; flex-wrap: wrap; gap: .35rem 1.4rem; margin: 1.1rem 0 0; padding: 0; list-style: none;
  font-size: .92rem; }

.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding-bottom: .6rem; }
caption span { display: inline-block; max-width: min(56rem, calc(100vw - 2rem)); }
th, td { padding: .5rem .45rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: baseline; }
thead th { font-size: .85rem; color: var(--soft); font-weight: 600; border-bottom-width: 2px; }
tbody th { font-weight: 600; }
.numbers th + th, .numbers td { text-align: right; white-space: nowrap; }
.numbers th:first-child { width: 40%; min-width: 11rem; }
.numbers .acr { font-weight: 600; }
.paper > * { background: var(--paper); }
.paper > th { border-left: 3px solid var(--paper-line); }
.paper > th, .paper > td { font-weight: 400; font-style: italic; }
.badge { display: block; width: fit-content; white-space: nowrap; margin: .25rem 0 .2rem; padding: 0 .5rem;
  border: 1px solid var(--paper-line);
  border-radius: 1rem; font-size: .74rem; font-style: normal; font-weight: 600; color: var(--ink); }
.caveat { display: block; font-size: .8rem; line-height: 1.4; font-style: normal;
  font-weight: 400; color: var(--soft); }
.remark { max-width: 46rem; margin: .7rem 0 0; font-size: .92rem; color: var(--soft); }
.settings { margin-bottom: 1.75rem; }
.settings caption { font-weight: 600; color: var(--ink); }
.settings th:first-child { width: 13rem; }
.settings .value { width: 13rem; overflow-wrap: anywhere; }
.notes { margin: 0; padding: 1rem 1.2rem 1rem 2.2rem; background: var(--card); border: 1px solid var(--line);
  border-left: 4px solid var(--accent); border-radius: .3rem; }
.notes li + li { margin-top: .5rem; }

figure { margin: 0; }
.plate { background: #fff; border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; }
.plate img { display: block; width: 100%; max-width: 50rem; min-width: 33rem; height: auto; margin: 0 auto; }
figcaption { max-width: 46rem; margin-top: .7rem; font-size: .92rem; color: var(--soft); }
@media (prefers-color-scheme: dark) {
  .plate { background: #e9ebed; }
  .plate img { mix-blend-mode: multiply; }
}
@media (max-width: 40rem) {
  body { padding: 0 .9rem 3rem; }
  .summary { grid-template-columns: 1fr 1fr; }
  .plate { padding: .5rem; }
  .settings th:first-child, .settings .value { width: auto; }
}
"""
