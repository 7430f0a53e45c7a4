"""Models that were trained and certified here and come with the package, each with a card.

docs/results.md says how they were trained and what they reach; `python benchmarks/results.py release` put them here.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macer_tf import files

if TYPE_CHECKING:
    from macer_tf.model import MACERModel

# Contains, for each model, NAME.keras and its card, NAME.json.
FOLDER = Path(__file__).parent / "released_models"
_MOST_BYTES = 2**28


def names() -> list[str]:
    """The names of the released models, sorted.

    Examples:
        >>> from macer_tf import released
        >>> "macer-mnist-0.50" in released.names()
        True
    """
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def card(name: str) -> dict[str, Any]:
    """What is known about a released model.

    Examples:
        >>> from macer_tf import released
        >>> released.card("macer-mnist-0.50")["sigma"]
        0.5

    Args:
        name: one of `names`.

    Returns:
        `name`, `sigma` (in units of a pixel in [0, 1]) and `sha256` of the model's file; under `trained`, the command
        and what it took; under `claimed`, what others report for theirs; under `verified`, what was measured for this
        one: images, n0, n, alpha, ACR, certified accuracies, and for some images the class and its share of the votes.

    Raises:
        ValueError: for an unknown name, or a card that is damaged.
    """
    if name not in names():
        raise ValueError(f"There is no released model of this name. Received: {name!r}; accepted: {', '.join(names())}")
    path = FOLDER / f"{name}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        is_of_this_name = {"sigma", "sha256"} <= {*content} and content["name"] == name
    except (ValueError, LookupError, TypeError, RecursionError):
        is_of_this_name = False
    if not is_of_this_name:
        raise ValueError(f"{path} is damaged: it is not the card of {name}; install the package again.")
    return content


def load_released(name: str) -> "MACERModel":
    """Loads a released model.

    Examples:
        >>> import macer_tf
        >>> model = macer_tf.load_released("macer-mnist-0.50")
        >>> model.sigma
        0.5
        >>> smoothed = macer_tf.SmoothedClassifier(model, seed=0)

    Args:
        name: one of `released.names()`.

    Returns:
        A `MACERModel`, not compiled, whose noise level is the card's; `SmoothedClassifier` takes it as it is.

    Raises:
        ValueError: for an unknown name, a damaged card, or a file other than the one that the card was written for.
        OSError: if the file is missing.
    """
    import keras

    about = card(name)
    path = FOLDER / f"{name}.keras"
    content = files.read(path, _MOST_BYTES)
    found = hashlib.sha256(content).hexdigest()
    if found != about["sha256"]:
        raise ValueError(
            f"{path} is not the model that its card describes; install the package again. Received: sha256 {found}, "
            f"the card's is {about['sha256']}"
        )
    # What is loaded is exactly what was checked, whatever happens to the file.
    with tempfile.TemporaryDirectory() as folder:
        checked = Path(folder) / path.name
        checked.write_bytes(content)
        model: MACERModel = keras.models.load_model(checked, compile=False)
    if model.sigma != about["sigma"]:
        raise ValueError(
            f"The card of {name} is damaged: the model was trained at sigma={model.sigma:g}; install the package "
            f"again. Received: sigma={about['sigma']}"
        )
    return model
