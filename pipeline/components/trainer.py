"""Trainer: examples -> a classifier trained with MACER, or with a method that it is compared with."""

import math

from pipeline import examples as examples_lib
from pipeline import models, training
from pipeline.orchestrator import Component


def train(execution):
    """Trains for the given epochs, from the last backed-up one on, and saves the model."""
    settings = execution.parameters
    examples = examples_lib.read(execution.inputs["examples"].path)
    chosen = examples_lib.evenly_spaced(len(examples.labels["train"]), settings["train_examples"])
    steps = math.ceil(len(chosen) / settings["batch_size"])
    model = models.build(settings, examples.image_shape, examples.num_classes, steps)

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
                training.EpochSeconds(),
                models.hyperparameter_schedule(settings),
                training.StopOnDivergence(backup),
                training.TrainingProgress(settings["epochs"], steps, first_epoch),
                training.LearningRateLog(),
                backup,
            ],
        )
    model.save(execution.outputs["model"] / "model.keras")
    training.write_history(backup.history, execution.outputs["model"] / "history.csv")


TRAINER = Component(
    name="Trainer",
    inputs=("examples",),
    outputs=("model",),
    parameters=(
        "method",
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
        "attack",
        "epsilon",
        "attack_steps",
        "warmup_epochs",
        "crop_padding",
        "flip",
        "train_examples",
        "seed",
    ),
    execute=train,
)
