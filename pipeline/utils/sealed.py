"""State files: JSON objects that carry a checksum of their own content, so that a changed one is never trusted."""

import json

from serving import fingerprints


def dumps(content, indent=None):
    """The JSON text of an object, with a checksum of its content among its entries."""
    return json.dumps(fingerprints.sealed(json.loads(json.dumps(content))), indent=indent)


def loads(text):
    """The object that `dumps` was given. Raises ValueError if `text`, a string or bytes, is anything else."""
    try:
        content = fingerprints.unsealed(json.loads(text))
    except RecursionError:
        raise ValueError("not JSON of ours") from None
    if content is None:
        raise ValueError("its content does not match its checksum")
    return content
