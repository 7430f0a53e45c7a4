"""The rules of the house that a tool can check: how long functions are, who imports whom, who speaks of flags."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("macer_tf", "serving", "pipeline")  # each imports those before it, and no other
MODULES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for package in PACKAGES
    for path in sorted((REPOSITORY / package).rglob("*.py"))
}
# The commands, and what they share.
COMMAND_LINES = (
    "pipeline/jobs/run.py",
    "pipeline/jobs/sweep.py",
    "pipeline/jobs/certify.py",
    "pipeline/jobs/runs.py",
    "pipeline/jobs/compare.py",
    "pipeline/worker.py",
    "pipeline/cli/",
    "pipeline/experiments/settings.py",
    "pipeline/experiments/setting_list.py",
    "serving/publish.py",
    "serving/local.py",
    "serving/arguments.py",
    "serving/terminal.py",
    "serving/exit.py",
)
MOST_LINES = 40


def lines_of(function):
    """How many lines a function has below its signature, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_function_is_long():
    long = [
        f"{path}: {node.name} has {lines_of(node)} lines"
        for path, text in MODULES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and lines_of(node) > MOST_LINES
    ]
    assert long == []


def test_the_pipeline_can_be_drawn_on_one_page():
    """At most 15 rooms (folders, and modules beside them) and 45 arrows (who imports whom)."""
    arrows = set()
    for path, text in MODULES.items():
        if not path.startswith("pipeline/") or path == "pipeline/__init__.py":
            continue
        room = Path(path).parts[1].removesuffix(".py")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
                to = [node.module, *(f"{node.module}.{name.name}" for name in node.names)][-1].split(".")[1]
                arrows.add((room, to))
    arrows = {(room, to) for room, to in arrows if room != to}
    assert len({room for arrow in arrows for room in arrow}) <= 15
    assert len(arrows) <= 45, sorted(arrows)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_points_up(package):
    above = PACKAGES[PACKAGES.index(package) + 1 :]
    up = [
        f"{path}: {name}"
        for path, text in MODULES.items()
        if path.startswith(f"{package}/")
        for node in ast.walk(ast.parse(text))
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if name.split(".")[0] in above
    ]
    assert up == []


def test_the_rooms_of_the_pipeline_stand_on_each_other_in_no_circle():
    imports = {}
    for path, text in MODULES.items():
        if path.startswith("pipeline/") and path != "pipeline/__init__.py":
            room = path.split("/")[1].removesuffix(".py")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
                    below = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                    imports.setdefault(room, set()).update({*below} - {room})
    assert {"run", "certification", "utils"} <= imports.keys() | set().union(*imports.values())
    while imports:
        ground = [room for room, below in imports.items() if not below & imports.keys()]
        assert ground, f"these rooms import each other: {sorted(imports)}"
        for room in ground:
            del imports[room]


def test_no_message_but_a_command_s_speaks_of_flags():
    flags = [
        f"{path}:{node.lineno}: {node.value!r}"
        for path, text in MODULES.items()
        if not path.startswith(COMMAND_LINES)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"(^|[\s\"'`(])--[a-z]", node.value)
    ]
    assert flags == []


@pytest.mark.parametrize("package", ["serving", "pipeline"])
def test_only_tables_of_data_are_laid_out_by_hand(package):
    by_hand = []
    for path, text in MODULES.items():
        tables = {node.end_lineno for node in ast.parse(text).body if isinstance(node, ast.Assign)}
        for number, line in enumerate(text.splitlines(), 1):
            if path.startswith(f"{package}/") and "fmt: skip" in line and number not in tables:
                by_hand.append(f"{path}:{number}")
    assert by_hand == []


def test_the_architecture_names_every_module():
    described = (REPOSITORY / "docs" / "architecture.md").read_text()
    names = {Path(path).stem for path in MODULES} - {"__init__"}
    folded = {"attacks", "smoothadv", "smoothmix", "stability", "consistency", "catrs"}  # baselines/
    folded |= {path.stem for path in (REPOSITORY / "pipeline" / "components").glob("*.py")}
    assert sorted(name for name in names - folded if not re.search(rf"\b{name}\b", described)) == []
