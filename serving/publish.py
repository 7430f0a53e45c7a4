"""Publishes SavedModels to a model server's base directory: python -m serving.publish publish|rollback|list

A published version records, in assets.extra/publication.json, when it was published, by which blessing or whether it
was forced, and the fingerprint of its files; that it was forced is in its model card too. This protects against damage
and mix-ups, not against somebody who can write into the directory and means harm.
"""

if __name__ == "__main__":
    from serving import terminal

    terminal.run_main_of("serving.publish")

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import get_type_hints

from serving import blessing as blessing_lib
from serving import card as card_lib
from serving import manifest, terminal
from serving.arguments import TRUST_MODEL, Parser
from serving.exit import exit_status
from serving.files import EXTRA, flush, naming, read_extra
from serving.fingerprints import directory_fingerprint, sealed, unsealed
from serving.manifest import PUBLICATION
from serving.terminal import printable
from serving.versions import add, versions

# What a blessing and a card both state, each under its own name.
_NAMED_BY_CARD = {"model": "model", "weights": "fingerprint", "sigma": "sigma"}


@dataclass(frozen=True)
class Publication:
    """The contents of publication.json in a version.

    Attributes:
        published: when, in UTC, in ISO 8601.
        blessed: whether the evaluation blessed the model.
        forced: whether it was published without a blessing.
        fingerprint: hexadecimal SHA-256 of the version's other files.
        rolled_back_to: the version it is a copy of, if it was published by `rollback`; else None.
        blessing: the Evaluator's blessing (see `serving.blessing`) if it is blessed; else None.
    """

    published: str
    blessed: bool
    forced: bool
    fingerprint: str
    rolled_back_to: int | None = None
    blessing: dict | None = None


def load_test(saved_model: str | Path, trust: bool = False) -> None:
    """Loads a SavedModel in a fresh process, as the InfraValidator does, and runs it on a black image.

    Args:
        saved_model: directory.
        trust: whether its graph may do more than compute; see `serving.graph_safety`.

    Raises:
        OSError, ValueError: if it has no model card, as `serving.card.read`.
        RuntimeError: in one line, if it cannot be loaded and run, or does not answer in time.
    """
    import numpy as np

    from serving.validate import in_fresh_process

    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images.npy"
        shape = card_lib.read(saved_model)["image_shape"]
        with naming(images):
            np.save(images, np.zeros((1, *shape), np.float32))
        _, problem = in_fresh_process(saved_model, images, trust)
    if problem:
        raise RuntimeError(f"Not published, since it failed in a fresh process: {problem}")


def publish(
    saved_model: str | Path,
    base: str | Path,
    *,
    blessing: str | Path | None = None,
    force: bool = False,
    check: Callable[[Path], None] | None = load_test,
) -> Path:
    """Copies a SavedModel to `<base>/<next version number>`; see `serving.versions.add`.

    Nothing is copied, and the highest version is returned, if that is this very model and its standing is as good: it
    is blessed, or neither is.

    Args:
        saved_model: directory of a SavedModel with a model card.
        base: the model's base directory; created if it does not exist.
        blessing: path of the Evaluator's blessing.json; see `serving.blessing`. Without it, the SavedModel counts as
            blessed only if it was published as blessed before and none of its files has changed since.
        force: whether to publish a model that is not blessed, and record that in its card and publication.json.
        check: called with the directory of the copy before the rename; None if it was already loaded.

    Returns:
        `Path` of the new version, or of the one that was there.

    Raises:
        ValueError: if it is not blessed; if it is not a SavedModel, has no model card or was changed since it was
            exported, none of which force overrides; or as `serving.versions.add`.
        OSError: if something cannot be read or written.
        RuntimeError: as `load_test`.
    """
    saved_model = Path(saved_model)
    _require_exported(saved_model)

    def judged(directory):
        found, reason = _earlier_blessing(directory) if blessing is None else blessing_lib.judge(blessing, directory)
        if reason and not force:
            raise ValueError(f"{saved_model} is not blessed: {reason}; give its --blessing, or --force.")
        return found

    def finish(copy):
        # Checks the copy, which nobody else writes to.
        _require_undamaged(copy, saved_model)
        found = judged(copy)
        _finish(copy, check, blessing=found, forced=found is None)

    latest = next(reversed(versions(base)), None)
    if latest and _is_same_model(saved_model, latest):
        found, standing = judged(saved_model), _standing(latest, read_publication(latest), _card(latest))
        if standing == "blessed" or (standing == "forced" and found is None):
            return latest
    return add(saved_model, base, finish)


def rollback(base: str | Path, to: int | None = None, *, check: Callable[[Path], None] | None = load_test) -> Path:
    """Publishes an older version again, under a new number.

    A model server that serves the latest version serves the highest number. Moving the bad version aside would work
    only if the server saw the gap before another version took the freed number: it polls, and takes the same number for
    the same model. A new number is one rename, whatever the server does; nothing is deleted or hidden, and the bad
    version, which clients may have asked for by its number, can be rolled back to like any other.

    Args:
        base: the model's base directory.
        to: number of the version to return to. By default, the newest version with other files that is older than the
            served one, or than its original if it is a copy: two rollbacks go two models back, not back and forth.
        check: see `publish`.

    Returns:
        `Path` of the new version.

    Raises:
        ValueError: if there is no such version, or it was changed since it was published or is served already.
        OSError, RuntimeError: as `publish`.
    """
    published = {int(path.name): path for path in versions(base)}
    if not published:
        raise ValueError(f"There is no version in {base}.")
    served = max(published)
    served_model = _model_fingerprint(published[served])
    if to is None:
        to = _before(published, served, served_model)
    if to not in published:
        raise ValueError(f"There is no version {to} in {base}. There are: {', '.join(map(str, sorted(published)))}")
    source = published[to]
    _require_exported(source)

    def finish(copy):
        if _model_fingerprint(copy) == served_model:
            raise ValueError(f"Version {served} of {base}, which is served, is already the same as version {to}.")
        _require_undamaged(copy, source)
        before = read_publication(copy)
        reason = _reason_against_publication(before, copy) if before else _reason_without_publication(copy)
        if reason:
            raise ValueError(f"Version {to} of {base} is not what was published: {reason}; publish it again.")
        blessing, forced = (before.blessing, before.forced) if before else (None, False)
        _finish(copy, check, blessing=blessing, forced=forced, rolled_back_to=to)

    return add(source, base, finish)


@dataclass(frozen=True)
class Listed:
    """One line of `list`.

    Attributes:
        version: its number.
        published: when; if that is not recorded, when its directory was last changed.
        served: whether it has the highest number, which a model server serves by default.
        blessing: "blessed", "forced", "unblessed", or "changed" if its files are not those that were published.
        fingerprint: the model card's, or else that of the files; hexadecimal.
        rolled_back_to: see `Publication`.
        sigma, n, alpha: of the certificates that it answers with; None without a card.
        acr, acr_n: average certified radius (l2, pixels in [0, 1]) that the Evaluator measured, and the n at which it
            was measured; None if no blessing says so.
    """

    version: int
    published: str
    served: bool
    blessing: str
    fingerprint: str
    rolled_back_to: int | None
    sigma: float | None
    n: int | None
    alpha: float | None
    acr: float | None
    acr_n: int | None


def listing(base: str | Path) -> list[Listed]:
    """All versions in a base directory as `Listed`, in ascending order of number.

    Raises:
        ValueError: as `serving.versions.versions`.
        OSError: if something cannot be read.
    """
    published = versions(base)
    lines = []
    for path in published:
        publication, fingerprint, card = read_publication(path), content_fingerprint(path), _card(path)
        changed = _time(path.stat().st_mtime)
        measured = (publication and publication.blessing) or {}
        lines.append(
            Listed(
                version=int(path.name),
                published=publication.published if publication else changed,
                served=path == published[-1],
                blessing=_standing(path, publication, card),
                fingerprint=card.get("fingerprint", fingerprint),
                rolled_back_to=publication.rolled_back_to if publication else None,
                **{name: card.get(name) for name in ("sigma", "n", "alpha")},
                acr=measured.get("acr"),
                acr_n=measured.get("n"),
            )
        )
    return lines


def _standing(version, publication, card):
    """`Listed.blessing` of a version. Its variables were compared with the blessing when it was published."""
    if publication is None:
        if _reason_without_publication(version):
            return "changed"
        return "forced" if card.get("forced") else "unblessed"
    if publication.fingerprint != content_fingerprint(version):
        return "changed"
    if publication.blessed:
        named = {name: card.get(card_name) for name, card_name in _NAMED_BY_CARD.items()}
        return "blessed" if named.items() <= publication.blessing.items() else "changed"
    return "forced" if publication.forced else "unblessed"


def content_fingerprint(directory: str | Path) -> str:
    """Hexadecimal SHA-256 of the names and contents of a SavedModel's files, except publication.json."""
    return directory_fingerprint(directory, without=(f"{EXTRA}/{PUBLICATION}",))


def read_publication(version: str | Path) -> Publication | None:
    """The `Publication` of a version's directory; None if there is none that is readable and complete."""
    try:
        publication = Publication(**unsealed(read_extra(version, PUBLICATION)))
        if publication.blessing is not None:
            blessing_lib.check(publication.blessing, PUBLICATION)
    except (OSError, ValueError, TypeError):
        return None
    # isinstance takes a bool for an int, but True is not a version.
    if isinstance(publication.rolled_back_to, bool):
        return None
    if not all(isinstance(getattr(publication, name), kind) for name, kind in get_type_hints(Publication).items()):
        return None
    if publication.blessed is (publication.blessing is None) or (publication.blessed and publication.forced):
        return None
    return publication if re.fullmatch(r"[0-9T:+-]{1,40}", publication.published) else None


def _require_undamaged(copy, given):
    try:
        manifest.check(copy)
    except FileNotFoundError:
        pass  # Nothing vouches for its files, so no blessing holds.
    except manifest.DamagedError as error:
        raise ValueError(f"{given} is damaged: {error}; export it again.") from None


def _earlier_blessing(copy):
    """The blessing by which a SavedModel was published before, and None; or None and why no blessing holds."""
    before = read_publication(copy)
    if not (before and before.blessed):
        return None, "there is no record that the Evaluator blessed it"
    reason = _reason_against_publication(before, copy)
    return (None, reason) if reason else (before.blessing, None)


def _reason_against_publication(publication, copy):
    """Why the files of a published SavedModel are not those that its publication records; None if they are."""
    if publication.fingerprint != content_fingerprint(copy):
        return "it was changed after it was published"
    return blessing_lib.reason_against(publication.blessing, copy) if publication.blessed else None


def _reason_without_publication(copy):
    return f"its {PUBLICATION} was changed or damaged" if (copy / EXTRA / PUBLICATION).exists() else None


def _finish(copy, check, *, blessing, forced, rolled_back_to=None):
    """Records in a copy's card and publication.json how it was published, and checks what will be served."""
    card = card_lib.read(copy)
    exported = card_lib.unforced(card)
    published = {**exported, "forced": True} if forced else exported
    if published != card:
        _write(copy / EXTRA / card_lib.NAME, card_lib.to_json(published))
    blessed = blessing is not None
    publication = Publication(_now(), blessed, forced, content_fingerprint(copy), rolled_back_to, blessing)
    _write(copy / EXTRA / PUBLICATION, json.dumps(sealed(asdict(publication)), indent=1))
    flush(copy / EXTRA)
    if check:
        check(copy)


def _write(path, text):
    with naming(path):
        path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    flush(path)


def _model_fingerprint(directory):
    """Identifies what is served: all files except the records of publishing. What the card says is in the graph too."""
    return directory_fingerprint(directory, without=(f"{EXTRA}/{PUBLICATION}", f"{EXTRA}/{card_lib.NAME}"))


def _is_same_model(directory, version):
    """Whether a version has the files of a SavedModel, whatever was recorded when it was published."""
    exported = card_lib.unforced(_card(version)) == card_lib.unforced(card_lib.read(directory))
    return exported and _model_fingerprint(version) == _model_fingerprint(directory)


def _before(published, served, served_model):
    """Number of the version that `rollback` returns to by default."""
    origin = served
    while (publication := read_publication(published[origin])) and publication.rolled_back_to in published:
        if publication.rolled_back_to >= origin:
            break
        origin = publication.rolled_back_to
    for number in sorted(published, reverse=True):
        path = published[number]
        if number < origin and (path / "saved_model.pb").is_file() and _model_fingerprint(path) != served_model:
            return number
    raise ValueError(f"There is no model older than version {origin}; name a version with --to.")


def _require_exported(directory):
    if not (directory / "saved_model.pb").is_file():
        raise ValueError(f"{directory} is not a SavedModel: it has no saved_model.pb.")
    try:
        card_lib.read(directory)
    except OSError as error:
        raise ValueError(f"{directory} has no model card ({error.strerror}); export it with serving.export.") from None


def _card(version):
    """The card, or an empty one if there is none that can be read."""
    try:
        return card_lib.read(version)
    except (OSError, ValueError):
        return {}


def _now():
    return _time(datetime.now(UTC).timestamp())


def _time(seconds):
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _parse(arguments):
    parser = Parser(prog="python -m serving.publish", description="Versions in a model server's base directory.")
    parser.add_argument("--version", action="version", version=terminal.version())
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("publish", help="copy a SavedModel to the next version, after loading it")
    verb.add_argument("saved_model", help="directory of a SavedModel")
    verb.add_argument("base", help="the model's base directory")
    verb.add_argument("--blessing", metavar="FILE", help="blessing.json, which the pipeline's Evaluator wrote")
    verb.add_argument(
        "--force", action="store_true", help="publish it even if it is not blessed; its card then says so"
    )
    verb.add_argument("--trust_model", **TRUST_MODEL)
    verb = verbs.add_parser("rollback", help="publish an older version again, under a new number")
    verb.add_argument("base", help="the model's base directory")
    verb.add_argument(
        "--to", type=_version_number, metavar="N", help="the version (by default, the model before the served one)"
    )
    verb.add_argument("--trust_model", **TRUST_MODEL)
    verb = verbs.add_parser("list", help="show the versions, and which one is served")
    verb.add_argument("base", help="the model's base directory")
    return parser.parse_args(arguments)


def _version_number(text):
    if not re.fullmatch("[0-9]{1,19}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be the number of a version. Received: {text!r}")
    return int(text)


def _print_listing(base):
    if not Path(base).exists():
        raise ValueError(f"There is no folder {base}.")
    lines = listing(base)
    if not lines:
        print(f"There is no version in {printable(base)}.")
        return
    print(
        f"{'version':>7}  {'published':25}  {'':6}  {'':9}  {'sigma':>5}  {'n':>7}  {'alpha':>6}  {'ACR':>18}  "
        "fingerprint"
    )
    for line in lines:
        served, copied = "served" if line.served else "", line.rolled_back_to
        note = "" if copied is None else f"  rolled back to {copied}"
        sigma, n, alpha = (f"{value:{of}}" if value else "-" for value, of in _numbers(line))
        print(
            f"{line.version:>7}  {line.published:25}  {served:6}  {line.blessing:9}  {sigma:>5}  {n:>7}  {alpha:>6}  "
            f"{_acr_in_words(line):>18}  {line.fingerprint[:12]}{note}"
        )
    print("sigma, n, alpha: of the certificates that a version answers with. ACR: measured by the Evaluator, at its n.")


def _numbers(line):
    """The card's numbers, each with its format."""
    return (line.sigma, "g"), (line.n, ","), (line.alpha, "g")


def _acr_in_words(line):
    if line.acr is None:
        return "-"
    return f"{line.acr:.3f}" + ("" if line.acr_n is None else f" (n={line.acr_n:,})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if it failed, 2 for bad input, 130 for Ctrl-C."""
    # Ctrl-C is an exception here, so that what was copied so far is removed.
    return exit_status(
        lambda: (_parse(arguments), Path()),
        _carry_out,
        "`list` shows what is published.",
        foreseen=(OSError, RuntimeError),
    )


def _carry_out(options):
    if options.verb == "list":
        _print_listing(options.base)
        return 0
    check, before = partial(load_test, trust=options.trust_model), versions(options.base)
    if options.verb == "publish":
        # Whoever names a link, such as `latest/blessing.json` of a pipeline root, means its target.
        blessing = options.blessing and Path(options.blessing).resolve()
        given = {"blessing": blessing, "force": options.force}
        version = publish(options.saved_model, options.base, **given, check=check)
        if version in before:
            print(f"{printable(version)} is already this very model; nothing was published.")
            return 0
        publication = read_publication(version)
        said = ", forced: it is not blessed" if publication and publication.forced else ""
    else:
        version = rollback(options.base, options.to, check=check)
        publication = read_publication(version)
        said = f", which is version {publication.rolled_back_to} again" if publication else ""
    print(f"Published {printable(version)}{said}.")
    return 0
