"""Exporter: model -> a SavedModel that returns the smoothed prediction."""

from pipeline.data import examples as examples_lib
from pipeline.orchestration.artifacts import private_copy
from pipeline.orchestration.orchestrator import Component
from pipeline.training import models
from serving.export import export


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


EXPORTER = Component(
    name="Exporter",
    inputs=("model", "examples"),
    outputs=("saved_model",),
    parameters=("n0", "serving_n", "alpha"),
    execute=export_model,
)
