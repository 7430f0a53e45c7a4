"""The field's tab-separated certification log: idx, label, predict, radius, correct, time; and the images' files."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import re
import urllib.parse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from macer_tf import files
from macer_tf.certificates import ABSTAIN, Certificates, is_correct, predictions_and_radii
from macer_tf.checks import as_array, class_indices

HEADER = ("idx", "label", "predict", "radius", "correct", "time")
_FILE = "file"
# Columns whose values, if cut short, would pass for other values.
_OF_SEVERAL_DIGITS = ("idx", "label", "predict", "radius")

_ACCEPTED = f"Accepted: lines of {', '.join(HEADER)}, separated by tabs or commas, with or without that header"
_MOST_BYTES = 2**28  # a log of four million images
_LARGEST_RADIUS = 1e6  # above the distance between any two images, whatever their pixels' scale
_GZIP_MAGIC = b"\x1f\x8b"
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")  # pandas writes 3.0 if the column once had a missing value
_TRUTHS = {"true": 1, "false": 0}
# What Python's timedelta prints: 0:00:13.126220, or 1 day, 2:03:04 for the patient.
_CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


@dataclass(frozen=True, eq=False)
class CertificationLog:
    """A certification log, ours or anyone's. `evaluate` takes it in place of the certificates that it lists.

    Examples:
        >>> import numpy as np
        >>> from macer_tf.certification_log import CertificationLog
        >>> one = np.array([1])
        >>> CertificationLog(ids=one, labels=one, predictions=one, radii=one / 2, seconds=one).correct
        array([ True])

    Attributes:
        ids: int64 [images], each image's place in its split; no two are the same.
        labels: int64 [images].
        predictions: int64 [images], a class or ABSTAIN (-1).
        radii: float64 [images], as they stand in the log; they count only where the prediction is the label.
        seconds: float64 [images], the time that certifying the image took; NaN where the log does not say.
        cut_off: number of the last line if it was cut off, for example by a kill, and left out; None if it is whole.
    """

    ids: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    radii: np.ndarray
    seconds: np.ndarray
    cut_off: int | None = None

    @property
    def correct(self) -> np.ndarray:
        """bool [images]: whether the prediction is the label and not ABSTAIN."""
        return is_correct(self.predictions, self.labels)


def write(
    path: str | Path,
    certificates: Certificates | CertificationLog,
    labels: Sequence[int] | np.ndarray,
    ids: Sequence[int] | np.ndarray,
    names: Sequence[str | None] | None = None,
) -> None:
    """Writes one line per image, radii with all their digits.

    The columns are idx, label, predict, radius and correct; also time, for a `CertificationLog` that has it; and file,
    if `names` are given. file is the last column, because the field's readers take columns by name, or by place from
    the left; it is percent-encoded as in a URL, so that no name is taken for two fields, a comment or a quotation.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from macer_tf import Votes, certification_log, certify
        >>> votes = Votes(selection=np.array([[10, 0]]), estimation=np.array([[1000, 0]]))
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     certification_log.write(file.name, certify(votes, sigma=0.25, alpha=0.001), labels=[0], ids=[7])
        ...     certification_log.read(file.name).radii.round(3)
        array([0.616])

    Args:
        path: where to write.
        certificates: `Certificates`, or a `CertificationLog`.
        labels: as `evaluate` takes them.
        ids: integers [images], each image's place in its split.
        names: one per image, of its file or as its data set calls it; None for an image without one.

    Raises:
        ValueError: before anything is written, unless there is one prediction, radius, label and id per image, all but
            the radii whole numbers, no two ids are the same, and names, if given, are one per image; and for values
            that `read` refuses.
    """
    if not isinstance(certificates, (Certificates, CertificationLog)):
        raise ValueError(f"Expected `Certificates` or a `CertificationLog`. Received: {type(certificates).__name__}")
    predictions, radii = predictions_and_radii(certificates)
    ids = _whole_numbers("ids", _as_array("ids", ids), predictions)
    labels = _whole_numbers("labels", class_indices(_as_array("Labels", labels)), predictions)
    if names is not None:
        _check_names(names, len(ids))
    if len({*ids}) < len(ids):
        raise ValueError(f"No two images may have the same id. Received: {len({*ids}):,} ids for {len(ids):,} images")
    columns = {
        "idx": ids,
        "label": labels,
        "predict": [int(prediction) for prediction in predictions],
        "radius": [repr(float(radius)) for radius in radii],
        "correct": [int(is_correct(*pair)) for pair in zip(predictions, labels, strict=True)],
    }
    seconds = _seconds_of(certificates, predictions)
    if not np.isnan(seconds).all():
        columns["time"] = [repr(float(one)) for one in seconds]
    if names is not None:
        columns[_FILE] = [urllib.parse.quote(os.fsencode(name or "")) for name in names]
    rows = list(zip(*columns.values(), strict=True))
    places = {name: place for place, name in enumerate(columns)}
    for row in rows:  # what `read` would refuse is not written
        _row(f"Image {row[0]}", [str(field) for field in row], places, len(columns))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _check_names(names, num_images):
    if isinstance(names, str) or len(names) != num_images:
        received = repr(names) if isinstance(names, str) else len(names)
        raise ValueError(f"names must be one per image. Received: {received} for {num_images:,} images")
    for name in names:
        if not isinstance(name, (str, bytes, os.PathLike, type(None))):  # such as pandas' NaN
            raise ValueError(f"names are text, or None for an image without one. Received: {name!r}")


def _seconds_of(certificates, predictions):
    """What a log says about the time of each image, float64 [images]; NaN where it, or `Certificates`, says nothing."""
    if not isinstance(certificates, CertificationLog):
        return np.full(predictions.shape, np.nan)
    found = as_array("Seconds", certificates.seconds)
    if found.shape != predictions.shape or found.dtype.kind not in "iuf":
        raise ValueError(
            f"seconds must be one number per image. Received: {found.dtype} {found.shape} for {len(predictions):,} "
            "images"
        )
    return found.astype(np.float64)


def _as_array(name, given):
    """What `given`, a sequence or an iterator, holds."""
    return as_array(name, given if hasattr(given, "__len__") else list(given))


def _whole_numbers(name, found, predictions):
    """The numbers of an array as Python ints, one per image."""
    is_number = found.dtype.kind in "biuf" or found.size == 0
    if found.shape != predictions.shape or not is_number or not (np.isfinite(found) & (found == np.rint(found))).all():
        raise ValueError(
            f"{name} must be one whole number per image. Received: {found.dtype} {found.shape} for "
            f"{len(predictions):,} images"
        )
    return [int(number) for number in found.tolist()]


def read(path: str | Path) -> CertificationLog:
    """Reads a log as found in the wild: ours, Cohen's, MACER's, SmoothAdv's and their descendants'.

    The header may be missing, be in another order, have additional columns, or be repeated, as when runs were appended;
    fields may be separated by commas; `correct` may be True or False; the time may be seconds or h:mm:ss or missing;
    the radius may have any number of digits; lines may end in CRLF; blank lines and comments after # are skipped; the
    file may be gzipped. `CertificationLog.cut_off` says whether the last line was cut off.

    Examples:
        >>> import tempfile
        >>> from macer_tf import certification_log
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     _ = file.write("idx,label,predict,radius,correct\\n0,3,3,0.5,1\\n20,5,-1,0.0,0\\n")
        ...     file.flush()
        ...     certification_log.read(file.name).ids
        array([ 0, 20])

    Args:
        path: the file to read.

    Returns:
        `CertificationLog`.

    Raises:
        ValueError: in one line with the file and the line's number, if this is not such a log, is larger than 256 MiB,
            holds no image or holds one twice, a value is not a number, `correct` contradicts the prediction and the
            label, an id is below 0 or a prediction below -1, or the radius of a correct prediction is not finite or is
            below 0.
        OSError: if the file cannot be read.
    """
    lines, has_end = _lines(path)
    if not lines:
        raise ValueError(f"{path} is empty: it holds no certificates.")
    header = lines[0][1]
    columns, width, has_header = _columns(path, header)
    if has_header:
        lines = _without_headers(path, lines, header)
    cut_off = None
    if lines and _is_cut_off(lines[-1][1], columns, width, has_end):
        cut_off = lines.pop()[0]
    if not lines:
        raise ValueError(f"{path} holds no certificates, only a header or a line that was cut off.")
    ids, labels, predictions, radii, seconds = zip(*_rows(path, lines, columns, width), strict=True)
    return CertificationLog(
        ids=np.array(ids, np.int64),
        labels=np.array(labels, np.int64),
        predictions=np.array(predictions, np.int64),
        radii=np.array(radii, np.float64),
        seconds=np.array(seconds, np.float64),
        cut_off=cut_off,
    )


def _lines(path):
    """Number and fields of each line that is neither blank nor a comment; and whether the last line is complete."""
    content = files.read(path, _MOST_BYTES, pipes=True)
    try:
        if content.startswith(_GZIP_MAGIC):
            with gzip.open(io.BytesIO(content)) as unpacked:
                content = unpacked.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise ValueError(f"{path} unpacks to more than {files.size_in_words(_MOST_BYTES)}, the most accepted.")
        text = files.text(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}); copy it again.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a certification log: it is not text. {_ACCEPTED}.") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    numbered = enumerate(text.split("\n"), 1)
    lines = [(number, bare) for number, line in numbered if (bare := _without_comment(line))]
    # One separator for the whole file: 1,5 may be two fields in one line and part of a field in another.
    is_tabbed = bool(lines) and "\t" in lines[0][1]
    split = [(number, line.split("\t") if is_tabbed else _at_commas(path, number, line)) for number, line in lines]
    return split, text.endswith("\n")


def _without_comment(line):
    """The line, or "" if it is blank or a comment; a header after a #, as NumPy writes it, is still a header."""
    if not line.lstrip().startswith("#"):
        return line if line.strip() else ""
    bare = line.lstrip().lstrip("#").lstrip()
    return bare if _is_header(re.split("[\t,]", bare)) else ""


def _at_commas(path, number, line):
    try:
        return next(csv.reader([line]))
    except csv.Error as error:
        raise ValueError(f"{path}:{number}: {error}. Received: {_shown([line])}") from None


def _is_header(fields):
    return len({field.strip() for field in fields} & set(HEADER)) > 1


def _without_headers(path, lines, header):
    """The lines without the header, wherever it is repeated."""
    names = [name.strip() for name in header]
    rows = []
    for number, fields in lines:
        if [field.strip() for field in fields] == names:
            continue
        if _is_header(fields):
            raise ValueError(
                f"{path}:{number}: a different header from the first; split the logs. Received: {_shown(fields)}"
            )
        rows.append((number, fields))
    return rows


def _columns(path, first):
    """Column name -> its place, how many columns a line has, and whether the first line is a header."""
    names = [field.strip() for field in first]
    if not set(names).isdisjoint(HEADER):
        twice = [name for name in HEADER if names.count(name) > 1]
        if twice:
            raise ValueError(f"{path} is not a certification log: it has two columns named {twice[0]}. {_ACCEPTED}.")
        missing = [name for name in HEADER[:-1] if name not in names]
        if missing:
            raise ValueError(f"{path} is not a certification log: no column {', '.join(missing)}. {_ACCEPTED}.")
        return {name: names.index(name) for name in HEADER if name in names}, len(names), True
    if len(first) not in (len(HEADER) - 1, len(HEADER)) or not names[0].isdecimal():
        raise ValueError(f"{path} is not a certification log: its first line is {_shown(first)}. {_ACCEPTED}.")
    return {name: place for place, name in enumerate(HEADER[: len(first)])}, len(first), False


def _is_cut_off(fields, columns, width, has_end):
    """Whether the last line ends too early: a field is missing, or the last field may be cut short or is no time."""
    last = next((name for name, place in columns.items() if place == width - 1), None)
    if len(fields) < width or (last in _OF_SEVERAL_DIGITS and not has_end):
        return True
    if last == "correct":
        text = fields[-1].strip().lower()
        return text not in _TRUTHS and any(truth.startswith(text) for truth in _TRUTHS)
    if last != "time":
        return False
    try:
        _seconds(fields[-1])
    except (ValueError, OverflowError):
        return True
    return False


def _rows(path, lines, columns, width):
    rows, lines_of = [], {}
    for number, fields in lines:
        row = _row(f"{path}:{number}", fields, columns, width)
        if row[0] in lines_of:
            raise ValueError(f"{path}:{number}: image {row[0]} is already on line {lines_of[row[0]]}.")
        lines_of[row[0]] = number
        rows.append(row)
    return rows


def _row(where, fields, columns, width):
    """id, label, prediction, radius and seconds of one line."""
    if len(fields) != width:
        raise ValueError(f"{where}: a line must have {width} fields. Received: {_shown(fields)}")
    try:
        index, label, prediction = (np.int64(_whole(fields[columns[name]])) for name in ("idx", "label", "predict"))
        correct = fields[columns["correct"]].strip().lower()
        correct = _TRUTHS[correct] if correct in _TRUTHS else _whole(correct)
        radius = _number(fields[columns["radius"]])
        seconds = _seconds(fields[columns["time"]]) if "time" in columns else math.nan
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {error}. Received: {_shown(fields)}") from None
    if index < 0 or prediction < ABSTAIN:
        raise ValueError(
            f"{where}: idx must be 0 or above, and predict a class from 0, or -1 to abstain. Received: "
            f"idx {index}, predict {prediction}"
        )
    is_right = is_correct(prediction, label)
    if correct != is_right:
        raise ValueError(
            f"{where}: correct must be {int(is_right)} for label {label} and prediction {prediction}. "
            f"Received: {correct}"
        )
    if is_right and not 0 <= radius <= _LARGEST_RADIUS:
        raise ValueError(
            f"{where}: the radius of a correct prediction must be finite, from 0 and at most {_LARGEST_RADIUS:g}. "
            f"Received: {radius}"
        )
    return index, label, prediction, radius, seconds


def _whole(text):
    if not _WHOLE.fullmatch(text.strip()):
        raise ValueError(f"not a whole number: {text!r}")
    number = int(text.partition(".")[0])
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"not a 64-bit number: {text!r}")
    return number


def _number(text):
    if "_" in text:  # Python's own notation, and nobody else's
        raise ValueError(f"not a number: {text!r}")
    return float(text)


def _seconds(text):
    clock = _CLOCK.fullmatch(text.strip())
    if clock is None:
        return _number(text)
    days, hours, minutes, seconds = clock.groups(default="0")
    return ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(seconds)


def _shown(fields):
    line = "\t".join(fields)
    return repr(line if len(line) <= 80 else line[:79] + "…")
