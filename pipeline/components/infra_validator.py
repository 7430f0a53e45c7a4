"""InfraValidator: loads the SavedModel in a fresh process, as a server would, and runs it on test images."""

import json

import numpy as np

from pipeline.data import examples as examples_lib
from pipeline.orchestration.artifacts import private_copy
from pipeline.orchestration.orchestrator import Component
from pipeline.utils.atomic_files import write_text
from serving.validate import in_fresh_process

_NUM_IMAGES = 4


def validate(execution):
    """Records whether the model passed the checks of `serving.validate`, which ones these are, and its answers.

    Raises:
        RuntimeError: if it does not answer in time, which says more about this machine than about the model.
    """
    examples = examples_lib.read(execution.inputs["examples"].path)
    ids = examples_lib.evenly_spaced(len(examples.labels["test"]), _NUM_IMAGES)
    images = execution.scratch / "images.npy"
    np.save(images, examples.scaled("test", ids))
    saved_model = private_copy(execution.inputs["saved_model"], execution.scratch / "saved_model")
    found, problem = in_fresh_process(saved_model, images)
    found = found or {"answers": None, "checks": []}
    result = {"passed": not problem, "reason": problem, "example_ids": ids.tolist(), **found}
    write_text(execution.outputs["infra_blessing"] / "infra_blessing.json", json.dumps(result, indent=1))


INFRA_VALIDATOR = Component(
    name="InfraValidator",
    inputs=("saved_model", "examples"),
    outputs=("infra_blessing",),
    parameters=(),
    execute=validate,
)
