"""A trained classifier -> a SavedModel that returns the smoothed prediction with its certified radius."""

import json
from pathlib import Path

import tensorflow as tf

from serving.signatures import SmoothedSignature


def export(model, directory, *, n0, n, alpha):
    """Writes a SavedModel with the signature `serving_default` = certify.

    It takes `images`, float32 [batch, H, W, C] in [0, 1], and returns, each [batch]: `predicted_class`, int64, -1 to
    abstain; `radius`, float32, the certified l2 radius in [0, 1] pixel units, 0 where it abstains; `vote_share`,
    float32, the selected class' share of the n estimation votes. A certificate is false with probability at most
    alpha. What it was exported with is in assets.extra/model_card.json.

    Args:
        model: a `MACERModel` or another `NoisyTrainingModel`.
        directory: where to write; made if it is not there.
        n0, n, alpha: see `SmoothedClassifier.certify`.

    Raises:
        ValueError: if n and alpha could never certify an image.
    """
    signature = SmoothedSignature(model.classifier, model.sigma, n0, n, alpha)
    tf.saved_model.save(signature, str(directory), signatures={"serving_default": signature.certify})
    card = {
        "sigma": model.sigma,
        "n0": n0,
        "n": n,
        "alpha": alpha,
        "image_shape": list(model.classifier.input_shape[1:]),
        "classes": model.classifier.output_shape[-1],
    }
    extra = Path(directory) / "assets.extra"
    extra.mkdir()
    (extra / "model_card.json").write_text(json.dumps(card, indent=1))
