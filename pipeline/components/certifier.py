"""Certifier: model and examples -> votes and certificates of test images, on Beam."""

from pipeline import certification, examples
from pipeline.ledger import new_or_resumed
from pipeline.orchestrator import Component


def certify(execution):
    """Certifies evenly spaced test images. The votes' ledger is kept in the root, apart from alpha."""
    settings = execution.parameters
    model, data = execution.inputs["model"], execution.inputs["examples"]
    split = examples.read(data.path)
    ids = examples.evenly_spaced(len(split.labels["test"]), settings["num_test_examples"])
    ledger = new_or_resumed(
        execution.root / "votes",
        {
            "model": model.fingerprint,
            "examples": data.fingerprint,
            **{name: settings[name] for name in ("sigma", "seed", "n0", "n")},
            "samples_per_chunk": certification.SAMPLES_PER_CHUNK,
        },
    )
    sampler = certification.Sampler(
        str(model.path / "model.keras"), examples.Source(str(data.path)), settings["sigma"], settings["seed"]
    )
    failures = certification.run(
        sampler,
        ids,
        split.num_classes,
        **{name: settings[name] for name in ("n0", "n", "alpha")},
        ledger_path=ledger,
        num_workers=execution.num_workers,
        output_path=execution.outputs["certificates"],
    )
    if failures:
        # An evaluation of the others would be of another image set.
        image_id, reason = min(failures.items())
        raise RuntimeError(f"Image {image_id} cannot be certified, one of {len(failures)}: {reason}")


CERTIFIER = Component(
    name="Certifier",
    inputs=("model", "examples"),
    outputs=("certificates",),
    parameters=("sigma", "seed", "n0", "n", "alpha", "num_test_examples"),
    execute=certify,
)
