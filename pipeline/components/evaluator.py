"""Evaluator: certificates -> metrics, the blessing and the report."""

import csv
import json

import numpy as np

from macer_tf import certification_log, evaluation
from macer_tf.grid_noise import GridNoise
from pipeline.certification import certificate_files
from pipeline.data import examples as examples_lib
from pipeline.experiments import methods
from pipeline.experiments import settings as settings_lib
from pipeline.orchestration.artifacts import Artifact, private_copy
from pipeline.orchestration.orchestrator import Component, Resolver, finished
from pipeline.report import certification_report, charts, results, words
from pipeline.training import models
from pipeline.utils.atomic_files import write_text
from serving import blessing as blessing_lib
from serving import card

# With this many images, an accuracy's standard error is at most 0.05 = sqrt(0.25 / 100), and the accuracy is normal
# enough for the two standard errors by which models are compared.
MIN_IMAGES = 100
_NO_BASELINE = Artifact(None, "none")
_COMPARABLE = ("sigma", "n0", "n", "alpha", "certify", "budget")


def evaluate(execution):
    """Evaluates the certificates, blesses the model or not, and writes report, figures and the field's log."""
    settings, output = execution.parameters, execution.outputs["evaluation"]
    examples = examples_lib.read(execution.inputs["examples"].path)
    certificates = certificate_files.read(execution.inputs["certificates"].path)
    _, ids, votes, kinds = certificates
    certified = next(iter(kinds.values()))
    labels = examples.labels["test"][ids]
    difference = _paired_difference(execution.inputs["baseline"], certified, labels)
    metrics = results.write(
        output,
        certificates,
        labels,
        settings["paper"] and settings["paper"]["radii"],
        names=examples.names_of(ids),
        image_set=image_set(examples, ids),
        difference_to_last_blessed=difference,
        **{name: settings[name] for name in (*_COMPARABLE, "seed")},
    )
    model = private_copy(execution.inputs["model"], execution.scratch / "model")
    reasons = _reasons_against(metrics, difference, settings["min_accuracy"], examples.num_classes)
    blessing = _blessing(execution, model, reasons, metrics, certified)
    write_text(output / "blessing.json", json.dumps(blessing, indent=1))
    kinds = {name: evaluation.correct_radii(of_kind, labels) for name, of_kind in kinds.items()}
    certification_report.write(
        output,
        certification_report.Evaluated(
            metrics=metrics,
            blessing=blessing,
            correct_radii=kinds,
            certificates=certified,
            votes=votes,
            ids=ids,
            labels=labels,
            class_names=examples.class_names,
            names=examples.names_of(ids),
            history=_history(model / "history.csv"),
            finished_at=_finished_at(execution.inputs["certificates"]),
            **_from_settings(settings),
            **_pixels(settings, examples, ids),
        ),
    )


def _blessing(execution, model, reasons, metrics, certified):
    return blessing_lib.make(
        execution.inputs["model"].fingerprint,
        card.fingerprint(models.load(model / "model.keras").classifier),
        reasons=reasons,
        examples=execution.inputs["examples"].fingerprint,
        num_test_examples=metrics["num_images"],
        bound=certified.bound,
        beta=certified.beta,
        **{name: metrics[name] for name in ("acr", "acr_standard_error")},
        **{name: execution.parameters[name] for name in _COMPARABLE},
    )


def _from_settings(settings):
    """The fields of an `Evaluated` that follow from the run's settings."""
    listed = {name: value for entries in settings["listing"].values() for name, value, *_ in entries}
    network = f", {listed['network']}" if "network" in listed else ""
    return {
        "title": f"{methods.find(listed['method']).label}{network} on {listed['dataset']}, sigma = "
        f"{settings['sigma']:g}",
        "color": charts.METHOD_COLORS.get(listed["method"], charts.COLORS - 1),
        "command": settings_lib.command(settings["listing"]),
        "listing": settings_lib.with_meanings(settings["listing"]),
        "paper": settings["paper"],
    }


def _pixels(settings, examples, ids):
    grid = GridNoise(settings["sigma"], examples.levels)
    noise_of = certification_report.first_noise(grid, examples.image_shape, settings["seed"], ids)
    return {"image": lambda position: examples.scaled("test", ids[position]), "noise": noise_of}


def _history(path):
    """Name -> float64 [epochs]. Not by NumPy's reader, which would split a name at a comma, and cut it at a #."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def _finished_at(artifact):
    """When an artifact was finished, according to its record; None without one."""
    try:
        return json.loads((artifact.path.parent / "execution.json").read_text())["finished_at"]
    except FileNotFoundError:
        return None


def latest_blessed(artifacts, settings, root):
    """The evaluation of the most recently blessed other model, on the same images, noise level, n and alpha.

    By the same bound, too: an n that was chosen after a look takes another bound, which says nothing about the model.
    And if they are soft certificates, at the same inverse temperature, which by itself makes radii larger or smaller.
    """
    total = len(examples_lib.read(artifacts["examples"].path).labels["test"])
    count = len(examples_lib.evenly_spaced(total, settings["num_test_examples"]))
    kind = certificate_files.read(artifacts["certificates"].path)[0]["kinds"][0]
    for outputs in finished(root, "Evaluator"):
        evaluated = outputs["evaluation"]
        blessing = json.loads((evaluated.path / "blessing.json").read_text())
        if (
            blessing["blessed"]
            and blessing["model"] != artifacts["model"].fingerprint
            and blessing["examples"] == artifacts["examples"].fingerprint
            and blessing["num_test_examples"] == count
            and all(blessing.get(name) == kind[name] for name in ("bound", "beta"))
            and all(blessing.get(name) == settings[name] for name in _COMPARABLE)
        ):
            return evaluated
    return _NO_BASELINE


def image_set(examples, ids):
    """The test images `ids` in words."""
    total = len(examples.labels["test"])
    description = examples.descriptions["test"]
    return (
        description if len(ids) == total else f"{len(ids):,}, evenly spaced, of the {description.removeprefix('the ')}"
    )


def _paired_difference(baseline, certified, labels):
    """Mean difference of the certified radii from the baseline's on the same images, its standard error; or None."""
    if baseline.path is None:
        return None
    before = certification_log.read(baseline.path / "certificates.tsv")
    now, then = (np.maximum(evaluation.correct_radii(source, labels), 0) for source in (certified, before))
    mean, standard_error = evaluation.mean_and_standard_error(now - then)
    return {"mean": mean, "standard_error": standard_error, "baseline": str(baseline.path)}


def _reasons_against(metrics, difference, min_accuracy, num_classes):
    """Why the model is not blessed; empty if it is."""
    reasons = []
    if metrics["num_images"] < MIN_IMAGES:
        reasons.append(
            f"{metrics['num_images']} certified images are too few to judge a model by; it takes {MIN_IMAGES} or more"
        )
    min_accuracy = min_accuracy or results.twice_chance(num_classes)
    accuracy = metrics["certified_accuracy"][0]
    if not accuracy > min_accuracy:
        reasons.append(f"certified accuracy at radius 0 is {accuracy:.3f}, not above {min_accuracy:.3f}")
    if difference and difference["mean"] < -2 * difference["standard_error"]:
        reasons.append(
            f"ACR is {words.mean(-difference['mean'], difference['standard_error'])} below the last blessed model's "
            "on the same images"
        )
    return reasons


LATEST_BLESSED = Resolver(output="baseline", resolve=latest_blessed)

EVALUATOR = Component(
    name="Evaluator",
    inputs=("examples", "model", "certificates", "baseline"),
    outputs=("evaluation",),
    parameters=(*_COMPARABLE, "seed", "min_accuracy", "paper", "listing"),
    execute=evaluate,
    references=("certify",),
)
