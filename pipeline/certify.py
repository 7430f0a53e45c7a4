"""Certifies anyone's classifier: python -m pipeline.certify --model model.keras --dataset mnist --sigma 0.25

On Beam, as the whole job does. The same command again draws no sample again; after a kill it goes on from where it was.
"""

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from macer_tf import certificates as certificates_lib
from macer_tf import evaluation, logs
from pipeline import command_line, console, orchestrator
from pipeline.artifacts import Artifact, file_digest, write_text
from pipeline.command_line import ABOVE_0, FOLDER, INSIDE_0_1, PATH, SEED, TEXT, Setting, none_or, whole
from pipeline.errors import InputError, exit_status
from serving.versions import flush

_GROUPS = {
    "Model and images": (
        Setting("model", PATH, ".keras or .h5 file, or a SavedModel's folder", None, "required"),
        Setting("dataset", TEXT, "a data set of TFDS by its name, or digits", None, "or --images"),
        Setting("split", TEXT, "of the data set", None, "its test split"),
        Setting("data_dir", FOLDER, "folder of prepared TFDS data", None, "TFDS's own"),
        Setting("image_size", none_or("none", whole(1)), "resize and crop a data set to this side, pixels", None),
        Setting("images", PATH, "a folder of PNG and JPEG files, or an .npz file", None, "or --dataset"),
        Setting("skip", whole(1), "certify images 0, skip, 2 skip, ...", 1),
        Setting("start", whole(0), "of these, from this image on", 0),
        Setting("max", none_or("all", whole(1)), "and up to this image: a bound on its number, not a count", None),
    ),
    "Certification": (
        Setting("sigma", ABOVE_0, "noise level, in [0, 1] pixel units", None, "that of a model trained here"),
        Setting("n0", whole(1), "samples that choose the class", 100),
        Setting("n", whole(1), "samples that bound its probability", 100_000),
        Setting("alpha", INSIDE_0_1, "probability that a certificate is false", 0.001),
        Setting("seed", SEED, "of the noise", 0),
    ),
    "Run": (
        Setting("output", FOLDER, "where certificates and votes are kept", "certified"),
        Setting("num_workers", whole(1), "certification threads", None, "one a core"),
    ),
}
_ARCHIVE = ".npz"


def main(arguments=None):
    """Certifies. Returns the exit status: 0, 1 if an image or the job failed, 2 for bad input, 130 for Ctrl-C."""
    console.quiet()

    def parse():
        settings = _settings(sys.argv[1:] if arguments is None else arguments)
        return settings, Path(settings["output"])

    def work(settings):
        output = Path(settings["output"])
        with orchestrator.locked(output, "--output"):
            return _certify(settings, output)

    return exit_status(parse, work, "What was drawn")


def _settings(arguments):
    given = command_line.given(
        arguments,
        _GROUPS,
        prog="python -m pipeline.certify",
        usage="%(prog)s --model PATH (--dataset NAME | --images PATH) [options]",
        description="Certifies a classifier that returns logits or probabilities for images in [0, 1]: which class "
        "the smoothed classifier returns, and within which l2 radius it cannot change. In brackets: the default.",
    )
    settings = {setting.name: setting.default for group in _GROUPS.values() for setting in group} | given
    if settings["model"] is None:
        raise InputError("--model is missing: a .keras or .h5 file, or a SavedModel's folder.")
    if (settings["dataset"] is None) == (settings["images"] is None):
        raise InputError("Give the images by --dataset or by --images, one of them.")
    of_data_sets = [name for name in ("split", "data_dir", "image_size") if settings["images"] and name in given]
    if of_data_sets:
        raise InputError(f"--{of_data_sets[0]} is for --dataset, not for --images.")
    try:
        certificates_lib.check_can_certify(settings["n"], settings["alpha"])
    except ValueError as error:
        raise InputError(f"--n is too small. {error}") from None
    return settings


def _certify(settings, output):
    # Only now, so that --help and a typo do not wait for TensorFlow.
    console.import_tensorflow()
    from pipeline import certification, classifiers, images
    from pipeline.ledger import new_or_resumed

    model = classifiers.load(settings["model"])
    classifier = classifiers.base(model)
    settings["sigma"] = settings["sigma"] or getattr(model, "sigma", None)
    if settings["sigma"] is None:
        raise InputError("--sigma is missing: the noise level that the model was trained at, in [0, 1] pixel units.")
    sampler = certification.Sampler(
        settings["model"], _source(images, settings, classifier.input_shape[1:]), settings["sigma"], settings["seed"]
    )
    opened = sampler.source.open()
    ids = images.select(opened.ids, **{name: settings[name] for name in ("skip", "start", "max")})
    num_classes = classifier.output_shape[-1]
    labels = _labels(opened, ids, num_classes)
    precision = _precision(settings["model"], classifier)
    _print_plan(settings, classifier, precision, opened, ids)

    identity = {
        "model": _fingerprint(settings["model"]),
        "images": opened.fingerprint(ids),
        **{name: settings[name] for name in ("sigma", "seed", "n0", "n")},
        "samples_per_chunk": certification.SAMPLES_PER_CHUNK,
    }
    unfinished = output / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    failures = certification.run(
        sampler,
        ids,
        num_classes,
        **{name: settings[name] for name in ("n0", "n", "alpha")},
        ledger_path=new_or_resumed(output / "votes", identity),
        num_workers=settings["num_workers"] or os.cpu_count(),
        output_path=unfinished,
    )
    certified_ids, _, certified = certification.read(
        unfinished, settings["sigma"], settings["n0"], settings["n"], settings["alpha"]
    )
    of_certified = labels[np.searchsorted(ids, certified_ids)]
    _write(unfinished, settings, precision, num_classes, certified_ids, of_certified, certified, failures)
    for file in sorted(unfinished.iterdir()):
        flush(file)
        os.replace(file, output / file.name)
    unfinished.rmdir()
    _print_result(output, certified_ids, certified, failures)
    return 1 if failures else 0


def _source(images, settings, shape):
    size = settings["image_size"]
    shape = tuple(size if side is None else side for side in shape)
    if None in shape:
        raise InputError(
            f"The model takes images of any size, {shape}, and --image_size does not say which; folders and .npz files "
            "need a model of one size."
        )
    if settings["dataset"] is not None:
        return images.TFDSSplit(settings["dataset"], shape, settings["data_dir"], settings["split"], size)
    kind = images.Archive if Path(settings["images"]).suffix == _ARCHIVE else images.Folder
    return kind(settings["images"], shape)


def _labels(opened, ids, num_classes):
    """int64 [images], -1 where the source does not tell."""
    if not opened.has_labels:
        return np.full(len(ids), -1)
    labels = np.array([opened.label(image_id) for image_id in ids.tolist()], np.int64)
    named = num_classes if opened.class_names is None else len(opened.class_names)
    if named != num_classes or labels.max() >= num_classes:
        # Numbers would mean other classes here than there.
        raise InputError(
            f"The model has {num_classes} classes, the images have {max(named, labels.max() + 1)}: their numbers must "
            "mean the same."
        )
    return labels


def _precision(path, classifier):
    from macer_tf.inference import own_precision
    from pipeline import classifiers

    return "as saved" if classifiers.is_saved_model(path) else own_precision(classifier)


def _fingerprint(path):
    return Artifact.of(path).fingerprint if Path(path).is_dir() else file_digest(path)


def _print_plan(settings, classifier, precision, opened, ids):
    shape = "x".join(map(str, classifier.input_shape[1:]))
    images = settings["dataset"] or settings["images"]
    print(f"{settings['model']}: images {shape} to {classifier.output_shape[-1]} classes, precision: {precision}")
    print(f"  Images: {len(ids):,} of {len(opened.ids):,} of {images} (ids {ids[0]} to {ids[-1]})"
          f"{'' if opened.has_labels else ', without labels'}, given to the model in [0, 1]")  # fmt: skip
    names = ("sigma", "n0", "n", "alpha", "seed")
    print("  Certification: " + ", ".join(f"{name}={settings[name]}" for name in names))
    largest = certificates_lib.max_radius(settings["sigma"], settings["n"], settings["alpha"])
    print(f"  The largest radius that n samples can certify is {largest:.3f}.", flush=True)


def _write(directory, settings, precision, num_classes, ids, labels, certified, failures):
    from pipeline.components.evaluator import radii

    logs.write(directory / "certificates.tsv", certified, labels, ids)
    rows = io.StringIO()
    writer = csv.writer(rows, delimiter="\t", lineterminator="\n")
    writer.writerow(("idx", "reason"))
    writer.writerows(sorted(failures.items()))
    write_text(directory / "failed.tsv", rows.getvalue())
    metrics = {
        "num_images": len(ids),
        "num_failed": len(failures),
        **{name: settings[name] for name in ("sigma", "n0", "n", "alpha", "seed")},
        "precision": precision,
        "num_classes": num_classes,
        "abstained": float(np.mean(certified.predictions == certificates_lib.ABSTAIN)) if len(ids) else None,
    }
    # The source tells all labels or none.
    if (labels >= 0).any():
        result = evaluation.evaluate(certified, labels, radii(settings))
        metrics |= {
            name: getattr(result, name) for name in ("acr", "acr_standard_error", "radii", "certified_accuracy")
        }
    write_text(directory / "metrics.json", json.dumps(metrics, indent=1))


def _print_result(output, ids, certified, failures):
    metrics = json.loads((output / "metrics.json").read_text())
    if "acr" in metrics:
        print("\nCertified accuracy at l2 radius, and average certified radius (ACR ± standard error)")
        acr = f"{metrics['acr']:.4f} ± {metrics['acr_standard_error']:.4f}"
        accuracies = [f"{accuracy:.3f}" for accuracy in metrics["certified_accuracy"]]
        header = ["radius", *(f"{radius:g}" for radius in metrics["radii"]), "ACR"]
        print(console.table(header, [["this model", *accuracies, acr]]))
        chance = 1 / metrics["num_classes"]
        if metrics["certified_accuracy"][0] < min(2 * chance, (1 + chance) / 2):
            print("Hardly above chance: does the model expect images in [0, 1], and was it trained at this noise?")
    elif len(ids):
        radii = certified.radii[certified.predictions != certificates_lib.ABSTAIN]
        print(f"\nCertified: {len(radii):,} of {len(ids):,} images"
              f"{f', median radius {np.median(radii):.4f}' if len(radii) else ''}")  # fmt: skip
    if len(ids):
        print(f"{len(ids):,} images, {100 * metrics['abstained']:.1f} % abstained")
    if failures:
        image_id, reason = min(failures.items())
        print(f"{len(failures):,} images failed and have no certificate, image {image_id} first: {reason}")
    print(f"\nCertificates: {output / 'certificates.tsv'}; failed images: {output / 'failed.tsv'}")


if __name__ == "__main__":
    sys.exit(main())
