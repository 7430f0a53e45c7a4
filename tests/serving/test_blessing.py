"""A blessing blesses the model and the sigma that it names, and nothing else."""

import json

import pytest

from serving import card
from serving.blessing import reason_against
from tests.serving import saved_models


@pytest.fixture
def saved_model(tmp_path):
    return saved_models.write(tmp_path / "model")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "blessing.json"


def test_it_blesses_the_model_that_it_is_for(saved_model, path):
    assert reason_against(saved_models.write_blessing(path), saved_model) is None
    # Fields that do not matter here may come and go.
    assert reason_against(saved_models.write_blessing(path, examples="b" * 64, more=[1]), saved_model) is None
    link = path.with_name("link.json")
    link.symlink_to(path)
    assert reason_against(link, saved_model) is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"blessed": False, "reasons": ["too bad", "too old"]}, "too bad; too old"),
        ({"blessed": False}, "{path} does not say why"),
        # SHA-256 of "other" and of "graph", the first 12 digits.
        ({"content": "other"}, "{path} is for another model, d9298a10d1b0; its card says eef93e1d1448"),
        ({"sigma": 0.5}, "{path} is for another sigma, 0.5; its card says 0.25"),
        ({"reasons": ["too bad"]}, "{path} says blessed, and reasons against it: too bad"),
        ({"blessed": 1}, "blessed in {path} must be true or false. Received: 1"),
        ({"blessed": "true"}, "blessed in {path} must be true or false. Received: 'true'"),
        ({"reasons": "none"}, "reasons in {path} must be a list of texts, a line each. Received: 'none'"),
        ({"blessed": False, "reasons": ["a\nb"]}, r"reasons in {path} must be a list of texts, a line each. "
                                                  r"Received: ['a\nb']"),
        ({"model": "1e8f"}, "model in {path} must be a SHA-256 in hexadecimal. Received: '1e8f'"),
        ({"model": None}, "model in {path} must be a SHA-256 in hexadecimal. Received: None"),
        ({"sigma": "0.25"}, "sigma in {path} must be a number above 0. Received: '0.25'"),
    ],
)  # fmt: skip
def test_what_does_not_bless_says_why_in_one_line(saved_model, path, changed, reason):
    saved_models.write_blessing(path, **changed)
    assert reason_against(path, saved_model) == reason.format(path=path)


@pytest.mark.parametrize("name", ["blessed", "reasons", "model", "sigma"])
def test_a_missing_field_is_named(saved_model, path, name):
    blessing = json.loads(saved_models.write_blessing(path).read_text())
    del blessing[name]
    path.write_text(json.dumps(blessing))
    assert reason_against(path, saved_model) == f"{path} is no blessing of the pipeline's Evaluator: it has no {name}"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, '"blessed"', "\xff"])
def test_what_is_no_blessing_blesses_nothing(saved_model, path, text):
    path.write_text(text, encoding="latin-1")
    reason = reason_against(path, saved_model)
    assert reason.startswith(str(path))
    assert "\n" not in reason


def test_a_file_that_is_not_there_and_a_card_that_is_not_there(saved_model, path):
    assert reason_against(path, saved_model) == f"cannot read {path} (No such file or directory)"
    saved_models.write_blessing(path)
    (saved_model / "assets.extra" / card.NAME).unlink()
    assert "model_card.json (No such file or directory)" in reason_against(path, saved_model)


def test_a_model_that_was_exported_by_hand_has_no_blessing(saved_model, path):
    saved_models.write_blessing(path)
    (saved_model / "assets.extra" / card.NAME).write_text(card.to_json(saved_models.CARD))
    assert reason_against(path, saved_model).startswith("its card does not name the model that it was exported from")
