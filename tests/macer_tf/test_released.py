"""The released models are what their cards say."""

import hashlib
import json
import shutil

import pytest
from scipy import stats

import macer_tf
from macer_tf import SmoothedClassifier, released

N = 1000


@pytest.mark.parametrize("name", released.names())
def test_a_card_keeps_what_is_claimed_apart_from_what_was_measured(name):
    card = released.card(name)
    assert card["name"] == name
    assert set(card) == {"name", "sigma", "sha256", "trained", "claimed", "verified"}
    assert hashlib.sha256((released.FOLDER / f"{name}.keras").read_bytes()).hexdigest() == card["sha256"]
    verified = card["verified"]
    assert {"image_set", "num_images", "n0", "n", "alpha", "acr", "acr_standard_error"} <= set(verified)
    accuracies = list(verified["certified_accuracy"].values())
    assert accuracies == sorted(accuracies, reverse=True)
    assert len(verified["images"]) == 20


@pytest.mark.parametrize("name", released.names())
def test_certified_again_its_images_have_the_classes_and_shares_of_the_card(name, shared_tfds):
    """20 images, 1,000 samples each: votes of the card's model are binomial with the card's shares."""
    from pipeline.data import datasets

    model, card = macer_tf.load_released(name), released.card(name)
    assert model.sigma == card["sigma"]
    ids = [image["example_id"] for image in card["verified"]["images"]]
    test, _, _ = datasets.load_split("mnist", shared_tfds)
    votes = SmoothedClassifier(model, seed=1).votes(test.images[ids] / 255, n0=100, n=N)
    certificates = macer_tf.certify(votes, model.sigma, alpha=0.001)
    for image, counts, prediction, p_lower in zip(
        card["verified"]["images"], votes.estimation, certificates.predictions, certificates.p_lower, strict=True
    ):
        right, share = counts[image["prediction"]], image["share"]
        # The card's share is itself an estimate, from 100,000 samples: 0.01 is six of its standard errors or more.
        least, most = stats.binom.ppf((1e-6, 1 - 1e-6), N, (max(share - 0.01, 0), min(share + 0.01, 1)))
        assert least <= right <= most, image
        if prediction != macer_tf.ABSTAIN:
            assert prediction == image["prediction"]
            assert p_lower <= share + 0.01


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"Received: 'macer-mnist'; accepted: macer-"):
        macer_tf.load_released("macer-mnist")


def test_a_model_that_is_not_the_cards_is_refused(tmp_path, monkeypatch):
    name = released.names()[0]
    for suffix in (".json", ".keras"):
        shutil.copy(released.FOLDER / (name + suffix), tmp_path)
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    with open(tmp_path / f"{name}.keras", "ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="is not the model that its card describes"):
        macer_tf.load_released(name)


# The last two: of another model, and without a digest.
OF_ANOTHER = b'{"name": "y", "sigma": 0.5, "sha256": "0"}'
DAMAGED = [b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, OF_ANOTHER, b'{"name": "x", "sigma": 0.5}']


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_card_is_one_line(content, tmp_path, monkeypatch):
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    (tmp_path / "x.json").write_bytes(content)
    for ask in (released.card, macer_tf.load_released):
        with pytest.raises(ValueError, match=r"x.json is damaged: .* install the package again.$"):
            ask("x")


def test_a_card_of_another_sigma_is_refused(tmp_path, monkeypatch):
    name = released.names()[0]
    shutil.copy(released.FOLDER / f"{name}.keras", tmp_path)
    (tmp_path / f"{name}.json").write_text(json.dumps({**released.card(name), "sigma": 9}))
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"was trained at sigma=0\.\d+; install the package again. Received: sigma=9"):
        macer_tf.load_released(name)
