"""The certification report for anyone's classifier on anyone's images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from macer_tf import evaluation
from macer_tf.certificates import ABSTAIN
from macer_tf.grid_noise import GridNoise
from macer_tf.votes import Votes
from pipeline.report import certification_report
from serving.terminal import printable


@dataclass(frozen=True, eq=False)
class Found:
    """The results of a certification.

    Attributes:
        ids, labels: int64 [images]; labels are -1 where not known.
        votes: `Votes`.
        kinds: kind's name -> `Certificates`, the run's own kind first.
        outcome: `driver.Outcome`.
        opened: `sources.Images`.
    """

    ids: np.ndarray
    votes: Votes
    kinds: dict
    labels: np.ndarray
    outcome: object
    opened: object

    def image(self, position):
        """The pixels that were certified, or None if the image has changed or is gone."""
        example_id = int(self.ids[position])
        try:
            return self.opened.image(example_id, self.outcome.digests[example_id])
        except ValueError:
            return None

    def correct_radii(self, certified):
        """float64 [images], -1 where wrong or abstained; if no label is known, only where abstained."""
        if (self.labels >= 0).any():
            return evaluation.correct_radii(certified, self.labels)
        return np.where(certified.predictions == ABSTAIN, -1.0, certified.radii)


def write(directory, settings, metrics, found, *, listing, command):
    """Writes the page and its figure into a directory.

    Args:
        directory: where to write.
        settings: name -> value: model, dataset or images, sigma, seed and levels are shown.
        metrics: what is measured of the certificates, as JSON values.
        found: `Found`, with at least one image.
        listing, command: see `certification_report.Evaluated`.
    """
    ids, opened, num_classes = found.ids, found.opened, metrics["num_classes"]
    images = printable(settings["dataset"] or settings["images"])
    resized = ", resized and cropped" if settings["resize"] or settings["image_size"] else ""
    class_names = opened.class_names or ()
    grid = GridNoise(settings["sigma"], settings["levels"] or opened.levels)
    shape = next((image.shape for image in map(found.image, range(len(ids))) if image is not None), None)

    certification_report.write(
        directory,
        certification_report.Evaluated(
            title=f"{printable(Path(settings['model']).name)} on {images}, sigma = {settings['sigma']:g}",
            metrics={**metrics, "image_set": f"{len(ids):,} of {len(opened.ids):,} images of {images}{resized}"},
            listing=listing,
            correct_radii={name: found.correct_radii(certified) for name, certified in found.kinds.items()},
            certificates=next(iter(found.kinds.values())),
            votes=found.votes,
            ids=ids,
            labels=found.labels,
            class_names=class_names if len(class_names) == num_classes else [str(one) for one in range(num_classes)],
            image=found.image,
            noise=certification_report.first_noise(grid, shape, settings["seed"], ids),
            names=opened.names(ids),
            command=command,
            finished_at=found.outcome.drawn_since,
        ),
    )
