"""Certifier: model and examples -> votes and certificates of test images, on Beam."""

from pipeline.certification import certificate_files, classifiers, driver, sampling_plan, workers
from pipeline.data import examples
from pipeline.orchestration.artifacts import private_copy
from pipeline.orchestration.orchestrator import Component


def certify(execution):
    """Certifies evenly spaced test images. Their votes are kept in the root and do not depend on n, alpha or images."""
    model = execution.inputs["model"]
    path = private_copy(model, execution.scratch / "model") / "model.keras"
    outcome, plan, precision = _votes(execution, path)
    certificate_files.write(execution.outputs["certificates"], outcome, plan, execution.parameters["sigma"], precision)


def votes_are_of(path, precision):
    """What identifies the classifier in a model's file, as in `pipeline.certify`: both see the same noise."""
    return {"model": classifiers.model_fingerprint(path), "precision": precision}


def _votes(execution, path):
    """What was drawn, by which plan, and the classifier's precision."""
    settings, data = execution.parameters, execution.inputs["examples"]
    split = examples.read(data.path)
    ids = examples.evenly_spaced(len(split.labels["test"]), settings["num_test_examples"])
    plan = sampling_plan.SamplingPlan.of_run(settings)
    sampler = workers.Sampler(
        str(path), examples.Source(str(data.path)), settings["sigma"], settings["seed"], plan.betas
    )
    loaded = sampler.load()
    precision = loaded.smoothed.precision
    outcome = driver.run_in(
        execution.root,
        sampler,
        loaded,
        votes_are_of(path, precision),
        ids,
        split.num_classes,
        plan,
        labels=split.labels["test"][ids],
        num_workers=execution.num_workers,
        engine=execution.engine,
        cheaper=sampling_plan.cheaper(settings, "num_test_examples"),
    )
    if outcome.failures:
        # Evaluating only the others would be an evaluation on another image set.
        example_id, reason = min(outcome.failures.items())
        raise RuntimeError(f"Image {example_id} cannot be certified ({len(outcome.failures)} in all): {reason}")
    return outcome, plan, precision


CERTIFIER = Component(
    name="Certifier",
    inputs=("model", "examples"),
    outputs=("certificates",),
    parameters=("sigma", "seed", "num_test_examples", "n0", "n", "alpha", "certify", "budget", "soft_betas"),
    execute=certify,
    references=("certify",),
)
