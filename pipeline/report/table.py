"""Certificates as a table, one row per image: a Parquet file beside the field's log."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from macer_tf.certificates import ABSTAIN
from pipeline.utils.atomic_files import write_bytes

CORRECT, WRONG, CERTIFIED, ABSTAINED, UNESTIMATED = "correct", "wrong", "certified", "abstained", "unestimated"


def outcomes(certificates, labels):
    """The outcome of each image, in one word: [images].

    Args:
        certificates: `Certificates`.
        labels: int64 [images], -1 where not known: what is certified there is neither correct nor wrong.
    """
    predictions, labels = certificates.predictions, np.asarray(labels)
    estimated = np.broadcast_to(certificates.n, predictions.shape) > 0
    conditions = (~estimated, predictions == ABSTAIN, labels < 0, predictions == labels)
    return np.select(conditions, (UNESTIMATED, ABSTAINED, CERTIFIED, CORRECT), WRONG)


def write(path, certificates, votes, labels, ids, names=None):
    """Writes a Parquet file with the columns example_id, file, label, prediction, outcome, radius, p_lower and votes.

    Numbers have full precision: radii and p_lower are float64 and rounded down. What they hold for (sigma, alpha, n0,
    n, bound, beta) is in the schema's metadata.

    Args:
        path: where to write.
        certificates: `Certificates`.
        votes: `Votes`; the column is the estimation samples' votes for each class.
        labels: int64 [images], -1 where not known, which is null in the file.
        ids: int64 [images].
        names: one for each image, of its file or as its data set calls it; None for an image without one.
    """
    labels = np.asarray(labels)
    holds_for = {name: getattr(certificates, name) for name in ("sigma", "alpha", "n0", "bound", "beta")}
    holds_for["n"] = int(np.max(certificates.n, initial=0))
    table = pa.table(
        {
            "example_id": pa.array(ids, pa.int64()),
            "file": pa.array(names or [None] * len(ids), pa.string()),
            "label": pa.array(labels, pa.int64(), mask=labels < 0),
            "prediction": pa.array(certificates.predictions, pa.int64()),
            "outcome": pa.array(outcomes(certificates, labels), pa.string()),
            "radius": pa.array(certificates.radii, pa.float64()),
            "p_lower": pa.array(certificates.p_lower, pa.float64()),
            "votes": pa.array(list(votes.estimation), pa.list_(pa.int64())),
        }
    )
    table = table.replace_schema_metadata({name: str(value) for name, value in holds_for.items() if value is not None})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(path, buffer.getvalue())
