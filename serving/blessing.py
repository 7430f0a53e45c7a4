"""The blessing that the pipeline's Evaluator gives a model, and whether it is for what is to be published."""

from pathlib import Path

from serving import card as card_lib
from serving.files import read_json

# Of a fingerprint, as `serving.publish list` prints it.
_MAX_LETTERS = 12


def _are_lines(values):
    # They are printed on a terminal.
    return isinstance(values, list) and all(isinstance(value, str) and value.isprintable() for value in values)


# field of blessing.json: what it accepts, in words, and the check; the fields that are not here do not matter here
_SCHEMA = {
    "blessed": ("true or false", lambda value: isinstance(value, bool)),
    "reasons": ("a list of texts, a line each", _are_lines),
    "model": card_lib.OPTIONAL["model"],
    "sigma": card_lib.SCHEMA["sigma"],
}


def reason_against(path, saved_model):
    """Why a blessing does not bless a SavedModel.

    Args:
        path: blessing.json, as the Evaluator writes it.
        saved_model: directory with a model card.

    Returns:
        None if it does: it says blessed, of the model and sigma that the card names. Else the reason, in one line.
    """
    try:
        blessing = _read(path)
        card = card_lib.read(saved_model)
    except OSError as error:
        return f"cannot read {error.filename} ({error.strerror})"
    except ValueError as error:
        return str(error)
    if not blessing["blessed"]:
        return "; ".join(blessing["reasons"]) or f"{path} does not say why"
    if "model" not in card:
        return "its card does not name the model that it was exported from, as cards of the pipeline's Exporter do"
    for name in ("model", "sigma"):
        if blessing[name] != card[name]:
            ours, theirs = (str(of[name])[:_MAX_LETTERS] for of in (card, blessing))
            return f"{path} is for another {name}, {theirs}; its card says {ours}"
    return None


def _read(path):
    # The caller may mean a link; what is in a SavedModel may not be one.
    blessing = read_json(Path(path).resolve())
    for name, (accepts, is_accepted) in _SCHEMA.items():
        if not isinstance(blessing, dict) or name not in blessing:
            raise ValueError(f"{path} is no blessing of the pipeline's Evaluator: it has no {name}")
        if not is_accepted(blessing[name]):
            raise ValueError(f"{name} in {path} must be {accepts}. Received: {blessing[name]!r}")
    if blessing["blessed"] and blessing["reasons"]:
        raise ValueError(f"{path} says blessed, and reasons against it: {'; '.join(blessing['reasons'])}")
    return blessing
