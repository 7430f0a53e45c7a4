"""Exporter: model -> a SavedModel that returns the smoothed prediction."""

from pipeline import models
from pipeline.orchestrator import Component
from serving.export import export


def export_model(execution):
    """Exports with n = serving_n, since a request cannot wait for the n of an evaluation."""
    settings = execution.parameters
    export(
        models.load(execution.inputs["model"].path / "model.keras"),
        execution.outputs["saved_model"],
        n0=settings["n0"],
        n=settings["serving_n"],
        alpha=settings["alpha"],
    )


EXPORTER = Component(
    name="Exporter",
    inputs=("model",),
    outputs=("saved_model",),
    parameters=("n0", "serving_n", "alpha"),
    execute=export_model,
)
