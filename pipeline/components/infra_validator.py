"""InfraValidator: loads the SavedModel in a fresh process, as a server would, and runs it on test images."""

import json
import re
import subprocess
import sys

import numpy as np

from pipeline import examples as examples_lib
from pipeline.artifacts import write_text
from pipeline.orchestrator import Component

_NUM_IMAGES = 4
_TIMEOUT_SECONDS = 600


def validate(execution):
    """Writes whether the model passed, the reason if it did not, and what it answered.

    Raises:
        RuntimeError: if it does not answer in time, which says more of this machine than of the model.
    """
    examples = examples_lib.read(execution.inputs["examples"].path)
    ids = examples_lib.evenly_spaced(len(examples.labels["test"]), _NUM_IMAGES)
    images = execution.scratch / "images.npy"
    np.save(images, examples.scaled("test", ids))
    command = [sys.executable, "-m", "serving.validate", execution.inputs["saved_model"].path, images]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the SavedModel did not answer within {_TIMEOUT_SECONDS} s; try again") from None
    problem = _problem(process, examples.num_classes)
    answers = None if problem else json.loads(process.stdout)
    result = {"passed": not problem, "reason": problem, "image_ids": ids.tolist(), "answers": answers}
    write_text(execution.outputs["infra_blessing"] / "infra_blessing.json", json.dumps(result, indent=1))


def _problem(process, num_classes):
    """Why the model does not pass, in one line; empty if it does."""
    if process.returncode:
        # TensorFlow's messages go on for lines behind the first.
        errors = re.findall(r"^[\w.]*(?:Error|Exception): .*", process.stderr, re.MULTILINE)
        return errors[-1] if errors else f"the process died with exit status {process.returncode}"
    answers = json.loads(process.stdout)
    for prediction, radius, share in zip(
        answers["predicted_class"], answers["radius"], answers["vote_share"], strict=True
    ):
        abstained = prediction == -1 and radius == 0
        certified = 0 <= prediction < num_classes and radius >= 0 and share > 0.5
        if not (abstained or certified):
            return f"impossible answer: class {prediction}, radius {radius}, vote share {share}"
    return ""


INFRA_VALIDATOR = Component(
    name="InfraValidator",
    inputs=("saved_model", "examples"),
    outputs=("infra_blessing",),
    parameters=(),
    execute=validate,
)
