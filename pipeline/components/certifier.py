"""Certifier: model and examples -> votes and certificates of test images, on Beam."""

import json

from pipeline import certification, examples
from pipeline.artifacts import fingerprint, write_text
from pipeline.orchestrator import Component


def certify(execution):
    """Certifies evenly spaced test images. The votes' ledger is kept in the root, apart from alpha."""
    settings = execution.parameters
    model, data = execution.inputs["model"], execution.inputs["examples"]
    ids = examples.evenly_spaced(len(examples.read(data.path).labels["test"]), settings["num_test_examples"])
    identity = {
        "model": model.fingerprint,
        "examples": data.fingerprint,
        **{name: settings[name] for name in ("sigma", "seed", "n0", "n")},
        "samples_per_chunk": certification.SAMPLES_PER_CHUNK,
    }
    ledger = execution.root / "votes" / fingerprint(identity)[:16]
    ledger.mkdir(parents=True, exist_ok=True)
    write_text(ledger / "ledger.json", json.dumps(identity, indent=1))
    certification.run(
        model.path / "model.keras",
        data.path,
        ids,
        **{name: settings[name] for name in ("sigma", "seed", "n0", "n", "alpha")},
        ledger_path=ledger,
        num_workers=execution.num_workers,
        output_path=execution.outputs["certificates"],
    )


CERTIFIER = Component(
    name="Certifier",
    inputs=("model", "examples"),
    outputs=("certificates",),
    parameters=("sigma", "seed", "n0", "n", "alpha", "num_test_examples"),
    execute=certify,
)
