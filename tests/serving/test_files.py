"""The fingerprint of a directory is the same for the pipeline's artifacts and for what is published."""

import hashlib

import pytest

from pipeline.artifacts import Artifact
from serving.files import directory_fingerprint, read_json
from serving.publish import content_fingerprint


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_a_fingerprint_by_hand(tmp_path):
    (tmp_path / "b" / "empty folder").mkdir(parents=True)
    (tmp_path / "b" / "two").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"1")
    # Names in order, each with the digest of its content, as JSON.
    expected = sha256(f'{{"a": "{sha256(b"1")}", "b/two": "{sha256(b"2")}"}}'.encode())
    assert directory_fingerprint(tmp_path) == expected
    assert Artifact.of(tmp_path).fingerprint == content_fingerprint(tmp_path) == expected
    assert directory_fingerprint(tmp_path, without=("b/two",)) == sha256(f'{{"a": "{sha256(b"1")}"}}'.encode())
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / "publication.json").write_bytes(b"{}")
    assert content_fingerprint(tmp_path) == expected
    assert Artifact.of(tmp_path).fingerprint != expected


@pytest.mark.parametrize("content", [b'{"a": [1, null]}', b"[]", b" 3 "])
def test_json_is_read(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert read_json(tmp_path / "file") == {b'{"a": [1, null]}': {"a": [1, None]}, b"[]": [], b" 3 ": 3}[content]


def test_a_directory_is_not_read(tmp_path):
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)
