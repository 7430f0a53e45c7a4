"""Publishes SavedModels to a model server's base directory: python -m serving.publish publish|rollback|list

What was published says so itself, in assets.extra/publication.json: when, whether it was blessed or forced, and the
fingerprint of its files. That guards against mistakes, not against somebody who can write into the directory.
"""

import argparse
import hashlib
import json
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.versions import add, flush, versions

_EXTRA = "assets.extra"
_CARD, _PUBLICATION = f"{_EXTRA}/model_card.json", f"{_EXTRA}/publication.json"
_MAX_CARD_BYTES = 2**20
_MAX_PIXELS = 2**26


@dataclass(frozen=True)
class Publication:
    """What publication.json in a version holds.

    Attributes:
        published: when, in UTC, in ISO 8601.
        blessed: whether the evaluation blessed the model.
        forced: whether it was published without a blessing.
        fingerprint: hexadecimal SHA-256 of the version's other files.
        rolled_back_to: version it is a copy of, if it was published by `rollback`; else None.
    """

    published: str
    blessed: bool
    forced: bool
    fingerprint: str
    rolled_back_to: int | None = None


def load_test(saved_model):
    """Loads a SavedModel in a fresh process, as the InfraValidator does, and runs it on a grey image.

    Raises:
        ValueError: if it has no model card that says the shape of its images.
        RuntimeError: if it cannot be loaded and run, or does not answer in time; in one line.
    """
    import numpy as np

    from serving.validate import in_fresh_process

    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images.npy"
        np.save(images, np.full((1, *_image_shape(saved_model)), 0.5, np.float32))
        _, problem = in_fresh_process(saved_model, images)
    if problem:
        raise RuntimeError(f"Not published, since it failed in a fresh process: {problem}")


def publish(saved_model, base, *, blessed=False, force=False, check=load_test):
    """Copies a SavedModel to `<base>/<next version number>`; see `serving.versions.add`.

    Args:
        saved_model: directory of a SavedModel.
        base: the model's base directory; made if it is not there.
        blessed: whether the caller holds the evaluation's blessing. Without it the SavedModel counts as blessed only
            if it was published as blessed before, and none of its files has changed since.
        force: publish what is not blessed, and have publication.json say so.
        check: called with the directory of the copy before the rename; None where it was loaded already.

    Returns:
        `Path` of the new version.

    Raises:
        ValueError: if it is not blessed, is no SavedModel, or as `serving.versions.add`.
        OSError: if something cannot be read or written.
        RuntimeError: as `load_test`.
    """
    saved_model = Path(saved_model)
    _require_saved_model(saved_model)

    def finish(copy):
        # Of the copy, which nobody else writes to.
        before, fingerprint = read_publication(copy), content_fingerprint(copy)
        is_blessed = blessed or bool(before and before.blessed and before.fingerprint == fingerprint)
        if not is_blessed and not force:
            changed = " (it was changed after it was published)" if before and before.blessed else ""
            raise ValueError(
                f"{saved_model} is not blessed{changed}; run the pipeline, which blesses and pushes, or give --force."
            )
        _finish(copy, Publication(_now(), is_blessed, not is_blessed, fingerprint), check)

    return add(saved_model, base, finish)


def rollback(base, to=None, *, check=load_test):
    """Publishes an older version again, under a new number.

    A model server that serves the latest version serves the highest number. Moving the bad version aside would work
    only where the server sees the gap before another version takes the freed number: it polls, and takes the same
    number for the same model. A new number is one rename, whatever the server does; nothing is deleted or hidden, and
    the bad version, which clients may have asked for by its number, is rolled back to like any other.

    Args:
        base: the model's base directory.
        to: number of the version to return to. By default the newest one older than the version that is served, or
            than the one which that is a copy of, with other files: two rollbacks go two models back, not forth again.
        check: see `publish`.

    Returns:
        `Path` of the new version.

    Raises:
        ValueError: if there is no such version, it was changed since it was published, or is what is served already.
        OSError, RuntimeError: as `publish`.
    """
    published = {int(path.name): path for path in versions(base)}
    if not published:
        raise ValueError(f"There is no version in {base}.")
    served = max(published)
    served_fingerprint = content_fingerprint(published[served])
    if to is None:
        to = _before(published, served, served_fingerprint)
    if to not in published:
        raise ValueError(f"There is no version {to} in {base}. There are: {', '.join(map(str, sorted(published)))}")
    source = published[to]
    _require_saved_model(source)

    def finish(copy):
        before, fingerprint = read_publication(copy), content_fingerprint(copy)
        if fingerprint == served_fingerprint:
            raise ValueError(f"Version {served} of {base}, which is served, is version {to} already.")
        if before and before.fingerprint != fingerprint:
            raise ValueError(f"Version {to} of {base} was changed after it was published; publish it anew.")
        blessed, forced = (before.blessed, before.forced) if before else (False, False)
        _finish(copy, Publication(_now(), blessed, forced, fingerprint, to), check)

    return add(source, base, finish)


@dataclass(frozen=True)
class Listed:
    """One line of `list`.

    Attributes:
        version: its number.
        published: when; where that is not written down, when its directory was last changed.
        served: whether it is the highest number, which a model server serves by default.
        blessing: "blessed", "forced", "unblessed", or "changed" where its files are not those that were published.
        fingerprint: the model card's, or else of the files; hexadecimal.
        rolled_back_to: see `Publication`.
    """

    version: int
    published: str
    served: bool
    blessing: str
    fingerprint: str
    rolled_back_to: int | None


def listing(base):
    """All versions in a base directory as `Listed`, by rising number.

    Raises:
        ValueError: as `serving.versions.versions`.
        OSError: if something cannot be read.
    """
    published = versions(base)
    lines = []
    for path in published:
        publication, fingerprint = read_publication(path), content_fingerprint(path)
        changed = _time(path.stat().st_mtime)
        if publication is None:
            blessing = "unblessed"
        elif publication.fingerprint != fingerprint:
            blessing = "changed"
        else:
            blessing = "blessed" if publication.blessed else "forced" if publication.forced else "unblessed"
        lines.append(
            Listed(
                version=int(path.name),
                published=publication.published if publication else changed,
                served=path == published[-1],
                blessing=blessing,
                fingerprint=_card_fingerprint(path) or fingerprint,
                rolled_back_to=publication.rolled_back_to if publication else None,
            )
        )
    return lines


def content_fingerprint(directory):
    """Hexadecimal SHA-256 of the names and contents of a SavedModel's files, publication.json excepted."""
    directory, digests = Path(directory), {}
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != _PUBLICATION:
            with open(path, "rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def read_publication(version):
    """The `Publication` of a version's directory; None where there is none that can be read."""
    fields = _read_json(Path(version) / _PUBLICATION)
    try:
        publication = Publication(**fields)
    except TypeError:
        return None
    kinds = {"published": str, "blessed": bool, "forced": bool, "fingerprint": str, "rolled_back_to": int | None}
    # A bool is an int to isinstance; True is no version.
    if publication.rolled_back_to is True or publication.rolled_back_to is False:
        return None
    if not all(isinstance(getattr(publication, name), kind) for name, kind in kinds.items()):
        return None
    return publication if re.fullmatch(r"[0-9T:+-]{1,40}", publication.published) else None


def _finish(copy, publication, check):
    """Writes publication.json into a copy and checks what will be served."""
    extra = copy / _EXTRA
    extra.mkdir(exist_ok=True)
    extra.chmod(0o755)
    path = copy / _PUBLICATION
    path.write_text(json.dumps(asdict(publication), indent=1), encoding="utf-8")
    path.chmod(0o644)
    for written in (path, extra, copy):
        flush(written)
    if check:
        check(copy)


def _before(published, served, served_fingerprint):
    """Number of the version that `rollback` goes to if none is named."""
    origin = served
    while (publication := read_publication(published[origin])) and publication.rolled_back_to in published:
        if publication.rolled_back_to >= origin:
            break
        origin = publication.rolled_back_to
    for number in sorted(published, reverse=True):
        path = published[number]
        if number < origin and (path / "saved_model.pb").is_file() and content_fingerprint(path) != served_fingerprint:
            return number
    raise ValueError(f"There is no older model than version {origin}; name a version by --to.")


def _require_saved_model(directory):
    if not (directory / "saved_model.pb").is_file():
        raise ValueError(f"{directory} is no SavedModel: it has no saved_model.pb.")


def _image_shape(saved_model):
    """Height, width and channels that the model card names."""
    card = _read_json(Path(saved_model) / _CARD)
    shape = card.get("image_shape") if isinstance(card, dict) else None
    is_shape = isinstance(shape, list) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
    if not is_shape or shape[0] * shape[1] * shape[2] > _MAX_PIXELS:
        raise ValueError(f"The SavedModel has no {_CARD} with an image_shape; export it by serving.export.")
    return shape


def _card_fingerprint(version):
    card = _read_json(version / _CARD)
    fingerprint = card.get("fingerprint") if isinstance(card, dict) else None
    # It is printed on a terminal.
    return fingerprint if isinstance(fingerprint, str) and re.fullmatch("[0-9a-f]{8,64}", fingerprint) else None


def _read_json(path):
    """The JSON value in a small plain file; an empty object where there is none."""
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_CARD_BYTES:
            return {}
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def _now():
    return _time(datetime.now(UTC).timestamp())


def _time(seconds):
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line like all others."""

    def error(self, message):
        raise ValueError(f"{message}; see {self.prog} --help")


def _parse(arguments):
    parser = _Parser(prog="python -m serving.publish", description="Versions in a model server's base directory.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("publish", help="copy a SavedModel to the next version, after loading it")
    verb.add_argument("saved_model", help="directory of a SavedModel")
    verb.add_argument("base", help="the model's base directory")
    verb.add_argument("--force", action="store_true", help="also if it is not blessed; the version then says so")
    verb = verbs.add_parser("rollback", help="publish an older version again, under a new number")
    verb.add_argument("base", help="the model's base directory")
    verb.add_argument("--to", type=_version_number, metavar="N", help="version; the model before the served one")
    verb = verbs.add_parser("list", help="show the versions, and which one is served")
    verb.add_argument("base", help="the model's base directory")
    return parser.parse_args(arguments)


def _version_number(text):
    if not re.fullmatch("[0-9]{1,19}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be the number of a version. Received: {text!r}")
    return int(text)


def _print_listing(base):
    lines = listing(base)
    if not lines:
        print(f"There is no version in {base}.")
        return
    print(f"{'version':>7}  {'published':25}  {'':6}  {'':9}  fingerprint")
    for line in lines:
        served, copied = "served" if line.served else "", line.rolled_back_to
        note = "" if copied is None else f"  rolled back to {copied}"
        print(f"{line.version:>7}  {line.published:25}  {served:6}  {line.blessing:9}  {line.fingerprint[:12]}{note}")


def main(arguments=None):
    """Returns the exit status: 0, 1 if it failed, 2 for bad input, 130 for Ctrl-C."""
    try:
        options = _parse(arguments)
        if options.verb == "publish":
            version = publish(options.saved_model, options.base, force=options.force)
            forced = ", forced: it is not blessed" if read_publication(version).forced else ""
            print(f"Published {version}{forced}.")
        elif options.verb == "rollback":
            version = rollback(options.base, options.to)
            print(f"Published {version}, which is version {read_publication(version).rolled_back_to} again.")
        else:
            _print_listing(options.base)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; `list` shows what is published.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: cannot use {error.filename or 'the directory'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
