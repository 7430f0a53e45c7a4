"""The documentation: it builds without a warning, leads nowhere in vain, and names what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import macer_tf

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
README = (REPOSITORY / "README.md").read_text()
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return folder


def test_the_site_builds_with_warnings_as_errors_and_has_every_page(site):
    pages = {path.relative_to(REPOSITORY / "docs").with_suffix(".html") for path in PAGES if "docs" in path.parts}
    assert {path.relative_to(site) for path in site.rglob("*.html")} - {Path("404.html")} == pages


def test_the_site_needs_nobody_elses_server(site):
    tags = re.compile(r"<(?:script|link|img)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\s\">]+")
    assert [tag for path in site.rglob("*.html") for tag in tags.findall(path.read_text())] == []


def test_the_api_page_shows_every_public_name_and_its_words(site):
    page = (site / "api.html").read_text()
    assert [name for name in macer_tf.__all__ if f'id="macer_tf.{name}"' not in page] == []
    assert "g(x) = the class that the base classifier most often returns" in page
    assert "&gt;&gt;&gt;" in page  # an example is code, with its prompts, and no quotation
    assert "<blockquote>" not in page


def test_every_link_between_files_leads_to_one():
    dead = [
        f"{page.relative_to(REPOSITORY)}: {target}"
        for page in PAGES
        for target in LINK.findall(page.read_text())
        if not target.startswith(("http:", "https:", "#")) and not (page.parent / target.split("#")[0]).exists()
    ]
    assert dead == []


def test_the_readme_is_short_and_shows_what_comes_first():
    assert len(README.split()) <= 600
    assert README.index("docs/radius_accuracy.svg") < README.index("## Install")
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in script.splitlines() if line]) == 12


def test_no_command_of_the_pages_takes_the_first_of_several_runs():
    pages = "".join(page.read_text() for page in PAGES)
    assert re.findall(r"glob\(.*\)\[0\]|(?:Exporter|Trainer|Evaluator)-\*/", pages) == []


def test_the_glossary_gives_the_formats_that_are_written():
    modules = {
        "`execution.json`": "pipeline/orchestration/orchestrator.py",
        "votes": "pipeline/certification/ledger.py",
        "`certification.json`": "pipeline/certification/certificate_files.py",
        "`model_card.json`": "serving/card.py",
    }
    (row,) = re.findall(r"^\| format \| .*: (.*);", (REPOSITORY / "docs" / "glossary.md").read_text(), re.MULTILINE)
    formats = {
        name: re.findall(r"^_?FORMAT = (\d+)$", (REPOSITORY / module).read_text(), re.MULTILINE)
        for name, module in modules.items()
    }
    assert {name: [number] for name, number in (entry.rsplit(" ", 1) for entry in row.split(", "))} == formats


def test_the_figure_of_the_readme_is_drawn_from_the_logs_in_the_repository(tmp_path, monkeypatch, capsys):
    from pipeline.jobs import compare

    text = (REPOSITORY / "docs" / "tutorials" / "sweep.md").read_text()
    (command,) = re.findall(r"python -m pipeline\.compare ((?:.*\\\n)*.*)\n", text)
    monkeypatch.chdir(REPOSITORY)
    drawn = tmp_path / "drawn.svg"
    arguments = command.replace("\\\n", " ").replace("docs/radius_accuracy.svg", str(drawn)).split()
    assert compare.main(arguments) == 0
    assert drawn.read_bytes() == (REPOSITORY / "docs" / "radius_accuracy.svg").read_bytes()
    # The same figures as in the results.
    table = re.findall(r"0\.\d{4} ± 0\.\d{4}", capsys.readouterr().out)
    assert table
    results = (REPOSITORY / "docs" / "results.md").read_text()
    assert [figure for figure in table if figure not in results] == []
