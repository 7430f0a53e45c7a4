"""Every bad input is one clear line; the help fits a screen; every flag reaches the settings."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from macer_tf import bounds
from pipeline.experiments import methods, presets
from pipeline.experiments import settings as settings_lib
from pipeline.jobs import run as run_lib
from pipeline.utils import processor

REPOSITORY = Path(__file__).resolve().parents[3]
SETTINGS = [setting for group in settings_lib.known([]).values() for setting in group]
FLAGS = [setting.name for setting in SETTINGS]
# What MACER does not have, and a method that does.
OF_OTHERS = {
    **dict.fromkeys(("attack", "epsilon", "attack_steps", "warmup_epochs"), "smoothadv"),
    "stability": "stability", "mixup": "smoothmix", "step_size": "smoothmix", "adversarial": "catrs",
}  # fmt: skip


@pytest.fixture
def line(capsys, tmp_path, monkeypatch):
    """A function that runs the command with bad input -> its one line on stderr. Nothing may be sampled or trained."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        assert run_lib.main([str(argument) for argument in arguments]) == 2
        (only,) = capsys.readouterr().err.splitlines()
        assert only.startswith("error: ")
        return only

    return run


BAD = [
    (["--dataset", "digits", "--alpha", "0.2"], "--alpha must lie between 1e-06 and 0.1, because the exported model"),
    (["--dataset", "digits", "--alpha", "1e-7"], "--alpha must lie between 1e-06 and 0.1, because the exported model"),
    (["--dataset", "digits", "--sgima", "1"], "Unknown argument --sgima. Did you mean --sigma"),
    (["--dataset", "digits", "--epoch", "1"], "Unknown argument --epoch. Did you mean --epochs"),
    (["--dataset", "digits", "--xyzzy"], "Unknown argument --xyzzy. See --help."),
    *(
        (
            ["--dataset", "digits", f"--{name}", value],
            f"--{name} must be of a size that float32 can hold, 1.2e-38 to 3.4e+38.",
        )
        for name in ("sigma", "beta", "lam", "learning_rate", "l2", "clip_norm")
        for value in ("1e39", "1e-39")
    ),
    *(
        (
            ["--dataset", "digits", f"--{name}", "2147483648"],
            f"--{name} must be at most 2147483647. Received: 2147483648",
        )
        for name in ("num_samples", "n", "n0", "microbatch", "serving_n", "crop_padding")
    ),
    (["--dataset", "digits", "--epochs", "1000001"], "--epochs must be a whole number from 1 to 1000000. Received: "),
    (
        ["--dataset", "digits", "--lr_drop_epochs", "1,2147483648"],
        "--lr_drop_epochs must be at most 2147483647. Received: 1,",
    ),
    (["--dataset", "digits", "--sgima=1"], "Did you mean --sigma"),
    (["--dataset", "digits", "--lr", "0.1"], "Unknown argument --lr. Did you mean --learning_rate?"),
    # No option of Beam's beside one of ours that is as near.
    (["--dataset", "digits", "--batch-size", "8"], "Unknown argument --batch-size. Did you mean --batch_size?"),
    (["digits"], "Unknown argument digits"),
    ([], "--dataset is missing. Accepted: digits, mnist, svhn, cifar10, imagenet"),
    (["--train_images", "a"], "--test_images is missing: --train_images needs it."),
    (["--test_images", "a"], "--train_images is missing: --test_images needs it."),
    *(
        (["--train_images", "a", "--test_images", "b", f"--{name}", "8"], f"--{name} is for data sets that have a name")
        for name in ("dataset", "preset", "data_dir", "train_split", "test_split", "image_size")
    ),
    *(
        (["--dataset", "digits", f"--{name}", ""], f"--{name} must be {accepts}. Received: ''")
        for name, accepts in [("pipeline_root", "a folder"), ("push_dir", "a folder"), ("config", "a path")]
    ),
    (["--dataset"], "argument --dataset: expected one argument"),
    (["--dataset", "digits", "--sigma"], "argument --sigma: expected one argument"),
    (["--dataset", "digits", "--sigma", "--n", "5"], "argument --sigma: expected one argument"),
    *(
        (["--dataset", "digits", f"--{name}", value], f"--{name} must be {accepts}. Received: {value}")
        for name, accepts, values in [
            ("sigma", "a number above 0", ["0", "-1", "nan", "inf", "x", "", "0,25", "1e-400"]),
            ("alpha", "a number above 0 and below 1", ["0", "1", "-0.1", "1.5", "nan", "x"]),
            ("gamma", "a number above 0", ["0", "-8", "nan"]),
            ("beta", "a number above 0", ["0", "-16", "inf"]),
            ("lam", "a number from 0", ["-1", "nan", "x"]),
            ("num_samples", "a whole number from 1", ["0", "-1", "1.5", "x"]),
            ("epochs", "a whole number from 1 to 1000000", ["0", "-3", "1.0", "1.5e0", "1e-1", "1e100", "1e9"]),
            ("batch_size", "a whole number from 1", ["0"]),
            ("n", "a whole number from 1", ["0", "-1", "1e-5", "1e5.0", "e5", "9" * 400]),
            ("n0", "a whole number from 1", ["0"]),
            ("learning_rate", "a number above 0", ["0", "-0.1", "nan"]),
            ("momentum", "a number from 0 and below 1", ["1", "-0.1"]),
            ("l2", "a number from 0", ["-1"]),
            ("clip_norm", "a number above 0, or none", ["0", "-1", "None"]),
            ("crop_padding", "a whole number from 0", ["-1"]),
            ("flip", "yes or no", ["maybe", "True"]),
            ("lr_schedule", "step or cosine", ["linear"]),
            ("lr_drop_factor", "a number above 0 and below 1", ["1", "0"]),
            ("lr_drop_epochs", "epochs such as 200,400, or none", ["0", "1,", "a,b", "1.5", ""]),
            ("lam_start_epoch", "a whole number from 0", ["-1"]),
            ("precision", "float32 or mixed_bfloat16 or mixed_float16", ["float16", "bfloat16", "none", ""]),
            ("microbatch", "a whole number from 1, or none", ["0", "-1", "1.5"]),
            ("strategy", "auto or mirrored, or none", ["MirroredStrategy", "2"]),
            ("seed", "a whole number from 0 to 4294967295", ["-1", "4294967296", "x", "1.5"]),
            ("image_size", "a whole number from 1, or none", ["0"]),
            ("train_examples", "a whole number from 1, or all", ["0", "none"]),
            ("num_test_examples", "a whole number from 2, or all", ["0", "1", "-1"]),
            ("min_accuracy", "a number above 0 and below 1", ["0", "1"]),
            ("serving_n", "a whole number from 1", ["0"]),
            ("num_workers", "a whole number from 1 to 1024", ["0", "1025"]),
            ("pipeline_root", "a folder", ["~nobody-of-this-name/x"]),
        ]
        for value in values
    ),
    (["--dataset", "digits", "--gamma", "25"], "gamma must be above 0 and at most 24"),
    (["--dataset", "digits", "--n", "9"], "n is too small. No image could be certified: with alpha=0.001"),
    (["--dataset", "digits", "--n", "9"], "Received: n=9; n must be at least 10."),
    (["--dataset", "digits", "--serving_n", "9"], "--serving_n is too small. No image could be certified"),
    (["--dataset", "digits", "--serving_n", "10000001"], "--serving_n must be at most 10,000,000, because"),
    (["--dataset", "mnist", "--lr_drop_epochs", "3,2"], "--lr_drop_epochs must rise. Received: 3,2"),
    (["--dataset", "mnist", "--lr_drop_epochs", "2,2"], "--lr_drop_epochs must rise. Received: 2,2"),
    (["--dataset", "digits", "--n", "500", "--n=600"], "--n is given twice: 500 and 600. Give it once."),
    (["--dataset", "digits", "--no_cache", "--no_cache"], "--no_cache is given twice: yes and yes. Give it once."),
    (["--dataset", "digits", "--dataset", "mnist"], "--dataset is given twice: digits and mnist. Give it once."),
    (
        ["--preset", "macer-digits-0.25", "--dataset", "mnist"],
        "The preset macer-digits-0.25 is for the dataset digits: leave out --dataset, or --preset. "
        "Received: --dataset mnist",
    ),
    (["--preset", "macer-digits-0.25", "--sigma", "0.5"], "is for the sigma 0.25: leave out --sigma, or --preset"),
    (
        ["--dataset", "digits", "--soft_betas", "4"],
        "--soft_betas would do nothing here: it is for soft certificates, and certify=hard asks for none. Leave it out",
    ),
    (["--dataset", "digits", "--soft_betas", "4", "--certify", "hard-randomized"], "--soft_betas would do nothing"),
    (["--dataset", "digits", "--data_dir", "x"], "--data_dir would do nothing here: the digits are embedded"),
    (["--dataset", "digits", "--lr_drop_epochs", "3"], "here: lr_schedule=cosine has no drops"),
    (["--dataset", "digits", "--lr_drop_factor", "0.5"], "--lr_drop_factor would do nothing here: the learning rate"),
    (
        ["--dataset", "mnist", "--epochs", "5", "--lr_drop_epochs", "2,5"],
        "--lr_drop_epochs would do nothing here: that takes 6 epochs, and there are 5",
    ),
    (["--dataset", "mnist", "--epochs", "5", "--lam_start_epoch", "5"], "here: that takes 6 epochs, and there are 5"),
    (["--dataset", "mnist", "--epochs", "5", "--ramp_epochs", "6"], "--ramp_epochs would do nothing here: that takes"),
    (["--dataset", "mnist", "--epochs", "5", "--samples_rise_epochs", "5"], "--samples_rise_epochs would do nothing"),
    (["--dataset", "mnist", "--noise_radius", "2"], "--noise_radius would do nothing here: noise_steps=0"),
    *(
        (["--dataset", "mnist", "--lam", "0", "--consistency", "5", *flags], f"{flags[0]} would do nothing here: lam=0")
        for flags in (["--noise_steps", "1"], ["--noise_for_all", "yes"], ["--noise_radius", "2"])
    ),
    (["--dataset", "mnist", "--samples_rise_factor", "2"], "would do nothing here: samples_rise_epochs=none"),
    *(
        (["--dataset", "mnist", "--lam", "0", flag, "3"], f"{flag} would do nothing here: lam, consistency and entropy")
        for flag in ("--lam_start_epoch", "--ramp_epochs")
    ),
    *(
        (["--dataset", "mnist", "--lam", "0", "--epochs", "5", *flags, "--lam_start_epoch", "5"], "that takes 6 epochs")
        for flags in (["--entropy", "1"], ["--unlabelled", "--labels", "70", "--ema", "0.9"])
    ),
    (["--dataset", "mnist", "--num_samples", "1", "--consistency", "5"], "--consistency would do nothing here: num_s"),
    *(
        (["--dataset", "digits", "--method", method, f"--{off}", value, flag, "3"], f"{flag} would do nothing here: ")
        for method, off, value, flag in (
            ("smoothadv", "epsilon", "0", "--attack_steps"),
            ("smoothadv", "epsilon", "0", "--warmup_epochs"),
            ("smoothmix", "mixup", "0", "--warmup_epochs"),
            ("catrs", "adversarial", "0", "--attack_steps"),
            ("catrs", "adversarial", "0", "--noise_radius"),
            ("consistency", "num_samples", "1", "--consistency"),
        )
    ),
    *(
        (
            ["--dataset", "digits", "--method", method, "--epochs", "5", "--warmup_epochs", "6"],
            "--warmup_epochs would do nothing here: that takes 6 epochs, and there are 5",
        )
        for method in ("smoothadv", "smoothmix")
    ),
    (["--dataset", "digits", "--verbose", "--quiet"], "--verbose and --quiet: give only one of them."),
    # Or the training would be for nothing.
    *(
        (["--dataset", name, "--sigma", sigma], f"must lie in [0.05, 16,384]. Received: levels={levels}, sigma={sigma}")
        for name, levels, sigma in (("digits", 256, "64.1"), ("digits", 256, "0.0001"), ("mnist", 255, "64.3"))
    ),
    (["--dataset", "mnits"], "Unknown dataset 'mnits'. Did you mean mnist"),
    (["--dataset", "digit"], "Did you mean digits"),
    (
        ["--dataset", "digits", "--network", "vgg"],
        "Received: vgg; accepted: small_cnn, lenet, cifar_resnet<depth>, resnet50, module:function, e.g. ",
    ),
    (["--dataset", "digits", "--network", "cifar_resnet9"], "depth of a cifar_resnet must be 6n + 2"),
    (["--dataset", "digits", "--network", "my_nowhere:make"], "There is no module my_nowhere to import"),
    (["--train_images", "nowhere", "--test_images", "b"], "There is no folder or file nowhere."),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else ""
)
def test_bad_arguments_are_one_line_before_anything_is_made(line, arguments, message, tmp_path):
    assert message in line(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "value"), [("1e5", 100_000), ("1E3", 1000), ("2.5e4", 25_000), ("1e+2", 100), ("1e9", 10**9)]
)
def test_a_whole_number_may_have_an_exponent(text, value):
    assert settings_lib.parse(["--dataset", "digits", "--n", text])[0]["n"] == value


def test_what_a_preset_has_that_would_do_nothing_is_noted_and_not_refused():
    settings, preset, given = settings_lib.resolve(["--dataset", "mnist", "--epochs", "5"])
    assert settings_lib.parse(["--dataset", "mnist", "--epochs", "5"])[0] == settings
    noted = settings_lib.notes(settings, preset, given)
    assert noted == ["lr_drop_epochs=200,400: that takes 401 epochs, and there are 5."]


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: preset.name)
def test_no_preset_speaks_of_epochs_that_it_does_not_have(preset):
    settings, _ = settings_lib.parse(["--preset", preset.name])
    assert settings_lib.unreached(settings) == {}


@pytest.mark.parametrize(("sigma", "is_noted"), [("0.25", False), ("1", False), ("4", False), ("63.75", True)])
def test_a_noise_level_for_pixels_up_to_255_is_noted(sigma, is_noted):
    noted = settings_lib.notes(*settings_lib.resolve(["--dataset", "digits", "--sigma", sigma]))
    assert any("If it was meant for pixels from 0 to 255, give 0.25." in note for note in noted) == is_noted


@pytest.mark.parametrize(
    ("flags", "precision", "is_noted"),
    [
        ("flags\t\t: fpu sse2 avx2 fma\n", "mixed_bfloat16", True),
        ("flags\t\t: fpu sse2 avx2 fma\n", "mixed_float16", True),
        ("flags\t\t: fpu sse2 avx2 fma\n", "float32", False),
        ("flags\t\t: fpu sse2 avx2 fma avx512f\n", "mixed_bfloat16", False),
        ("Features\t: fp asimd\n", "mixed_bfloat16", False),  # an Arm processor
        (None, "mixed_bfloat16", False),
    ],
)
def test_a_precision_that_the_processor_emulates_is_noted(flags, precision, is_noted, tmp_path, monkeypatch):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}")
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    noted = settings_lib.notes(*settings_lib.resolve(["--dataset", "digits", "--precision", precision]))
    assert any("no AVX-512" in note for note in noted) == is_noted


def test_the_smallest_n_that_can_certify_is_accepted():
    assert settings_lib.parse(["--dataset", "digits", "--n", "10"])[0]["n"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "digits", "--network", "lenet"], "lenet takes images of at least 16x16 pixels. Received: 8x8"),
        (["--dataset", "digits", "--train_examples", "1438"], "There are only 1,437 training images. Received: train"),
        (
            ["--dataset", "digits", "--train_examples", "1"],
            "Two classes or more are needed to train. Received: class number 0 only; choose other images, or",
        ),
        (["--dataset", "digits", "--labels", "1"], "Two classes or more are needed to train. Received: class number"),
        (["--dataset", "digits", "--labels", "1438"], "There are only 1,437 images to train on. Received: labels=1438"),
        (
            ["--dataset", "digits", "--train_examples", "100", "--labels", "101"],
            "There are only 100 images to train on. Received: labels=101",
        ),
        (["--dataset", "digits", "--num_test_examples", "361"], "There are only 360 test images. Received: num_test_e"),
        # Four votes of four certify at alpha = 0.1, but eight of eight do not decide between ten classes.
        (["--dataset", "digits", "--alpha", "0.1", "--serving_n", "4"], "serving_n=4 is too small: a served"),
        (["--dataset", "digits", "--image_size", "16"], "digits are embedded"),
        (
            ["--dataset", "digits", "--crop_padding", "8"],
            "shorter side, or crops would miss the image. Received: 8 for",
        ),
    ],
)
def test_what_only_the_data_can_tell_is_one_line_too(line, arguments, message, tmp_path):
    received = line(*arguments, "--pipeline_root", tmp_path / "root")
    assert message in received
    assert not list((tmp_path / "root").glob("*/model/model.keras"))


# Its file brings back a layer of the default scale.
LAYER = """
import keras
{register}
class Scale(keras.layers.Layer):
    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
    def call(self, x):
        return self.scale * x
    def get_config(self):
        return super().get_config()
def make(shape, classes):
    return keras.Sequential([keras.Input(shape), Scale(-2.0), keras.layers.Flatten(), keras.layers.Dense(classes)])
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "There is no module my_network to import, from the current folder or installed."),
        ("import no_such_thing\n", "Cannot import my_network (ModuleNotFoundError: "),
        ("def other(): pass\n", "The module my_network defines no make."),
        ("make = 3\n", "The network my_network:make cannot be built for images (8, 8, 1) of 10 classes (TypeError: "),
        ("def make(shape, classes):\n    return classes\n", "classifier must be a keras.Model. Received: int)."),
        (
            "import keras\ndef make(shape, classes):\n    images = keras.Input(shape)\n"
            "    return keras.Model(images, keras.layers.Dense(classes + 1)(keras.layers.Flatten()(images)))\n",
            "must map images (None, 8, 8, 1) to logits (None, 10). Received: (None, 8, 8, 1) to (None, 11)",
        ),
        (
            "import keras\nclass Net(keras.Model):\n    def call(self, x):\n        return x\n"
            "def make(shape, classes):\n    return Net()\n",
            "must say what shapes it takes and returns: return keras.Model(images, network(images)), with images = "
            "keras.Input(image_shape). Received: Net",
        ),
        (
            "import keras\ndef relu(x):\n    return -x\ndef make(shape, classes):\n    images = keras.Input(shape)\n"
            "    x = keras.layers.Dense(4, activation=relu, name='own')(keras.layers.Flatten()(images))\n"
            "    return keras.Model(images, keras.layers.Dense(classes)(x))\n",
            "has a custom activation in the layer own, which could not be restored from the model's file; register it",
        ),
        (
            "import keras\ndef make(shape, classes):\n    images = keras.Input(shape)\n    x = keras.layers.Flatten()"
            "(images)\n    return keras.Model(images, keras.layers.Dense(classes, activation='softmax')(x))\n",
            "logits",
        ),
        (
            "import keras\ndef make(shape, classes):\n    scale = keras.layers.Lambda(lambda x: 2 * x)\n    return "
            "keras.Sequential([keras.Input(shape), scale, keras.layers.Flatten(), keras.layers.Dense(classes)])\n",
            "replace a Lambda by a layer. Received: ValueError: a `Lambda` layer whose `function` is a Python lambda",
        ),
        (
            "import keras\ndef make(shape, classes):\n    images = keras.Input(shape)\n    x = keras.layers.Flatten()"
            "(images)\n    x = x - keras.ops.mean(x, axis=0, keepdims=True)\n    return keras.Model(images, "
            "keras.layers.Dense(classes)(x))\n",
            "The network cannot be certified: The classifier's output for an image depends on the rest of its batch",
        ),
        (
            "import keras\ndef make(shape, classes):\n    images = keras.Input(shape)\n    x = keras.layers.Flatten()"
            "(images)\n    return keras.Model(images, keras.ops.softmax(keras.layers.Dense(classes)(x)) * 1.0)\n",
            "The network must return logits, but it returns probabilities; remove its softmax.",
        ),
        (
            LAYER.format(register=""),
            "register your own layers, functions and models by keras.saving.register_keras_ser",
        ),
        (
            LAYER.format(register="@keras.saving.register_keras_serializable('forgets its scale')"),
            "The model's file loads as another network: a layer's get_config must return all arguments of its",
        ),
        (  # before training, not when it is exported
            "import keras, tensorflow as tf\n@keras.saving.register_keras_serializable('own')\n"
            "class Scale(keras.layers.Layer):\n    def __init__(self, **kwargs):\n        super().__init__(**kwargs)\n"
            "        self.scale = tf.Variable(2.0)\n    def call(self, x):\n        return self.scale * x\n"
            "def make(shape, classes):\n    return keras.Sequential([keras.Input(shape), Scale(), "
            "keras.layers.Flatten(), keras.layers.Dense(classes)])\n",
            "one of its layers holds a tf.Variable, a table or the like of its own; make weights by add_weight.",
        ),
    ],
)
def test_a_network_of_ones_own_that_cannot_be_used_is_one_line(line, tmp_path, code, message):
    if code is not None:
        (tmp_path / "my_network.py").write_text(code)
    sys.modules.pop("my_network", None)
    assert message in line("--dataset", "digits", "--network", "my_network:make", "--pipeline_root", tmp_path / "root")
    assert not list((tmp_path / "root").glob("*/model/model.keras"))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("network", "must be a macer_tf.NoisyTrainingModel. Received: Functional from the method my_method:METHOD"),
        (
            "MACERModel(network, 2 * settings['sigma'])",
            "must train at the sigma that is certified, 0.25. Received: a model with sigma=0.5",
        ),
    ],
)
def test_a_method_that_makes_another_model_is_one_line(line, tmp_path, made, message):
    (tmp_path / "my_method.py").write_text(
        "from macer_tf import MACERModel\nfrom pipeline.experiments.methods import Method\n"
        f"METHOD = Method(name='mine', label='Mine', model=lambda network, settings: {made})\n"
    )
    sys.modules.pop("my_method", None)
    received = line("--dataset", "digits", "--method", "my_method:METHOD", "--pipeline_root", tmp_path / "root")
    assert message in received


def test_a_method_with_two_settings_of_one_name_is_one_line(line, tmp_path):
    (tmp_path / "my_method.py").write_text(
        "from pipeline.cli.command_line import FROM_0, Setting\nfrom pipeline.experiments.methods import Method\n"
        "TWICE = (Setting('weight', FROM_0, 'of one term', 1.0), Setting('weight', FROM_0, 'of another', 2.0))\n"
        "METHOD = Method(name='mine', label='Mine', model=None, settings=TWICE)\n"
    )
    sys.modules.pop("my_method", None)
    received = line("--dataset", "digits", "--method", "my_method:METHOD")
    assert "The method mine has two settings with the same name: weight, weight." in received


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("mine", "return successes / n", "ValueError: The bound mine must return numbers below 1. Received: 1.0)."),
        ("mine", "return max(successes / n - 0.1, 0)", "(ValueError: The truth value of an array with more than one"),
        ("mine", "return unknown", "(NameError: name 'unknown' is not defined)."),
        (
            "../mine",
            "return 0.9 * successes / n",
            "letters, digits and .+-_ are accepted, and not 'all'. Received: '..",
        ),
        ("all", "return 0.9 * successes / n", "letters, digits and .+-_ are accepted, and not 'all'. Received: 'all'"),
        ("soft-hoeffding", "return 0.9 * successes / n", "be called soft-hoeffding, as those by hoeffding are;"),
        (
            "hard-randomized",
            "return 0.9 * successes / n",
            "be called hard-randomized, as those by randomized-clopper-pearson are; register it under another name.",
        ),
    ],
)
def test_a_bound_of_ones_own_that_cannot_hold_is_one_line(line, tmp_path, monkeypatch, name, body, message):
    monkeypatch.setattr("macer_tf.bounds.BOUNDS", dict(bounds.BOUNDS))
    (tmp_path / "my_bound.py").write_text(
        f"from macer_tf import bounds\n@bounds.register({name!r})\ndef mine(successes, n, alpha):\n    {body}\n"
    )
    sys.modules.pop("my_bound", None)
    assert message in line("--dataset", "digits", "--certify", "my_bound:mine", "--pipeline_root", tmp_path / "root")
    assert not list((tmp_path / "root").glob("*"))


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
def test_an_unwritable_root_is_one_line(line, tmp_path, below):
    (tmp_path / "file").write_text("")
    received = line("--dataset", "digits", "--pipeline_root", f"{tmp_path / 'file'}{below}")
    assert "Cannot write to the folder" in received
    assert "or give another pipeline_root" in received.split(";")[-1]


@pytest.mark.parametrize(
    ("below", "why"),
    [
        *(("file", "Not a directory"), ("file/x", "Not a directory"), ("file/x/y", "Not a directory")),
        (f"a/{'é' * 128}/b", "File name too long"),
    ],
)
def test_a_folder_that_nobody_could_push_to_is_one_line_before_anything_is_made(line, tmp_path, below, why):
    (tmp_path / "file").write_text("")
    push_dir = f"{tmp_path}/{below}"
    received = line("--dataset", "digits", "--pipeline_root", tmp_path / "root", "--push_dir", push_dir)
    assert received == f"error: Cannot push to {push_dir} ({why}); give another one with push_dir."
    assert not (tmp_path / "root").exists()


def test_a_folder_to_push_to_that_a_server_would_misread_is_one_line_before_training(line, tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "007").mkdir()
    told = line("--dataset", "digits", "--pipeline_root", tmp_path / "root", "--push_dir", tmp_path / "served")
    taken = f"A model server takes '{tmp_path}/served/007' for version 7; rename it."
    assert told == f"error: Cannot push to {tmp_path / 'served'}: {taken}"
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["pipeline_root", "push_dir"])
@pytest.mark.parametrize("images", ["train_images", "test_images"])
def test_a_folder_of_ours_among_the_images_is_one_line(line, tmp_path, name, images):
    """It was taken for a class of images, which the other folder lacks."""
    for one in ("train", "test"):
        (tmp_path / one / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to("train" if images == "train_images" else "test")
    folders = {"train_images": tmp_path / "train", "test_images": tmp_path / "test", "pipeline_root": tmp_path / "root"}
    folders[name] = tmp_path / "link" / "runs"
    told = line(*(f"--{flag}={folder}" for flag, folder in folders.items()))
    received = f"--{name} {folders[name]} lies in --{images} {folders[images]}, where it would be taken for a class"
    assert told == f"error: {received}; give another folder."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "test", "train"]


def test_a_folder_to_push_to_that_may_not_be_written_is_one_line(line, tmp_path, monkeypatch):
    """Root may write to any folder, so the system's answer is replaced."""
    asked = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append((path, mode)))
    received = line("--dataset", "digits", "--pipeline_root", tmp_path / "root", "--push_dir", tmp_path / "a" / "b")
    told = f"error: Cannot push to {tmp_path / 'a' / 'b'} (Permission denied); give another one with push_dir."
    assert received == told
    assert asked[-1] == (tmp_path, os.W_OK | os.X_OK)


def test_a_failure_is_one_line_with_its_details_in_a_file(tmp_path, capsys, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(run_lib, "_run", fail)
    assert run_lib.main(["--dataset", "digits", "--pipeline_root", str(tmp_path)]) == 1
    (only,) = capsys.readouterr().err.splitlines()
    assert only == f"error: RuntimeError: first line (details: {tmp_path / 'error.log'})"
    assert "second line" in (tmp_path / "error.log").read_text()

    # Where not even that can be written, it is still one line.
    (tmp_path / "error.log").unlink()
    (tmp_path / "error.log").mkdir()
    assert run_lib.main(["--dataset", "digits", "--pipeline_root", str(tmp_path)]) == 1
    (only,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError: first line (no details: cannot write" in only


@pytest.mark.parametrize("method", ["macer", "smoothadv"])
def test_help_fits_a_screen_and_needs_no_tensorflow(method):
    code = (
        "import sys\nfrom pipeline.jobs import run\n"
        f"try:\n    run.main(['--method', '{method}', '--help'])\nexcept SystemExit as status:\n"
        "    assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n    sys.exit(status.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 80
    of_method = settings_lib.groups(methods.find(method))
    for group in of_method:
        assert f"{group}:" in lines
    text = " ".join(done.stdout.split())
    for name in (setting.name for group in of_method.values() for setting in group):
        # Each flag, what it is, and its default in brackets before the next flag.
        described = text.partition(f" --{name} ")[2].partition(" --")[0]
        assert "[" in described, name
        assert "]" in described, name
    assert "[digits" not in text


def test_a_typo_does_not_wait_for_tensorflow(tmp_path):
    (tmp_path / "torn.keras").write_text("no model")
    model = ["--model", str(tmp_path / "torn.keras"), "--sigma", "1"]
    code = f"""
import sys
from pipeline.jobs import certify, run, runs
for wrong in ("--sigma=0", "--network=vgg", "--network=nowhere:make", "--epochs=5 --lr_drop_epochs=9", "--n=1 --n=2"):
    assert run.main(["--dataset=digits", *wrong.split()]) == 2
assert run.main(["--dataset=mnits"]) == run.main(["--train_images=a", "--test_images=b"]) == 2
assert certify.main([*{model}, "--dataset=digits"]) == certify.main([*{model}, "--images=nowhere"]) == 2
assert runs.main([{str(tmp_path)!r}]) == 0
assert "tensorflow" not in sys.modules and "apache_beam" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 9


OVERRIDES = {
    "data_dir": ("some/where", "some/where"), "train_split": ("train[:9]", "train[:9]"),
    "test_split": ("holdout", "holdout"), "image_size": ("20", 20), "train_examples": ("77", 77),
    "sigma": ("0.3", 0.3), "network": ("lenet", "lenet"), "num_samples": ("3", 3), "lam": ("2", 2.0),
    "gamma": ("7.5", 7.5), "beta": ("2", 2.0), "lam_start_epoch": ("1", 1), "epochs": ("5", 5), "batch_size": ("8", 8),
    "learning_rate": ("1e-3", 0.001), "lr_schedule": ("cosine", "cosine"), "lr_drop_epochs": ("1,4", [1, 4]),
    "lr_drop_factor": ("0.5", 0.5), "momentum": ("0", 0.0), "l2": ("0.1", 0.1), "clip_norm": ("2", 2.0),
    "crop_padding": ("2", 2), "flip": ("yes", True), "seed": ("4294967295", 4294967295), "n0": ("7", 7),
    "n": ("555", 555), "alpha": ("0.01", 0.01), "num_test_examples": ("9", 9), "min_accuracy": ("0.9", 0.9),
    "method": ("macer", "macer"), "attack": ("ddn", "ddn"), "epsilon": ("0.5", 0.5), "attack_steps": ("4", 4),
    "warmup_epochs": ("2", 2), "precision": ("mixed_float16", "mixed_float16"), "microbatch": ("16", 16),
    "strategy": ("mirrored", "mirrored"), "ema": ("0.99", 0.99),
    "labels": ("70", 70), "unlabelled": ("yes", True), "validation": ("50", 50),
    "average_cross_entropy": ("yes", True), "consistency": ("5", 5.0), "entropy": ("0.5", 0.5),
    "noise_steps": ("2", 2), "noise_radius": ("0.5", 0.5), "noise_for_all": ("yes", True),
    "ramp_epochs": ("3", 3),
    "samples_rise_epochs": ("2,4", [2, 4]), "samples_rise_factor": ("2", 2),
    "stability": ("3", 3.0), "mixup": ("1", 1.0), "step_size": ("0.5", 0.5), "adversarial": ("0", 0.0),
    "certify": ("all", "all"), "budget": ("fixed", "fixed"), "soft_betas": ("1,4", [1.0, 4.0]),
    "no_cache": ("yes", True),
    "serving_n": ("222", 222), "push_dir": ("out", "out"), "pipeline_root": ("here", "here"), "num_workers": ("3", 3),
}  # fmt: skip
# They are for an engine alone, see `test_beam_options`.
OF_ENGINES = {"votes": ("shared", "shared"), "patience": ("60", 60.0)}
# How the command speaks: see `test_saying` and `test_config`.
OF_THE_CALL = {
    "config": ("a.yaml", "a.yaml"), **dict.fromkeys(("dry_run", "verbose", "json", "quiet", "clock"), ("yes", True)),
}  # fmt: skip
# What a setting needs beside it, or it would do nothing.
NEEDED = {
    "unlabelled": ["--labels", "70", "--ema", "0.9"], "soft_betas": ["--certify", "all"],
    "noise_radius": ["--noise_steps", "1"], "noise_for_all": ["--noise_steps", "1"],
    "samples_rise_factor": ["--samples_rise_epochs", "3"],
}  # fmt: skip


def test_every_setting_can_be_overridden():
    named = {"dataset", "preset", "sweep", "train_images", "test_images"}
    assert set(OVERRIDES) == set(FLAGS) - {*named, *OF_ENGINES, *OF_THE_CALL}
    overrides = {name: override for name, override in OVERRIDES.items() if name not in OF_OTHERS}
    # A cosine has no drops.
    overrides["lr_schedule"] = ("step", "step")
    arguments = [part for name, (text, _) in overrides.items() for part in (f"--{name}", text)]
    settings, preset = settings_lib.parse(["--dataset", "mnist", *arguments])
    others = dict.fromkeys(("preset", "sweep", "train_images", "test_images"))
    others |= {"beam": (), "votes": None, "patience": 300.0, **dict.fromkeys(OF_THE_CALL, False), "config": None}
    assert settings == {"dataset": "mnist"} | others | {name: value for name, (_, value) in overrides.items()}
    assert (preset.dataset, preset.sigma, preset.paper) == ("mnist", 0.3, None)


@pytest.mark.parametrize("name", [name for name in OVERRIDES if name not in ("sigma", "pipeline_root")])
def test_an_override_changes_nothing_else(name):
    text, value = OVERRIDES[name]
    flags = ["--dataset", "mnist", *(["--method", OF_OTHERS[name]] if name in OF_OTHERS else [])]
    flags += NEEDED.get(name, [])
    default, _ = settings_lib.parse(flags)
    settings, _ = settings_lib.parse([*flags, f"--{name}={text}"])
    # Soft certificates are at the temperature that the model was trained at.
    assert settings == {**default, name: value, **({"soft_betas": [value]} if name == "beta" else {})}


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("clip_norm", "none", None), ("image_size", "none", None), ("lr_drop_epochs", "none", None),
        ("train_examples", "all", None), ("num_test_examples", "all", None), ("flip", "no", False),
        ("microbatch", "none", None), ("strategy", "none", None), ("validation", "none", None),
        ("samples_rise_epochs", "none", None),
    ],
)  # fmt: skip
def test_words_for_nothing(name, word, value):
    assert settings_lib.parse(["--dataset", "cifar10", f"--{name}", word])[0][name] == value


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: preset.name)
def test_a_preset_is_what_its_name_gives(preset):
    settings, found = settings_lib.parse(["--preset", preset.name])
    assert found == preset
    assert settings["dataset"] == preset.dataset
    for name, expected in preset.settings.items():
        if name != "soft_betas":
            assert settings[name] == ((list(expected) or None) if isinstance(expected, tuple) else expected)


def test_the_plan_tells_every_setting_that_can_change_a_result():
    settings, _ = settings_lib.parse(["--dataset", "svhn", "--clip_norm", "none", "--flip", "no"])
    listing = {
        name: (value, meaning) for group in settings_lib.listing(settings).values() for name, value, meaning in group
    }
    no_results = {"preset", "sweep", "data_dir", "push_dir", "pipeline_root", "num_workers", "no_cache"}
    assert set(listing) == set(FLAGS) - no_results - set(OF_OTHERS) - set(OF_ENGINES) - set(OF_THE_CALL)
    assert listing["lr_drop_epochs"][0] == "200,400"
    assert (listing["clip_norm"][0], listing["flip"][0], listing["num_test_examples"][0]) == ("none", "no", "500")
    assert all(value and meaning for value, meaning in listing.values())


def test_the_push_folder_is_named_after_data_and_sigma():
    settings, _ = settings_lib.parse(["--dataset", "a/b", "--sigma", "0.5", "--pipeline_root", "r"])
    assert settings["push_dir"] == str(Path("r") / "serving" / "a-b-0.5")


def test_a_setting_in_words_is_accepted_as_it_is_printed():
    for setting in SETTINGS:
        text, value = (OVERRIDES | OF_ENGINES | OF_THE_CALL).get(setting.name, ("mnist", "mnist"))
        assert setting.kind.parse(settings_lib.in_words(setting, value)) == value
        assert setting.kind.parse(text) == value


@pytest.mark.parametrize("preset", presets.PRESETS, ids=lambda preset: preset.name)
def test_data_noise_level_and_method_find_the_default_preset(preset):
    flags = ["--dataset", preset.dataset, "--sigma", str(preset.sigma), "--method", preset.method]
    _, found = settings_lib.parse(flags)
    assert (found.dataset, found.sigma, found.method) == (preset.dataset, preset.sigma, preset.method)
    assert preset.name.startswith(found.name)


def test_a_preset_can_be_overridden_but_not_in_its_method(line):
    settings, _ = settings_lib.parse(["--preset", "smoothadv-digits-0.25", "--epsilon", "0.1", "--epochs", "2"])
    assert (settings["method"], settings["epsilon"], settings["epochs"]) == ("smoothadv", 0.1, 2)
    assert "leave out --method, or --preset" in line("--preset", "smoothadv-digits-0.25", "--method", "macer")
    assert "Did you mean macer-digits-0.25" in line("--preset", "macer-digits-0.255")
    assert "epsilon" in line("--preset", "smoothadv-digits-0.25", "--epsilon", "-1")


@pytest.mark.parametrize(
    ("method", "flag", "value", "of"),
    [
        ("macer", "attack", "pgd", "smoothadv"), ("macer", "warmup_epochs", "0", "smoothadv or smoothmix"),
        ("cohen", "lam", "4", "macer"), ("cohen", "lam", "0", "macer"), ("cohen", "beta", "16", "macer"),
        ("cohen", "num_samples", "1", "macer or smoothadv or stability or consistency or smoothmix or catrs"),
        ("smoothadv", "gamma", "8", "macer"), ("smoothadv", "consistency", "1", "macer or consistency"),
    ],
)  # fmt: skip
def test_a_setting_of_another_method_is_refused_by_its_name(line, method, flag, value, of):
    wanted = (
        f"--{flag} is not a setting of the method {method}: leave it out, or use --method {of}. Received: --{flag} "
    )
    assert wanted in line("--dataset", "digits", "--method", method, f"--{flag}={value}")
    assert wanted in line("--preset", f"{method}-digits-0.25", f"--{flag}", value)


def test_unlabelled_needs_labels_and_a_teacher(line):
    for flags, received in ([["--ema", "0.9"], "labels=None, ema=0.9"], [["--labels", "50"], "labels=50, ema=0"]):
        told = line("--dataset", "digits", "--unlabelled", *flags)
        assert told.endswith(
            f"unlabelled needs the settings labels (how many to keep) and ema (the teacher). Received: {received}"
        )


def test_epochs_where_samples_rise_must_rise(line):
    assert "samples_rise_epochs must rise. Received: 4,2" in line("--dataset", "digits", "--samples_rise_epochs", "4,2")


def test_a_method_of_ones_own_that_imports_tensorflow_writes_no_page(tmp_path):
    (tmp_path / "mine.py").write_text("import tensorflow\nNAME = 1\n")
    code = "from pipeline.jobs import run; run.main(['--dataset', 'digits', '--method', 'mine:NAME'])"
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    path = {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment | path, capture_output=True, text=True, timeout=100
    )
    assert process.stderr == "error: mine:NAME must be a pipeline.experiments.methods.Method. Received: int\n"


def test_an_unknown_method_is_one_line(line):
    unknown = line("--dataset", "digits", "--method", "trades")
    names = "macer, cohen, smoothadv, stability, consistency, smoothmix, catrs"
    assert f"Unknown method. Received: trades; accepted: {names}, or package.module:METHOD." in unknown
    assert "There is no module no_such_module to import, from the current folder or installed." in line(
        "--dataset", "digits", "--method", "no_such_module:METHOD"
    )
    assert "The module math defines no METHOD. Received: math:METHOD" in line(
        "--method=math:METHOD", "--dataset=digits"
    )
    assert "math:pi must be a pipeline.experiments.methods.Method. Received: float" in line(
        "--dataset", "digits", "--method", "math:pi"
    )


@pytest.mark.parametrize("preset", [preset.name for preset in presets.PRESETS])
def test_the_command_of_a_plan_gives_that_plan(preset):
    """Whatever its preset is, and whatever differs from it."""
    drops = ["--lr_schedule=step", "--lr_drop_epochs=1,2"]
    for changes in ([], ["--n=777", *drops, "--clip_norm=none", "--min_accuracy=0.3"]):
        wanted = settings_lib.listing(settings_lib.parse([f"--preset={preset}", *changes])[0])
        command = settings_lib.command(settings_lib.without_meanings(wanted))
        assert command.startswith("python -m pipeline.run --")
        assert settings_lib.listing(settings_lib.parse(shlex.split(command)[3:])[0]) == wanted


def test_the_command_of_a_plan_for_images_of_ones_own():
    given = ["--train_images=a b.npz", "--test_images=c.npz", "--sigma=0.5", "--method=macer", "--epochs=3"]
    plan = settings_lib.listing(settings_lib.parse(given)[0])
    assert shlex.split(settings_lib.command(plan))[3:] == given


def test_the_list_of_presets(capsys):
    assert run_lib.main(["--list_presets"]) == 0
    printed = capsys.readouterr().out
    assert all(preset.name in printed for preset in presets.PRESETS)
    assert max(map(len, printed.splitlines())) <= 120


def test_the_list_of_presets_goes_with_nothing_else(capsys):
    assert run_lib.main(["--list_presets", "--typo"]) == 2
    assert capsys.readouterr().err == "error: --list_presets must be given alone. Received: --list_presets --typo\n"


def test_two_folders_of_ones_own_share_no_folder_of_a_server(tmp_path):
    """Nor do those that are called the same."""
    folders = set()
    for place in ("cats", "birds"):
        for split in ("train", "test"):
            (tmp_path / place / split).mkdir(parents=True)
        images = [f"--{split}_images={tmp_path / place / split}" for split in ("train", "test")]
        settings, _ = settings_lib.parse(images)
        folders.add(settings["push_dir"])
        assert settings["dataset"] == "images-train"
        assert "push_dir" not in settings_lib.written(settings)
    assert len(folders) == 2


@pytest.mark.parametrize("name", ["pipeline_root", "push_dir", "data_dir", "train_images", "config"])
@pytest.mark.parametrize("url", ["gs://bucket/x", "s3://bucket/x", "hdfs://host/x"])
def test_a_url_is_no_folder_of_this_machine(line, name, url):
    received = line("--dataset", "mnist", f"--{name}", url)
    assert received == f"error: --{name} must be a path on this machine, not a URL. Received: {url}"


@pytest.mark.parametrize("name", ["pipeline_root", "push_dir", "data_dir", "train_images", "config", "votes"])
def test_a_name_that_is_not_utf_8_is_refused(line, name):
    received = line("--dataset", "digits", f"--{name}", "/tmp/x\udcff")
    assert received == (f"error: --{name} must be a name in UTF-8; rename it, or link to it. Received: /tmp/x\\udcff")


def test_a_name_that_no_file_can_have_is_refused(line, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text('train_images: "a\\0b"\n')
    said = "train_images must be a name that a file can have, without a NUL character. Received: a\\x00b"
    assert line("--config", str(settings)) == f"error: {settings}: {said}"


@pytest.mark.parametrize("arguments", [["--method", ":x"], ["--network", ":f"]])
def test_a_reference_without_a_module_is_told(line, arguments):
    received = line("--dataset", "digits", *arguments)
    assert received.endswith(f"there must be a module, as in package.module:name. Received: {arguments[1]}")


@pytest.mark.parametrize(
    ("sigma", "name"),
    [("0.25", "digits-0.25"), ("1", "digits-1"), ("0.2500001", "digits-0.2500001"), ("0.2500002", "digits-0.2500002")],
)
def test_models_of_two_noise_levels_share_no_folder_of_a_server(sigma, name):
    parsed, _ = settings_lib.parse(["--dataset", "digits", "--sigma", sigma])
    assert Path(parsed["push_dir"]).name == name
