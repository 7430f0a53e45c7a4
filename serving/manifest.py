"""The manifest of an exported SavedModel: the digest of each of its files, by which damage and mix-ups are noticed."""

import json
from pathlib import Path

from serving import card as card_lib
from serving.files import EXTRA, read_extra
from serving.fingerprints import differences, digest, file_digests, sealed, unsealed

NAME = "manifest.json"
FORMAT = 1
# What publishing adds to a version says itself what it is of.
PUBLICATION = "publication.json"
_CARD = f"{EXTRA}/{card_lib.NAME}"
_NOT_LISTED = (f"{EXTRA}/{NAME}", f"{EXTRA}/{PUBLICATION}", _CARD)


class DamagedError(ValueError):
    """Files of a SavedModel are not those that were exported: in one line, which."""


def write(saved_model):
    """Writes down the files of a SavedModel, which has a model card, as they are."""
    content = {"format": FORMAT, "files": _digests(saved_model)}
    (Path(saved_model) / EXTRA / NAME).write_text(json.dumps(sealed(content), indent=1), encoding="utf-8")


def check(saved_model):
    """Passes a SavedModel whose files are those that were exported; of the card, all but that it was forced.

    Raises:
        FileNotFoundError: if it has no manifest, as what was not exported by `serving.export`.
        DamagedError: if a file is new, missing or changed, or the manifest itself was.
        OSError, ValueError: as `serving.card.read`.
    """
    try:
        content = unsealed(read_extra(saved_model, NAME))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"its {NAME} is damaged ({error})") from None
    if content is None or content.keys() != {"format", "files"} or content["format"] != FORMAT:
        raise DamagedError(f"its {NAME} was changed or damaged after it was exported")
    which = differences(content["files"], _digests(saved_model))
    if which:
        raise DamagedError(f"its files are not those that were exported: {which}")


def _digests(saved_model):
    exported = card_lib.to_json(card_lib.unforced(card_lib.read(saved_model)))
    card = digest(exported.encode())
    return {**file_digests(saved_model, without=_NOT_LISTED), _CARD: card}
