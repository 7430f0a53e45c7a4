"""The fingerprint of a directory is the same for the pipeline's artifacts and for what is published."""

import contextlib
import hashlib
import json

import pytest

from pipeline.orchestration.artifacts import Artifact
from serving.files import read_json
from serving.fingerprints import differences, directory_fingerprint, file_digests, sealed, unsealed
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


def test_hidden_files_change_no_fingerprint(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    for name in (".DS_Store", ".git/config", "b/.hidden", "b/__MACOSX/._a", "Thumbs.db", "b/desktop.ini"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"litter")
    assert file_digests(tmp_path) == {"a": sha256(b"1")}
    assert directory_fingerprint(tmp_path) == sha256(f'{{"a": "{sha256(b"1")}"}}'.encode())
    # A folder that is hidden itself is what was asked for.
    (tmp_path / ".b").mkdir()
    (tmp_path / ".b" / "a").write_bytes(b"1")
    assert file_digests(tmp_path / ".b") == {"a": sha256(b"1")}


def test_what_lies_behind_a_link_is_content_as_it_is_to_whoever_loads_it(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(b"1")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "b").symlink_to(tmp_path / "elsewhere")
    assert file_digests(tmp_path / "model") == {"b/a": sha256(b"1")}
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "model")
    with pytest.raises(ValueError, match="is a link to a folder that contains it"):
        file_digests(tmp_path / "model")


def test_differences_by_hand():
    assert differences({"a": "1"}, {"a": "1"}) == ""
    assert differences({"a": "1", "b": "1"}, {"a": "2", "c": "1"}) == "'c' is new, 'b' is missing, 'a' was changed"


def test_a_seal_breaks_with_every_change():
    value = {"a": 1, "b": [0.25, None, "x"], "c": {"d": True}}
    assert unsealed(json.loads(json.dumps(sealed(value)))) == value
    text = json.dumps(sealed(value)).encode()
    for place in range(len(text)):
        for bit in range(8):
            flipped = text[:place] + bytes([text[place] ^ 1 << bit]) + text[place + 1 :]
            with contextlib.suppress(ValueError):  # What is no JSON any more is nothing to unseal.
                assert unsealed(json.loads(flipped)) is None, flipped
    for other in (None, 3, [], "x", {}, value, {"checksum": None}, {"checksum": ["a"]}):
        assert unsealed(other) is None


@pytest.mark.parametrize("content", [b'{"a": [1, null]}', b"[]", b" 3 "])
def test_json_is_read(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert read_json(tmp_path / "file") == {b'{"a": [1, null]}': {"a": [1, None]}, b"[]": [], b" 3 ": 3}[content]


def test_a_directory_is_not_read(tmp_path):
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)
