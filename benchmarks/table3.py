"""Seconds per epoch of Gaussian training, MACER and SmoothAdv on one network, beside the paper's Table 3.

    python benchmarks/table3.py --network cifar_resnet110

Each round times a step of every method, one after the other; an epoch is 50,000 images. Batches are taken in slices of
about COPIES_AT_ONCE noisy copies, which bounds memory. A round in which one did not get its cores is dropped.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.interleaved import Rounds, constant_batches, training_step

IMAGES = 50_000
COPIES_AT_ONCE = 128
# method: noisy copies of an image, steps of the attack, seconds per epoch in Table 3 (CIFAR-10, sigma = 0.25,
# ResNet-110, one P100). Its Salman-0.25 is the 8-sample one (Table 4); the 2-sample one is not timed there.
METHODS = {
    "Cohen": (1, 0, 31.4),
    "MACER, k=16": (16, 0, 504.0),
    "SmoothAdv, 2 samples, 10 steps": (2, 10, None),
    "SmoothAdv, 8 samples, 10 steps": (8, 10, 1990.1),
}


def main(arguments=None):
    """Runs the rounds and prints seconds per epoch and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar_resnet110", help="lenet or cifar_resnet<depth> (default: 110)")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch (default: 64)")
    parser.add_argument("--threads", type=int, default=2, help="cores to use (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    arguments = parser.parse_args(arguments)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    contestants = {name: (step, arguments, *copies_and_attack) for name, (*copies_and_attack, _) in METHODS.items()}
    report(arguments, Rounds(contestants, arguments.rounds, 1, arguments.threads))


def step(arguments, num_samples, attack_steps):
    """A training step of a method."""
    import keras

    from macer_tf import networks
    from macer_tf.baselines.smoothadv import SmoothAdvModel
    from macer_tf.model import MACERModel
    from macer_tf.optimizers import SGD

    keras.config.set_dtype_policy(arguments.precision)
    shape = (28, 28, 1) if arguments.network == "lenet" else (32, 32, 3)
    network = networks.build(arguments.network, shape, 10)
    slices = {"num_samples": num_samples, "microbatch": COPIES_AT_ONCE // num_samples, "seed": 0}
    if attack_steps:
        model = SmoothAdvModel(network, 0.25, epsilon=1.0, attack="pgd", attack_steps=attack_steps, **slices)
    else:
        model = MACERModel(network, 0.25, lam=12.0 if num_samples > 1 else 0.0, **slices)
    model.compile(SGD(1e-4, momentum=0.9, l2=5e-4))
    return training_step(model, constant_batches(shape, arguments.batch))


def report(arguments, rounds):
    """Prints seconds per epoch, and how many times Cohen's each is, here and in the paper."""
    print(
        f"{arguments.network}, {arguments.precision}, batch {arguments.batch}, {arguments.threads} threads; {rounds}\n"
        f"{'':<34}{'s/epoch':>10}{'x Cohen':>10}{'paper: s/epoch':>18}{'x Cohen':>10}"
    )
    paper_cohen = METHODS["Cohen"][2]
    for name, (_, _, paper) in METHODS.items():
        seconds = rounds.median(name) * IMAGES / arguments.batch
        there = f"{paper:>18.1f}{paper / paper_cohen:>10.1f}" if paper else f"{'-':>18}{'-':>10}"
        print(f"  {name:<32}{seconds:>10.0f}{rounds.ratio(name, 'Cohen'):>10.1f}{there}")


if __name__ == "__main__":
    main()
