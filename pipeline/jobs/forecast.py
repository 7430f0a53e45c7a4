"""What a run would do, and how long it would take, for the command's dry run.

The network is built and takes a few steps on the real images, and a few forward passes with noise. It is then
discarded, and nothing is written that outlives the process.
"""

import functools
import math
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from pipeline.certification import driver, sampling_plan, workers
from pipeline.cli import console
from pipeline.components import certifier, trainer
from pipeline.components.example_gen import EXAMPLE_GEN
from pipeline.data import datasets
from pipeline.data import examples as examples_lib
from pipeline.experiments import methods
from pipeline.orchestration import orchestrator
from pipeline.orchestration.artifacts import Artifact
from pipeline.training import backups, input_pipeline, models
from serving.fingerprints import fingerprint
from serving.terminal import printable

_SECONDS, _MOST_STEPS = 3, 50
_LATER = "how long it takes is shown once the images are read"


def tell(components, settings, root, shared):
    """Prints what a run with these settings would do with each component, and how long training and certifying take.

    Args:
        components: as for `orchestrator.run`.
        settings: name -> value.
        root: `Path` of the pipeline root, which need not exist.
        shared: set of the `_identities` of what earlier values of a sweep would make; it is added to.

    Returns:
        The same as JSON values by name; "seconds" is the total time, None if that is not known.

    Raises:
        InputError: as in a run, as far as that shows before training.
    """
    steps, artifacts = orchestrator.planned(components, settings, root, settings["no_cache"])
    work = _Work(components, settings, artifacts, root)
    measured = {"Trainer": work.training, "Certifier": work.certification}
    told, identities = {"components": [], "training": None, "certification": None}, _identities(components, settings)
    for step in steps:
        name = step.component.name
        state = "shared" if step.state != "cached" and identities[name] in shared else step.state
        entry = {"name": name, "state": state, "directory": step.directory and str(step.directory.absolute())}
        told["components"].append(entry)
        if state in ("cached", "shared"):
            where = f"cached in {printable(step.directory)}" if state == "cached" else "shared with an earlier value"
            print(f"{name:<15} {where}", flush=True)
            continue
        words = "to resume" if step.state == "begun" else step.state
        if name in measured:
            found, detail = measured[name](step)
            told["training" if name == "Trainer" else "certification"] = found
            words += f": {detail}"
        print(f"{name:<15} {words}", flush=True)
        if name in measured and found:
            console.print_if_long(found["seconds"] or 0, found.pop("cheaper"))
    shared |= {*identities.values()}
    return told | {"seconds": _sum(told)}


def _identities(components, settings):
    """Name -> what tells a component's execution from others, even where nothing that it reads exists yet."""
    found, made = {}, {}
    for component in components:
        if isinstance(component, orchestrator.Component):
            reads = [made.get(name, name) for name in component.inputs]
            parameters = {name: settings[name] for name in component.parameters}
            found[component.name] = fingerprint([component.name, parameters, reads])
            made |= dict.fromkeys(component.outputs, found[component.name])
    return found


def _sum(told):
    to_do = {entry["name"] for entry in told["components"] if entry["state"] not in ("cached", "shared")}
    parts = [told[key] for name, key in (("Trainer", "training"), ("Certifier", "certification")) if name in to_do]
    if any(part is None or part["seconds"] is None for part in parts):
        return None
    return round(sum(part["seconds"] for part in parts), 3)


class _Work:
    """What is measured for one run, each thing once and only if needed."""

    def __init__(self, components, settings, artifacts, root):
        self._settings, self._artifacts, self._root = settings, artifacts, root
        self._examples = _examples(components, artifacts, settings, root)

    @functools.cached_property
    def _to_train_on(self):
        """Ids and labels of the images to train on, and the number of steps per epoch."""
        ids, labels = trainer.chosen(self._examples.labels["train"], self._settings)
        return ids, labels, math.ceil(len(ids) / self._settings["batch_size"])

    @functools.cached_property
    def _model(self):
        kind, (*_, steps) = methods.find(self._settings["method"]).model, self._to_train_on
        return models.build(kind, self._settings, self._examples.image_shape, self._examples.num_classes, steps)

    def training(self, step):
        """What is left to train and how long it takes, as JSON values, or None; and in words."""
        if self._examples is None:
            return None, _LATER
        settings, method = self._settings, methods.find(self._settings["method"])
        ids, labels, steps = self._to_train_on
        self._check_network()
        per_step = self._seconds_per_step(method, ids, labels)
        done = 0 if step.scratch is None else backups.done(step.scratch / trainer.BACKUP, steps)
        work = sum(method.work(settings, epoch) for epoch in range(settings["epochs"])) * steps
        work -= sum(method.work(settings, place // steps) for place in range(done))
        left = steps * settings["epochs"] - done
        found = {"steps": left, "seconds": round(work * per_step, 3), "cheaper": trainer.cheaper(settings)}
        rate = f"{1 / per_step:.3g} steps per second at first, measured just now"
        return found, f"{left:,} steps, about {console.duration(work * per_step)}; {rate}"

    def certification(self, step):
        """What is left to draw and how long it takes, as JSON values, or None; and in words."""
        if self._examples is None:
            return None, _LATER
        settings, examples, plan = self._settings, self._examples, sampling_plan.SamplingPlan.of_run(self._settings)
        ids = examples_lib.evenly_spaced(len(examples.labels["test"]), settings["num_test_examples"])
        model, of = self._artifacts.get("model"), {"model": "still to be trained"}
        path = "" if model is None else str(model.path / "model.keras")
        source = SimpleNamespace(open=lambda: examples)
        sampler = workers.Sampler(path, source, settings["sigma"], settings["seed"], plan.betas)
        loaded = sampler.load(self._model if model is None else None)
        if model is not None:
            of = certifier.votes_are_of(path, loaded.smoothed.precision)
        labels = examples.labels["test"][ids]
        forecast = driver.forecast_in(self._root, sampler, loaded, of, ids, examples.num_classes, plan, labels=labels)
        cheaper = sampling_plan.cheaper(settings, "num_test_examples")
        return forecast.as_json() | {"cheaper": cheaper}, str(forecast)

    def _check_network(self):
        trainer.check_crops(self._settings["crop_padding"], self._examples.image_shape)
        with tempfile.TemporaryDirectory() as folder:
            trainer.check_untrained(self._settings, self._model, self._examples.image_shape, Path(folder))

    def _seconds_per_step(self, method, ids, labels):
        settings = self._settings
        names = ("batch_size", "seed", "crop_padding", "flip")
        of_data = {"first_step": 0, "epochs": 1, **{name: settings[name] for name in names}}
        batch = next(iter(input_pipeline.batches(self._examples, ids, labels, **of_data)))
        if schedule := method.schedule(settings):
            schedule.set_model(self._model)
            schedule.on_epoch_begin(0)
        self._model.train_on_batch(*batch)  # which traces the graph
        began, steps = time.monotonic(), 0
        while not steps or (time.monotonic() - began < _SECONDS and steps < _MOST_STEPS):
            self._model.train_on_batch(*batch)
            steps += 1
        return (time.monotonic() - began) / steps


def _examples(components, artifacts, settings, root):
    """The `Examples` that a run has, or would quickly make and check; else None."""
    if "examples" in artifacts:
        return examples_lib.read(artifacts["examples"].path)
    if not settings["train_images"] and not datasets.is_soon_read(settings["dataset"], settings["data_dir"]):
        return None
    with tempfile.TemporaryDirectory() as folder:
        made = Artifact(_generated(settings, Path(folder)), "none")
        orchestrator.resolved(components, {"examples": made}, settings, root)
        # What is memory-mapped stays readable after its name is gone.
        return examples_lib.read(made.path)


def _generated(settings, folder):
    parameters = {name: settings[name] for name in EXAMPLE_GEN.parameters}
    outputs = {name: folder / name for name in (*EXAMPLE_GEN.outputs, "scratch")}
    for path in outputs.values():
        path.mkdir()
    scratch = outputs.pop("scratch")
    EXAMPLE_GEN.execute(orchestrator.Execution({}, outputs, parameters, folder, scratch, settings["num_workers"]))
    return outputs["examples"]
