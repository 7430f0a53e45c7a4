"""Seconds from a model to a table of certified accuracies, against the authors' `rs/certify.py`, on the same cores.

    python benchmarks/whole_table.py --model model.keras --data_dir DIR --reference DIR

`model.keras` is a LeNet for MNIST that pipeline.run leaves in Trainer-*/model, trained with --precision mixed_bfloat16;
the reference is a clone of github.com/RuntianZ/macer. Ours is a run of `python -m pipeline.certify --budget adaptive
--radii ...` from its start to its table, including the import of TensorFlow; theirs is their `certify` at the same
sigma, n0, n, alpha and radii, after its imports. Their seconds per image do not depend on its votes, so they are
measured on a few images and multiplied. The authors' code needs torch besides the project's requirements; without it or
--reference, only ours is timed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import interrupts  # noqa: F401
from benchmarks.arguments import model_file, whole
from benchmarks.interleaved import has_reference

ROOT = Path(__file__).resolve().parents[1]
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
N0, N, ALPHA = 100, 100_000, 0.001
TEST_IMAGES = 10_000


def main(arguments=None):
    """Prints the seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_file, required=True, help="a MACERModel of MNIST, saved")
    parser.add_argument("--sigma", type=float, default=0.5, help="noise level (default: 0.5)")
    parser.add_argument("--data_dir", type=Path, required=True, help="directory of prepared TFDS data")
    parser.add_argument("--reference", type=Path, help="clone of the authors' code (default: without)")
    parser.add_argument("--images", type=num_images, default=100, help="evenly spaced test images (default: 100)")
    parser.add_argument("--their_images", type=whole, default=5, help="images that theirs is timed on (default: 5)")
    parser.add_argument("--batch", type=whole, default=1000, help="their batch (default: 1000)")
    parser.add_argument("--threads", type=whole, default=2, help="cores to use (default: 2)")
    arguments = parser.parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    with_reference = has_reference(arguments.reference, ("torch", "statsmodels", "scipy"))
    ours = our_seconds(arguments)
    about = f"{arguments.images} images of MNIST, sigma={arguments.sigma:g}, n={N:,}, {arguments.threads} cores"
    print(f"{about}: ours {ours:.1f} s from the start of the process to the table")
    if with_reference:
        theirs = their_seconds(arguments) * arguments.images / arguments.their_images
        print(
            f"  theirs {theirs:.0f} s ({arguments.their_images} images, multiplied): {theirs / ours:.1f} times as long"
        )


def num_images(text):
    """A number of test images."""
    number = whole(text)
    if number > TEST_IMAGES:
        raise argparse.ArgumentTypeError(f"must be at most {TEST_IMAGES:,}. Received: {text!r}")
    return number


def selected(images):
    """The flags of `pipeline.certify` for exactly this many evenly spaced test images."""
    skip = TEST_IMAGES // images
    return "--skip", skip, "--max", skip * images


def our_seconds(arguments):
    """Seconds of `pipeline.certify`, with no votes drawn before."""
    with tempfile.TemporaryDirectory() as root:
        command = [
            *(sys.executable, "-m", "pipeline.certify", "--model", arguments.model, "--sigma", arguments.sigma),
            *("--dataset", "mnist", "--data_dir", arguments.data_dir),
            *(*selected(arguments.images), "--n0", N0, "--n", N, "--alpha", ALPHA),
            *("--budget", "adaptive", "--radii", ",".join(map(str, RADII)), "--output", f"{root}/out"),
        ]
        started = time.perf_counter()
        if subprocess.run([str(part) for part in command], cwd=ROOT).returncode:
            sys.exit("pipeline.certify failed; see above.")
        return time.perf_counter() - started


def their_seconds(arguments):
    """Seconds of their `certify` with their LeNet, whatever its weights, on a few images."""
    import numpy as np
    import torch

    # Their code was written for a NumPy that had these.
    np.float, np.int = float, int
    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(arguments.reference))
    from model import LeNet
    from rs.certify import certify

    images = [(torch.rand(1, 28, 28), 0)] * arguments.their_images
    settings = {"num_img": len(images), "sigma": arguments.sigma, "N0": N0, "N": N, "alpha": ALPHA}
    started = time.perf_counter()
    certify(LeNet(), "cpu", images, None, 10, batch=arguments.batch, grid=RADII[1:], **settings)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
