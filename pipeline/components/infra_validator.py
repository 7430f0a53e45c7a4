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
    """Writes whether the model passed the checks of `serving.validate`, which they are, and what it answered.

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
    problem = _problem(process)
    found = {"answers": None, "checks": []} if problem else json.loads(process.stdout)
    result = {"passed": not problem, "reason": problem, "image_ids": ids.tolist(), **found}
    write_text(execution.outputs["infra_blessing"] / "infra_blessing.json", json.dumps(result, indent=1))


def _problem(process):
    """Why the model does not pass, in one line; empty if it does."""
    if process.returncode == 0:
        return ""
    # TensorFlow's messages go on for lines behind the first.
    errors = re.findall(r"^[\w.]*(?:Error|Exception): .*", process.stderr, re.MULTILINE)
    return errors[-1] if errors else f"the process died with exit status {process.returncode}"


INFRA_VALIDATOR = Component(
    name="InfraValidator",
    inputs=("saved_model", "examples"),
    outputs=("infra_blessing",),
    parameters=(),
    execute=validate,
)
