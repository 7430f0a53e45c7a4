"""The whole job: python -m pipeline.run --dataset svhn

Trains with MACER (or a method that it is compared with), certifies on Beam, evaluates, validates and pushes. The same
command again finds everything cached; after a kill it goes on from where it was.
"""

import dataclasses
import json
import sys
from pathlib import Path

from pipeline import sweep as sweep_lib
from pipeline.cli import console
from pipeline.experiments import presets
from pipeline.experiments import settings as settings_lib
from pipeline.orchestration import orchestrator
from pipeline.report import results, words
from pipeline.utils.errors import InputError
from serving import terminal
from serving.exit import exit_status


def main(arguments=None):
    """Runs the pipeline. Returns the exit status: 0, 1 if a component or a sweep's member failed, 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console.quiet()
    if "--list_presets" in arguments:
        print(console.table(*presets.table()))
        return 0

    def parse():
        sweep = sweep_lib.parse(arguments)
        settings, preset = (sweep.members[0].settings, None) if sweep else settings_lib.parse(arguments)
        root = Path(settings["pipeline_root"])
        return (sweep, settings, preset, root), root

    def work(parsed):
        sweep, settings, preset, root = parsed
        engine = _engine(settings)
        with orchestrator.locked(root):
            if sweep:
                return sweep_lib.run(sweep, root, engine)
            _run(settings, preset, root, engine)
        return 0

    return exit_status(
        parse,
        work,
        "What was finished is kept; run the same command again to go on.",
        bad_input=InputError,
        at_once=True,
    )


def _engine(settings):
    """The engine that is asked for, or None."""
    if not settings["beam"]:  # nobody else need wait for Beam
        return None
    from pipeline.certification import engine

    return engine.of(settings)


def _run(settings, preset, root, engine):
    listing = settings_lib.listing(settings)
    print(f"{settings['method']} on {settings['dataset']}, preset {preset.name}, in {settings['pipeline_root']}")
    console.print_listing(listing, preset.note)
    # Only now, so that --help and a typo do not wait for TensorFlow.
    console.import_tensorflow()
    from pipeline.components import trainer
    from pipeline.components.certifier import CERTIFIER
    from pipeline.components.evaluator import EVALUATOR, LATEST_BLESSED
    from pipeline.components.example_gen import EXAMPLE_GEN
    from pipeline.components.exporter import EXPORTER
    from pipeline.components.infra_validator import INFRA_VALIDATOR
    from pipeline.components.pusher import PUSHER

    components = (
        *(EXAMPLE_GEN, trainer.component(settings), CERTIFIER, LATEST_BLESSED, EVALUATOR, EXPORTER, INFRA_VALIDATOR),
        PUSHER,
    )
    settings = {**settings, "listing": settings_lib.without_meanings(listing), "paper": _paper_row(preset)}
    artifacts = orchestrator.run(components, settings, root, settings["num_workers"], settings["no_cache"], engine)
    _print_results(artifacts, settings["paper"])


def _paper_row(preset):
    """The paper's row for this data set and sigma, as JSON values, or None."""
    return None if preset.paper is None else json.loads(json.dumps(dataclasses.asdict(preset.paper)))


def _print_results(artifacts, paper):
    evaluation = artifacts["evaluation"].path
    metrics = json.loads((evaluation / results.METRICS).read_text())
    kinds = metrics["certificates"]
    rows = [
        results.row("this model" if len(kinds) == 1 else f"this model, {kind}", of_kind)
        for kind, of_kind in kinds.items()
    ]
    if paper:
        rows.append(
            [
                f"paper's {paper['name']} *",
                *(f"{accuracy:.2f}" for accuracy in paper["certified_accuracy"]),
                f"{paper['acr']:.3f}",
            ]
        )
    print(f"\n{words.HEADER}")
    print(console.table(results.header("radius", metrics["radii"]), rows))
    print(
        f"n={metrics['n']:,}, n0={metrics['n0']:,}, alpha={metrics['alpha']:g}, sigma={metrics['sigma']:g}; "
        f"images: {metrics['image_set']}\n{console.cost_in_words(metrics)}"
    )
    if paper:
        print(f"* as reported, at n=100,000 and alpha=0.001; {paper['image_set']}")
    push = json.loads((artifacts["push"].path / "push.json").read_text())
    print(f"\nReport: {evaluation / 'report.html'}")
    if push["pushed_to"] is None:
        print(f"Not pushed: {'; '.join(push['reasons'])}")
    elif Path(push["pushed_to"]).is_dir():
        print(f"Pushed model: {push['pushed_to']}")
    else:
        print(
            f"Pushed model: it was {push['pushed_to']}, which is gone; delete {artifacts['push'].path.parent} and run "
            "again to push it again"
        )


if __name__ == "__main__":
    terminal.run(main)
