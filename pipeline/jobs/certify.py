"""Certifies anyone's classifier: python -m pipeline.certify --model model.keras --dataset mnist --sigma 0.25

This runs on Beam, as the whole job does. Repeating the command draws no sample again; after a kill, it resumes.
"""

import csv
import io
import os
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np

from macer_tf import certificates as certificates_lib
from pipeline.certification import certificate_files, sampling_plan
from pipeline.cli import beam_options, command_line, config, console, saying
from pipeline.cli.command_line import (
    ABOVE_0,
    FOLDER,
    INSIDE_0_1,
    MODULE,
    NUM_WORKERS,
    PATH,
    PLACE,
    SEED,
    SWITCH,
    TEXT,
    Setting,
    choice,
    none_or,
    whole,
)
from pipeline.data.datasets import sides
from pipeline.jobs import early_checks
from pipeline.orchestration import orchestrator
from pipeline.report import results, words
from pipeline.utils import code as code_lib
from pipeline.utils import places
from pipeline.utils.atomic_files import remove_path, working_in, write_text
from pipeline.utils.errors import InputError, reason
from serving.exit import exit_status
from serving.terminal import printable

_GROUPS = {
    "Model and images": (
        Setting("model", PLACE, ".keras or .h5 file, or a SavedModel's folder; path or URL", None, "required"),
        Setting("model_output", TEXT, "which output to certify, if the model has several", None, "its only one"),
        Setting("custom_objects", MODULE, "module with the model's own layers; its code is run", None, "none"),
        Setting("trust_model", choice(yes=True, no=False), "run a SavedModel even if it does more than compute", False),
        Setting("dataset", TEXT, "a data set of TFDS by its name, or digits", None, "or --images"),
        Setting("split", TEXT, "of the data set", None, "its test split"),
        Setting("data_dir", FOLDER, "folder of prepared TFDS data", None, "TFDS's own"),
        Setting("image_size", none_or("none", whole(1)), "resize and crop a data set to this side, pixels", None),
        Setting("images", PLACE, "a folder of image files, or an .npz file; path or URL", None, "or --dataset"),
        Setting("classes", PATH, "file that numbers the folder's sub-folders", None, "by their names"),
        Setting("resize", SWITCH, "resize and crop image files to the model's size, and certify the result", False),
        Setting("skip", whole(1), "certify images 0, skip, 2 skip, ...", 1),
        Setting("start", whole(0), "of these, from this image on", 0),
        Setting("max", none_or("all", whole(1)), "and below this image: a bound on its number, not a count", None),
    ),
    "Certification": (
        Setting("levels", command_line.LEVELS, "pixels are multiples of 1 / levels", None, "255, or a data set's own"),
        Setting("sigma", ABOVE_0, "noise level, in [0, 1] pixel units", None, "that of a model trained here"),
        sampling_plan.N0,
        sampling_plan.N,
        sampling_plan.ALPHA,
        Setting("seed", SEED, "of the noise", 0),
        sampling_plan.CERTIFY,
        sampling_plan.SOFT_BETAS,
        Setting(
            "budget",
            sampling_plan.BUDGET.kind,
            "adaptive: n samples at most, until --radii or --tolerance is met",
            "fixed",
        ),
        Setting(
            "radii",
            command_line.RADII,
            "adaptive: decide only at which of these l2 radii images are certified",
            None,
            "off",
        ),
        Setting("tolerance", INSIDE_0_1, "adaptive: radii within this fraction of what n would give", None, "off"),
        sampling_plan.SKIP_WRONG,
    ),
    "Run": (
        Setting("output", FOLDER, "where certificates and votes are kept", "certified"),
        Setting("num_workers", NUM_WORKERS, "certification threads", None, "one per core"),
        beam_options.VOTES,
        beam_options.PATIENCE,
        *saying.SETTINGS,
    ),
}
_PROGRAM = "python -m pipeline.certify"
# What is removed in the output, where a user may have files too: nobody else gives anything such a name.
_MODEL, _UNFINISHED = ".certifying-model", ".certifying-results"


def main(arguments=None):
    """Certifies. Returns the exit status: 0, 1 if an image or the job failed, 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console.quiet()
    with saying.Saying(arguments) as said:

        def parse():
            expanded = config.expand(arguments, lambda _: _GROUPS)
            with config.named(arguments, expanded):
                settings = _settings(expanded)
            return settings, None if settings["dry_run"] else Path(settings["output"])

        def work(settings):
            if settings["dry_run"]:
                with tempfile.TemporaryDirectory() as folder:
                    return _in_snapshot(settings, said, Path(folder), None)
            output, engine = Path(settings["output"]), early_checks.checked_engine(settings)
            with orchestrator.locked(output, "output"):
                certificate_files.check_room(output)
                with working_in(output, "The certification", "what was drawn"):
                    return _in_snapshot(settings, said, output, engine)

        interrupted = "What was drawn is kept; run the same command again to resume."
        how = {"bad_input": InputError, "at_once": True, "on_error": said.failed}
        return said.end(exit_status(parse, work, interrupted, **how))


def _in_snapshot(settings, said, folder, engine):
    # Imported only now, so that --help and a typo do not wait for TensorFlow.
    console.import_tensorflow()
    from pipeline.certification import classifiers

    with classifiers.snapshot(settings["model"], folder / _MODEL) as snapshot:
        return _certify(settings, said, snapshot, engine)


def _settings(arguments):
    given = command_line.given(
        arguments,
        _GROUPS,
        prog=_PROGRAM,
        usage="%(prog)s --model PATH (--dataset NAME | --images PATH) [options]",
        description="Certifies a classifier that returns logits or probabilities for images in [0, 1]: which class "
        "the smoothed classifier returns, and within which l2 radius it cannot change. In brackets: the default. "
        + beam_options.NOTE,
        rest=beam_options.checked,
    )
    settings = {"beam": ()} | command_line.defaults(_GROUPS) | given
    beam_options.check_engine(settings, given)
    if settings["model"] is None:
        raise InputError("--model is missing: a .keras or .h5 file, or a SavedModel's folder.")
    _check_images(settings, given)
    asked = [name for name in ("radii", "tolerance") if settings[name] is not None]
    if settings["budget"] == "adaptive" and len(asked) != 1:
        raise InputError("--budget adaptive needs either --radii or --tolerance, which says when to stop.")
    if settings["budget"] == "fixed" and asked:
        raise InputError(f"--{asked[0]} is for --budget adaptive.")
    saying.check(settings)
    command_line.refuse_idle(given, _idle(settings))
    early_checks.check_classifier(settings)
    return settings


def _idle(settings):
    """Name -> why, of the settings that have no effect given the others."""
    found = {}
    if not _plan(settings).betas:
        found["soft_betas"] = f"certify={settings['certify']} asks for no soft certificates"
    if settings["certify"] != sampling_plan.HARD:
        found["skip_wrong"] = f"certify={settings['certify']} estimates every image"
    if settings["dataset"] == "digits":
        found["data_dir"] = "the digits are embedded"
    if not places.is_url(settings["model"]) and Path(settings["model"]).is_dir():
        found["custom_objects"] = "a SavedModel brings what it computes itself"
    elif not places.is_url(settings["model"]):
        found["trust_model"] = "it is for the folder of a SavedModel"
    return found


def _check_images(settings, given):
    """Raises InputError unless it is stated once, and without contradiction, which images are meant."""
    if (settings["dataset"] is None) == (settings["images"] is None):
        raise InputError("Give the images with either --dataset or --images.")
    of_data_sets = [name for name in ("split", "data_dir", "image_size") if settings["images"] and name in given]
    if of_data_sets:
        raise InputError(f"--{of_data_sets[0]} is for --dataset, not for --images.")
    if settings["images"]:
        early_checks.check_apart(settings, "images", "output", "votes")
    if settings["classes"] and settings["images"] is None:
        raise InputError("--classes is for the folders of --images, not for --dataset.")
    if settings["resize"] and settings["images"] is None:
        raise InputError("--resize is for the files of --images; --image_size resizes a --dataset.")


def _plan(settings):
    return sampling_plan.SamplingPlan.of(
        settings, settings["soft_betas"], *(settings[name] for name in ("radii", "tolerance", "skip_wrong"))
    )


def _certify(settings, said, snapshot, engine):
    from pipeline.certification import classifiers, driver
    from pipeline.data import sources

    output = Path(settings["output"])
    plan = _plan(settings)
    sampler, loaded = _load(settings, snapshot, plan)
    classifier, opened = loaded.smoothed.classifier, loaded.images
    code = _code(settings, classifier, sampler.source.shape)
    ids = sources.select(opened.ids, **{name: settings[name] for name in ("skip", "start", "max")})
    num_classes = classifier.output_shape[-1]
    labels = _labels(settings, opened, ids, num_classes)
    _check_grid(loaded, ids)
    precision = classifiers.precision(snapshot.path, classifier)
    _print_settings(settings, plan, classifier, precision, opened, ids)

    own_output = {name: settings[name] for name in ("model_output",) if settings[name]}
    of = {"model": snapshot.fingerprint, "precision": precision, **own_output, **code}
    what = (output, sampler, loaded, of, ids, num_classes, plan)
    if settings["dry_run"]:
        return _tell(settings, said, driver.forecast_in(*what, labels=labels))
    how = {"num_workers": settings["num_workers"] or os.cpu_count(), "engine": engine}
    outcome = driver.run_in(*what, labels=labels, cheaper=sampling_plan.cheaper(settings, "max"), **how)
    _check_unchanged(settings, snapshot)
    unfinished = output / _UNFINISHED
    remove_path(unfinished)
    unfinished.mkdir()
    certificate_files.write(unfinished, outcome, plan, settings["sigma"], precision)
    of_certified = labels[np.searchsorted(ids, outcome.ids)]
    metrics = _write(unfinished, settings, num_classes, of_certified, outcome, opened)
    write_text(unfinished / "settings.yaml", config.dumps(_PROGRAM, _written(settings)))
    names = sorted(path.name for path in unfinished.iterdir())
    certificate_files.finish(unfinished, output)
    failed = {str(example_id): reason(why) for example_id, why in sorted(outcome.failures.items())}
    paths = {name: str((output / name).absolute()) for name in names}
    with said.result(command=_command(settings), metrics=metrics, failed=failed, paths=paths):
        _print_result(output, metrics, outcome.failures)
    return 1 if outcome.failures else 0


def _tell(settings, said, forecast):
    """Says what would be drawn. Returns the exit status."""
    with said.result(command=_command(settings), dry_run=forecast.as_json()):
        print(f"  To draw: {forecast}." if forecast.samples else "  Every sample has already been drawn.")
        console.print_if_long(forecast.seconds or 0, sampling_plan.cheaper(settings, "max"))
        print("Nothing was certified or written.")
    return 0


def _load(settings, snapshot, plan):
    """The `Sampler`, and what it loads."""
    from macer_tf.noisy_training import NoisyTrainingModel
    from pipeline.certification import classifiers, workers
    from pipeline.data import class_numbers

    loading = classifiers.Loading(
        *(settings[name] for name in ("model_output", "custom_objects", "trust_model", "model"))
    )
    model = classifiers.load(snapshot.path, loading)
    if settings["sigma"] is None and isinstance(model, NoisyTrainingModel):  # another's `sigma` may be anything
        settings["sigma"] = model.sigma
    if settings["sigma"] is None:
        raise InputError("--sigma is missing: the noise level that the model was trained at, in [0, 1] pixel units.")
    plan.check_sigma(settings["sigma"])
    classes = class_numbers.read(settings["classes"]) if settings["classes"] else None
    source = _source(settings, classifiers.base(model).input_shape[1:], classes)
    sampler = workers.Sampler(
        str(snapshot.path), source, settings["sigma"], settings["seed"], plan.betas, loading, settings["levels"]
    )
    return sampler, sampler.load(model)


def _source(settings, shape, classes):
    from pipeline.data import sources

    size = settings["image_size"]
    shape = tuple(size if side is None else side for side in shape)
    if None in shape:
        raise InputError(
            f"The model takes images of any size, {shape}, and --image_size does not say which; folders and .npz files "
            "need a model of one size."
        )
    if settings["dataset"] is not None:
        return sources.TFDSSplit(settings["dataset"], shape, settings["data_dir"], settings["split"], size)
    return sources.at(settings["images"], shape, classes, settings["resize"])


def _labels(settings, opened, ids, num_classes):
    """int64 [images], -1 where the source does not give one."""
    from pipeline.data import sources

    if not opened.has_labels:
        return np.full(len(ids), -1)
    labels = np.array([opened.label(example_id) for example_id in ids.tolist()], np.int64)
    names, are_folders = opened.class_names, settings["images"] and opened.name(0) is not None
    # Numbers would mean different classes in the model and in the images.
    line = f"The model has {num_classes} classes, but the images have"
    if names is not None and len(names) != num_classes:
        remedy = " Number the folders with --classes, or make an empty one for each missing class."
        said = f"{line} {len(names)}, {sources.some(names)}: their numbers must mean the same."
        raise InputError(said + (remedy if are_folders else ""))
    if labels.max() >= num_classes:
        example_id = int(ids[labels.argmax()])
        name, remedy = opened.name(example_id), " Number the folders from 0, by their names or with --classes."
        raise InputError(
            f"{line} {labels.max() + 1}: their numbers must mean the same. Image {example_id}"
            f"{f', {printable(name)},' if name else ''} is of class {labels.max()}; accepted: 0 to {num_classes - 1}."
            f"{remedy if are_folders else ''}"
        )
    return labels


def _check_grid(loaded, ids):
    """Raises InputError if all readable images are off the grid of the noise: otherwise each would fail separately."""
    from macer_tf.grid_noise import to_grid

    off = None
    for example_id in ids.tolist():
        try:
            image = loaded.images.image(example_id)
        except ValueError:
            continue
        try:
            to_grid(image, loaded.smoothed.levels)
        except ValueError as error:
            off = off or error
        else:
            return
    if off is not None:
        raise InputError(f"No image can be certified. {off} Give the images' levels with --levels.")


def _code(settings, classifier, image_shape):
    """What identifies the code that comes with the model, as part of what identifies its votes."""
    from pipeline.certification import classifiers

    module = settings["custom_objects"]
    if module is None:
        return {}
    outputs = classifiers.behaviour(classifier, image_shape)
    return {"custom_objects": code_lib.digest_as_imported(module), "outputs": outputs}


def _check_unchanged(settings, snapshot):
    """Raises InputError unless what was loaded is what was fingerprinted; says if the model has changed since."""
    from pipeline.certification import classifiers

    snapshot.check()
    if places.is_url(settings["model"]):
        return
    try:
        is_the_same = classifiers.model_fingerprint(settings["model"]) == snapshot.fingerprint
    except (OSError, ValueError):  # it is gone, or just being replaced
        is_the_same = False
    if not is_the_same:
        model = printable(settings["model"])
        print(f"{model} has been replaced since then: the certificates are for the model that was there before.")


def _print_settings(settings, plan, classifier, precision, opened, ids):
    shape = sides(classifier.input_shape[1:])
    model, images = printable(settings["model"]), printable(settings["dataset"] or settings["images"])
    print(f"{model}: images {shape} to {classifier.output_shape[-1]} classes, precision: {precision}")
    print(
        f"  Images: {len(ids):,} of {len(opened.ids):,} of {images} (ids {ids[0]} to {ids[-1]})"
        f"{'' if opened.has_labels else ', without labels'}, {_resized(settings)}given to the model in [0, 1]"
    )
    entries = [
        [setting.name, command_line.in_words(setting, settings[setting.name])] for setting in _GROUPS["Certification"]
    ]
    listing = _listing(settings) if settings["verbose"] else {"Certification": entries}
    console.print_listing(listing, sampling_plan.notes_on(settings["sigma"]))
    if plan.radii is None:
        largest = certificates_lib.max_radius(settings["sigma"], plan.n, plan.alpha, plan.kinds[0][1])
        print(f"  The largest radius that n samples can certify is {words.at_least(largest, 3)}.", flush=True)


def _resized(settings):
    """What was done to the images beforehand, in words."""
    size = settings["image_size"]
    if settings["resize"]:
        return "resized to that and cropped, "
    return f"resized and cropped to {size}x{size}, " if size else ""


def _write(directory, settings, num_classes, labels, outcome, opened):
    """Writes logs, failures, metrics and the page beside the certificates. Returns the metrics."""
    from pipeline.report import classifier_report

    certified = certificate_files.read(directory)
    about, ids, votes, kinds = certified
    write_text(directory / "failed.tsv", _failed(outcome.failures, opened))
    metrics = results.write(
        directory,
        certified,
        labels,
        names=opened.names(ids),
        **{name: value for name, value in about.items() if name not in ("format", "radii")},
        decided_radii=about["radii"],
        num_failed=len(outcome.failures),
        resize=settings["resize"],
        image_size=settings["image_size"],
        seed=settings["seed"],
        num_classes=num_classes,
    )
    if len(ids):
        told = {"listing": _listing(settings), "command": _command(settings)}
        found = classifier_report.Found(ids, votes, kinds, labels, outcome, opened)
        classifier_report.write(directory, settings, metrics, found, **told)
    return metrics


def _failed(failures, opened):
    """The text of failed.tsv, with the images' files if they have any."""
    rows, file = io.StringIO(), ["file"] if opened.name(0) is not None else []
    writer = csv.writer(rows, delimiter="\t", lineterminator="\n")
    writer.writerow(["idx", "reason", *file])
    for example_id, why in sorted(failures.items()):
        writer.writerow([example_id, reason(why), *(printable(opened.name(example_id)) for _ in file)])
    return rows.getvalue()


def _listing(settings):
    return {
        title: [[one.name, command_line.in_words(one, settings[one.name]), one.meaning] for one in group]
        for title, group in _GROUPS.items()
        if title != "Run"
    }


def _command(settings):
    """A command line that produces these certificates."""
    defaults = command_line.defaults(_GROUPS)
    values = [f"--{name}={text}" for name, text in _written(settings).items() if settings[name] != defaults[name]]
    return shlex.join([*_PROGRAM.split(), *map(printable, values)])


def _written(settings):
    """Name -> text of the settings, as in a settings file: all that can change a result."""
    idle = _idle(settings)
    texts = {
        one.name: command_line.as_given(one, settings[one.name])
        for title, group in _GROUPS.items()
        for one in group
        if title != "Run" and one.name not in idle
    }
    return {name: text for name, text in texts.items() if text is not None}


def _print_result(output, metrics, failures):
    if "acr" in metrics:
        print(f"\n{words.HEADER}")
        if metrics["decided_radii"]:
            print("Sampled only to decide these radii: the radii, and so the ACR, could be larger.")
        rows = [results.row(name, of_kind) for name, of_kind in metrics["certificates"].items()]
        print(console.table(results.header("certificates", metrics["radii"]), rows))
        chance = results.twice_chance(metrics["num_classes"])
        if not metrics["decided_radii"] and metrics["certified_accuracy"][0] <= chance:
            print("Hardly above chance: does the model expect images in [0, 1], and was it trained at this noise?")
    elif metrics["num_images"]:
        median = metrics["median_radius"]
        print(
            f"\nCertified: {metrics['num_certified']:,} of {metrics['num_images']:,} images"
            f"{'' if median is None else f', median radius {words.at_least(median, 4)}'}"
        )
    if metrics["num_images"]:
        images = "1 image" if metrics["num_images"] == 1 else f"{metrics['num_images']:,} images"
        print(f"{images}; {console.cost_in_words(metrics)}")
    if failures:
        example_id, why = min(failures.items())
        those = "1 image failed and has no certificate:"
        if len(failures) > 1:
            those = f"{len(failures):,} images failed and have no certificate; the first is"
        print(f"{those} image {example_id}: {reason(why)}")
    failed = f"; failed images: {printable(output / 'failed.tsv')}" if failures else ""
    print(f"\nCertificates: {printable(output / 'certificates.tsv')}{failed}")
    if metrics["num_images"]:
        print(f"Page: {printable(output / 'report.html')}")
