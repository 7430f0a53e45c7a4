"""SweepEvaluator: the certificates of a sweep's members -> one table, one figure and one page."""

import csv
import io
import json
import re

import numpy as np

from macer_tf import certification_log, evaluation
from pipeline.certification import certificate_files
from pipeline.components import evaluator
from pipeline.data import examples as examples_lib
from pipeline.experiments import settings as settings_lib
from pipeline.orchestration.orchestrator import Component
from pipeline.report import results, sweep_report
from pipeline.utils import places
from pipeline.utils.atomic_files import write_text
from pipeline.utils.numbers import exactly
from serving.fingerprints import file_digest

_OF_A_MEMBER = ("bound", "beta", "num_images", "acr", "acr_standard_error", "abstained", "certified_accuracy")


def component(inputs):
    """The component for a sweep whose finished members' artifacts are named examples_0, model_0, certificates_0, ..."""
    return Component("SweepEvaluator", inputs, ("comparison",), ("sweep",), evaluate)


def evaluate(execution):
    """Compares the members, and writes sweep.json, sweep.csv, the page with its figure, and each member's log."""
    sweep, output = execution.parameters["sweep"], execution.outputs["comparison"]
    finished = [entry for entry in sweep["members"] if entry["failure"] is None]
    ranges = (evaluation.default_radii(*(entry[name] for name in ("sigma", "n", "alpha"))) for entry in finished)
    radii = max(ranges, key=len)
    members, curves, reference = [], {}, None
    for place, entry in enumerate(sweep["members"]):
        member = {**entry, "difference": None, "seconds_per_epoch": None}
        members.append(member)
        if entry["failure"] is not None:
            continue
        inputs = {name: execution.inputs[f"{name}_{place}"].path for name in ("examples", "model", "certificates")}
        value = places.short(re.sub(r"[^\w.+-]", "_", entry["value"]))
        evaluated, correct_radii, images = _member(inputs, radii, output / f"{place + 1}-{sweep['name']}-{value}.tsv")
        credited = np.maximum(correct_radii, 0)
        if reference is None:
            reference = (entry["value"], images, credited)
        elif images == reference[1]:
            mean, standard_error = evaluation.mean_and_standard_error(credited - reference[2])
            member["difference"] = {"mean": mean, "standard_error": results.in_json(standard_error)}
        member |= evaluated
        curves[entry["value"]] = correct_radii
    comparison = {"setting": sweep["name"], "reference": reference[0], "radii": radii, "members": members}
    write_text(output / "sweep.json", json.dumps(comparison, indent=1))
    write_text(output / "sweep.csv", _as_csv(comparison))
    sweep_report.write(output, comparison, curves, settings_lib.with_meanings(sweep["listing"]))


def _member(inputs, radii, log_path):
    """Writes a member's log. Returns facts about it, its images' correct radii, and what identifies these images."""
    examples = examples_lib.read(inputs["examples"])
    _, ids, votes, kinds = certificate_files.read(inputs["certificates"])
    certified = next(iter(kinds.values()))
    labels = examples.labels["test"][ids]
    certification_log.write(log_path, certified, labels, ids, examples.names_of(ids))
    measured = results.of(kinds, votes, labels, radii)
    evaluated = {
        "seconds_per_epoch": seconds_per_epoch(inputs["model"] / "seconds.csv"),
        "image_set": evaluator.image_set(examples, ids),
        **{name: measured[name] for name in _OF_A_MEMBER},
    }
    digests = (file_digest(inputs["examples"] / f"test_{what}.npy") for what in ("images", "labels"))
    return evaluated, evaluation.correct_radii(certified, labels), (*digests, ids.tolist())


def seconds_per_epoch(path):
    """The median over the epochs in `seconds.csv`, of which the first also builds the graph; None without the file."""
    try:
        with open(path, newline="") as file:
            return float(np.median([float(row["seconds"]) for row in csv.DictReader(file)]))
    except FileNotFoundError:
        return None


def _as_csv(comparison):
    columns = (
        *("acr", "acr_standard_error", "abstained", "seconds_per_epoch", "epochs", "num_images"),
        *("sigma", "n0", "n", "alpha", "seed", "failure"),
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    accuracies = [f"certified_accuracy_{exactly(radius)}" for radius in comparison["radii"]]
    writer.writerow([comparison["setting"], *accuracies, "difference", "difference_standard_error", *columns])
    for member in comparison["members"]:
        difference = member["difference"] or {"mean": None, "standard_error": None}
        differences = (difference["mean"], difference["standard_error"])
        of_member = (*sweep_report.accuracies(comparison, member), *differences, *map(member.get, columns))
        writer.writerow([member["value"], *of_member])
    return text.getvalue()
