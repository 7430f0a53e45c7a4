"""The job for several values of one setting, up to their comparison: --sweep lam=0,1,4, --sweep method=macer,cohen.

A member of a sweep is the command line with one value given as a flag, so everything the two have in common is cached.
A sweep compares and pushes nothing: it ends with certificates, one table, one figure and one page.
"""

import dataclasses
import json
import sys

from pipeline.cli import command_line, config, console, saying
from pipeline.experiments import methods, presets
from pipeline.experiments import settings as settings_lib
from pipeline.orchestration import history, orchestrator
from pipeline.orchestration.orchestrator import Resolver
from pipeline.report import results, words
from pipeline.utils.errors import InputError
from serving.exit import in_one_line
from serving.terminal import printable

# Name -> why, of the settings that do nothing in a sweep. A run's settings file has them; a flag would be a mistake.
IDLE = dict.fromkeys(("min_accuracy", "serving_n", "push_dir"), "a sweep blesses, exports and pushes nothing")
_FORM = "a setting and two or more of its values, such as lam=0,1,4"
_CHANGE_NOTHING = (
    *IDLE,
    *("pipeline_root", "num_workers", "votes", "patience", "no_cache", "sweep"),
    *(setting.name for setting in saying.SETTINGS),
)
_NOT_COMPARED = "Blessing, push and run"
_ALL_FAILED = "every value failed"


@dataclasses.dataclass(frozen=True)
class Member:
    """One value of the swept setting, as it was written, and what `settings.parse` makes of it."""

    value: str
    settings: dict
    preset: presets.Preset


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The swept setting's name, a `Member` for each value, and what a user should know beforehand, one line each."""

    name: str
    members: tuple[Member, ...]
    notes: tuple[str, ...]


def parse(arguments):
    """A command line -> its `Sweep`, with every member checked, or None if it has no --sweep.

    Raises:
        InputError: in one line, for a sweep of anything but two or more values of a setting that changes certificates,
            or for a member that `settings.parse` refuses.
    """
    texts, others = _take(arguments)
    if not texts:
        return None
    if len(texts) > 1:
        raise InputError(f"--sweep can be given only once. Received: {' and '.join(texts)}")
    name, values = _name_and_values(texts[0], others)
    if any(argument.split("=")[0] == f"--{name}" for argument in others):
        raise InputError(f"--{name} is swept: leave --{name} out. Received: --sweep {texts[0]}")
    swept = [methods.find(value) for value in values] if name == "method" else []
    members, notes, idle = [], [], []
    for value in values:
        fitting, left_out = _fitting(others, value, swept) if name == "method" else (others, [])
        notes += [f"{flag} is not a setting of the method {value}, and is left out there." for flag in left_out]
        try:
            settings, preset, given = settings_lib.resolve([*fitting, f"--{name}={value}"])
            idle.append(settings_lib.idle(settings))
            command_line.refuse_idle([name], idle[-1])
        except InputError as error:
            raise InputError(f"--sweep {name}={value}: {error}") from None
        members.append(Member(value, settings, preset))
        notes += settings_lib.notes(settings, preset, given)
    # What has an effect on one member need not have one on all.
    command_line.refuse_idle(given, {one: why for one, why in idle[0].items() if all(one in other for other in idle)})
    return Sweep(name, tuple(members), tuple(dict.fromkeys(notes)))


def print_plan(sweep, root):
    """Prints what will be done: each setting with its values in the sweep's order, or only those that differ."""
    listing, first = _listing(sweep), sweep.members[0].settings
    print(f"Sweep of {sweep.name}: {', '.join(member.value for member in sweep.members)}; in {printable(root)}")
    if first["verbose"]:
        console.print_listing(listing, sweep.notes)
        return
    differing = {sweep.name}
    for member in sweep.members:
        plan = settings_lib.listing(member.settings)
        differing |= {name for name, *_ in settings_lib.differing(plan, member.settings["preset"])}
    entries = [entry for group in listing.values() for entry in group if entry[0] in differing]
    console.print_differing([[name, value, None] for name, value, *_ in entries], sweep.notes)


def print_member(sweep, place):
    """Prints which member's turn it is."""
    print(f"\n{sweep.name}={sweep.members[place].value} ({place + 1} of {len(sweep.members)})")


def components(settings):
    """What is run for each member."""
    from pipeline.components import trainer
    from pipeline.components.certifier import CERTIFIER
    from pipeline.components.example_gen import EXAMPLE_GEN

    return EXAMPLE_GEN, trainer.component(settings), CERTIFIER


def run(sweep, root, said, command, engine=None):
    """Trains and certifies every member, then compares them, and reports that.

    A member that fails is reported in one line, and the others go on.

    Args:
        sweep: a `Sweep`.
        root: `Path` of the pipeline root, which exists.
        said: `Saying`, which receives the result.
        command: the command as it was typed.
        engine: see `orchestrator.Execution`.

    Returns:
        The exit status: 0, or 1 if a member failed.

    Raises:
        InputError: if one of its data sets or networks is not available, before any training.
    """
    print_plan(sweep, root)
    console.import_tensorflow()
    listing = settings_lib.without_meanings(_listing(sweep))
    about = {
        "command": command,
        "sweep": {"name": sweep.name, "values": [member.value for member in sweep.members]},
        **{name: _in_common(sweep).get(name) for name in ("method", "dataset", "sigma")},
    }
    name = history.name_of(f"sweep-{sweep.name}", {"name": sweep.name, "listing": listing})
    with history.recorded(root, name, about, _settings_file(sweep)) as recorder:
        made, entries = _run_members(sweep, root, engine, recorder)
        if not made:
            line = f"{_ALL_FAILED}: there is nothing to compare."
            print(f"error: {line}", file=sys.stderr)
            said.failed(line)
            recorder.failed(_ALL_FAILED)
            return 1
        compared = _compare(sweep, listing, root, made, entries, recorder)
        directory = compared["comparison"].path
        links = {"comparison": directory, "sweep.html": directory / "sweep.html"}
        used = [*(artifact for _, artifact in made), *compared.values()]
        failed = [entry["value"] for entry in entries if entry["failure"]]
        folder = recorder.finish(used, links, {"failed": failed}, is_whole=False)
    comparison = json.loads((directory / "sweep.json").read_text())
    paths = {path.name: str(path.absolute()) for path in sorted(folder.iterdir())}
    with said.result(run=folder.name, **about, comparison=comparison, paths=paths):
        _print_results(directory, comparison)
        print(f"Run: {printable(folder)}")
        print(console.curves(root / orchestrator.TENSORBOARD))
    return 1 if failed else 0


def _run_members(sweep, root, engine, recorder):
    """[name, `Artifact`] of everything that was made, and the members as JSON values."""
    import keras

    first = sweep.members[0].settings
    directories = set()
    _check_data_and_networks(sweep, root, recorder, directories)
    made, entries = [], []
    for place, member in enumerate(sweep.members):
        print_member(sweep, place)
        # Clears what earlier members leave behind: graphs, and numbers in the names of layers.
        keras.utils.clear_session()
        failure = None
        try:
            how = (first["num_workers"], first["no_cache"], engine, recorder.starting, directories)
            artifacts = orchestrator.run(components(member.settings), member.settings, root, *how)
            made += [(f"{name}_{place}", artifact) for name, artifact in artifacts.items()]
        except Exception as error:
            # A log each, or the last failure would replace what the others left.
            failure = in_one_line(error, root, InputError, log=f"error-{place + 1}.log")
            print(f"error: {sweep.name}={member.value} failed: {failure}", file=sys.stderr)
        entries.append(_entry(member, failure))
    return made, entries


def _compare(sweep, listing, root, made, entries, recorder):
    """Name -> `Artifact` of the comparison."""
    from pipeline.components import sweep_evaluator

    print()
    settings = {"sweep": {"name": sweep.name, "listing": listing, "members": entries}}
    resolvers = [Resolver(name, lambda *_, artifact=artifact: artifact) for name, artifact in made]
    component = sweep_evaluator.component(tuple(name for name, _ in made))
    num_workers = sweep.members[0].settings["num_workers"]
    return orchestrator.run((*resolvers, component), settings, root, num_workers, starting=recorder.starting)


def _in_common(sweep):
    """Name -> text of the settings that are the same in all members that have them; not every method has each."""
    texts = {}
    for member in sweep.members:
        for name, text in settings_lib.written(member.settings).items():
            texts.setdefault(name, []).append(text)
    return {name: found[0] for name, found in texts.items() if len({*found}) == 1}


def _settings_file(sweep):
    values = ";".join(member.value for member in sweep.members)
    settings = {**_in_common(sweep), "sweep": f"{sweep.name}={values}"}
    return config.dumps("python -m pipeline.run", settings)


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
        raise InputError(f"--sweep must be {_FORM}. Received: {text or repr(text)}")
    if name in _CHANGE_NOTHING:
        raise InputError(f"A sweep compares certificates, which {name} does not change. Received: --sweep {text}")
    if name not in known:
        hint = command_line.did_you_mean(command_line.nearest(name, known), "See --help.")
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
    """The arguments without those flags that only other swept methods have, and the flags that were left out."""
    fitting, left_out = [], []
    own = methods.find(method).defaults()
    of_swept = {setting.name: setting for one in swept for setting in one.settings}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        flag = argument.split("=")[0]
        if (name := flag.removeprefix("--")) in own or name not in of_swept:
            fitting.append(argument)
            continue
        left_out.append(flag)
        if argument == flag and remaining and _is_value(remaining[0], of_swept[name]):
            del remaining[0]
    return fitting, left_out


def _is_value(argument, setting):
    """Whether what follows a setting's flag is its value. For a switch, it is if it is yes or no."""
    return argument in ("yes", "no") if setting.kind is command_line.SWITCH else not argument.startswith("--")


def _listing(sweep):
    """The members' listings as one; where they differ, their values in the sweep's order: cohen | macer."""
    listings = [settings_lib.listing(member.settings) for member in sweep.members]
    merged = {}
    for group in listings[0]:
        if group == _NOT_COMPARED:
            continue
        merged[group] = []
        # A setting may exist in some methods only.
        meanings = {name: meaning for listing in listings for name, _, meaning in listing[group]}
        told = [{name: value for name, value, _ in listing[group]} for listing in listings]
        for name, meaning in meanings.items():
            values = [of_member.get(name, "-") for of_member in told]
            merged[group].append([name, values[0] if len(set(values)) == 1 else " | ".join(values), meaning])
    return merged


def _check_data_and_networks(sweep, root, recorder, directories):
    from pipeline.components.example_gen import EXAMPLE_GEN
    from pipeline.data import examples as examples_lib
    from pipeline.training import models

    checked = set()
    for member in sweep.members:
        data = [member.settings[name] for name in EXAMPLE_GEN.parameters]
        if (key := json.dumps([data, member.settings["network"]])) in checked:
            continue
        checked.add(key)
        how = {"starting": recorder.starting, "made": directories}
        artifacts = orchestrator.run((EXAMPLE_GEN,), member.settings, root, member.settings["num_workers"], **how)
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


def _print_results(directory, comparison):
    from pipeline.report import sweep_report

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
    print(f"\nPage: {printable(directory / sweep_report.FILE_NAME)}")
    print(printable(f"Table: {directory / 'sweep.csv'}, and with every digit {directory / 'sweep.json'}"))
