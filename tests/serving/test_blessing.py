"""A blessing blesses the model and the sigma that it names, and nothing else."""

import json

import pytest

from serving import card, manifest
from serving.blessing import judge
from tests.serving import saved_models


def why_not(path, saved_model):
    return judge(path, saved_model)[1]


@pytest.fixture
def saved_model(tmp_path):
    return saved_models.write(tmp_path / "model")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "blessing.json"


def test_it_blesses_the_model_that_it_is_for(saved_model, path):
    assert why_not(saved_models.write_blessing(path), saved_model) is None
    # Fields that do not matter here may come and go.
    assert why_not(saved_models.write_blessing(path, examples="b" * 64, more=[1]), saved_model) is None
    link = path.with_name("link.json")
    link.symlink_to(path)
    assert why_not(link, saved_model) is None
    # A name that TensorFlow would take for a pattern.
    assert why_not(link, saved_model.rename(path.with_name("model [1]"))) is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"blessed": False, "reasons": ["too bad", "too old"]}, "too bad; too old"),
        ({"blessed": False}, "{path} does not say why"),
        # SHA-256 of "other" and of "graph", the first 12 digits.
        ({"content": "other"}, "{path} is for another model, d9298a10d1b0; its card says eef93e1d1448"),
        # SHA-256 of "(5,) float32" and five float32, the letters' codes.
        ({"weights_of": "other"}, "{path} is for other weights, 9f3a714d1050; those of its variables are 9ca3280ffc4a"),
        ({"weights": 3}, "weights in {path} must be a SHA-256 in hexadecimal. Received: 3"),
        ({"sigma": 0.5}, "{path} is for another sigma, 0.5; its card says 0.25"),
        ({"reasons": ["too bad"]}, "{path} says blessed, but gives reasons against it: too bad"),
        ({"blessed": 1}, "blessed in {path} must be true or false. Received: 1"),
        ({"blessed": "true"}, "blessed in {path} must be true or false. Received: 'true'"),
        ({"reasons": "none"}, "reasons in {path} must be a list of strings, one line each. Received: 'none'"),
        ({"blessed": False, "reasons": ["a\nb"]}, r"reasons in {path} must be a list of strings, one line each. "
                                                  r"Received: ['a\nb']"),
        ({"model": "1e8f"}, "model in {path} must be a SHA-256 in hexadecimal. Received: '1e8f'"),
        ({"model": None}, "model in {path} must be a SHA-256 in hexadecimal. Received: None"),
        ({"sigma": "0.25"}, "sigma in {path} must be a number above 0. Received: '0.25'"),
    ],
)  # fmt: skip
def test_what_does_not_bless_says_why_in_one_line(saved_model, path, changed, reason):
    saved_models.write_blessing(path, **changed)
    assert why_not(path, saved_model) == reason.format(path=path)


@pytest.mark.parametrize("name", ["blessed", "reasons", "model", "weights", "sigma"])
def test_a_missing_field_is_named(saved_model, path, name):
    blessing = json.loads(saved_models.write_blessing(path).read_text())
    del blessing[name]
    path.write_text(json.dumps(blessing))
    assert why_not(path, saved_model) == f"{path} is not a blessing from the pipeline's Evaluator: it has no {name}"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, '"blessed"', "\xff"])
def test_what_is_no_blessing_blesses_nothing(saved_model, path, text):
    path.write_text(text, encoding="latin-1")
    reason = why_not(path, saved_model)
    assert reason.startswith(str(path))
    assert "\n" not in reason


def test_a_file_that_is_not_there_and_a_card_that_is_not_there(saved_model, path):
    assert why_not(path, saved_model) == f"cannot read {path} (No such file or directory)"
    saved_models.write_blessing(path)
    (saved_model / "assets.extra" / card.NAME).unlink()
    assert why_not(path, saved_model) == "it has no model_card.json; export it again"


def test_a_model_that_was_exported_by_hand_has_no_blessing(saved_model, path):
    saved_models.write_blessing(path)
    saved_models.write_card(saved_model, saved_models.CARD)
    assert why_not(path, saved_model).startswith("its card does not name the model that it was exported from")


def test_every_flipped_byte_of_a_blessing_blesses_nothing(saved_model, path):
    whole = saved_models.write_blessing(path).read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        reason = why_not(path, saved_model)
        assert reason, place
        assert "\n" not in reason
    path.write_bytes(whole)
    assert why_not(path, saved_model) is None


@pytest.mark.parametrize("changed", [{"blessed": True, "reasons": []}, {"sigma": 0.25}, {"n": 10**6}])
def test_a_blessing_that_was_edited_blesses_nothing(saved_model, path, changed):
    blessing = json.loads(saved_models.write_blessing(path, blessed=False, reasons=["too bad"], sigma=0.5).read_text())
    path.write_text(json.dumps({**blessing, **changed}))
    assert "changed or damaged after the Evaluator wrote it; evaluate the model again" in why_not(path, saved_model)


def test_other_variables_under_the_same_card_are_refused(saved_model, path):
    """Also where whoever put them there made the manifest anew, as only the export should."""
    saved_models.write_blessing(path)
    saved_models.write_variables(saved_model, "other")
    assert "its files are not those that were exported: 'variables/variables." in why_not(path, saved_model)
    manifest.write(saved_model)
    assert f"{path} is for other weights, " in why_not(path, saved_model)
    saved_models.write_variables(saved_model, "graph")
    manifest.write(saved_model)
    assert why_not(path, saved_model) is None


@pytest.mark.parametrize("name", ["saved_model.pb", "assets.extra/model_card.json", "assets/vocabulary", "more/graph",
                                  "assets.extra/tf_serving_warmup_requests", "saved_model.cpb"])  # fmt: skip
def test_each_changed_or_added_file_is_named(saved_model, path, name):
    saved_models.write_blessing(path)
    (saved_model / name).parent.mkdir(exist_ok=True)
    if name.endswith("card.json"):
        (saved_model / name).write_text((saved_model / name).read_text().replace('"alpha": 0.001', '"alpha": 0.002'))
    else:
        (saved_model / name).write_text("other")
    kind = "was changed" if name.endswith((".pb", "card.json")) else "is new"
    assert why_not(path, saved_model) == f"its files are not those that were exported: {name!r} {kind}"


def test_the_card_must_be_of_the_weights_too(saved_model, path):
    saved_models.write_blessing(path)
    saved_models.write_card(saved_model, {**card.read(saved_model), "fingerprint": "0" * 64})
    assert why_not(path, saved_model).startswith("its card is for other weights, 000000000000; those of its variables")


def test_a_savedmodel_without_a_manifest_has_no_blessing(saved_model, path):
    saved_models.write_blessing(path)
    (saved_model / "assets.extra" / "manifest.json").unlink()
    assert why_not(path, saved_model) == "it has no manifest.json; export it again"


def test_every_flipped_byte_of_manifest_and_card_is_told_in_one_line(saved_model, path):
    saved_models.write_blessing(path)
    for name in ("manifest.json", "model_card.json"):
        file = saved_model / "assets.extra" / name
        whole = file.read_bytes()
        for place in range(len(whole)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            reason = why_not(path, saved_model)
            assert reason, (name, place)
            assert "\n" not in reason
        file.write_bytes(whole)
    assert why_not(path, saved_model) is None


def test_variables_that_cannot_be_read_are_told_in_one_line(saved_model, path):
    saved_models.write_blessing(path)
    (index,) = (saved_model / "variables").glob("*.index")
    index.write_bytes(index.read_bytes()[:-9])
    manifest.write(saved_model)
    assert why_not(path, saved_model).startswith("its variables cannot be read (")
    assert "\n" not in why_not(path, saved_model)
