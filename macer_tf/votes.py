"""Votes: how often the base classifier returned each class on an image's noisy copies. They add up."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Votes:
    """Class counts of a set of images, kept apart for choosing the class and for bounding its probability.

    Votes of disjoint samples add: `a + b`. Whoever adds sees to it that no sample is counted twice.

    Attributes:
        selection: int64 [images, classes], counts of the samples that choose a class (n0 of them).
        estimation: int64 [images, classes], counts of the independent samples that bound its probability (n).

    Raises:
        ValueError: if the two shapes differ or a count is negative.
    """

    selection: np.ndarray
    estimation: np.ndarray

    def __post_init__(self):
        if self.selection.ndim != 2 or self.selection.shape != self.estimation.shape:
            raise ValueError(
                f"Votes need two arrays [images, classes] of one shape. Received: selection {self.selection.shape}, "
                f"estimation {self.estimation.shape}"
            )
        for counts in (self.selection, self.estimation):
            if counts.dtype != np.int64 or (counts < 0).any():
                raise ValueError(f"Votes are int64 counts from 0. Received: dtype={counts.dtype}, min={counts.min()}")

    @classmethod
    def zeros(cls, num_images, num_classes):
        """No votes yet."""
        return cls(*np.zeros((2, num_images, num_classes), np.int64))

    @property
    def n0(self):
        """int64 [images]: selection samples."""
        return self.selection.sum(axis=1)

    @property
    def n(self):
        """int64 [images]: estimation samples."""
        return self.estimation.sum(axis=1)

    def __add__(self, other):
        if self.selection.shape != other.selection.shape:
            # NumPy would broadcast one image's votes over all the others.
            raise ValueError(
                f"Votes add up for the same images and classes. Received: {self.selection.shape} and "
                f"{other.selection.shape}"
            )
        return Votes(self.selection + other.selection, self.estimation + other.estimation)
