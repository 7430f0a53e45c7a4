"""The job for several values of one setting, up to their comparison: --sweep lam=0,1,4, --sweep method=macer,cohen.

A member of a sweep is what the command line is with that value given as a flag, so everything the two have in common is
cached. A sweep compares and pushes nothing: it ends with certificates, one table, one figure and one page.
"""

import dataclasses
import difflib
import json
import sys

from pipeline.cli import command_line, console
from pipeline.experiments import methods, presets
from pipeline.experiments import settings as settings_lib
from pipeline.orchestration import orchestrator
from pipeline.orchestration.orchestrator import Resolver
from pipeline.report import results, words
from pipeline.utils.errors import InputError
from serving.exit import in_one_line

_FORM = "a setting and two or more of its values, such as lam=0,1,4"
_CHANGE_NOTHING = (
    *(
        "min_accuracy",
        "serving_n",
        "push_dir",
        "pipeline_root",
        "num_workers",
        "votes",
        "patience",
        "no_cache",
        "sweep",
    ),
)
_NOT_COMPARED = "Blessing, push and run"


@dataclasses.dataclass(frozen=True)
class Member:
    """One value of the swept setting, as it was written, and what `settings.parse` makes of it."""

    value: str
    settings: dict
    preset: presets.Preset


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The swept setting's name, a `Member` for each value, and what a user should know before, a line each."""

    name: str
    members: tuple[Member, ...]
    notes: tuple[str, ...]


def parse(arguments):
    """A command line -> its `Sweep`, every member of it checked, or None if it has no --sweep.

    Raises:
        InputError: in one line, for a sweep of something else than two or more values of a setting that changes
            certificates, or for a member that `settings.parse` refuses.
    """
    texts, others = _take(arguments)
    if not texts:
        return None
    if len(texts) > 1:
        raise InputError(f"--sweep can be given once. Received: {' and '.join(texts)}")
    name, values = _name_and_values(texts[0], others)
    if any(argument.split("=")[0] == f"--{name}" for argument in others):
        raise InputError(f"--{name} is swept: leave --{name} out. Received: --sweep {texts[0]}")
    swept = [methods.find(value) for value in values] if name == "method" else []
    members, notes = [], []
    for value in values:
        fitting, left_out = _fitting(others, value, swept) if name == "method" else (others, [])
        notes += [f"{flag} is not a setting of the method {value}, and left out there." for flag in left_out]
        try:
            members.append(Member(value, *settings_lib.parse([*fitting, f"--{name}={value}"])))
        except InputError as error:
            raise InputError(f"--sweep {name}={value}: {error}") from None
    notes += [member.preset.note for member in members if member.preset.note]
    return Sweep(name, tuple(members), tuple(dict.fromkeys(notes)))


def run(sweep, root, engine=None):
    """Trains and certifies every member, then compares them, saying so.

    A member that fails is reported in one line, and the others go on.

    Args:
        sweep: a `Sweep`.
        root: `Path` of the pipeline root, which exists.
        engine: see `orchestrator.Execution`.

    Returns:
        The exit status: 0, or 1 if a member failed.

    Raises:
        InputError: if a data set or a network of it cannot be had, before any training.
    """
    listing = _listing(sweep)
    first = sweep.members[0].settings
    print(f"Sweep of {sweep.name}: {', '.join(member.value for member in sweep.members)}; in {root}")
    console.print_listing(listing, " ".join(sweep.notes))
    console.import_tensorflow()
    import keras

    from pipeline.components import sweep_evaluator, trainer
    from pipeline.components.certifier import CERTIFIER
    from pipeline.components.example_gen import EXAMPLE_GEN

    _check_data_and_networks(sweep, EXAMPLE_GEN, root)
    made, entries = [], []
    for place, member in enumerate(sweep.members):
        print(f"\n{sweep.name}={member.value} ({place + 1} of {len(sweep.members)})")
        # What the members before leave behind: graphs, and numbers in the names of layers.
        keras.utils.clear_session()
        failure = None
        try:
            components = (EXAMPLE_GEN, trainer.component(member.settings), CERTIFIER)
            settings = member.settings
            artifacts = orchestrator.run(components, settings, root, first["num_workers"], first["no_cache"], engine)
            made += [(f"{name}_{place}", artifact) for name, artifact in artifacts.items()]
        except Exception as error:
            failure = in_one_line(error, root, InputError)
            print(f"error: {sweep.name}={member.value} failed: {failure}", file=sys.stderr)
        entries.append(_entry(member, failure))
    failed = any(entry["failure"] for entry in entries)
    if not made:
        print("error: every value failed: there is nothing to compare.", file=sys.stderr)
        return 1
    print()
    settings = {"sweep": {"name": sweep.name, "listing": settings_lib.without_meanings(listing), "members": entries}}
    resolvers = [Resolver(name, lambda *_, artifact=artifact: artifact) for name, artifact in made]
    component = sweep_evaluator.component(tuple(name for name, _ in made))
    compared = orchestrator.run((*resolvers, component), settings, root, first["num_workers"])
    _print_results(compared["comparison"].path)
    return 1 if failed else 0


def _take(arguments):
    """The texts after --sweep, and the other arguments."""
    texts, others = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--sweep":
            texts.append(next(remaining, ""))
        elif argument.startswith("--sweep="):
            texts.append(argument.partition("=")[2])
        else:
            others.append(argument)
    return texts, others


def _name_and_values(text, others):
    name, equals, listed = text.partition("=")
    # A value may have commas itself: lr_drop_epochs=50,100;60,120.
    values = [value.strip() for value in listed.split(";" if ";" in listed else ",")]
    settings = [setting for group in settings_lib.known(others).values() for setting in group]
    known = {setting.name: setting for setting in settings if setting.name not in _CHANGE_NOTHING}
    if not equals or not all(values):
        raise InputError(f"--sweep must be {_FORM}. Received: {text}")
    if name in _CHANGE_NOTHING:
        raise InputError(f"A sweep compares certificates, which {name} does not change. Received: --sweep {text}")
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=2)
        hint = f"Did you mean {' or '.join(nearest)}?" if nearest else "See --help."
        raise InputError(f"Unknown setting {name}. {hint} Received: --sweep {text}")
    seen = []
    for value in values:
        parsed = command_line.value(known[name], value)
        if parsed in seen:
            raise InputError(f"--sweep has the value {value} twice. Received: {text}")
        seen.append(parsed)
    if len(values) == 1:
        raise InputError(f"--sweep must be {_FORM}; for one value, give --{name} {values[0]}. Received: {text}")
    return name, values


def _fitting(arguments, method, swept):
    """The arguments without the flags that the method does not have, but another of the swept ones, and those flags."""
    fitting, left_out = [], []
    own = methods.find(method).defaults()
    remaining = iter(arguments)
    for argument in remaining:
        flag = argument.split("=")[0]
        if (name := flag.removeprefix("--")) in own or not any(name in one.defaults() for one in swept):
            fitting.append(argument)
            continue
        left_out.append(flag)
        if argument == flag:
            next(remaining, None)
    return fitting, left_out


def _listing(sweep):
    """The members' listings as one; where they differ, their values in the sweep's order: cohen | macer."""
    listings = [settings_lib.listing(member.settings) for member in sweep.members]
    merged = {}
    for group in listings[0]:
        if group == _NOT_COMPARED:
            continue
        merged[group] = []
        # Only some methods have a setting.
        meanings = {name: meaning for listing in listings for name, _, meaning in listing[group]}
        told = [{name: value for name, value, _ in listing[group]} for listing in listings]
        for name, meaning in meanings.items():
            values = [of_member.get(name, "-") for of_member in told]
            merged[group].append([name, values[0] if len(set(values)) == 1 else " | ".join(values), meaning])
    return merged


def _check_data_and_networks(sweep, example_gen, root):
    from pipeline.data import examples as examples_lib
    from pipeline.training import models

    checked = set()
    for member in sweep.members:
        data = [member.settings[name] for name in example_gen.parameters]
        if (key := json.dumps([data, member.settings["network"]])) in checked:
            continue
        checked.add(key)
        artifacts = orchestrator.run((example_gen,), member.settings, root, member.settings["num_workers"])
        examples = examples_lib.read(artifacts["examples"].path)
        try:
            models.network(member.settings, examples.image_shape, examples.num_classes)
        except InputError as error:
            raise InputError(f"--sweep {sweep.name}={member.value}: {error}") from None


def _entry(member, failure):
    """A member as JSON values, for the component that compares."""
    paper = presets.reported(member.settings, member.preset)
    return {
        "value": member.value,
        "failure": failure,
        "paper": paper and json.loads(json.dumps(dataclasses.asdict(paper))),
        **{name: member.settings[name] for name in ("dataset", "sigma", "n0", "n", "alpha", "epochs", "seed")},
    }


def _print_results(directory):
    from pipeline.report import sweep_report

    comparison = json.loads((directory / "sweep.json").read_text())
    columns = sweep_report.columns_behind_acr(comparison)
    header = results.header(comparison["setting"], comparison["radii"])
    rows = [
        [
            member["value"],
            *(
                "-" if accuracy is None else f"{accuracy:.3f}"
                for accuracy in sweep_report.accuracies(comparison, member)
            ),
            sweep_report.acr(member),
            *(cells[place] for _, cells in columns),
        ]
        for place, member in enumerate(comparison["members"])
    ]
    print(f"\n{words.HEADER}")
    print(console.table(header + [name for name, _ in columns], rows))
    for line in sweep_report.conditions(comparison):
        print(line)
    print(f"\nPage: {directory / sweep_report.FILE_NAME}")
    print(f"Table: {directory / 'sweep.csv'}, and with every digit {directory / 'sweep.json'}")
