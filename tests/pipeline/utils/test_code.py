"""A digest of code changes with what the code does, and not with its wording."""

import importlib
import sys
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from pipeline.utils import code
from pipeline.utils.errors import InputError


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """A function: file -> text, of a module called subject -> its digest."""
    monkeypatch.chdir(tmp_path)

    def of(**files):
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__of__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()
        return code.digest("subject")

    return of


@pytest.fixture
def digest_of_ours(tmp_path, monkeypatch):
    """A function: text of a module as if it were ours -> its digest."""

    def of(text):
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        monkeypatch.setattr(code, "_ROOT", root)
        (root / "pipeline").mkdir()
        (root / "pipeline" / "subject.py").write_text(text)
        code.digest_of_ours.cache_clear()
        return code.digest_of_ours("pipeline.subject")

    yield of
    code.digest_of_ours.cache_clear()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = 1\n", "# why\na  =  1\n"),
        ('"""One."""\na = 1\n', '"""Another."""\na = 1\n'),
        ("class A:\n    'One.'\n    b = 2\n", "class A:\n    b = 2\n"),
        ("async def f():\n    'One.'\n    return 2\n", "async def f():\n    'Two.'\n    return 2\n"),
    ],
)
def test_docstrings_comments_and_layout_are_no_part_of_it(digest, digest_of_ours, before, after):
    assert digest(subject=before) == digest(subject=after)
    assert digest_of_ours(before) == digest_of_ours(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def f():\n    raise ValueError('one')\n", "def f():\n    raise ValueError('another')\n"),
        ("s = Setting('a', KIND, 'one', 1)\n", "s = Setting('a', KIND, 'another', 1)\n"),
        ("s = Setting('a', KIND, 'one', None, 'none')\n", "s = Setting('a', KIND, 'another', None, 'all')\n"),
    ],
)
def test_the_words_of_errors_and_helps_are_no_part_of_ours_but_may_mean_anything_in_someones(
    digest, digest_of_ours, before, after
):
    assert digest_of_ours(before) == digest_of_ours(after)
    assert digest(subject=before) != digest(subject=after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = 1\n", "a = 2\n"),
        ("a = 'one'\n", "a = 'another'\n"),
        ("def f():\n    raise ValueError\n", "def f():\n    return ValueError\n"),
        ("def f():\n    raise ValueError('a')\n", "def f():\n    raise StopIteration('a')\n"),
        ("s = Setting('a', KIND, 'one', 1)\n", "s = Setting('a', KIND, 'one', 2)\n"),
        ("s = Setting('a', KIND, 'one', 1)\n", "s = Setting('a', OTHER, 'one', 1)\n"),
        ("def f(x):\n    if x:\n        raise E\n", "def f(x):\n    if not x:\n        raise E\n"),
    ],
)
def test_what_it_does_is(digest, digest_of_ours, before, after):
    assert digest(subject=before) != digest(subject=after)
    assert digest_of_ours(before) != digest_of_ours(after)


@pytest.mark.parametrize(
    "line",
    [
        "import beside",
        "from beside import b",
        "def f():\n    import beside",
        "import importlib\nb = importlib.import_module('beside').b",
        "b = __import__('beside').b",
    ],
)
def test_what_lies_beside_and_is_imported_counts(digest, line):
    first = digest(subject=f"{line}\n", beside="import further\nb = 1\n", further="c = 1\n", stranger="d = 1\n")
    assert digest(stranger="d = 2\n") == first
    assert digest(further="c = 2\n") != first
    assert digest(further="c = 1\n") == first
    assert digest(beside="import further\nb = 2\n") != first


def test_of_a_package_every_file_counts_and_what_lies_beside_it(digest):
    first = digest(subject__of____init__="", subject__of__part="import beside\na = 1\n", beside="b = 1\n")
    assert digest(subject__of__part="import beside\na = 2\n") != first
    assert digest(subject__of__part="import beside\na = 1\n") == first
    assert digest(beside="b = 2\n") != first


@pytest.mark.parametrize("line", ["from parts.layers import b", "import parts.layers", "from parts import layers"])
def test_a_folder_without_an_init_is_a_package_too(digest, line):
    first = digest(subject=f"{line}\n", parts__of__layers="import further\nb = 1\n", further="c = 1\n")
    assert digest(parts__of__layers="import further\nb = 2\n") != first
    assert digest(parts__of__layers="import further\nb = 1\n") == first
    assert digest(further="c = 2\n") != first


def test_the_module_itself_may_be_a_folder_without_an_init(digest):
    first = digest(subject__of__part="a = 1\n")
    assert digest(subject__of__part="a = 2\n") != first


def test_what_is_imported_from_elsewhere_counts_unless_it_is_installed(digest, tmp_path, monkeypatch):
    for folder in ("elsewhere", "lib/site-packages"):
        (tmp_path / folder).mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path / folder)
    (tmp_path / "elsewhere" / "mine.py").write_text("b = 1\n")
    (tmp_path / "lib" / "site-packages" / "pinned.py").write_text("b = 1\n")
    first = digest(subject="import json\nimport mine\nimport numpy\nimport pinned\nimport absent\nimport macer_tf\n")
    (tmp_path / "lib" / "site-packages" / "pinned.py").write_text("b = 2\n")
    assert digest() == first
    (tmp_path / "elsewhere" / "mine.py").write_text("b = 2\n")
    assert digest() != first


def test_a_module_may_say_where_it_imports_from(digest, tmp_path, monkeypatch):
    """Then what it imports is found only once it was imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "lib").mkdir()
    digest(subject=f"import sys\nsys.path.insert(0, {str(tmp_path / 'lib')!r})\nimport told_by_path\n",
           lib__of__told_by_path="b = 1\n")  # fmt: skip
    with code.unchanged("subject"):
        code.import_module("subject")
    try:
        first = digest()
        assert digest(lib__of__told_by_path="b = 2\n") != first
        with pytest.raises(InputError, match="subject was changed while it was imported"), code.unchanged("subject"):
            digest(subject="a = 1\n")
    finally:
        del sys.modules["subject"], sys.modules["told_by_path"]


def test_what_was_imported_is_what_runs_so_another_digest_is_refused(digest):
    first = digest(subject="import beside_it\n", beside_it="b = 1\n")
    assert code.digest_as_imported("subject") == first  # nothing was imported yet
    code.import_module("subject")
    try:
        assert digest(beside_it="b = 1  # why\n") == code.digest_as_imported("subject") == first
        assert digest(beside_it="b = 2\n") != first
        code.import_module("subject")  # which imports nothing anew
        with pytest.raises(
            InputError, match=r"^subject, or a file that it imports, was changed after it was imported;"
        ):
            code.digest_as_imported("subject")
    finally:
        del sys.modules["subject"], sys.modules["beside_it"]
    code.import_module("subject")
    assert code.digest_as_imported("subject") == digest() != first
    del sys.modules["subject"], sys.modules["beside_it"]


def test_what_changes_while_it_is_imported_is_refused(digest):
    digest(subject="from pathlib import Path\nPath(__file__).write_text('a = 2')\n")
    with pytest.raises(InputError, match=r"^subject was changed while it was imported;"):
        code.import_module("subject")
    del sys.modules["subject"]


def test_a_file_that_cannot_be_read_is_told_once(digest, tmp_path, monkeypatch):
    digest(subject="a = 1\n")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"^Cannot read the code in \S*subject\.py \(.*Permission denied[^(]*\)\.$"):
        digest()


def test_a_module_may_set_the_path_but_not_change_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "sets_the_path.py").write_text("import sys\nsys.path = sys.path[1:]\nNAME = 7\n")
    (tmp_path / "leaves.py").write_text("import os\nos.chdir('..')\nNAME = 7\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", list(before))
    assert code.attribute("sets_the_path:NAME") == 7
    assert sys.path == before
    with pytest.raises(InputError, match=r"^leaves changes the current folder, where relative paths begin; "):
        code.attribute("leaves:NAME")
    assert (Path.cwd(), sys.path) == (tmp_path, before)


def test_what_is_no_python_counts_by_its_bytes(digest):
    first = digest(subject__of____init__="", subject__of__template="{{ a }} = print 1\n")
    assert digest(subject__of__template="{{ a }} = print 2\n") != first


def test_linked_folders_and_compiled_files_of_a_package_count(digest, tmp_path):
    compiled = f"fast{EXTENSION_SUFFIXES[0]}"
    (tmp_path / "linked").mkdir()
    first = digest(subject__of____init__="", linked__of__part="a = 1\n")
    (tmp_path / "subject" / "there").symlink_to(tmp_path / "linked")
    second = digest()
    (tmp_path / "subject" / compiled).write_bytes(b"\x7fELF1")
    third = digest()
    (tmp_path / "subject" / compiled).write_bytes(b"\x7fELF2")
    fourth = digest()
    assert len({first, second, third, fourth, digest(linked__of__part="a = 2\n")}) == 5
    (tmp_path / "subject" / "loop").symlink_to(tmp_path / "subject")
    with pytest.raises(InputError, match=r"Cannot read the code in .*subject \(.*loop is a link to a folder"):
        digest()


def test_what_cannot_be_read_is_one_line(digest):
    with pytest.raises(InputError, match="There is no module subject to import, from the current folder or installed"):
        digest()
    with pytest.raises(InputError, match=r"Cannot read the code in .*subject\.py \(.*syntax"):
        digest(subject="a = = 1\n")


def test_the_digest_of_a_component_has_the_modules_that_it_imports():
    """Each component's own; what trains does not depend on how a report looks."""
    trainer, evaluator = (code.digest_of_ours(f"pipeline.components.{name}") for name in ("trainer", "evaluator"))
    assert trainer != evaluator
    assert trainer == code.digest_of_ours("pipeline.components.trainer")


def test_the_digest_of_what_makes_pages_has_their_templates(monkeypatch):
    """Or a page that was made before would keep its old look."""

    def digest_of(name):
        code.digest_of_ours.cache_clear()
        return code.digest_of_ours(f"pipeline.components.{name}")

    names = ("evaluator", "sweep_evaluator", "trainer")
    before = [digest_of(name) for name in names]
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: [] if path.name == "templates" else glob(path, pattern))
    assert [digest_of(name) != digest for name, digest in zip(names, before, strict=True)] == [True, True, False]
    code.digest_of_ours.cache_clear()


@pytest.mark.parametrize(
    ("received", "meant"),
    [("subject.py", "subject"), ("./subject.py", "subject"), ("nets/wide.py", "nets.wide"), ("nets/wide", "nets.wide")],
)
def test_a_file_in_place_of_a_module_is_told_as_one(digest, received, meant):
    digest(subject="import nets.wide", nets__of__wide="")
    for use in (code.digest, lambda name: code.attribute(f"{name}:network")):
        with pytest.raises(InputError) as told:
            use(received)
        said = f"Give a module as Python imports it from the current folder, here {meant}, not a file."
        assert str(told.value) == f"{said} Received: {received}"


def test_a_file_of_another_folder_and_a_module_called_py_are_what_they_are(digest, tmp_path):
    digest(subject="", nets__of__py="network = 1")
    assert code.attribute("nets.py:network") == 1
    (tmp_path.parent / "elsewhere.py").touch()
    with pytest.raises(InputError, match=r"here elsewhere, not a file\. Received: \.\./elsewhere\.py"):
        code.digest("../elsewhere.py")
