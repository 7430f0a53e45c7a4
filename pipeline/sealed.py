"""State files: JSON objects that carry a checksum of their own content, so that a changed one is never believed."""

import json

from serving.files import fingerprint

_CHECKSUM = "checksum"


def dumps(content, indent=None):
    """The JSON text of an object, with a checksum of its content among its entries."""
    content = json.loads(json.dumps(content))
    return json.dumps({**content, _CHECKSUM: fingerprint(content)}, indent=indent)


def loads(text):
    """What `dumps` was given. Raises ValueError if `text`, a string or bytes, is anything else."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("no JSON of ours") from None
    if not isinstance(content, dict) or content.pop(_CHECKSUM, None) != fingerprint(content):
        raise ValueError("its content does not match its checksum")
    return content
