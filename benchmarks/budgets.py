"""Samples that budgets save on the vote distributions of published certification logs.

    python benchmarks/budgets.py --logs DIR      DIR: *sigma0.25*.tsv and so on, certified with n=100,000, alpha=0.001

A log's radius reveals how many of the 100,000 votes an image's class had: its share of them is taken as the class's
probability, and votes are drawn anew from it, once for the fixed budget and once for each other budget. Samples are
those of selection and estimation, relative to CERTIFY's own n0=100 and n=100,000. An image that a log abstained on gets
a probability between 0.2 and 0.5, because the log does not say. No network is run.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
from scipy import special

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import interrupts  # noqa: F401
from benchmarks.arguments import fraction, seed, whole
from macer_tf import certification_log
from macer_tf.budgets import FixedBudget, RadiusBudget, ToleranceBudget
from macer_tf.certificates import ABSTAIN
from macer_tf.confidence import clopper_pearson_lower
from macer_tf.evaluation import evaluate
from macer_tf.votes import Votes
from pipeline.utils.errors import InputError

N0, N, ALPHA = 100, 100_000, 0.001
NUM_CLASSES = 10
RADII = (0.25, 0.5, 0.75)


def main(arguments=None):
    """Prints one line for each log, budget and use of labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=Path, required=True, help="directory of published logs")
    parser.add_argument("--n0", type=whole, default=500, help="selection samples of ToleranceBudget (default: 500)")
    parser.add_argument("--tolerance", type=fraction, default=0.01, help="of ToleranceBudget (default: 0.01)")
    parser.add_argument("--seed", type=seed, default=0, help="of the votes (default: 0)")
    arguments = parser.parse_args(arguments)
    budgets = [(RadiusBudget(radius, N), N0, (radius,)) for radius in RADII]
    budgets.append((ToleranceBudget(arguments.tolerance, N), arguments.n0, (0,)))
    named = {path: noise_level(path) for path in sorted(arguments.logs.glob("*.tsv"))}
    if not any(named.values()):
        parser.error(
            f"--logs must hold logs whose names end in their noise level: sigma0.25.tsv. Received: {arguments.logs}"
        )
    for path, sigma in named.items():
        if sigma is None:
            print(f"LEFT OUT: {path.name}, whose name does not end in its noise level, such as sigma0.25.tsv")
            continue
        log = read(path)
        rng = np.random.default_rng(arguments.seed)
        p, correct = probabilities(log, sigma, rng), log.correct
        print(f"{path.stem}: {len(p):,} images")
        fixed = run(FixedBudget(N), N0, p, correct, sigma, rng, with_labels=False)
        for budget, n0, radii in budgets:
            for with_labels in (False, True):
                certificates, samples = run(budget, n0, p, correct, sigma, rng, with_labels)
                print(line(budget, with_labels, evaluated(certificates, correct, radii), samples,
                           evaluated(fixed[0], correct, radii), fixed[1]))  # fmt: skip


def noise_level(path):
    """The noise level in which a log's name ends; None if it does not, or it is 0."""
    found = re.search(r"sigma(\d+(\.\d+)?)\.tsv$", path.name)
    return (float(found[1]) or None) if found else None


def read(path):
    """The log in a file. Raises InputError if it is none."""
    try:
        return certification_log.read(path)
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from None


def probabilities(log, sigma, rng):
    """float64 [images]: the share of votes that each radius came from."""
    bounds = clopper_pearson_lower(np.arange(N + 1), N, ALPHA)
    # Logs round their radii, so the count whose bound is nearest is taken.
    bound = special.ndtr(log.radii / sigma)
    above = np.clip(np.searchsorted(bounds, bound), 1, N)
    successes = np.where(bounds[above] - bound < bound - bounds[above - 1], above, above - 1)
    return np.where(log.predictions == ABSTAIN, rng.uniform(0.2, 0.5, len(successes)), successes / N)


def run(budget, n0, p, correct, sigma, rng, with_labels):
    """`Certificates`, and the total number of samples. Class 0 is the one that the log's selection chose."""
    # The other classes share the rest evenly, so that class 0 is selected here, too.
    selection = np.maximum(rng.binomial(n0, p), n0 // NUM_CLASSES + NUM_CLASSES)
    votes = Votes(classes(selection, n0), np.zeros((len(p), NUM_CLASSES), np.int64))
    labels = np.where(correct, 0, 1) if with_labels else None
    while (more := budget.more(votes, sigma, ALPHA, labels)).any():
        successes = rng.binomial(more, p)
        votes += Votes(np.zeros_like(votes.selection), classes(successes, more))
    return budget.certify(votes, sigma, ALPHA), int((votes.n0 + votes.n).sum())


def classes(successes, n):
    """int64 [images, classes]: the votes of class 0, and the others' as even as whole numbers can be."""
    others = (n - successes)[:, None] + np.arange(NUM_CLASSES - 1)
    return np.concatenate([successes[:, None], others // (NUM_CLASSES - 1)], axis=1)


def evaluated(certificates, correct, radii):
    """The `Evaluation`."""
    return evaluate(certificates, np.where(correct, 0, 1), radii)


def line(budget, with_labels, ours, samples, fixed, fixed_samples):
    """What a budget saved and what it cost."""
    return (
        f"  {type(budget).__name__:<16}{getattr(budget, 'radius', getattr(budget, 'tolerance', None)):<6g}"
        f"{'labels' if with_labels else '':<8}{fixed_samples / samples:7.1f} x fewer samples   "
        f"certified accuracy at {ours.radii[0]:<5g}{ours.certified_accuracy[0]:.4f} "
        f"({100 * (ours.certified_accuracy[0] - fixed.certified_accuracy[0]):+.2f} points)"
        + (f"   ACR {ours.acr:.4f} ({100 * (ours.acr / fixed.acr - 1):+.2f} %)" if ours.radii == (0,) else "")
    )


if __name__ == "__main__":
    main()
