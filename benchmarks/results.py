"""The trained models of docs/results.md: `run` trains and certifies, `draw` makes tables and figures.

    python benchmarks/results.py run mnist --data_dir DIR --root DIR --images 1000
    python benchmarks/results.py draw

A cell is one model: a command line of `pipeline.run`, which `list` prints. What `run` measures is kept in docs/results,
in a folder for each cell: its certificates (the field's log, and Parquet with the votes) and metrics.json (settings,
seconds of training). If a run is cut off, the same command resumes it; with more --images, it certifies the missing
ones. `draw` reads only what is kept and writes the parts of docs/results.md between its markers.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import interrupts, published  # noqa: F401
from macer_tf.evaluation import mean_and_standard_error

REPOSITORY = Path(__file__).resolve().parents[1]
KEPT = REPOSITORY / "docs" / "results"
PAGE = REPOSITORY / "docs" / "results.md"
SIGMAS = (0.25, 0.5, 1.0)
SEEDS = (0, 1)
GAUSSIAN_EPOCHS = {0.25: 20, 0.5: 20, 1.0: 90}
COSINE = "--learning_rate 0.05 --lr_schedule cosine --precision mixed_bfloat16"
# The paper's Table 6, on the 10,000 test images at n = 100,000.
CLAIMED = {"macer": (0.918, 1.583, 1.520)}
# What the best presets were tuned from, on held-out training images.
TUNED_FROM = {
    **{"--num_samples": "4", "--lam": "6", "--beta": "2", "--consistency": "5", "--entropy": "0.5", "--ema": "0.999"},
    **{"--lam_start_epoch": "1", "--ramp_epochs": "3", "--epochs": "5", "--validation": "500", "--n": "2000"},
}
# What the first series chose and the second started from.
CHOSEN_FIRST = {**TUNED_FROM, "--ema": "0", "--num_samples": "2", "--noise_steps": "1", "--epochs": "8", "--n": "20000"}
HINGE_ALONE = {"--consistency": "0", "--entropy": "0"}
# What the third series changed, for all terms on the worse noise.
THIRD_SERIES = {
    "0.50": {
        "radius-0.5": {"--noise_radius": "0.5"},
        "copies-4": {"--num_samples": "4"},
        "lr-0.1": {"--learning_rate": "0.1"},
        "hinge": HINGE_ALONE,
        "hinge-crop-2": {**HINGE_ALONE, "--crop_padding": "2"},
        "hinge-epochs-30": {**HINGE_ALONE, "--epochs": "30"},
        "hinge-epochs-30-lr-0.1-l2-1e-4": {
            **HINGE_ALONE,
            **{"--epochs": "30", "--learning_rate": "0.1", "--l2": "0.0001"},
        },
        "epochs-30": {"--epochs": "30"},
        "batch-32": {"--batch_size": "32"},
    },
    "1.00": {
        "copies-4": {"--num_samples": "4"},
        "lam-3": {"--lam": "3"},
        "lam-3-l2-1e-4": {"--lam": "3", "--l2": "0.0001"},
        "lr-0.02": {"--learning_rate": "0.02"},
        "lr-0.1": {"--learning_rate": "0.1"},
        "batch-32": {"--batch_size": "32"},
        "epochs-30": {"--epochs": "30"},
    },
}
# What identifies votes, and what a cell reports about its training besides that.
DRAWN = ("sigma", "n0", "n", "alpha", "seed")
TOLD = ("epochs", "training_seconds", "training_core_seconds", "cores", "settings", *DRAWN)
TEST_IMAGES = 10_000  # of MNIST
# The best preset for as long as the other methods train.
SHORT_BEST = "--preset macer-mnist-0.50-best --epochs 11"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model: its group of cells, its name there, its command line, and the part specific to it in its group."""

    group: str
    name: str
    flags: str
    differs: str = ""

    @property
    def kept(self):
        """The folder of its measurements."""
        return KEPT / self.group / self.name

    def arguments(self, images=None):
        """The arguments of `pipeline.run`: the flags, and how many images are certified."""
        count = [] if images is None else ["--num_test_examples", str(images)]
        return [*self.flags.split(), *count]

    def command(self, images=None):
        """The command that makes it."""
        return f"python -m pipeline.run {' '.join(self.arguments(images))}"

    def settings(self):
        """Name -> text of all settings that its results depend on, a preset's among them, as in a settings file."""
        from pipeline.experiments import settings as settings_lib

        settings, _ = settings_lib.parse(self.arguments())
        listing = settings_lib.listing(settings)
        listed = {name for group in ("Data", "Training", "Certification") for name, *_ in listing[group]}
        written = settings_lib.written(settings).items()
        return {name: text for name, text in written if name in listed - {"num_test_examples"}}

    def measured(self):
        """metrics.json, or None before the cell was run with these flags, and with what its preset is now."""
        path = self.kept / "metrics.json"
        if not path.exists():
            return None
        try:
            metrics = json.loads(path.read_text())
            command = metrics["command"]
            # Earlier cells do not record them.
            recorded = metrics.get("settings", {}).items()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise damaged(path) from None
        if command.partition(" --num_test_examples")[0] != self.command():
            return None
        settings = self.settings() if recorded else {}
        return metrics if all(settings.get(name, value) == value for name, value in recorded) else None


def cells():
    """Every cell, in the order in which they are run."""
    yield from _tuning()
    for seed in SEEDS:
        for sigma in SIGMAS:
            on = f"--sigma {sigma:g} --seed {seed}"
            gaussian = f"--dataset mnist --method cohen {on} --epochs {GAUSSIAN_EPOCHS[sigma]} {COSINE}"
            yield Cell("mnist", f"gaussian-{sigma:.2f}-{seed}", gaussian)
            yield Cell("mnist", f"best-{sigma:.2f}-{seed}", f"--preset macer-mnist-{sigma:.2f}-best --seed {seed}")
            yield Cell(
                "mnist", f"macer-{sigma:.2f}-{seed}", f"--dataset mnist {on} --epochs 20 --ramp_epochs 3 {COSINE}"
            )
    yield from _methods()
    yield from _kinds()
    yield from _ablations()
    yield from _few_labels()
    yield from _cifar10()


def _tuning():
    """What the best presets were chosen from, on held-out training images."""
    variants = {
        "both": {},
        "hinge": HINGE_ALONE,
        "consistency": {"--lam": "0"},
        "both-beta-1": {"--beta": "1", "--lam": "12"},
        "consistency-10": {"--lam": "0", "--consistency": "10"},
        "no-average": {"--ema": "0"},
        "worse-noise": {"--noise_steps": "1"},
        "hinge-worse-noise": {**HINGE_ALONE, "--noise_steps": "1"},
        "two-copies-worse-noise": {"--ema": "0", "--num_samples": "2", "--noise_steps": "1"},
    }
    for name, differs in variants.items():
        yield _tuned("tuning", name, 1, TUNED_FROM, differs)
    variants = {
        "best": {},
        "l2-1e-4": {"--l2": "0.0001"},
        "radius-2": {"--noise_radius": "2"},
        "steps-4": {"--noise_steps": "4"},
        "epochs-30": {"--epochs": "30"},
        "all-terms": {"--noise_for_all": "yes"},
    }
    for name, differs in variants.items():
        yield _tuned("tuning-0.50", name, 0.5, CHOSEN_FIRST, differs)
    for name, differs in {"best": {}, "all-terms": {"--noise_for_all": "yes"}}.items():
        yield _tuned("tuning-1.00", name, 1, CHOSEN_FIRST, differs)
    moved = {**CHOSEN_FIRST, "--consistency": "10", "--noise_for_all": "yes"}
    for radius in ("1", "0.5"):
        yield _tuned("tuning-0.25", f"radius-{radius}", 0.25, moved, {"--noise_radius": radius})
    held_out = {"--validation": "1000", "--n": "10000"}
    third = {**held_out, "--epochs": "8", "--noise_for_all": "yes"}
    for sigma, variants in THIRD_SERIES.items():
        for name, differs in {"all-terms": {}, **variants}.items():
            flags = f"--preset macer-mnist-{sigma}-best {flags_of({**third, **differs})}"
            yield Cell(f"tuning-{sigma}-again", name, flags, flags_of(differs))
    gaussian = "--method cohen --epochs 20"
    flags = f"--dataset mnist --sigma 0.5 {flags_of(held_out)} {COSINE} {gaussian}"
    yield Cell("tuning-0.50-again", "gaussian", flags, gaussian)
    for epochs in (20, 60, 90):
        gaussian = f"--method cohen --epochs {epochs}"
        flags = f"--dataset mnist --sigma 1 {flags_of(held_out)} {COSINE} {gaussian}"
        yield Cell("tuning-1.00-gaussian", f"epochs-{epochs}", flags, gaussian)
    for name, differs in {"preset": {}, "hinge": HINGE_ALONE}.items():
        flags = f"--preset macer-mnist-0.25-best {flags_of({**held_out, **differs})}"
        yield Cell("tuning-0.25-again", name, flags, flags_of(differs))


def _tuned(group, name, sigma, begun_with, differs):
    told = flags_of({**begun_with, **differs})
    flags = f"--dataset mnist --sigma {sigma} --average_cross_entropy {COSINE} {told}"
    return Cell(group, name, flags, flags_of(differs))


def _methods():
    """Each method for about as long as 40 epochs of Gaussian training, by `table3.py`: 10 minutes."""
    few_copies = "--num_samples 2 --warmup_epochs 1"
    epochs = {
        **{"cohen": "40", "stability": "31", "consistency": "27", "smoothmix": f"5 {few_copies}", "catrs": "3"},
        **{"macer": "4 --ramp_epochs 1", "smoothadv": f"3 {few_copies}"},
    }
    alike = f"--dataset mnist --sigma 0.5 --n 20000 --batch_size 64 --clip_norm 1 {COSINE}"
    variants = {method: f"--method {method} --epochs {told}" for method, told in epochs.items()}
    yield from _variants("methods", alike, variants)
    yield Cell("methods", "macer-best", f"{SHORT_BEST} --n 20000", SHORT_BEST)


def _kinds():
    """Figure 4: hard and soft certificates, from the same noise."""
    yield Cell("kinds", "macer-best", f"{SHORT_BEST} --n 20000 --certify all --soft_betas 1,4,16,64")


def _ablations():
    """Tables 10 to 13 on a small scale: one setting of Eq. (17) at a time, on a short schedule."""
    fixed = {"--num_samples": "4", "--lam": "12", "--gamma": "8", "--beta": "16"}
    varied = {
        **{"--num_samples": ("1", "2", "16"), "--lam": ("0", "2", "6")},
        **{"--gamma": ("2", "4", "16"), "--beta": ("1", "4", "64")},
    }
    common = f"--dataset mnist --sigma 0.5 --epochs 5 --n 10000 {COSINE}"
    ramp = "--ramp_epochs 1"
    yield Cell("ablations", "reference", f"{common} {ramp} {flags_of(fixed)}", flags_of(fixed))
    for flag, values in varied.items():
        for value in values:
            name = f"{flag.lstrip('-')}-{value}"
            # Without lam, nothing would rise.
            of_all = common if name == "lam-0" else f"{common} {ramp}"
            yield Cell("ablations", name, f"{of_all} {flags_of({**fixed, flag: value})}", f"{flag} {value}")


def _few_labels():
    """1,000 of 60,000 images have a label: they are used alone, or with the others."""
    common = f"--dataset mnist --sigma 0.5 --labels 1000 --n 10000 {COSINE}"
    macer = "--num_samples 4 --lam 6 --beta 2 --average_cross_entropy"
    variants = {
        "gaussian": "--method cohen --epochs 200",
        "macer": f"{macer} --epochs 200 --lam_start_epoch 10 --ramp_epochs 10",
        "semi-supervised": f"{macer} --epochs 4 --lam_start_epoch 1 --ramp_epochs 1 --unlabelled --ema 0.999",
    }
    yield from _variants("labels", common, variants)


def _cifar10():
    """CIFAR-10 on a small scale: each method for about as long as 33 epochs of Gaussian training, by `table3.py`, and
    for three times as long.
    """
    common = f"--dataset cifar10 --network cifar_resnet20 --sigma 0.5 --n 5000 --batch_size 128 --clip_norm 1 {COSINE}"
    beyond = "--beta 2 --average_cross_entropy --consistency 10 --entropy 0.5 --lam_start_epoch 1 --ramp_epochs 3"
    for group, longer in (("cifar10", 1), ("cifar10-long", 3)):
        variants = {
            "gaussian": f"--method cohen --epochs {33 * longer}",
            "macer": f"--num_samples 4 --lam 4 --epochs {9 * longer} --ramp_epochs 1",
            "best": f"--num_samples 2 --lam 4 --epochs {18 * longer} {beyond}",
        }
        yield from _variants(group, common, variants)


def _variants(group, common, variants):
    """A cell for each name, with the flags that it adds to the common ones."""
    for name, flags in variants.items():
        yield Cell(group, name, f"{common} {flags}", flags)


def flags_of(values):
    """Flags and their values, as text."""
    return " ".join(f"{flag} {value}" for flag, value in values.items())


def main(arguments=None):
    """Runs cells, lists them, or draws the page; bad input ends it in one line."""
    from pipeline.utils.errors import InputError

    try:
        _carry_out(arguments)
    except InputError as error:
        sys.exit(str(error))


def _carry_out(arguments):
    from macer_tf import released

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train and certify what is missing")
    running.add_argument("cells", nargs="+", help="groups, or cells as group/name")
    releasing = commands.add_parser("release", help="put the best models into the package")
    again = commands.add_parser("recertify", help="certify released models on more images, without training them again")
    for command in (releasing, again):
        command.add_argument("models", nargs="+", choices=released.names(), help="names of released models")
    for command in (running, again):
        command.add_argument(
            "--images", type=int, default=1000, help="images to certify, evenly spaced (default: 1000)"
        )
    for command in (running, releasing, again):
        command.add_argument("--data_dir", required=True, help="prepared TFDS data")
        command.add_argument("--root", type=Path, required=True, help="pipeline root: models, votes, backups")
    commands.add_parser("list", help="print each cell's command")
    commands.add_parser("draw", help="write tables and figures from what is kept")
    arguments = parser.parse_args(arguments)
    if arguments.command == "draw":
        draw()
    elif arguments.command == "release":
        for name in arguments.models:
            release(name, arguments)
    elif arguments.command == "recertify":
        if arguments.images < 1 or TEST_IMAGES % arguments.images:
            parser.error(f"--images {arguments.images} does not divide {TEST_IMAGES:,}, the test images of MNIST.")
        for name in arguments.models:
            recertify(name, arguments)
    elif arguments.command == "list":
        for cell in cells():
            print(f"{cell.group}/{cell.name}: {cell.command()}")
    else:
        names = [(cell, {cell.group, f"{cell.group}/{cell.name}"}) for cell in cells()]
        if unknown := set(arguments.cells) - set().union(*(of_cell for _, of_cell in names)):
            parser.error(f"no such cells: {' '.join(sorted(unknown))}; see `list`")
        if arguments.images < 1:
            parser.error(f"--images must be a whole number from 1. Received: {arguments.images}")
        chosen = [cell for cell, of_cell in names if of_cell & set(arguments.cells)]
        for cell in chosen:
            run(cell, arguments)


def run(cell, arguments):
    """Trains and certifies one model as `pipeline.run` does, up to its certificates, and keeps what is measured."""
    measured = cell.measured()
    if measured and measured["num_images"] >= arguments.images:
        return
    print(f"\n{cell.group}/{cell.name}", flush=True)
    settings, artifacts = made(cell, arguments)
    from pipeline.certification import certificate_files
    from pipeline.components import evaluator
    from pipeline.data import examples as examples_lib

    examples = examples_lib.read(artifacts["examples"].path)
    certified = certificate_files.read(artifacts["certificates"].path)
    seconds = np.genfromtxt(artifacts["model"].path / "seconds.csv", delimiter=",", names=True, ndmin=1)
    keep(
        cell,
        certified,
        examples.labels["test"][certified[1]],
        command=cell.command(arguments.images),
        image_set=evaluator.image_set(examples, certified[1]),
        epochs=settings["epochs"],
        training_seconds=float(seconds["seconds"].sum()),
        training_core_seconds=float(seconds["core_seconds"].sum()),
        cores=len(os.sched_getaffinity(0)),
        settings=cell.settings(),
        **certification_cost(artifacts["certificates"].path.parent, arguments.root),
        **{name: settings[name] for name in DRAWN},
    )


def certification_cost(execution, root):
    """Core-seconds that a Certifier's execution took from its first vote on; nothing if votes were there before it.

    Only one run works in a root at a time, so a votes folder that is made during the execution is its own.
    """
    record = json.loads((execution / "execution.json").read_text())
    began, ended = record["started_at"], record["finished_at"]
    if not any(began <= path.stat().st_mtime <= ended for path in (root / "votes").glob("*/votes.json")):
        return {}
    return {"certification_core_seconds": (ended - began) * len(os.sched_getaffinity(0))}


def keep(cell, certified, labels, **about):
    """Writes what is kept of a cell, replacing what was there; arguments as for `pipeline.report.results.write`."""
    from pipeline.report import results

    new = cell.kept.with_name(f".{cell.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    results.write(new, certified, labels, **about)
    shutil.rmtree(cell.kept, ignore_errors=True)
    new.rename(cell.kept)


def made(cell, arguments):
    """A cell's settings, and its artifacts in the root, made now unless they exist."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from pipeline.experiments import settings as settings_lib
    from pipeline.jobs import sweep
    from pipeline.orchestration import orchestrator

    keras.utils.clear_session()
    settings, _ = settings_lib.parse([*cell.arguments(arguments.images), "--data_dir", arguments.data_dir])
    components = sweep.components(settings)
    with orchestrator.locked(arguments.root, "--root"):
        return settings, orchestrator.run(components, settings, arguments.root, settings["num_workers"])


def release(name, arguments):
    """Puts a model that was measured into the package, in place of the one there, and writes its card."""
    from macer_tf import released
    from pipeline.training import models

    about = released.card(name)
    cell = released_cell(about["sigma"])
    if (measured := kept(cell)) is None:
        sys.exit(nothing_kept(cell))
    arguments.images = measured.metrics["num_images"]
    _, artifacts = made(cell, arguments)
    path = released.FOLDER / f"{name}.keras"
    models.load(artifacts["model"].path / "model.keras").save(path, include_optimizer=False)
    write_card(measured, path, about["claimed"])


def released_cell(sigma):
    """The cell whose model is released for a noise level."""
    (cell,) = (cell for cell in cells() if (cell.group, cell.name) == ("mnist", f"best-{sigma:.2f}-0"))
    return cell


def nothing_kept(cell):
    """The line that says so of a cell."""
    return f"Nothing that was measured of {cell.group}/{cell.name} with its flags is kept in {cell.kept}."


def recertify(name, arguments):
    """Certifies a released model with `pipeline.certify`, and renews its card and what is kept of its cell."""
    from macer_tf import released
    from pipeline.certification import certificate_files
    from pipeline.jobs import certify

    about = released.card(name)
    if about["verified"]["num_images"] >= arguments.images:
        print(f"{name} is already certified on {about['verified']['num_images']:,} images.")
        return
    cell, path, output = released_cell(about["sigma"]), released.FOLDER / f"{name}.keras", arguments.root / name
    before = cell.measured()
    if before is None:
        sys.exit(nothing_kept(cell))
    if before["num_images"] > arguments.images:
        # After `run` without `release`, the cell is ahead of the card.
        sys.exit(
            f"{cell.kept} has {before['num_images']:,} images, which fewer must not replace. Received: --images "
            f"{arguments.images}; accepted: {before['num_images']} or more."
        )
    drawn = [f"--{setting}={before[setting]}" for setting in DRAWN]
    images = ["--dataset=mnist", f"--skip={TEST_IMAGES // arguments.images}", f"--data_dir={arguments.data_dir}"]
    if status := certify.main([f"--model={path}", *images, *drawn, f"--output={output}"]):
        sys.exit(status)
    labels = certificates_in(output / "certificates.parquet")["label"]
    image_set = f"the test split of mnist 3.0.1 ({TEST_IMAGES:,} images)"
    if len(labels) < TEST_IMAGES:
        image_set = f"{len(labels):,}, evenly spaced, of {image_set}"
    # Earlier cells do not record core seconds.
    told = {setting: before[setting] for setting in TOLD if setting in before} | {"image_set": image_set}
    told["command"] = cell.command(arguments.images)
    keep(cell, certificate_files.read(output), labels, **told)
    write_card(kept(cell), path, about["claimed"])


def write_card(measured, path, claimed):
    """Writes a released model's card beside its file."""
    path.with_suffix(".json").write_text(json.dumps(card(measured, path, claimed), indent=1) + "\n")


def card(measured, path, claimed):
    """What `macer_tf.released.card` returns for the model in a file."""
    from serving.fingerprints import file_digest

    metrics = measured.metrics
    accuracies = zip(map(str, metrics["radii"]), metrics["certified_accuracy"], strict=True)
    of_certificates = ("image_set", "num_images", "n0", "n", "alpha", "acr", "acr_standard_error")
    return {
        "name": path.stem,
        "sigma": metrics["sigma"],
        "sha256": file_digest(path),
        "trained": {name: metrics[name] for name in ("command", "epochs", "training_seconds", "cores", "seed")},
        "claimed": claimed,
        "verified": {
            **{name: metrics[name] for name in of_certificates},
            "certified_accuracy": dict(accuracies),
            "images": measured.first(20),
        },
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What is kept of a cell: metrics, and for each image its id, class or -1, votes, certified radius (0 unless
    correct) and p_lower.
    """

    cell: Cell
    metrics: dict
    ids: np.ndarray
    predictions: np.ndarray
    votes: np.ndarray
    radii: np.ndarray
    p_lower: np.ndarray

    def first(self, count):
        """For the first certified images: id, class, and the class's share of the votes."""
        certified = np.flatnonzero(self.predictions >= 0)[:count]
        shares = self.votes[certified, self.predictions[certified]] / self.votes[certified].sum(axis=1)
        columns = zip(self.ids[certified], self.predictions[certified], shares, strict=True)
        return [{"example_id": int(i), "prediction": int(label), "share": float(share)} for i, label, share in columns]


def kept(cell):
    """A cell's `Measured`; None if it was not run yet."""
    metrics = cell.measured()
    if metrics is None:
        return None
    columns = certificates_in(cell.kept / "certificates.parquet")
    names = ("example_id", "prediction", "votes", "radius", "p_lower")
    return Measured(cell, metrics, *(columns[name] for name in names))


def damaged(path):
    """The `InputError` for a file of a cell that cannot be read."""
    from pipeline.utils.errors import InputError

    return InputError(
        f"{path} is missing or damaged. Restore it with git, or remove its folder and run its cell again (see `list`)."
    )


def certificates_in(path):
    """The columns of a Parquet file of certificates by name; the radius is 0 unless the prediction is right."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, ValueError):
        raise damaged(path) from None
    columns = {name: np.array(values) for name, values in table.to_pydict().items()}
    return {**columns, "radius": np.where(columns["outcome"] == "correct", columns["radius"], 0.0)}


def draw():
    """Writes the parts of docs/results.md between markers, for all groups that were measured, and their figures."""
    of_group = {}
    for cell in cells():
        if measured := kept(cell):
            of_group.setdefault(cell.group, []).append(measured)
    page = PAGE.read_text()
    parts = {group: TABLES[group](measured) for group, measured in of_group.items()}
    for group, text in {**parts, "cost": table_of_costs(of_group)}.items():
        begin, end = f"<!-- {group}: written by benchmarks/results.py draw -->", f"<!-- {group}: end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(page):
            sys.exit(f"{PAGE} has no part between {begin} and {end}")
        page = pattern.sub(lambda _, text=text, begin=begin, end=end: f"{begin}\n{text}{end}", page)
    PAGE.write_text(page)


def minutes(one):
    """Epochs and time of training."""
    return f"{one.metrics['epochs']} epochs, {one.metrics['training_seconds'] / 60:.0f} min"


def core_minutes(one):
    """Epochs and core time of training."""
    return f"{one.metrics['epochs']} epochs, {one.metrics['training_core_seconds'] / 60:.0f} core-minutes"


def table_of_variants(measured, multiples=(0, 1, 2, 3), time=minutes):
    """Each variant's certified accuracies at multiples of sigma, its ACR, and the paired difference from the first."""
    first = measured[0]
    radii = [first.metrics["sigma"] * multiple for multiple in multiples]
    rows = [
        [
            *(f"{one.cell.name}: `{one.cell.differs or 'the first'}`", *accuracies(one, radii)),
            *(acr(one), difference(one, first), time(one)),
        ]
        for one in measured
    ]
    return markdown(["", *(f"{radius:g}" for radius in radii), "ACR", "from the first", "training"], rows)


def methods_part(measured):
    """A table, and a figure of ACR against training time."""
    (KEPT / "methods.svg").write_bytes(figure_of_methods(measured))
    picture = "![ACR against core-minutes of training, MNIST, sigma = 0.5](results/methods.svg)\n"
    return f"{table_of_variants(measured, time=core_minutes)}\n{picture}"


def figure_of_methods(measured):
    """Bytes of an SVG file: a point for each method, its bar the standard error of the difference from the first."""
    from matplotlib.figure import Figure

    from pipeline.report.figures import FAINT, GREY, INK, save_svg

    figure = Figure(figsize=(7.2, 3.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.grid(color=FAINT, linewidth=0.8)
    spent = [one.metrics["training_core_seconds"] / 60 for one in measured]
    for one, minutes_of_cores in zip(measured, spent, strict=True):
        _, error = mean_and_standard_error(paired(one, measured[0]))
        at = minutes_of_cores, one.radii.mean()
        axes.errorbar(*at, yerr=error, fmt="o", color=INK, ecolor=GREY, capsize=3)
        # Labels of neighbours are kept apart: in the left half, they go to the left.
        side, end = (-7, "right") if minutes_of_cores < np.median(spent) else (7, "left")
        axes.annotate(one.cell.name, at, (side, 3), textcoords="offset points", ha=end, fontsize=9, color=INK)
    axes.set_xlim(0, 1.15 * max(spent))
    axes.set_xlabel("core-minutes of training")
    axes.set_ylabel("ACR")
    return save_svg(figure)


def kinds_part(measured):
    """For the single model: a table of all kinds of certificates, and a figure of hard and empirical Bernstein ones."""
    from pipeline.certification import certificate_files
    from pipeline.report import results

    (one,) = measured
    kinds = one.metrics["certificates"]
    curves = {}
    for place, name in enumerate(kinds):
        if place == 0 or "bernstein" in name:
            path = one.cell.kept / certificate_files.file_name(place, name, "parquet")
            curves[name] = certificates_in(path)["radius"]
    draw_curves("kinds.svg", curves)
    table = markdown(
        results.header("", next(iter(kinds.values()))["radii"]),
        [results.row(name, of_kind) for name, of_kind in kinds.items()],
    )
    return f"{table}\n![Certified accuracy against radius, hard and soft, MNIST, sigma = 0.5](results/kinds.svg)\n"


def table_of_costs(of_group):
    """Each group's models, hours of training, samples drawn, the share of n0 + n that was not drawn, and core-hours of
    certification, for how many models these were recorded.
    """
    rows = []
    for group, measured in of_group.items():
        hours = sum(one.metrics["training_seconds"] for one in measured) / 3600
        drawn = sum(one.metrics["num_images"] * one.metrics["samples_per_image"] for one in measured)
        asked = sum(one.metrics["num_images"] * (one.metrics["n0"] + one.metrics["n"]) for one in measured)
        told = (str(len(measured)), f"{hours:.1f}", f"{drawn / 1e6:.1f}", f"{100 * (1 - drawn / asked):.1f} %")
        rows.append([group, *told, core_hours_of_certification(measured)])
    columns = ("models", "hours of training", "million samples", "samples spared", "core-hours of certification")
    return markdown(["", *columns], rows)


def core_hours_of_certification(measured):
    """Their sum over the models for which they were recorded, and how many these are unless all."""
    name = "certification_core_seconds"
    seconds = [one.metrics[name] for one in measured if name in one.metrics]
    if not seconds:
        return "not recorded"
    of = "" if len(seconds) == len(measured) else f" for {len(seconds)} of them"
    return f"{sum(seconds) / 3600:.1f}{of}"


def mnist_tables(measured):
    """A table and a figure of curves for each sigma."""
    parts, known = [], {sigma: published.read(sigma) for sigma in SIGMAS}
    for place, sigma in enumerate(SIGMAS):
        cells_of = [one for one in measured if one.metrics["sigma"] == sigma]
        if not cells_of:
            continue
        radii = [sigma * multiple for multiple in published.MULTIPLES]
        others = known[sigma]
        rows = [[f"{name}, claimed", *[""] * 6, f"{acrs[place]:.3f}", *[""] * 3] for name, acrs in CLAIMED.items()]
        rows += [published_row(others, method) for method in others]
        gaussians = {one.metrics["seed"]: one for one in cells_of if one.cell.name.startswith("gaussian")}
        at_0 = []
        for one in cells_of:
            seed = one.metrics["seed"]
            reference = gaussians.get(seed)
            to_gaussian = difference(one, reference) if reference and one is not reference else ""
            method = one.cell.name.split("-")[0]
            at_0 += [f"{method}, seed {seed}: {points_at_0(one, reference)}"] if to_gaussian else []
            of_all = "{:.3f} ± {:.3f}".format(*published.estimate(others, one.ids, one.radii))
            told = (acr(one), to_gaussian, of_all, bands(one), minutes(one), f"{one.metrics['num_images']:,}")
            rows.append([f"{method}, seed {seed}", *accuracies(one, radii), *told])
        columns = ("ACR", "from Gaussian", "ACR, all 10,000", "p_A", "training", "images")
        parts.append(f"sigma = {sigma:g}:\n\n{markdown(['', *(f'{radius:g}' for radius in radii), *columns], rows)}")
        if at_0:
            parts.append(f"Accuracy at radius 0, in points from Gaussian: {'; '.join(at_0)}.\n")
        if again := between_seeds(cells_of):
            parts.append(f"ACR of another seed minus that of seed 0, on the same images: {'; '.join(again)}.\n")
        name = f"mnist-{sigma:.2f}.svg"
        draw_curves(name, {one.cell.name: one.radii for one in cells_of if one.metrics["seed"] == 0})
        parts.append(f"![Certified accuracy against radius, MNIST, sigma = {sigma:g}, seed 0](results/{name})\n")
    return "\n".join(
        [*parts, "ACR minus that of published models, on the same images:\n", beside_published(measured, known)]
    )


def between_seeds(measured):
    """For each model of another seed than 0, the difference of its ACR from that of the same cell with seed 0."""
    differences, firsts = [], {one.cell.name: one for one in measured}
    for one in measured:
        method, sigma, seed = one.cell.name.split("-")
        if seed != "0" and (first := firsts.get(f"{method}-{sigma}-0")):
            differences.append(f"{method}, seed {seed}: {difference(one, first)}")
    return differences


def published_row(others, method):
    """A published method on every tenth test image, and its ACR on all of them."""
    here, gaussian = (others[name].every(10) for name in (method, "gaussian"))
    gain = mean_and_standard_error(here.radius - gaussian.radius)
    told = (f"{here.radius.mean():.3f}", "" if method == "gaussian" else "{:+.3f} ± {:.3f}".format(*gain))
    of_all, shares = others[method].radius.mean(), [f"{share:.3f}" for share in here.accuracy.mean(axis=0)]
    return [f"{method}, published", *shares, *told, f"{of_all:.3f}", "", f"{here.logs} models", f"{len(here.radius):,}"]


def beside_published(measured, others):
    """A table of each model's ACR minus that of published methods, on the same images, with its paired standard error.

    Below it, how much easier than all images every tenth image is. `others`: sigma -> what `published.read` returns.
    """
    rows = []
    for one in sorted(measured, key=lambda one: one.metrics["sigma"]):
        method, sigma, seed = one.cell.name.split("-")
        known = others[one.metrics["sigma"]].values()
        gains = (mean_and_standard_error(one.radii - other.radius[one.ids]) for other in known)
        told = ("{:+.3f} ± {:.3f}".format(*gain) for gain in gains)
        rows.append([f"{method}, sigma = {float(sigma):g}, seed {seed}", *told])
    easier = ", ".join(f"{published.easier(others[sigma], 10):+.3f} at sigma = {sigma:g}" for sigma in SIGMAS)
    told = f"The published ACRs on every tenth image minus those on all images are, on average, {easier}."
    return f"{markdown(['', *others[SIGMAS[0]]], rows)}\n{told}\n"


def draw_curves(file_name, radii_of):
    """A figure of certified accuracy against radius; `radii_of`: name -> radii, 0 unless correct."""
    from pipeline.report import figures

    curves = {name: np.where(radii > 0, radii, -1) for name, radii in radii_of.items()}
    (KEPT / file_name).write_bytes(figures.save_svg(figures.radius_accuracy_curves(curves)))


def accuracies(one, radii):
    """Certified accuracy at each radius, as text."""
    correct = one.radii > 0
    return [f"{np.mean(correct & (one.radii >= radius)):.3f}" for radius in radii]


def acr(one):
    """ACR with its standard error over images."""
    return "{:.3f} ± {:.3f}".format(*mean_and_standard_error(one.radii))


def difference(one, other):
    """Difference of ACRs, with the paired standard error."""
    return "" if one is other else "{:+.3f} ± {:.3f}".format(*mean_and_standard_error(paired(one, other)))


def points_at_0(one, other):
    """Difference of the accuracies at radius 0, in points, with the paired standard error."""
    return "{:+.1f} ± {:.1f}".format(*mean_and_standard_error(paired(one, other, lambda radii: 100.0 * (radii > 0))))


def paired(one, other, of=lambda radii: radii):
    """Each image's difference of radii, or of what `of` makes of them, for the images that both have."""
    _, here, there = np.intersect1d(one.ids, other.ids, return_indices=True)
    return of(one.radii[here]) - of(other.radii[there])


def bands(one):
    """Shares of the images by the lower bound of p_A: up to 1/2, 0.9, 0.99, 0.999, and beyond."""
    shares = np.histogram(one.p_lower, (0, 0.5, 0.9, 0.99, 0.999, 1))[0] / len(one.p_lower)
    return " / ".join(f"{100 * share:.0f}" for share in shares)


def markdown(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


# Group of cells -> what writes its part of the page.
TABLES = {
    "tuning": functools.partial(table_of_variants, multiples=(0, 1, 2, 2.5)),
    "tuning-0.50": table_of_variants,
    "tuning-1.00": table_of_variants,
    "tuning-0.25": table_of_variants,
    "tuning-0.25-again": table_of_variants,
    "tuning-0.50-again": table_of_variants,
    "tuning-1.00-again": table_of_variants,
    "tuning-1.00-gaussian": table_of_variants,
    "mnist": mnist_tables,
    "methods": methods_part,
    "kinds": kinds_part,
    "ablations": table_of_variants,
    "labels": table_of_variants,
    "cifar10": functools.partial(table_of_variants, multiples=(0, 0.5, 1, 2), time=core_minutes),
    "cifar10-long": functools.partial(table_of_variants, multiples=(0, 0.5, 1, 2), time=core_minutes),
}


if __name__ == "__main__":
    main()
