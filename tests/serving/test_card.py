import json

import numpy as np
import pytest

from serving import card

GOOD = {
    "format": 1, "sigma": 0.25, "n0": 100, "n": 1000, "alpha": 0.001, "max_num_samples": 100_000, "max_batch_size": 128,
    "micro_batch": 500, "image_shape": [8, 8, 1], "scaling": "divide by 16", "normalization": "none",
    "precision": "float32", "class_names": ["zero", "one"], "fingerprint": "0123456789abcdef" * 4,
    "library_version": "0.1.0",
}  # fmt: skip


def test_what_is_written_is_read_back(tmp_path):
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / card.NAME).write_text(card.to_json(GOOD))
    assert card.read(tmp_path) == GOOD


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("format", 2), ("sigma", 0), ("sigma", float("nan")), ("sigma", float("inf")), ("sigma", "0.25"), ("n", 0),
        ("n", 1000.0), ("n", True), ("alpha", 1), ("alpha", 0.0), ("max_batch_size", None), ("image_shape", [8, 8]),
        ("image_shape", [8, 8, 0]), ("image_shape", "881"), ("scaling", ""), ("precision", 32),
        ("class_names", ["one"]), ("class_names", [1, 2]), ("fingerprint", "0123456789abcdef"),
        ("fingerprint", "X" * 64),
    ],
)  # fmt: skip
def test_a_bad_field_is_told_in_one_line(name, bad):
    for check in (card.to_json, lambda about: card.from_json(json.dumps(about))):
        with pytest.raises(ValueError, match=f"^{name} in the model card must be .*Received: ") as error:
            check({**GOOD, name: bad})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", json.dumps({**GOOD, "extra": 1})])
def test_what_is_no_card_is_told_in_one_line(text):
    with pytest.raises(ValueError, match=r"^The model card ") as error:
        card.from_json(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_field_is_refused(name):
    with pytest.raises(ValueError, match=f"must have the fields .*{name}"):
        card.from_json(json.dumps({key: value for key, value in GOOD.items() if key != name}))


def test_the_fingerprint_is_of_the_weights_alone(linear_classifier):
    first, same, other = linear_classifier(), linear_classifier(), linear_classifier(bias=np.float32(1e-7))
    assert card.fingerprint(first) == card.fingerprint(same)
    assert card.fingerprint(first) != card.fingerprint(other)
