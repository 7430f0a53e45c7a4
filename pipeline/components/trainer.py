"""Trainer: examples -> a classifier trained with MACER."""

import math

import keras

from macer_tf import networks
from macer_tf.model import MACERModel
from macer_tf.optimizers import SGD
from pipeline import examples as examples_lib
from pipeline import presets, training
from pipeline.errors import InputError
from pipeline.orchestrator import Component


def train(execution):
    """Trains for the given epochs, from the last backed-up one on, and saves the `MACERModel`."""
    settings = execution.parameters
    examples = examples_lib.read(execution.inputs["examples"].path)
    chosen = examples_lib.evenly_spaced(len(examples.labels["train"]), settings["train_examples"])
    steps = math.ceil(len(chosen) / settings["batch_size"])
    model = build_model(settings, examples.image_shape, examples.num_classes, steps)

    backup = training.Backup(execution.scratch / "backup")
    first_epoch = backup.restore(model)
    if first_epoch:
        print(f"  Training goes on after epoch {first_epoch} of {settings['epochs']}.")
    if first_epoch < settings["epochs"]:
        model.fit(
            training.batches(
                examples,
                chosen,
                batch_size=settings["batch_size"],
                seed=settings["seed"],
                first_epoch=first_epoch,
                epochs=settings["epochs"],
                crop_padding=settings["crop_padding"],
                flip=settings["flip"],
            ),
            steps_per_epoch=steps,
            initial_epoch=first_epoch,
            epochs=settings["epochs"],
            shuffle=False,  # `batches` has done it
            verbose=0,
            callbacks=[
                training.DeferLam(settings["lam"], settings["lam_start_epoch"]),
                training.StopOnDivergence(backup),
                training.TrainingProgress(settings["epochs"], steps, first_epoch),
                training.LearningRateLog(),
                backup,
            ],
        )
    model.save(execution.outputs["model"] / "model.keras")
    training.write_history(backup.history, execution.outputs["model"] / "history.csv")


def build_model(settings, image_shape, num_classes, steps):
    """The compiled `MACERModel` of these settings, initialised from settings["seed"]."""
    keras.utils.set_random_seed(settings["seed"])
    name = settings["network"] or presets.network_for(image_shape)
    try:
        network = networks.build(name, tuple(image_shape), num_classes)
    except ValueError as error:
        raise InputError(str(error)) from None
    model = MACERModel(
        network,
        sigma=settings["sigma"],
        num_samples=settings["num_samples"],
        lam=settings["lam"],
        gamma=settings["gamma"],
        beta=settings["beta"],
        seed=settings["seed"],
    )
    model.compile(
        SGD(
            learning_rate=training.schedule(settings, steps),
            momentum=settings["momentum"],
            l2=settings["l2"],
            global_clipnorm=settings["clip_norm"],
        )
    )
    model.optimizer.build(model.trainable_variables)
    return model


TRAINER = Component(
    name="Trainer",
    inputs=("examples",),
    outputs=("model",),
    parameters=(
        "sigma",
        "network",
        "num_samples",
        "lam",
        "gamma",
        "beta",
        "epochs",
        "batch_size",
        "learning_rate",
        "lr_schedule",
        "lr_drop_epochs",
        "lr_drop_factor",
        "momentum",
        "l2",
        "clip_norm",
        "lam_start_epoch",
        "crop_padding",
        "flip",
        "train_examples",
        "seed",
    ),
    execute=train,
)
