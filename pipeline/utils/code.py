"""Python code as data: what someone's module defines, and a digest of code that its wording does not change."""

import ast
import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from pipeline.utils.errors import InputError, reason
from serving.files import fingerprint


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
        raise InputError(
            f"The module {module} defines no {name or 'name without letters'}. Received: {reference}"
        ) from None


def import_module(module):
    """The module of this name, from the current folder if it is there. What its code raises becomes an InputError."""
    try:
        with _current_folder_first():
            return importlib.import_module(module)
    except Exception as error:  # whatever someone's code does
        raise InputError(f"Cannot import {module} ({type(error).__name__}: {reason(error)}).") from error


def digest(module):
    """Hexadecimal SHA-256 of what a module's code does: of its package, or of it and those it imports from beside it.

    Docstrings, comments and layout do not count.

    Raises:
        InputError: if there is no such module, or it cannot be read.
    """
    with _current_folder_first():
        return digest_of(_files(module.partition(".")[0], module))


def digest_of(files):
    """The same of files: name -> path."""
    return fingerprint({name: _meaning(path) for name, path in sorted(files.items())})


def files_below(folder):
    """Name -> path of all Python files in a folder and below it."""
    return {str(path.relative_to(folder)): path for path in Path(folder).rglob("*.py")}


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
        found.update({f"{top}/{name}": path for name, path in files_below(folder).items()})
    if spec.submodule_search_locations:
        return found
    found[f"{top}.py"] = Path(spec.origin)
    for name in sorted(_imports(Path(spec.origin)) - {top}):
        beside = Path(spec.origin).parent / name
        is_beside = beside.with_suffix(".py").is_file() or (beside / "__init__.py").is_file()
        if is_beside and not any(known in found for known in (f"{name}.py", f"{name}/__init__.py")):
            _files(name, module, found)
    return found


def _imports(path):
    """The first names of all modules that a file imports."""
    names = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _meaning(path):
    """A file's code without docstrings, comments and layout."""
    tree = _tree(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first, *others = node.body or [None]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = others
    return ast.dump(tree)


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
