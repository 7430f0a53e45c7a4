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
    "pipeline/run.py",
    "pipeline/sweep.py",
    "pipeline/certify.py",
    "pipeline/runs.py",
    "pipeline/compare.py",
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
