import json
import os

import numpy as np
import pytest

from serving import card
from tests.serving.saved_models import CARD as GOOD

MODEL = "f" * 64


@pytest.fixture
def path(tmp_path):
    """Where the card of the SavedModel in `tmp_path` is."""
    (tmp_path / "assets.extra").mkdir()
    return tmp_path / "assets.extra" / card.NAME


@pytest.mark.parametrize("optional", [{}, {"forced": True}, {"model": MODEL}, {"model": MODEL, "forced": True}])
def test_what_is_written_is_read_back(tmp_path, path, optional):
    path.write_text(card.to_json({**GOOD, **optional}))
    assert card.read(tmp_path) == {**GOOD, **optional}
    exported = {name: value for name, value in optional.items() if name == "model"}
    assert card.unforced(card.read(tmp_path)) == {**GOOD, **exported}


@pytest.mark.parametrize("kind", ["card", "folder"])
def test_a_card_is_not_read_through_a_link(tmp_path, path, kind):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / card.NAME).write_text(card.to_json(GOOD))
    if kind == "card":
        path.symlink_to(elsewhere / card.NAME)
    else:
        path.parent.rmdir()
        path.parent.symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises((OSError, ValueError), match="symbolic link"):
        card.read(tmp_path)


def test_what_is_no_plain_small_file_is_not_read(tmp_path, path):
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is not a plain file"):
        card.read(tmp_path)
    path.unlink()
    path.write_text(card.to_json(GOOD) + " " * 2**20)
    with pytest.raises(ValueError, match="is larger than 1048576 bytes"):
        card.read(tmp_path)
    path.write_bytes(b"\xff" + card.to_json(GOOD).encode())
    with pytest.raises(ValueError, match="is not JSON") as error:
        card.read(tmp_path)
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        card.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("format", 4), ("sigma", 0), ("sigma", float("nan")), ("sigma", float("inf")), ("sigma", "0.25"), ("n", 0),
        ("n", 1000.0), ("n", True), ("alpha", 1), ("alpha", 0.0), ("max_batch_size", None), ("image_shape", [8, 8]),
        ("image_shape", [8, 8, 0]), ("image_shape", "881"), ("image_shape", [2**13, 2**13, 3]),
        ("sigma", 10**400), ("n", -(10**400)), ("scaling", ""), ("precision", 32),
        ("class_names", ["one"]), ("class_names", [1, 2]), ("fingerprint", "0123456789abcdef"),
        ("fingerprint", "X" * 64), ("model", "abc"), ("model", None), ("forced", False), ("forced", 1),
    ],
)  # fmt: skip
def test_a_bad_field_is_told_in_one_line(name, bad):
    for check in (card.to_json, lambda about: card.from_json(json.dumps(about))):
        with pytest.raises(ValueError, match=f"^{name} in the model card must be .*Received: ") as error:
            check({**GOOD, name: bad})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", "[" * 100_000, json.dumps({**GOOD, "extra": 1})])
def test_what_is_no_card_is_told_in_one_line(text):
    with pytest.raises(ValueError, match=r"^The model card ") as error:
        card.from_json(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [1, 2])
def test_a_card_of_a_format_before_is_told_in_one_line(number):
    renamed = {"max_n": "max_num_samples", "microbatch": "micro_batch"}
    before = {renamed.get(name, name): value for name, value in GOOD.items()} | {"format": number}
    with pytest.raises(
        ValueError, match=rf"^The model card is of format {number}, .* Export the model again\.$"
    ) as error:
        card.from_json(json.dumps(before))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_field_is_refused(name):
    with pytest.raises(ValueError, match=f"must have the fields .*{name}"):
        card.from_json(json.dumps({key: value for key, value in GOOD.items() if key != name}))


def test_the_fingerprint_is_of_the_weights_alone(linear_classifier):
    first, same, other = linear_classifier(), linear_classifier(), linear_classifier(bias=np.float32(1e-7))
    assert card.fingerprint(first) == card.fingerprint(same)
    assert card.fingerprint(first) != card.fingerprint(other)
