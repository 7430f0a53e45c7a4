"""Python code as data: what someone's module defines, and a digest of code that does not depend on its wording."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from pathlib import Path

from pipeline.utils.errors import InputError, reason
from serving.files import content_files
from serving.fingerprints import digest as digest_of_bytes
from serving.fingerprints import file_digest, fingerprint

_ROOT = Path(__file__).resolve().parents[2]
_OURS = ("macer_tf", "pipeline", "serving")
_NO_RESULTS = "pipeline/cli/"
_IMPORTING = {"import_module", "__import__"}
# Name -> the module that `import_module` returned, and the `digest` of what it was imported from.
_imported: dict = {}


def attribute(reference):
    """What "package.module:name" refers to; the module is imported, from the current folder if it is there.

    Raises:
        InputError: in one line, if there is no such module, it cannot be imported, or does not define the name.
    """
    module, _, name = reference.partition(":")
    modules(reference)
    imported = import_module(module)
    try:
        return getattr(imported, name)
    except AttributeError:
        raise InputError(f"The module {module} defines no {name or 'empty name'}. Received: {reference}") from None


def modules(*references):
    """The modules of those references that are "package.module:name".

    Raises:
        InputError: if one names no module, or a file in place of one.
    """
    if bad := [one for one in references if one and one.startswith(":")]:
        raise InputError(f"Before the colon there must be a module, as in package.module:name. Received: {bad[0]}")
    found = tuple(dict.fromkeys(one.partition(":")[0] for one in references if one and ":" in one))
    for module in found:
        _check_is_no_file(module)
    return found


def _check_is_no_file(module):
    """Raises InputError for the name of a file, which Python would take for a module `py` of a package."""
    path = next((path for path in (module, f"{module}.py") if os.path.isfile(path)), None)
    if path is not None and (module.endswith(".py") or os.sep in module):
        within = Path(os.path.relpath(path)).with_suffix("")
        name = within.name if os.pardir in within.parts else ".".join(within.parts)
        raise InputError(
            f"Give a module as Python imports it from the current folder, here {name}, not a file. Received: {module}"
        )


def import_module(module):
    """The module of this name, from the current folder if it is there.

    Raises:
        InputError: in one line, for an error in its code; or if a file that `digest` covers was changed meanwhile.
    """
    with _current_folder_first():
        exists = bool(_of(module.partition(".")[0]))
    if not exists or _is_recorded(module):  # if it does not, the import says so
        return _import(module)
    with unchanged(module):
        imported = _import(module)
        _imported[module] = imported, digest(module)
    return imported


def _import(module):
    folder = os.getcwd()
    try:
        with _current_folder_first():
            imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever someone's code raises
        raise InputError(f"Cannot import {module} ({type(error).__name__}: {reason(error)}).") from error
    if os.getcwd() != folder:
        os.chdir(folder)
        raise InputError(f"{module} changes the current folder, where relative paths begin; take that out of it.")
    return imported


def _is_recorded(module):
    return module in _imported and sys.modules.get(module) is _imported[module][0]


def digest_as_imported(module):
    """The `digest` of a module that `import_module` has imported, which may have been hours ago.

    Raises:
        InputError: if it was changed since: what runs is what was imported then.
    """
    found = digest(module)
    if _is_recorded(module) and _imported[module][1] != found:
        raise InputError(
            f"{module}, or a file that it imports, was changed after it was imported; run the same command again to "
            "use it as it is now."
        )
    return found


def digest(module):
    """Hexadecimal SHA-256 of what a module's code does: its whole package, and everything that these files import.

    Docstrings, comments and layout do not count; nor do installed packages or our own code.

    Raises:
        InputError: if there is no such module, or it cannot be read.
    """
    with _current_folder_first():
        files = _files(module)
    return fingerprint({name: _meaning(path) for name, path in sorted(files.items())})


@contextlib.contextmanager
def unchanged(module):
    """A context in which a module is imported.

    What a module imports may only be known once it is imported, because it may change where modules are looked for.

    Raises:
        InputError: as `digest`; or at the end, if a file that `digest` covers was changed meanwhile.
    """
    with _current_folder_first():
        before = {path: digest_of_bytes(_content(path)) for path in _files(module).values()}
    yield
    try:
        is_unchanged = all(file_digest(path) == digest for path, digest in before.items())
    except OSError:
        is_unchanged = False
    if not is_unchanged:
        raise InputError(f"{module} was changed while it was imported; run the same command again.")


@functools.cache
def digest_of_ours(module):
    """The same for one of our modules and all of ours that it imports, directly or indirectly.

    `macer_tf` counts as a whole, because it imports its parts on demand; what is printed and how a command line is read
    do not change a result.
    """
    waiting, found = [module, "macer_tf"], _below(_ROOT / "macer_tf", "macer_tf/")
    while waiting:
        name = waiting.pop().replace(".", "/")
        path = next((_ROOT / end for end in (f"{name}.py", f"{name}/__init__.py") if (_ROOT / end).is_file()), None)
        relative = path and str(path.relative_to(_ROOT))
        if path is None or relative in found or relative.startswith(_NO_RESULTS):
            continue
        found[relative] = path
        # How pages look; a page that was made with other templates looks different.
        found |= {str(file.relative_to(_ROOT)): file for file in (path.parent / "templates").glob("*.*")}
        waiting += [one for one in _imports(path) if one.startswith(("pipeline.", "serving."))]
    return fingerprint({name: _meaning_of_ours(path) for name, path in sorted(found.items())})


def _below(folder, prefix=""):
    """Name -> path of all code files in a folder and below it."""
    endings = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)
    try:
        return {f"{prefix}{name}": Path(path) for name, path in content_files(folder) if name.endswith(endings)}
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the code in {folder} ({reason(error)}).") from None


def _files(module):
    """Name -> path of the files of a module, of its whole package, and of what they import, directly or indirectly."""
    _check_is_no_file(module)
    top = module.partition(".")[0]
    found, seen = _of(top), {top}
    if not found:
        raise InputError(f"There is no module {module} to import, from the current folder or installed.")
    for path in found.values():
        if path.suffix in SOURCE_SUFFIXES and path.stem in (top, *module.split("."), "__init__"):
            _tree(path)  # a file that does not parse cannot be imported
    waiting = list(found.values())
    while waiting:
        for name in sorted({name.partition(".")[0] for name in _imports(waiting.pop())} - seen):
            seen.add(name)
            new = {} if _is_ours(name) else _of(name, is_installed_too=False)
            found |= new
            waiting += new.values()
    return found


def _of(top, is_installed_too=True):
    """Name -> path of the files of a module without dots in its name, or of a package; empty if there is none."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return {}
    if spec is None:
        return {}
    folders = spec.submodule_search_locations
    origins = [spec.origin] if folders is None and spec.has_location else folders or ()
    origins = [Path(origin) for origin in origins if is_installed_too or not _is_installed(origin)]
    if folders is None:
        return {path.name: path for path in origins}
    # A package without __init__.py may be spread over several folders.
    return {
        name: path for place, folder in enumerate(origins) for name, path in _below(folder, f"{top}/{place}/").items()
    }


def _is_installed(path):
    """Whether a path is Python's own or belongs to an installed package: what a requirement pins."""
    path = Path(path).resolve()
    return bool({"site-packages", "dist-packages"} & {*path.parts}) or any(map(path.is_relative_to, _installed()))


@functools.cache
def _installed():
    """The folders of Python's own modules and of installed packages."""
    paths = sysconfig.get_paths()
    return [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]


def _is_ours(top):
    """Whether a module's code is covered by `digest_of_ours`."""
    return top in _OURS and any(Path(path).is_relative_to(_ROOT / top) for path in _of(top).values())


def _imports(path):
    """The names of all modules that a file imports or may import."""
    return _parsed(_content(path))[0] if path.suffix in SOURCE_SUFFIXES else frozenset()


def _name(function):
    """The name of what is called, without the object whose attribute it is."""
    return getattr(function, "attr", getattr(function, "id", None))


def _meaning(path):
    """A digest of a file's code without docstrings, comments and layout."""
    return _parsed(_content(path))[1] if path.suffix in SOURCE_SUFFIXES else digest_of_bytes(_content(path))


@functools.lru_cache(maxsize=4096)
def _parsed(content):
    """What a file with this content imports, and a digest of what it does; of its bytes if it is not Python."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return frozenset(), digest_of_bytes(content)
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and _name(node.func) in _IMPORTING and node.args:
            name = node.args[0]
            names |= {name.value} if isinstance(name, ast.Constant) and isinstance(name.value, str) else set()
    return frozenset(names), fingerprint(ast.dump(_without_docstrings(tree)))


@functools.cache
def _meaning_of_ours(path):
    """The same, but also without the text of errors and helps."""
    if path.suffix not in SOURCE_SUFFIXES:
        return file_digest(path)
    tree = _without_docstrings(_tree(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Setting":
            node.args = [argument for place, argument in enumerate(node.args) if place in (0, 1, 3)]
    return fingerprint(ast.dump(tree))


def _without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first, *others = node.body or [None]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = others
    return tree


def _tree(path):
    content = _content(path)
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"Cannot read the code in {path} ({reason(error)}).") from None


def _content(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read the code in {path} ({reason(error)}).") from None


@contextlib.contextmanager
def _current_folder_first():
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        # What is imported may have taken it out.
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
