"""Copies of URLs: whole, whatever happened to earlier ones, and in a folder of the user's own."""

import os
import tempfile

import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.certification.bundles import Mark
from pipeline.utils import places
from pipeline.utils.errors import InputError
from tests.cluster import shelf  # also so that Beam knows shelf:// URLs


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    for name in ("shelf", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SHELF", str(tmp_path / "shelf"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_copy_that_lost_a_file_is_replaced(temporary):
    photos = {"0.png": b"zero", "1.png": b"one"}
    for name, content in photos.items():
        places.write(f"shelf://bucket/photos/{name}", content)
    url = "shelf://bucket/photos"
    copy = places.local(url, places.fetched(url))
    (copy / "0.png").unlink()  # as what cleans up temporary files does
    assert contents(places.local(url, places.fetched(url), is_checked=False)) == photos


def test_a_damaged_copy_of_a_file_is_replaced(temporary):
    url = "shelf://bucket/images.npz"
    places.write(url, b"whole")
    copy = places.local(url, places.fetched(url))
    copy.write_bytes(b"")
    assert places.local(url, places.fetched(url), is_checked=False).read_bytes() == b"whole"


@pytest.mark.parametrize("url", ["shelf://bucket/photos", "shelf://bucket/photos/.."])
def test_a_name_that_leads_to_another_folder_is_refused(temporary, url):
    places.write("shelf://bucket/photos/../../../evil.txt", b"harm")
    with pytest.raises(InputError, match=r"/photos/\.\./\.\./\.\./evil.txt has '\.\.' in its name, .*; rename it\.$"):
        places.fetched(url)
    assert [path for path in temporary.parent.rglob("*") if path.name == "evil.txt"] == []
    assert not list(next(temporary.iterdir()).iterdir())  # nothing unfinished


@pytest.mark.parametrize("name", ["{}.npz", "{}/0.png"])
def test_the_same_content_may_be_at_two_urls(temporary, name):
    for folder in ("first", "second"):
        place = f"shelf://bucket/{name.format(folder)}"
        places.write(place, b"same")
        url = place.removesuffix("/0.png")
        copy = places.local(url, places.fetched(url))
        assert copy.name == url.rsplit("/", 1)[1]
        assert (copy / "0.png" if copy.is_dir() else copy).read_bytes() == b"same"
    left = [path.name for path in next(temporary.iterdir()).iterdir()]
    assert all(len(name) == 64 for name in left)  # fingerprints; nothing unfinished


def test_a_worker_copies_what_is_missing_or_damaged_there(temporary):
    url = "shelf://bucket/model.keras"
    places.write(url, b"weights")
    fingerprint = places.fetched(url)
    for damage in (b"", None):
        copy = places.local(url, fingerprint)
        assert copy.read_bytes() == b"weights"
        copy.unlink() if damage is None else copy.write_bytes(damage)
    assert places.local(url, fingerprint).read_bytes() == b"weights"
    with pytest.raises(InputError, match="is not what it was when the certification began"):
        places.local(url, "0" * 64)


def test_the_folder_of_copies_must_be_the_users_own(temporary, monkeypatch):
    places.write("shelf://bucket/a.npz", b"a")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (temporary / "macer_tf-12345").mkdir()
    with pytest.raises(InputError, match=r"macer_tf-12345, .* belongs to another user") as caught:
        places.fetched("shelf://bucket/a.npz")
    assert "\n" not in str(caught.value)


def test_a_file_system_that_needs_options_has_them_before_any_pipeline_is_made(temporary, monkeypatch):
    """As those of S3, Azure and HDFS do."""
    given = []
    monkeypatch.setattr(FileSystems, "_pipeline_options", None)
    monkeypatch.setattr(shelf.Shelf, "__init__", lambda _, pipeline_options: given.append(pipeline_options))
    places.write("shelf://bucket/images.npz", b"whole")
    assert (
        places.local("shelf://bucket/images.npz", places.fetched("shelf://bucket/images.npz")).read_bytes() == b"whole"
    )
    assert {type(options) for options in given} == {PipelineOptions}
    places.use(own := PipelineOptions(["--hdfs_host=h"]))
    places.write("shelf://bucket/other.npz", b"whole")
    assert given[-1] is own


def test_whatever_a_file_system_raises_is_one_line(temporary, monkeypatch):
    def create(*_, **__):
        raise AssertionError("Missing boto3 requirement")

    monkeypatch.setattr(shelf.Shelf, "create", create)
    with pytest.raises(InputError, match=r"^Cannot write to shelf://bucket/votes \(AssertionError: Missing boto3 req"):
        Mark("shelf://bucket/votes").set()
    monkeypatch.setattr(shelf.Shelf, "__init__", create)
    with pytest.raises(InputError, match=r"^Beam cannot use shelf://bucket/votes \(.*Missing boto3"):
        places.check("shelf://bucket/votes")


@pytest.mark.parametrize("url", ["shelf://", "shelf:///", "://", "://bucket"])
def test_a_url_of_nothing_is_refused(url):
    with pytest.raises(InputError, match=r"^Give a URL of a file or a folder, such as s3://bucket/folder\. Received: "):
        places.download(url, "nowhere")
