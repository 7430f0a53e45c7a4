"""The field's tab-separated certification log: idx, label, predict, radius, correct, time."""

import csv

import numpy as np

from macer_tf.certificates import ABSTAIN

HEADER = ("idx", "label", "predict", "radius", "correct", "time")


def write(path, certificates, labels, ids):
    """Writes one line an image, radii with all their digits.

    The time column, which readers expect, is nan: seconds would make equal certificates unequal files.

    Args:
        path: where to write.
        certificates: `Certificates`.
        labels: integers [images].
        ids: integers [images], each image's place in its split.
    """
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(HEADER)
        rows = zip(ids, labels, certificates.predictions, certificates.radii, strict=True)
        for index, label, prediction, radius in rows:
            writer.writerow(
                [
                    int(index),
                    int(label),
                    int(prediction),
                    repr(float(radius)),
                    int(prediction == label and prediction != ABSTAIN),
                    "nan",
                ]
            )


def read(path):
    """Reads what `write` wrote: column name -> [images], int64 but for radius, float64; without the time."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {
        name: np.array([row[name] for row in rows]).astype(np.float64 if name == "radius" else np.int64)
        for name in HEADER[:-1]
    }
