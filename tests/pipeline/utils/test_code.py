"""A digest of code changes with what the code does, and not with its wording."""

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
        return code.digest("subject")

    return of


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = 1\n", "# why\na  =  1\n"),
        ('"""One."""\na = 1\n', '"""Another."""\na = 1\n'),
        ("class A:\n    'One.'\n    b = 2\n", "class A:\n    b = 2\n"),
        ("async def f():\n    'One.'\n    return 2\n", "async def f():\n    'Two.'\n    return 2\n"),
        ("def f():\n    raise ValueError('one')\n", "def f():\n    raise ValueError('another')\n"),
        ("s = Setting('a', KIND, 'one', 1)\n", "s = Setting('a', KIND, 'another', 1)\n"),
        ("s = Setting('a', KIND, 'one', None, 'none')\n", "s = Setting('a', KIND, 'another', None, 'all')\n"),
    ],
)
def test_wording_is_no_part_of_it(digest, before, after):
    assert digest(subject=before) == digest(subject=after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = 1\n", "a = 2\n"),
        ("a = 'one'\n", "a = 'another'\n"),
        ("def f():\n    raise ValueError\n", "def f():\n    return ValueError\n"),
        ("s = Setting('a', KIND, 'one', 1)\n", "s = Setting('a', KIND, 'one', 2)\n"),
        ("s = Setting('a', KIND, 'one', 1)\n", "s = Setting('a', OTHER, 'one', 1)\n"),
        ("def f(x):\n    if x:\n        raise E\n", "def f(x):\n    if not x:\n        raise E\n"),
    ],
)
def test_what_it_does_is(digest, before, after):
    assert digest(subject=before) != digest(subject=after)


@pytest.mark.parametrize("line", ["import beside", "from beside import b", "def f():\n    import beside"])
def test_what_lies_beside_and_is_imported_counts(digest, line):
    first = digest(subject=f"{line}\n", beside="import further\nb = 1\n", further="c = 1\n", stranger="d = 1\n")
    assert digest(stranger="d = 2\n") == first
    assert digest(further="c = 2\n") != first
    assert digest(further="c = 1\n") == first
    assert digest(beside="import further\nb = 2\n") != first


def test_of_a_package_every_file_counts(digest):
    first = digest(subject__of____init__="", subject__of__part="a = 1\n")
    assert digest(subject__of__part="a = 2\n") != first


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
