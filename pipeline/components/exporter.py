"""Exporter: model -> a SavedModel that returns the smoothed prediction."""

from macer_tf import early_exit
from pipeline.data import examples as examples_lib
from pipeline.orchestration.artifacts import Artifact, private_copy
from pipeline.orchestration.orchestrator import Component, Resolver
from pipeline.training import models
from pipeline.utils.errors import InputError
from serving.export import export
from serving.signatures import PREDICT_LIMIT


def export_model(execution):
    """Exports with n = serving_n, since a request cannot wait for the n of an evaluation."""
    settings = execution.parameters
    examples = examples_lib.read(execution.inputs["examples"].path)
    model = private_copy(execution.inputs["model"], execution.scratch / "model")
    export(
        models.load(model / "model.keras"),
        execution.outputs["saved_model"],
        n0=settings["n0"],
        n=settings["serving_n"],
        alpha=settings["alpha"],
        class_names=distinct(examples.class_names),
        pixel_max=examples.pixel_max,
        model_fingerprint=execution.inputs["model"].fingerprint,
    )


def distinct(names):
    """Names of classes; where several classes share a name, each has its class number appended."""
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]


def _check_can_be_served(artifacts, settings, root):
    """Raises InputError before training, once the number of classes is known, if `export` would refuse serving_n."""
    num_classes = examples_lib.read(artifacts["examples"].path).num_classes
    try:
        early_exit.check_can_decide(PREDICT_LIMIT * settings["serving_n"], num_classes, settings["alpha"])
    except ValueError as error:
        raise InputError(
            f"serving_n={settings['serving_n']} is too small: a served prediction takes up to {PREDICT_LIMIT} times as "
            f"many samples. {error}"
        ) from None
    return Artifact(None, "none")


# Looks nothing up.
CAN_BE_SERVED = Resolver("can_be_served", _check_can_be_served)
EXPORTER = Component(
    name="Exporter",
    inputs=("model", "examples"),
    outputs=("saved_model",),
    parameters=("n0", "serving_n", "alpha"),
    execute=export_model,
)
