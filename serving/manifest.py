"""The manifest of an exported SavedModel: the digest of each of its files, which reveals damage and mix-ups."""

import json
from pathlib import Path

from serving import card as card_lib
from serving.files import EXTRA, read_extra
from serving.fingerprints import differences, digest, file_digests, sealed, unsealed

NAME = "manifest.json"
FORMAT = 1
# What publishing adds to a version; it records by itself which files it belongs to.
PUBLICATION = "publication.json"
_CARD = f"{EXTRA}/{card_lib.NAME}"
_NOT_LISTED = (f"{EXTRA}/{NAME}", f"{EXTRA}/{PUBLICATION}", _CARD)


class DamagedError(ValueError):
    """Files of a SavedModel are not those that were exported: in one line, which ones."""


def write(saved_model):
    """Records the files of a SavedModel as they are now; it must have a model card."""
    content = {"format": FORMAT, "files": _digests(saved_model)}
    (Path(saved_model) / EXTRA / NAME).write_text(json.dumps(sealed(content), indent=1), encoding="utf-8")


def check(saved_model):
    """Accepts a SavedModel whose files are those that were exported; in the card, "forced" may have been added.

    Raises:
        FileNotFoundError: if it has no manifest, for example because `serving.export` did not export it.
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
