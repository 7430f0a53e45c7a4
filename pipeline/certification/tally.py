"""Where each image stands during certification: what it has, what it still needs, and how it ended."""

import itertools
from collections import Counter

import numpy as np

from macer_tf import noise
from macer_tf.certificates import ABSTAIN
from macer_tf.votes import SoftMoments, Votes
from pipeline.certification.pieces import Chunk, cover, split

# Long enough that Beam's overhead is negligible, short enough that a kill loses little.
SAMPLES_PER_CHUNK = 2000


class _ImageTally:
    """What one image has and still needs."""

    def __init__(self, digest, label, n0, uniform):
        self.digest, self.label, self.uniform = digest, label, uniform
        self.pieces = {stream: {} for stream in noise.STREAMS}  # (start, count) -> votes
        self.goals = {noise.SELECTION: n0, noise.ESTIMATION: 0}
        self.gaps = {noise.SELECTION: [(0, n0)], noise.ESTIMATION: []}
        self.votes = {}  # stream -> sum, of what it was meant to have
        self.held = 0
        self.outcome = None  # set once the image is done


class Tally:
    """Where each image stands. Votes come in through `take`; `missing` is what to draw next.

    Args:
        plan: `SamplingPlan`.
        sigma, seed: of the noise.
        num_classes: number of the model's classes.
        images: opened source.
        ids, labels: of the images; labels are -1 where not known, or None.
        share_of_alpha: see `SamplingPlan.share_of_alpha`; None on a first look.

    Attributes:
        plan: as given.
        num_images: number of images.
        failures: example id -> reason.
        held: number of samples that count.
        spares: whether images whose selected class is not the label are spared.
        outcomes: Counter of the images that are done: "certified", "correct", "wrong", "abstained" and "spared".
    """

    def __init__(self, plan, sigma, seed, num_classes, images, ids, labels, share_of_alpha=None):
        self.plan, self._sigma, self._share_of_alpha = plan, sigma, share_of_alpha
        self._shape = (1 + 2 * len(plan.betas), num_classes)
        self._budget, self._is_exact = plan.budget, share_of_alpha is None and plan.is_exact
        self.spares = plan.spares(labels)
        self._images, self.failures, self.num_images = {}, {}, len(ids)
        self.held, self.outcomes = 0, Counter()
        labels = np.full(len(ids), -1) if labels is None else labels
        uniforms = noise.uniforms(seed, ids) if plan.is_randomized else [None] * len(ids)
        for example_id, label, uniform in sorted(zip(map(int, ids), labels, uniforms, strict=True)):
            try:
                self._images[example_id] = _ImageTally(images.digest(example_id), label, plan.n0, uniform)
            except ValueError as error:
                self.failures[example_id] = str(error)

    def take(self, pieces, failures=()):
        """Counts votes, and asks the budget what the images that have all they were meant to have still need."""
        touched = set()
        for chunk, votes in pieces:
            image = self._images.get(chunk.example_id)
            if image and image.digest == chunk.digest:
                image.pieces[chunk.stream].setdefault((chunk.start, chunk.count), votes)
                touched.add(chunk.example_id)
        for example_id, reason in dict(failures).items():
            if image := self._images.pop(example_id, None):
                self.held -= image.held
                self.failures[example_id] = reason
                touched.discard(example_id)
        waiting = [example_id for example_id in touched if self._images[example_id].outcome is None]
        while waiting := [example_id for example_id in waiting if self._is_complete(self._images[example_id])]:
            waiting = self._look(waiting)

    def missing(self, most):
        """The first `most` `Chunk`s to draw, always in the same order."""
        chunks = (
            chunk
            # A copy, because another thread may take a failure meanwhile.
            for example_id, image in [*self._images.items()]
            if image.outcome is None
            for stream, gaps in image.gaps.items()
            for first, stop in gaps
            for chunk in split(Chunk(example_id, image.digest, stream, first, stop - first), SAMPLES_PER_CHUNK)
        )
        return list(itertools.islice(chunks, most))

    @property
    def values_of_a_piece(self):
        """How many numbers its votes consist of."""
        return self._shape[0] * self._shape[1]

    @property
    def most(self):
        """Samples that the images have and may still get, as far as is known."""
        return sum(
            self.plan.n0 + (image.goals[noise.ESTIMATION] or self.plan.n) if image.outcome is None else image.held
            for image in [*self._images.values()]  # a copy, as above
        )

    def ids_with_votes(self):
        """int64 [images]: those that have not failed."""
        return np.array(sorted(self._images), np.int64)

    def digests(self):
        """Example id -> what identifies the image, for those that have not failed."""
        return {example_id: image.digest for example_id, image in self._images.items()}

    def votes(self, example_ids):
        """`Votes` of images that have all they were meant to have."""
        images = [self._images[example_id] for example_id in example_ids]
        selection, estimation = (
            np.array([image.votes[stream] for image in images], np.int64).reshape(-1, *self._shape)
            for stream in noise.STREAMS
        )
        soft = {
            beta: SoftMoments(estimation[:, sums], estimation[:, sums + 1], selection_sums=selection[:, sums])
            for beta, sums in zip(self.plan.betas, range(1, self._shape[0], 2), strict=True)
        }
        uniforms = np.array([image.uniform for image in images]) if self.plan.is_randomized else None
        return Votes(selection[:, 0], estimation[:, 0], soft, uniforms)

    def _is_complete(self, image):
        """Whether the image has all it was meant to have; if so, its votes are added up."""
        taken, held = {}, 0
        for stream, goal in image.goals.items():
            is_exact = self._is_exact or stream == noise.SELECTION
            limit = goal if is_exact else self.plan.n
            taken[stream], image.gaps[stream] = cover(image.pieces[stream], goal, limit)
            held += sum(count for _, count in taken[stream])
        self.held += held - image.held
        image.held = held
        if any(image.gaps.values()):
            return False
        for stream, spans in taken.items():
            mine = image.pieces[stream]
            image.votes[stream] = sum((mine.pop(span) for span in spans), np.zeros(self._shape, np.int64))
            if spans:
                mine[0, sum(count for _, count in spans)] = image.votes[stream]
        return True

    def _look(self, example_ids):
        """Asks the budget. Returns the images that need more; the others are done."""
        votes = self.votes(example_ids)
        images = [self._images[example_id] for example_id in example_ids]
        labels = np.array([image.label for image in images])
        more = self._budget.more(votes, self._sigma, self.plan.alpha, labels if self.spares else None)
        for image, goal in zip(images, (votes.n + more).tolist(), strict=True):
            image.goals[noise.ESTIMATION] = goal
        done = [example_id for example_id, needs in zip(example_ids, more, strict=True) if not needs]
        if done:
            self._finish(done)
        return [example_id for example_id, needs in zip(example_ids, more, strict=True) if needs]

    def _finish(self, example_ids):
        votes = self.votes(example_ids)
        certified, *_ = self.plan.certificates(votes, self._sigma, self._share_of_alpha).values()
        for example_id, n, prediction in zip(example_ids, votes.n, certified.predictions, strict=True):
            image = self._images[example_id]
            if not n:
                image.outcome = "spared"
            elif prediction == ABSTAIN:
                image.outcome = "abstained"
            elif image.label == -1:
                image.outcome = "certified"
            else:
                image.outcome = "correct" if prediction == image.label else "wrong"
            self.outcomes[image.outcome] += 1
