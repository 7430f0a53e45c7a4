"""Certifier: model and examples -> votes and certificates of test images, on Beam."""

from pipeline.certification import certificate_files, driver, workers
from pipeline.certification.sampling_plan import SamplingPlan
from pipeline.certification.vote_store import VoteStore
from pipeline.data import examples
from pipeline.orchestration.artifacts import private_copy
from pipeline.orchestration.orchestrator import Component
from serving.fingerprints import fingerprint


def certify(execution):
    """Certifies evenly spaced test images. Their votes are kept in the root, apart from n, alpha and the images."""
    model = execution.inputs["model"]
    path = private_copy(model, execution.scratch / "model") / "model.keras"
    outcome, plan, precision = _votes(execution, path)
    certificate_files.write(execution.outputs["certificates"], outcome, plan, execution.parameters["sigma"], precision)


def _votes(execution, path):
    """What was drawn, the plan it was drawn by, and the classifier's precision."""
    settings, model, data = execution.parameters, execution.inputs["model"], execution.inputs["examples"]
    split = examples.read(data.path)
    ids = examples.evenly_spaced(len(split.labels["test"]), settings["num_test_examples"])
    plan = SamplingPlan.of_run(settings)
    sampler = workers.Sampler(
        str(path), examples.Source(str(data.path)), settings["sigma"], settings["seed"], plan.betas
    )
    loaded = sampler.load()
    precision = loaded.smoothed.precision
    identity = {
        "model": model.fingerprint,
        **{name: settings[name] for name in ("sigma", "seed", "n0")},
        "precision": precision,
        "noise": loaded.noise,
    }
    folder = fingerprint(identity)[:16]
    store = VoteStore(execution.root / "votes" / folder, identity, plan.first_look, split.num_classes, plan.betas)
    outcome = driver.run(
        sampler,
        ids,
        split.num_classes,
        plan,
        store,
        labels=split.labels["test"][ids],
        num_workers=execution.num_workers,
        loaded=loaded,
    )
    if outcome.failures:
        # An evaluation of the others would be of another image set.
        example_id, reason = min(outcome.failures.items())
        raise RuntimeError(f"Image {example_id} cannot be certified, one of {len(outcome.failures)}: {reason}")
    return outcome, plan, precision


CERTIFIER = Component(
    name="Certifier",
    inputs=("model", "examples"),
    outputs=("certificates",),
    parameters=("sigma", "seed", "num_test_examples", "n0", "n", "alpha", "certify", "budget", "soft_betas"),
    execute=certify,
)
