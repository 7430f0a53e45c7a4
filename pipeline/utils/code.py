"""Python code as data: what someone's module defines, and a digest of code that its wording does not change."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from pipeline.utils.errors import InputError, reason
from serving.fingerprints import fingerprint

_NO_RESULTS = "pipeline/cli/"


def attribute(reference):
    """What "package.module:name" says; the module is imported, from the current folder if it is there.

    Raises:
        InputError: in one line, if there is no such module, it cannot be imported, or does not define the name.
    """
    module, _, name = reference.partition(":")
    imported = import_module(module)
    try:
        return getattr(imported, name)
    except AttributeError:
        raise InputError(f"The module {module} defines no {name or 'empty name'}. Received: {reference}") from None


def modules(*references):
    """The modules of those of the references that are "package.module:name"."""
    return tuple(dict.fromkeys(one.partition(":")[0] for one in references if one and ":" in one))


def import_module(module):
    """The module of this name, from the current folder if it is there. What its code raises becomes an InputError."""
    try:
        with _current_folder_first():
            return importlib.import_module(module)
    except Exception as error:  # whatever someone's code does
        raise InputError(f"Cannot import {module} ({type(error).__name__}: {reason(error)}).") from error


def digest(module):
    """Hexadecimal SHA-256 of what a module's code does: of its package, or of it and those it imports from beside it.

    Docstrings, comments and layout do not count, nor what errors and helps say.

    Raises:
        InputError: if there is no such module, or it cannot be read.
    """
    with _current_folder_first():
        files = _files(module.partition(".")[0], module)
        return fingerprint({name: _meaning(path) for name, path in sorted(files.items())})


@functools.cache
def digest_of_ours(module):
    """The same of one of our modules and all of ours that it imports, directly or not.

    `macer_tf` counts as one, as it imports its parts on demand; what is printed and how a command line is read change
    no result.
    """
    root = Path(__file__).resolve().parents[2]
    waiting, found = [module, "macer_tf"], files_below(root / "macer_tf", "macer_tf/")
    while waiting:
        name = waiting.pop().replace(".", "/")
        path = next((root / end for end in (f"{name}.py", f"{name}/__init__.py") if (root / end).is_file()), None)
        relative = path and str(path.relative_to(root))
        if path is None or relative in found or relative.startswith(_NO_RESULTS):
            continue
        found[relative] = path
        # What pages look like; a page that was made before has another look.
        found |= {str(file.relative_to(root)): file for file in (path.parent / "templates").glob("*.*")}
        waiting += [one for one in _imports(path) if one.startswith(("pipeline.", "serving."))]
    return fingerprint({name: _meaning_of_ours(path) for name, path in sorted(found.items())})


def files_below(folder, prefix=""):
    """Name -> path of all Python files in a folder and below it."""
    return {f"{prefix}{path.relative_to(folder)}": path for path in Path(folder).rglob("*.py")}


def _files(top, module, found=None):
    """Name -> path of the files of a module without dots in its name, and of what it imports from beside it."""
    found = {} if found is None else found
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError) as error:
        raise InputError(f"There is no module {module} to import ({error}).") from None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        raise InputError(f"There is no module {module} to import, from the current folder or installed.")
    for folder in spec.submodule_search_locations or ():
        found.update(files_below(folder, f"{top}/"))
    if spec.submodule_search_locations:
        return found
    found[f"{top}.py"] = Path(spec.origin)
    for name in sorted({name.partition(".")[0] for name in _imports(Path(spec.origin))} - {top}):
        beside = Path(spec.origin).parent / name
        is_beside = beside.with_suffix(".py").is_file() or (beside / "__init__.py").is_file()
        if is_beside and not any(known in found for known in (f"{name}.py", f"{name}/__init__.py")):
            _files(name, module, found)
    return found


def _imports(path):
    """The names of all modules that a file imports, and of those that it may."""
    names = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _meaning(path):
    """A file's code without docstrings, comments and layout, and without the words of errors and helps."""
    tree = _tree(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first, *others = node.body or [None]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = others
        elif isinstance(node, ast.Raise):
            node.exc = None
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Setting":
            node.args = [argument for place, argument in enumerate(node.args) if place in (0, 1, 3)]
    return ast.dump(tree)


@functools.cache
def _meaning_of_ours(path):
    return fingerprint(_meaning(path) if path.suffix == ".py" else path.read_text())


def _tree(path):
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"Cannot read the code in {path} ({reason(error)}).") from None


@contextlib.contextmanager
def _current_folder_first():
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())
