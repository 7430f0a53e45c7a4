"""The whole job: python -m pipeline.run --dataset svhn

Trains with MACER (or a method that it is compared with), certifies on Beam, evaluates, validates and pushes. Repeating
the command finds everything cached; after a kill, it resumes.
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

from pipeline.cli import command_line, config, console, saying
from pipeline.experiments import presets
from pipeline.experiments import settings as settings_lib
from pipeline.jobs import early_checks
from pipeline.jobs import sweep as sweep_lib
from pipeline.orchestration import history, orchestrator
from pipeline.report import results, words
from pipeline.utils.errors import InputError
from serving.exit import exit_status
from serving.terminal import printable

_LIST = "--list_presets"


def main(arguments=None):
    """Runs the pipeline. Returns the exit status: 0, 1 if a component or a sweep's member failed, 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console.quiet()
    if arguments == [_LIST]:
        print(console.table(*presets.table()))
        return 0

    with saying.Saying(arguments) as said:

        def parse():
            if _LIST in arguments:
                raise InputError(f"{_LIST} must be given alone. Received: {shlex.join(map(printable, arguments))}")
            parsed = _Parsed(arguments)
            # If nothing will be made, nothing is written about an error either.
            return parsed, None if parsed.settings["dry_run"] else parsed.root

        def work(parsed):
            if parsed.settings["dry_run"]:
                return _forecast(parsed, said)
            engine = early_checks.checked_engine(parsed.settings)
            with orchestrator.locked(parsed.root):
                if parsed.sweep:
                    return sweep_lib.run(parsed.sweep, parsed.root, said, parsed.command, engine)
                _run(parsed, said, engine)
            return 0

        resumes = "run the same command again to resume."
        if command_line.is_on(arguments, "no_cache"):
            resumes = "the same command begins anew; without --no_cache, it resumes."
        interrupted = f"What was finished is kept; {resumes}"
        how = {"bad_input": InputError, "at_once": True, "on_error": said.failed}
        return said.end(exit_status(parse, work, interrupted, **how))


class _Parsed:
    """A command line: the settings of its run, or of the first run of its sweep; the sweep is None if there is none."""

    def __init__(self, arguments):
        expanded = config.expand(arguments, settings_lib.known)
        self.arguments = arguments
        with config.named(arguments, expanded):
            self._resolve(expanded)
        for place, settings in enumerate(self.all_settings):
            try:
                early_checks.check_data(settings)
                early_checks.check_network(settings)
            except InputError as error:
                member = f"--sweep {self.sweep.name}={self.sweep.members[place].value}: " if self.sweep else ""
                raise InputError(f"{member}{error}") from None
        self.root = Path(self.settings["pipeline_root"])

    def _resolve(self, expanded):
        self.sweep = sweep_lib.parse(expanded)
        if self.sweep:
            command_line.refuse_idle(command_line.flags(self.arguments), sweep_lib.IDLE)
            self.settings, self.preset, self.notes = self.sweep.members[0].settings, None, self.sweep.notes
        else:
            self.settings, self.preset, self.given = settings_lib.resolve(expanded)
            command_line.refuse_idle(self.given, settings_lib.idle(self.settings))
            self.notes = settings_lib.notes(self.settings, self.preset, self.given)
            if self.given.get("push_dir"):  # any other is made in the pipeline root, which has a check of its own
                early_checks.check_push_dir(self.given["push_dir"])

    @property
    def all_settings(self):
        """The settings of each run."""
        return [member.settings for member in self.sweep.members] if self.sweep else [self.settings]

    @property
    def command(self):
        """As it was typed."""
        return shlex.join(["python", "-m", "pipeline.run", *map(printable, self.arguments)])


def _forecast(parsed, said):
    """Says what would be done."""
    if parsed.sweep:
        sweep_lib.print_plan(parsed.sweep, parsed.root)
    else:
        _print_plan(parsed)
    console.import_tensorflow()
    from pipeline.jobs import forecast

    told, shared = [], set()
    for place, settings in enumerate(parsed.all_settings):
        if parsed.sweep:
            sweep_lib.print_member(parsed.sweep, place)
        components = sweep_lib.components(settings) if parsed.sweep else _components(settings, parsed.given)
        settings = _with_results(settings, None if parsed.sweep else parsed.preset)
        told.append(forecast.tell(components, settings, parsed.root, shared))
    seconds = [one["seconds"] for one in told]
    with said.result(command=parsed.command, dry_run=told):
        if None not in seconds:
            print(f"\nTraining and certification: about {console.duration(sum(seconds))}.")
        print("Nothing was trained, certified or written.")
    return 0


def _components(settings, given):
    # Imported only now, so that --help and a typo do not wait for TensorFlow.
    from pipeline.components import trainer
    from pipeline.components.certifier import CERTIFIER
    from pipeline.components.evaluator import EVALUATOR, LATEST_BLESSED
    from pipeline.components.example_gen import EXAMPLE_GEN, enough_images
    from pipeline.components.exporter import CAN_BE_SERVED, EXPORTER
    from pipeline.components.infra_validator import INFRA_VALIDATOR
    from pipeline.components.pusher import PUSHER

    # A preset may ask for more images than there are, a user may not.
    checked = [enough_images(given["num_test_examples"])] if given.get("num_test_examples") else []
    return (
        *(EXAMPLE_GEN, *checked, CAN_BE_SERVED, trainer.component(settings), CERTIFIER, LATEST_BLESSED, EVALUATOR),
        *(EXPORTER, INFRA_VALIDATOR, PUSHER),
    )


def _with_results(settings, preset):
    """The settings, with what the Evaluator's report shows of them and of their preset."""
    listing = settings_lib.without_meanings(settings_lib.listing(settings))
    return {**settings, "listing": listing, "paper": preset and _paper_row(preset)}


def _run(parsed, said, engine):
    settings, root = _with_results(parsed.settings, parsed.preset), parsed.root
    _print_plan(parsed)
    console.import_tensorflow()
    components = _components(settings, parsed.given)
    given = {name: settings[name] for name in ("listing", "preset", "push_dir")}
    about = {
        "command": parsed.command,
        **{name: settings[name] for name in ("method", "dataset", "sigma")},
        "preset": parsed.preset.name,
        "differs": settings_lib.differing(settings["listing"], settings["preset"]),
    }
    name = history.name_of("-".join(f"{settings[one]}" for one in ("method", "dataset", "sigma")), given)
    text = config.dumps("python -m pipeline.run", settings_lib.written(settings))
    how = (settings["num_workers"], settings["no_cache"], engine)
    with history.recorded(root, name, about, text) as recorder:
        artifacts = orchestrator.run(components, settings, root, *how, recorder.starting)
        metrics = json.loads((artifacts["evaluation"].path / results.METRICS).read_text())
        result = _result(artifacts, metrics)
        folder = recorder.finish(artifacts.values(), _links(artifacts, root), result)
    paths = {path.name: str(path.absolute()) for path in sorted(folder.iterdir())}
    with said.result(run=folder.name, **about, **result, metrics=metrics, paths=paths):
        _print_results(artifacts, settings["paper"], metrics, result)
        print(printable(f"Run: {folder}, also linked as {root / history.LATEST}: {', '.join(paths)}"))
        print(console.curves(root / orchestrator.TENSORBOARD))


def _links(artifacts, root):
    """Name -> path, for the links in a run's folder."""
    evaluation, model = artifacts["evaluation"].path, artifacts["model"].path
    paths = {
        "model": model,
        "saved_model": artifacts["saved_model"].path,
        "evaluation": evaluation,
        "report.html": evaluation / "report.html",
        "blessing.json": evaluation / "blessing.json",
    }
    curves = history.curves_of(root, model.parent)
    return paths if curves is None else {**paths, "tensorboard": curves}


def _result(artifacts, metrics):
    """The results of a run, as JSON values by name."""
    push = json.loads((artifacts["push"].path / "push.json").read_text())
    blessing = json.loads((artifacts["evaluation"].path / "blessing.json").read_text())
    return {
        **{name: metrics.get(name) for name in ("acr", "acr_standard_error")},
        "blessed": blessing["blessed"],
        "pushed_to": push["pushed_to"],
        "reasons": push["reasons"],
    }


def _print_plan(parsed):
    settings, listing = parsed.settings, settings_lib.listing(parsed.settings)
    plan = f"{settings['method']} on {settings['dataset']}, preset {parsed.preset.name}, in {settings['pipeline_root']}"
    print(printable(plan))
    if settings["verbose"]:
        console.print_listing(listing, parsed.notes)
    else:
        console.print_differing(settings_lib.differing(listing, settings["preset"]), parsed.notes)


def _paper_row(preset):
    """The paper's row for this data set and sigma, as JSON values, or None."""
    return None if preset.paper is None else json.loads(json.dumps(dataclasses.asdict(preset.paper)))


def _print_results(artifacts, paper, metrics, result):
    evaluation = artifacts["evaluation"].path
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
    print(f"\nReport: {printable(evaluation / 'report.html')}")
    if result["pushed_to"] is None:
        print(printable(f"Not pushed: {'; '.join(result['reasons'])}"))
    elif _holds(Path(result["pushed_to"]), artifacts["saved_model"]):
        print(printable(f"Pushed model: {result['pushed_to']}"))
    else:
        was, cached = printable(result["pushed_to"]), printable(artifacts["push"].path.parent)
        print(f"Pushed model: it was {was}, but is no longer there; delete {cached} and run again to push it again")


def _holds(version, saved_model):
    """Whether a version in the model server's directory is the model that was pushed there."""
    from serving.publish import content_fingerprint

    try:
        return content_fingerprint(version) == saved_model.fingerprint
    except (OSError, ValueError):
        return False
