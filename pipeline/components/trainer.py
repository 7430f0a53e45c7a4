"""Trainer: examples -> a classifier trained with MACER, or with a method that it is compared with."""

import contextlib
import functools
import math
import re

import numpy as np

from macer_tf.model import MACERModel
from pipeline.cli import console
from pipeline.data import examples as examples_lib
from pipeline.experiments import methods, setting_list
from pipeline.orchestration.orchestrator import TENSORBOARD, Component
from pipeline.training import backups, curves, input_pipeline, live, models, watchdogs
from pipeline.utils import code
from pipeline.utils.atomic_files import writing
from pipeline.utils.errors import InputError

# Folder in the execution's scratch for what training continues from.
BACKUP = "backup"


def train(execution):
    """Trains for the given epochs, continuing from the last backed-up step, and saves the model and training curves."""
    settings, output = execution.parameters, execution.outputs["model"]
    examples = examples_lib.read(execution.inputs["examples"].path)
    ids, labels = chosen(examples.labels["train"], settings)
    check_crops(settings["crop_padding"], examples.image_shape)
    steps, method = math.ceil(len(ids) / settings["batch_size"]), methods.find(settings["method"])
    model = models.build(method.model, settings, examples.image_shape, examples.num_classes, steps)
    # Now, and not only when training is paid for.
    check_untrained(settings, model, examples.image_shape, execution.scratch)

    record = backups.Record(steps)
    backup = backups.Backup(execution.scratch / BACKUP, record)
    backup.restore(model)
    _print_start(model, record, settings["epochs"])
    work = functools.partial(method.work, settings)
    progress = live.TrainingProgress(record, settings["epochs"], work, cheaper(settings))
    events = execution.root / TENSORBOARD / _name_of_curves(execution, examples)
    print(f"  {console.curves(events.parent)}", flush=True)
    with contextlib.closing(progress), contextlib.closing(curves.Curves(output, events, record)) as written:
        callbacks = _callbacks(settings, model, record, (progress, backup, written), labels[labels >= 0])

        def fit(epochs):
            names = ("batch_size", "seed", "crop_padding", "flip")
            how = {"first_step": record.done, "epochs": epochs, **{name: settings[name] for name in names}}
            batches = input_pipeline.batches(examples, ids, labels, **how)
            # `batches` has already shuffled.
            model.fit(
                batches,
                steps_per_epoch=steps - record.step,
                initial_epoch=record.epoch,
                **{"epochs": epochs, "shuffle": False, "verbose": 0, "callbacks": callbacks},
            )

        if record.step:
            fit(record.epoch + 1)
            backup.restore(model)  # if Keras has ended `fit` with the averaged weights
        if record.epoch < settings["epochs"] and not record.is_stopped:
            fit(settings["epochs"])
    _save(model, output / "model.keras")
    if _uses_own_code(settings):
        models.check_comes_back(model, output / "model.keras", examples.image_shape)


def cheaper(settings):
    """Names of settings that would make training shorter, for `console.print_if_long`."""
    return [name for name in ("epochs", "num_samples", "attack_steps", "train_examples") if name in settings]


def _name_of_curves(execution, examples):
    settings = execution.parameters
    told = f"{settings['method']}-{examples.name}-{settings['sigma']:g}-{execution.name.rpartition('-')[2][:8]}"
    return re.sub(r"[^\w.+-]", "_", told)


def chosen(labels, settings):
    """The ids of the images to train on, and a label for each, -1 where it has none.

    Labelled images appear at least as often as unlabelled ones, each in as many copies as that takes.

    Raises:
        InputError: if more are asked for than there are, none is left without a label, or all labels are of one class.
    """
    ids, kept = _chosen(labels, settings)
    classes = np.unique(kept[kept >= 0])
    # Whatever made it so: a model would learn to answer with that class, whatever the image.
    if len(classes) < 2:
        raise InputError(
            f"Two classes or more are needed to train. Received: class number {classes[0]} only; choose other images, "
            "or more, with train_split, validation, train_examples or labels."
        )
    return ids, kept


def _chosen(labels, settings):
    _check_count("train_examples", settings, len(labels), "training images")
    ids = examples_lib.evenly_spaced(len(labels), settings["train_examples"])
    _check_count("labels", settings, len(ids), "images to train on")
    if settings["labels"] is None:
        return ids, labels[ids]
    places = examples_lib.stratified(labels[ids], settings["labels"], settings["seed"])
    labelled, hidden = ids[places], np.delete(ids, places)
    if not settings.get("unlabelled"):
        return labelled, labels[labelled]
    if not len(hidden):
        raise InputError(
            f"With unlabelled, labels must be below the number of images to train on, {len(ids):,}. Received: labels="
            f"{settings['labels']}"
        )
    copies = np.tile(labelled, math.ceil(len(hidden) / len(labelled)))
    return np.concatenate([hidden, copies]), np.concatenate([np.full(len(hidden), -1), labels[copies]])


def _check_count(name, settings, there_are, what):
    if (settings[name] or 0) > there_are:
        raise InputError(f"There are only {there_are:,} {what}. Received: {name}={settings[name]}")


def _save(model, path):
    # Averaged once more: a training run that had finished was restored with the weights of its last step.
    model.optimizer.finalize_variable_values(model.trainable_variables)
    with writing(path, "the trained model is kept and will only be saved again"):
        model.save(path)


def _uses_own_code(settings):
    """Whether the method or the network is the user's own."""
    return bool(code.modules(settings["method"], settings["network"]))


def check_untrained(settings, model, image_shape, folder):
    """Checks that the model could be certified from its file, if its method or its network is the user's own.

    Args:
        settings: name -> value.
        model: what `models.build` returned for them.
        image_shape: [H, W, C].
        folder: `Path` of a folder for that file.

    Raises:
        InputError: as `models.check_comes_back`.
    """
    if not _uses_own_code(settings):
        return
    path = folder / "compared.keras"
    with writing(path, "nothing is lost"):
        model.save(path)
    models.check_comes_back(model, path, image_shape)
    path.unlink()


def check_crops(crop_padding, image_shape):
    """Raises InputError if some crops of images [H, W, C] would show nothing of them."""
    if crop_padding >= min(image_shape[:2]):
        raise InputError(
            "crop_padding must be less than the images' shorter side, or crops would miss the image. Received: "
            f"{crop_padding} for images of {image_shape[0]}x{image_shape[1]} pixels"
        )


def _print_start(model, record, epochs):
    if record.done:
        step = f" and {record.step} of {record.steps} steps of the next" if record.step else ""
        print(f"  Training resumes after epoch {record.epoch} of {epochs}{step}.")
    if model.distribute_strategy.num_replicas_in_sync > 1:
        print(f"  Each batch is split across {model.distribute_strategy.num_replicas_in_sync} devices.")


def _callbacks(settings, model, record, behind, labels):
    schedule = methods.find(settings["method"]).schedule(settings)
    _, backup, _ = behind
    callbacks = [*([schedule] if schedule else []), record, watchdogs.StopOnDivergence(record, backup), *behind]
    if isinstance(model, MACERModel) and settings.get("lam"):
        chance = np.bincount(labels).max() / len(labels)
        callbacks.append(watchdogs.TellOfCollapse(chance, print))
    return callbacks


def component(settings):
    """The Trainer of these settings' method and network, either of which may be in a module of the user's."""
    method = methods.find(settings["method"])
    return Component(
        name="Trainer",
        inputs=("examples",),
        outputs=("model",),
        parameters=(*setting_list.names("Training"), "train_examples", "labels", *method.defaults()),
        execute=train,
        references=("method", "network"),
    )
