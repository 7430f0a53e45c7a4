"""Pusher: moves a blessed and validated SavedModel to where the model server looks."""

import json
from pathlib import Path

from pipeline.orchestration.orchestrator import Component
from pipeline.utils.atomic_files import write_text
from pipeline.utils.errors import InputError
from serving.blessing import judge
from serving.publish import content_fingerprint, publish
from serving.terminal import printable
from serving.versions import versions


def push(execution):
    """Publishes the model as the next version unless the latest one is the same, or records why not."""
    blessing = execution.inputs["evaluation"].path / "blessing.json"
    infra = json.loads((execution.inputs["infra_blessing"].path / "infra_blessing.json").read_text())
    saved_model, pushed_to = execution.inputs["saved_model"].path, None

    def check(copy):
        # InfraValidator has loaded exactly these files.
        if content_fingerprint(copy) != execution.inputs["saved_model"].fingerprint:
            raise ValueError(f"{saved_model} was changed while it was published; run the same command again.")

    _, reason = judge(blessing, saved_model)
    reasons = [f"not blessed: {reason}"] if reason else []
    if not infra["passed"]:
        reasons.append(f"failed in a fresh process: {infra['reason']}")
    if not reasons:
        base = Path(execution.parameters["push_dir"])
        try:
            before = versions(base)
            pushed = publish(saved_model, base, blessing=blessing, check=check)
        except OSError as error:
            raise InputError(f"Cannot push to {base} ({error.strerror}); give another one with push_dir.") from None
        except ValueError as error:
            raise InputError(f"Cannot push to {base}: {error}") from None
        if pushed in before:  # by an earlier run, or by this one before it was killed
            print(f"  {printable(pushed)} is already this very model; it is not pushed again.")
        pushed_to = str(pushed)
    result = {"pushed_to": pushed_to, "reasons": reasons}
    write_text(execution.outputs["push"] / "push.json", json.dumps(result, indent=1))


PUSHER = Component(
    name="Pusher",
    inputs=("saved_model", "evaluation", "infra_blessing"),
    outputs=("push",),
    parameters=("push_dir",),
    execute=push,
)
