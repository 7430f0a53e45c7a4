"""The blessing that the pipeline's Evaluator gives a model, and whether it is for the SavedModel to be published.

A blessing identifies the weights by their values, which are compared with those that the SavedModel restores; the
SavedModel's own manifest vouches for its graph, card and warm-up requests. Both are checksums: they protect against
damage and mix-ups, not against somebody who can write these files and means harm.
"""

import math
from pathlib import Path

from serving import card as card_lib
from serving import manifest
from serving.files import read_json
from serving.fingerprints import sealed, unsealed
from serving.weights import fingerprint_of_saved_model

# Letters of a fingerprint, as `serving.publish list` prints it.
_MAX_LETTERS = 12


def _are_lines(values):
    # They are printed on a terminal.
    return isinstance(values, list) and all(isinstance(value, str) and value.isprintable() for value in values)


# field of blessing.json: what it accepts, in words, and the check; fields in neither dictionary do not matter here
_SCHEMA = {
    "blessed": ("true or false", lambda value: isinstance(value, bool)),
    "reasons": ("a list of strings, one line each", _are_lines),
    "model": card_lib.OPTIONAL["model"],
    "weights": card_lib.SCHEMA["fingerprint"],
    "sigma": card_lib.SCHEMA["sigma"],
}
_OPTIONAL = {
    "acr": ("a number from 0", lambda value: type(value) in (int, float) and 0 <= value < math.inf),
    "n": card_lib.SCHEMA["n"],
}


def make(model, weights, sigma, reasons, **about):
    """The Evaluator's verdict, as the JSON value that blessing.json holds.

    Args:
        model: fingerprint of the trained artifact.
        weights: fingerprint of the weights in it; see `serving.card.fingerprint`.
        sigma: noise level at which it was certified.
        reasons: why it is not blessed, one line each; empty if it is.
        about: further facts to record.
    """
    return sealed(
        {"blessed": not reasons, "reasons": reasons, "model": model, "weights": weights, "sigma": sigma, **about}
    )


def read(path):
    """The blessing in a file, as `make` returned it.

    Raises:
        OSError: if it cannot be read.
        ValueError: in one line, if it is not a blessing, or was changed since it was written.
    """
    # The caller may mean a link; files inside a SavedModel must not be links.
    blessing = read_json(Path(path).resolve())
    check(blessing, path)
    return blessing


def check(blessing, name):
    """Accepts a blessing as `make` returned it.

    Raises:
        ValueError: in one line, which calls the blessing `name`.
    """
    for field in _SCHEMA:
        if not isinstance(blessing, dict) or field not in blessing:
            raise ValueError(f"{name} is not a blessing from the pipeline's Evaluator: it has no {field}")
    card_lib.check_fields(blessing, {**_SCHEMA, **_OPTIONAL}, name)
    if blessing["blessed"] and blessing["reasons"]:
        raise ValueError(f"{name} says blessed, but gives reasons against it: {'; '.join(blessing['reasons'])}")
    if unsealed(blessing) is None:
        raise ValueError(f"{name} was changed or damaged after the Evaluator wrote it; evaluate the model again")


def judge(path, saved_model):
    """Reads a blessing and says whether it blesses a SavedModel.

    Returns:
        The blessing and None if it does; otherwise None and the reason, in one line. See `reason_against`.
    """
    try:
        blessing = read(path)
    except OSError as error:
        return None, f"cannot read {error.filename} ({error.strerror})"
    except ValueError as error:
        return None, str(error)
    reason = reason_against(blessing, saved_model, path)
    return (None, reason) if reason else (blessing, None)


def reason_against(blessing, saved_model, name="its blessing"):
    """Why a blessing does not bless a SavedModel.

    Args:
        blessing: as `read` returns it.
        saved_model: directory of a SavedModel that nobody else writes to.
        name: name of the blessing, for the reason.

    Returns:
        None if it does: it says "blessed" for the weights that the SavedModel restores and for the model and sigma that
        its card names, and no file was changed since it was exported. Otherwise the reason, in one line.
    """
    if not blessing["blessed"]:
        return "; ".join(blessing["reasons"]) or f"{name} does not say why"
    try:
        card = card_lib.read(saved_model)
        if "model" not in card:
            return "its card does not name the model that it was exported from, as cards of the pipeline's Exporter do"
        for field in ("model", "sigma"):
            if blessing[field] != card[field]:
                theirs, ours = _short(blessing[field]), _short(card[field])
                return f"{name} is for another {field}, {theirs}; its card says {ours}"
        manifest.check(saved_model)
        weights = fingerprint_of_saved_model(saved_model)
    except FileNotFoundError as error:
        return f"it has no {Path(error.filename).name}; export it again"
    except OSError as error:
        return f"cannot read {error.filename} ({error.strerror})"
    except ValueError as error:
        return str(error)
    if weights != blessing["weights"]:
        return _are_other_weights(name, blessing["weights"], weights)
    return None if weights == card["fingerprint"] else _are_other_weights("its card", card["fingerprint"], weights)


def _are_other_weights(name, theirs, ours):
    return f"{name} is for other weights, {_short(theirs)}; those of its variables are {_short(ours)}"


def _short(value):
    return str(value)[:_MAX_LETTERS]
