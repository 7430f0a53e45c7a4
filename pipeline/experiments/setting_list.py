"""One list of settings: names, types, meanings, units and defaults of all that are not specific to a training method.

The presets' defaults, the command line, the components' parameters, the printed plan, the report's settings and a
sweep's checks derive from it and from the methods' lists.
"""

from pipeline.certification import sampling_plan
from pipeline.cli.command_line import (
    ABOVE_0,
    EPOCHS,
    FOLDER,
    FROM_0,
    FROM_0_BELOW_1,
    INSIDE_0_1,
    NUM_EPOCHS,
    NUM_WORKERS,
    PATH,
    SEED,
    SWITCH,
    TEXT,
    Setting,
    choice,
    none_or,
    whole,
)
from pipeline.data.datasets import SHORT_NAMES
from pipeline.experiments import methods

DEFAULT_SIGMA = 0.25
_PRECISION = choice(**{name: name for name in ("float32", "mixed_bfloat16", "mixed_float16")})
_STRATEGY = none_or("none", choice(auto="auto", mirrored="mirrored"))

GROUPS = {
    "Data": (
        Setting("dataset", TEXT, f"{', '.join(SHORT_NAMES)}, or any in TFDS", None, "or --preset"),
        Setting("preset", TEXT, "an experiment of the paper or ours, by name", None, "by dataset, sigma and method"),
        Setting("train_images", PATH, "a folder of image files, or an .npz file", None, "or a dataset"),
        Setting("test_images", PATH, "a folder or an .npz file to certify", None, "or a dataset"),
        Setting("data_dir", FOLDER, "folder of prepared TFDS data", None, "TFDS's own"),
        Setting("train_split", TEXT, "TFDS split to train on", None, "train"),
        Setting("test_split", TEXT, "TFDS split to certify", None, "test"),
        Setting("image_size", none_or("none", whole(1)), "resize and crop to this side, pixels", None),
        Setting(
            "validation", none_or("none", whole(2)), "training images to hold out and certify, not test images", None
        ),
        Setting("labels", none_or("all", whole(1)), "labels to keep, stratified by class", None),
        Setting("train_examples", none_or("all", whole(1)), "train on this many images, evenly spaced", None, "all"),
    ),
    "Training": (
        Setting("method", TEXT, f"{', '.join(methods.NAMES)}, or package.module:METHOD", "macer"),
        Setting("sigma", ABOVE_0, "noise level, in [0, 1] pixel units", DEFAULT_SIGMA),
        Setting(
            "network", TEXT, "small_cnn, lenet, cifar_resnet<N>, resnet50 or module:function", None, "the dataset's"
        ),
        Setting("epochs", NUM_EPOCHS, "passes over the training images", 440),
        Setting("batch_size", whole(1), "images per step", 64),
        Setting("learning_rate", ABOVE_0, "of SGD, at the start", 0.01),
        Setting("lr_schedule", choice(step="step", cosine="cosine"), "step or cosine", "step"),
        Setting("lr_drop_epochs", none_or("none", EPOCHS), "epochs where a step schedule drops", (200, 400)),
        Setting("lr_drop_factor", INSIDE_0_1, "what a drop multiplies the learning rate by", 0.1),
        Setting("momentum", FROM_0_BELOW_1, "of SGD", 0.9),
        Setting("l2", FROM_0, "L2 regularisation, in the gradient of all weights", 5e-4),
        Setting("clip_norm", none_or("none", ABOVE_0), "bound on the gradient's global norm", None),
        Setting("ema", FROM_0_BELOW_1, "momentum of the weights' moving average, which is kept; 0: off", 0.0),
        Setting("crop_padding", whole(0), "random crops after padding by this many pixels", 0),
        Setting("flip", choice(yes=True, no=False), "random horizontal flips, yes or no", False),
        Setting("precision", _PRECISION, f"of the network: {_PRECISION.accepts}", "float32"),
        Setting("microbatch", none_or("none", whole(1)), "images per gradient slice, to save memory", None),
        Setting("strategy", _STRATEGY, "auto: mirrored on 2 GPUs or more; learning_rate is not scaled", "auto"),
        Setting("seed", SEED, "of weights, order and all noise", 0),
    ),
    "Certification": (
        sampling_plan.N0,
        sampling_plan.N,
        sampling_plan.ALPHA,
        Setting("num_test_examples", none_or("all", whole(2)), "test images to certify, evenly spaced", 500),
        sampling_plan.CERTIFY,
        sampling_plan.BUDGET,
        Setting("soft_betas", sampling_plan.SOFT_BETAS.kind, sampling_plan.SOFT_BETAS.meaning, None, "beta, or 16"),
    ),
    "Blessing, push and run": (
        Setting("min_accuracy", INSIDE_0_1, "a blessed model is above this certified accuracy", None, "twice chance"),
        Setting("serving_n", whole(1), "n of the served model", 1000),
        Setting("push_dir", FOLDER, "model server's folder", None, "<pipeline_root>/serving/<name>"),
        Setting("sweep", TEXT, "compare values of a setting: lam=0,1,4", None, "off"),
        Setting("pipeline_root", FOLDER, "where everything is kept", "runs"),
        Setting("num_workers", NUM_WORKERS, "certification threads", None, "one per core"),
        Setting("no_cache", SWITCH, "redo what was done before", False),
    ),
}

# Settings of the group "Training" that do not make another model, in the sense in which papers describe models.
NO_HYPERPARAMETERS = ("precision", "microbatch", "strategy", "seed")


def names(group):
    """The names of a group's settings."""
    return tuple(setting.name for setting in GROUPS[group])
