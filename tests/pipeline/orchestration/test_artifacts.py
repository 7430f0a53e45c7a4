"""Fingerprints say what is in a directory; files and directories are finished whole or not at all."""

import errno
import os
import re
import shutil

import pytest

from pipeline.orchestration import artifacts
from pipeline.orchestration.artifacts import Artifact
from pipeline.utils import atomic_files
from pipeline.utils.atomic_files import finish_directory, write_text
from pipeline.utils.errors import InputError
from serving.fingerprints import fingerprint


def test_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": {"c": [1, 2], "d": None}}) == fingerprint({"b": {"d": None, "c": [1, 2]}, "a": 1})


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, {"a": 1.5}, {"a": "1"}, {"a": [1]}, {"a": 1, "b": None}, {}])
def test_different_values_have_different_fingerprints(other):
    assert fingerprint(other) != fingerprint({"a": 1})


def tree(directory, files):
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return Artifact.of(directory).fingerprint


FILES = {"a.bin": b"one", "sub/b.bin": b"two", "empty": b""}


def test_equal_trees_are_equal_wherever_they_are(tmp_path):
    assert tree(tmp_path / "x", FILES) == tree(tmp_path / "elsewhere" / "y", FILES)


@pytest.mark.parametrize(
    "changed",
    [
        {**FILES, "a.bin": b"onf"},
        {"renamed.bin": b"one", "sub/b.bin": b"two", "empty": b""},
        {"a.bin": b"one", "other/b.bin": b"two", "empty": b""},
        {**FILES, "a.bin": b"two", "sub/b.bin": b"one"},
        {**FILES, "more": b""},
        {"a.bin": b"one", "sub/b.bin": b"two"},
        {},
    ],
    ids=["byte", "renamed", "moved", "swapped", "added", "removed", "emptied"],
)
def test_every_change_of_a_tree_is_noticed(tmp_path, changed):
    assert tree(tmp_path / "x", FILES) != tree(tmp_path / "y", changed)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "before")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "after")
    assert path.read_text() == "before"


def test_what_is_finished_was_flushed_before_and_its_parent_after(tmp_path, monkeypatch):
    (tmp_path / "d.unfinished" / "sub").mkdir(parents=True)
    (tmp_path / "d.unfinished" / "sub" / "file").write_text("x")
    steps = []
    rename = os.rename
    monkeypatch.setattr(atomic_files, "flush", lambda path: steps.append(str(path.relative_to(tmp_path))))
    monkeypatch.setattr(os, "rename", lambda a, b: (steps.append("rename"), rename(a, b)))
    finish_directory(tmp_path / "d.unfinished", tmp_path / "d")
    assert steps == ["d.unfinished/sub", "d.unfinished/sub/file", "d.unfinished", "rename", "."]
    assert (tmp_path / "d" / "sub" / "file").read_text() == "x"


def test_a_finished_directory_is_never_replaced(tmp_path):
    for name in ("d.unfinished", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        finish_directory(tmp_path / "d.unfinished", tmp_path / "d")
    assert (tmp_path / "d" / "file").read_text() == "d"


def test_a_private_copy_is_what_was_fingerprinted_or_refused(tmp_path):
    (tmp_path / "made" / "b").mkdir(parents=True)
    (tmp_path / "made" / "b" / "text").write_text("text")
    (tmp_path / "made" / ".DS_Store").write_text("litter")
    artifact = artifacts.Artifact.of(tmp_path / "made")
    for _ in range(2):  # The second time over the first.
        copy = artifacts.private_copy(artifact, tmp_path / "copy")
        assert [path.relative_to(copy).as_posix() for path in sorted(copy.rglob("*"))] == ["b", "b/text"]
        assert artifacts.Artifact.of(copy).fingerprint == artifact.fingerprint
    (tmp_path / "made" / "b" / "text").write_text("tex.")
    with pytest.raises(InputError, match="was changed while this command ran; run the same command again"):
        artifacts.private_copy(artifact, tmp_path / "copy")
    shutil.rmtree(tmp_path / "made")
    with pytest.raises(InputError, match=r"Cannot copy .*made to .*copy \(No such file or directory\)"):
        artifacts.private_copy(artifact, tmp_path / "copy")


def test_what_keeps_files_from_being_copied_is_named_and_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "made").mkdir()
    artifact = artifacts.Artifact.of(tmp_path / "made")

    def fail(source, target, **keywords):
        why = f"[Errno 28] {os.strerror(errno.ENOSPC)}"
        raise shutil.Error([(str(source / name), str(target / name), why) for name in ("one", "two")])

    monkeypatch.setattr(shutil, "copytree", fail)
    with pytest.raises(InputError) as told:
        artifacts.private_copy(artifact, tmp_path / "copy")
    assert "(2 files could not be copied, the first: [Errno 28] No space left on device)" in str(told.value)
    assert str(told.value).endswith("). Make room there and run the same command again.")


def test_a_file_in_the_place_of_a_private_copy_gives_way(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "copy").write_text("")
    assert artifacts.private_copy(artifacts.Artifact.of(tmp_path / "made"), tmp_path / "copy").is_dir()


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "Make room there"),
        (errno.EFBIG, "Raise the limit on the size of a file (ulimit -f)"),
        (errno.EROFS, "Make it writable"),
        (errno.ENOENT, "Put back what is missing there"),
        (errno.ENOTDIR, "Move away what is in its place"),
        (errno.EIO, "Correct that"),
    ],
)
def test_a_write_that_fails_says_what_to_do_about_it(tmp_path, number, told):
    for error in (OSError(number, os.strerror(number)), RuntimeError(f"HDF5: {os.strerror(number)} (code 5)")):
        with (
            pytest.raises(
                InputError, match=rf"^Cannot write x \(.*\)\. {re.escape(told)} and run the same .*: it is kept"
            ),
            atomic_files.writing("x", "it is kept"),
        ):
            raise error


def test_what_is_large_is_read_again_only_if_its_sizes_or_times_are_others(tmp_path, monkeypatch):
    file = tmp_path / "made" / "file"
    file.parent.mkdir()
    file.write_text("one")
    monkeypatch.setattr(artifacts, "SOON_DIGESTED_BYTES", 0)
    artifact = artifacts.Artifact.of(file.parent)
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "directory_fingerprint", lambda path: pytest.fail("It was read again."))
        assert artifact.is_unchanged()
    before = file.stat()
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not artifact.is_unchanged()
    file.write_text("one")
    assert artifact.is_unchanged()
    shutil.rmtree(file.parent)
    assert not artifact.is_unchanged()
