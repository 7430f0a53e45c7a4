"""Directories that look like exported SavedModels, with a model card and the blessing for it; none can be loaded."""

import hashlib
import json

from serving import card

CARD = {
    "format": 1, "sigma": 0.25, "n0": 100, "n": 1000, "alpha": 0.001, "max_num_samples": 100_000, "max_batch_size": 128,
    "micro_batch": 500, "image_shape": [8, 8, 1], "scaling": "divide by 16", "normalization": "none",
    "precision": "float32", "class_names": ["zero", "one"], "fingerprint": "0123456789abcdef" * 4,
    "library_version": "0.1.0",
}  # fmt: skip


def model(content):
    """What a blessing calls the model whose SavedModel has this content."""
    return hashlib.sha256(content.encode()).hexdigest()


def write(directory, content="graph"):
    """Writes a SavedModel of this content, as the pipeline's Exporter leaves it -> its directory."""
    for folder in ("variables", "assets.extra"):
        (directory / folder).mkdir(parents=True)
    (directory / "saved_model.pb").write_text(content)
    (directory / "variables" / "variables.index").write_text(content * 2)
    (directory / "assets.extra" / "model_card.json").write_text(card.to_json({**CARD, "model": model(content)}))
    (directory / "saved_model.pb").chmod(0o600)
    return directory


def write_blessing(path, content="graph", **changed):
    """Writes the Evaluator's blessing of the model of this content -> its path."""
    blessing = {"blessed": True, "reasons": [], "model": model(content), "sigma": 0.25, "n": 10_000, "alpha": 0.001}
    path.write_text(json.dumps({**blessing, **changed}))
    return path
