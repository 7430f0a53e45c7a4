"""Certifier: model and examples -> votes and certificates of test images, on Beam."""

from macer_tf.grid_noise import levels_of
from pipeline import certificate_files, certification, classifiers, examples
from pipeline.orchestrator import Component
from pipeline.settings import sampling_plan
from pipeline.vote_store import VoteStore
from serving.files import fingerprint


def certify(execution):
    """Certifies evenly spaced test images. Their votes are kept in the root, apart from n, alpha and the images."""
    settings = execution.parameters
    model, data = execution.inputs["model"], execution.inputs["examples"]
    path = model.path / "model.keras"
    split = examples.read(data.path)
    ids = examples.evenly_spaced(len(split.labels["test"]), settings["num_test_examples"])
    plan = sampling_plan(settings)
    sampler = certification.Sampler(
        str(path), examples.Source(str(data.path)), settings["sigma"], settings["seed"], plan.betas,
        levels_of(split.pixel_max),
    )  # fmt: skip
    precision = classifiers.precision(path, classifiers.base(classifiers.load(path)))
    identity = {
        "model": model.fingerprint,
        **{name: settings[name] for name in ("sigma", "seed", "n0")},
        "precision": precision,
        "noise": sampler.noise,
    }
    folder = fingerprint(identity)[:16]
    store = VoteStore(execution.root / "votes" / folder, identity, plan.first_look, split.num_classes, plan.betas)
    outcome = certification.run(
        sampler, ids, split.num_classes, plan, store, labels=split.labels["test"][ids],
        num_workers=execution.num_workers,
    )  # fmt: skip
    if outcome.failures:
        # An evaluation of the others would be of another image set.
        image_id, reason = min(outcome.failures.items())
        raise RuntimeError(f"Image {image_id} cannot be certified, one of {len(outcome.failures)}: {reason}")
    certificate_files.write(execution.outputs["certificates"], outcome, plan, settings["sigma"], precision)


CERTIFIER = Component(
    name="Certifier",
    inputs=("model", "examples"),
    outputs=("certificates",),
    parameters=("sigma", "seed", "num_test_examples", "n0", "n", "alpha", "certify", "budget", "beta"),
    execute=certify,
)
