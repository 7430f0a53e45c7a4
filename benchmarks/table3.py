"""Seconds per epoch of every method on one network, beside the paper's Table 3.

    python benchmarks/table3.py --network cifar_resnet110

Each round times a step of every method, one after the other; an epoch is 50,000 images. Batches are processed in slices
of about COPIES_AT_ONCE noisy copies, which bounds memory. A round in which a method did not get its cores is dropped.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import interrupts  # noqa: F401
from benchmarks.arguments import network, whole
from benchmarks.interleaved import Rounds, constant_batches, training_step
from pipeline.experiments import methods, presets

IMAGES = 50_000
COPIES_AT_ONCE = 128
BEST = presets.by_name("macer-mnist-0.50-best").settings
# name: method, settings that are not its defaults, seconds per epoch in Table 3 (CIFAR-10, sigma = 0.25, ResNet-110,
# one P100). Its Salman-0.25 is the 8-sample one (Table 4); the 2-sample one is not timed there.
METHODS = {
    "Gaussian": ("cohen", {}, 31.4),
    "Stability": ("stability", {}, None),
    "Consistency, 2 copies": ("consistency", {}, None),
    "MACER, best, 2 copies, 1 step": ("macer", BEST, None),
    "SmoothMix, 4 copies, 4 steps": ("smoothmix", {}, None),
    "CAT-RS, 4 copies, 4 steps": ("catrs", {}, None),
    "MACER, 16 copies": ("macer", {"num_samples": 16}, 504.0),
    "SmoothAdv, 2 copies, 10 steps": ("smoothadv", {"num_samples": 2}, None),
    "SmoothAdv, 8 copies, 10 steps": ("smoothadv", {"num_samples": 8}, 1990.1),
}
# Methods whose steps have so few copies that a small network does not keep two cores busy.
CHEAP = ("Gaussian", "Stability", "Consistency, 2 copies")


def main(arguments=None):
    """Runs the rounds and prints seconds per epoch and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--network", type=network, default="cifar_resnet110", help="lenet or cifar_resnet<depth> (default: 110)"
    )
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--batch", type=whole, default=64, help="images in a batch (default: 64)")
    parser.add_argument("--threads", type=whole, default=2, help="cores to use (default: 2)")
    parser.add_argument("--rounds", type=whole, default=5, help="rounds (default: 5)")
    arguments = parser.parse_args(arguments)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    contestants = {name: (step, arguments, method, changes) for name, (method, changes, _) in METHODS.items()}
    report(arguments, Rounds(contestants, arguments.rounds, 1, arguments.threads, idle=CHEAP))


def step(arguments, method, changes):
    """A training step of a method."""
    import keras

    from macer_tf import networks
    from macer_tf.optimizers import SGD

    keras.config.set_dtype_policy(arguments.precision)
    shape = (28, 28, 1) if arguments.network == "lenet" else (32, 32, 3)
    found = methods.find(method)
    settings = {**found.defaults(), **changes, "sigma": 0.25, "seed": 0}
    settings["microbatch"] = COPIES_AT_ONCE // settings.get("num_samples", 1)
    model = found.model(networks.build(arguments.network, shape, 10), settings)
    model.compile(SGD(1e-4, momentum=0.9, l2=5e-4))
    return training_step(model, constant_batches(shape, arguments.batch))


def report(arguments, rounds):
    """Prints seconds per epoch, and each as a multiple of Gaussian training's, here and in the paper."""
    print(
        f"{arguments.network}, {arguments.precision}, batch {arguments.batch}, {arguments.threads} threads; {rounds}\n"
        f"{'':<34}{'s/epoch':>10}{'ratio':>10}{'paper: s/epoch':>18}{'ratio':>10}"
    )
    paper_gaussian = METHODS["Gaussian"][2]
    for name, (*_, paper) in METHODS.items():
        seconds = rounds.median(name) * IMAGES / arguments.batch
        there = f"{paper:>18.1f}{paper / paper_gaussian:>10.1f}" if paper else f"{'-':>18}{'-':>10}"
        print(f"  {name:<32}{seconds:>10.0f}{rounds.ratio(name, 'Gaussian'):>10.1f}{there}")


if __name__ == "__main__":
    main()
