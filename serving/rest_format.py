"""JSON of TensorFlow Serving's REST: requests by rows or by columns, and the answers to them.

It follows json_tensor.cc: every input of the signature is required, a single output comes without its name, and floats
are printed with six digits if these restore the number, otherwise with nine or seventeen.
"""

import json

import numpy as np

_BROKEN = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


def request_of(body):
    """The JSON object in the body of a request.

    Raises:
        ValueError: in one line, if it is not one, or has no inputs, or both rows ("instances") and columns ("inputs").
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"JSON Parse error: {error}") from None
    if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
        raise ValueError("JSON Value: expected an object with either 'instances' or 'inputs'.")
    try:
        request.get("signature_name", "").encode()
    except (AttributeError, UnicodeEncodeError):  # of another type, or half of a surrogate pair
        raise ValueError("JSON Value: 'signature_name' must be text.") from None
    return request


def inputs_of(request, dtypes):
    """The inputs of a request, name -> array.

    Args:
        request: as `request_of` returns it.
        dtypes: name -> NumPy dtype of each input; object for text.

    Raises:
        ValueError: in one line, if one is missing or unknown, or has rows of different lengths or invalid values.
    """
    try:
        columns = _columns(request, list(dtypes))
    except _BROKEN:
        raise ValueError("JSON Value: the inputs are not a list or object that the signature takes.") from None
    for name in dtypes:
        if name not in columns:
            raise ValueError(f"Missing named input: {name} in 'inputs' object.")
    if unknown := sorted(columns.keys() - dtypes.keys()):
        raise ValueError(f"Unknown named input: {unknown[0]} in 'inputs' object.")
    return {name: _array(name, columns[name], dtype) for name, dtype in dtypes.items()}


def body_of(outputs, by_rows):
    """The body of an answer, as bytes.

    Args:
        outputs: name -> array, batch first.
        by_rows: whether the request was by rows.
    """
    if by_rows:
        rows = zip(*outputs.values(), strict=True)
        lines = [_value(dict(zip(outputs, row, strict=True))) for row in rows]
        return ('{\n    "predictions": [' + ", ".join(lines) + "\n    ]\n}").encode()
    return ('{\n    "outputs": ' + _value(outputs) + "\n}").encode()


def decimal(value):
    """A float32 or float64 as TensorFlow Serving prints it."""
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    printed = f"{value:.6g}"
    if value.dtype.type(printed) != value:
        printed = f"{value:.9g}" if value.dtype == np.float32 else f"{value:.17g}"
    return printed if "." in printed or "e" in printed else printed + ".0"


def _columns(request, names):
    """Name -> values of the whole batch."""
    if "inputs" in request:
        columns = request["inputs"]
        return columns if isinstance(columns, dict) else {names[0]: columns}
    rows = request["instances"]
    if not isinstance(rows[0], dict):
        return {names[0]: rows}
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError
    return {name: [row[name] for row in rows] for name in rows[0]}


def _array(name, values, dtype):
    try:
        array = np.array(values)
    except _BROKEN:  # rows of different lengths
        array = np.array(None)
    dtype = np.dtype(dtype)
    accepted = {"O": "U", "f": "if"}.get(dtype.kind, "i")
    if array.dtype.kind not in accepted:
        raise ValueError(f"JSON Value: {name} must be a list of {'text' if dtype.kind == 'O' else dtype.name}.")
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _value(named):
    """The outputs of one answer or of one row."""
    texts = {name: _json(value) for name, value in named.items()}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}"


def _json(value):
    if np.ndim(value):
        return "[" + ", ".join(map(_json, value)) + "]"
    if isinstance(value, bytes | str):
        return json.dumps(value if isinstance(value, str) else value.decode(errors="replace"))
    return decimal(value) if isinstance(value, np.floating) else str(value)
