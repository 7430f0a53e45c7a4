"""SmoothedClassifier: draws noise, runs the base classifier and counts its votes (SAMPLEUNDERNOISE, Cohen et al.)."""

from macer_tf import tensorflow_backend  # noqa: F401

# isort: split

import contextlib
import functools
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from macer_tf import base_classifier, certificates, noise
from macer_tf.checks import as_array, check, check_levels, check_seed, is_whole
from macer_tf.grid_noise import GridNoise, check_floats, to_grid
from macer_tf.inference import InferenceGraph
from macer_tf.noisy_training import NoisyTrainingModel
from macer_tf.probing import are_probabilities, check_outputs, probe
from macer_tf.votes import MAX_SOFT_SAMPLES, MOST_SAMPLES, UNITS, SoftMoments, Votes

# A forward pass has a multiple of this many rows, 3 * 32. TensorFlow uses different code for the odd values at the end
# of a tensor, after the last whole vector of 16; on processors with AMX, for 16 rows of bfloat16 than for 32 or more;
# and on those without AVX-512, for the rows after the last whole block of 6.
_ROWS = 96
_MOST_ROWS = 8 * _ROWS
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class Drawn(NamedTuple):
    """Votes of one stream's samples.

    Attributes:
        counts: int64 [images, classes], how often each class had the largest output.
        soft: beta -> (sums, squares), int64 [images, classes] each: over the samples, of u and of u squared, where
            u = floor(softmax(beta * outputs) * UNITS). They hold up to 4,194,304 samples.
    """

    counts: np.ndarray
    soft: dict[float, tuple[np.ndarray, np.ndarray]]


class SmoothedClassifier:
    """g(x) = the class that the base classifier most often returns on x + N(0, sigma^2 I), rounded to the pixels' grid.

    The guarantee: each certificate of `certify` holds with probability at least 1 - alpha over the noise, for each
    image separately. Of 1,000 certificates at alpha=0.001, at most one is expected to be false. The guarantee is about
    g at this sigma and this numeric precision, not about the base classifier, and about l2 perturbations of images in
    [0, 1] whose pixels are multiples of 1 / levels (1/255 for 8-bit pixels). It needs no exact arithmetic: noise and
    sum are whole numbers, see `grid_noise`. It does not hold if n, alpha or the seed was chosen after looking at
    results, if whoever chose the image knew the seed, or if the classifier's output for an image depends on the rest of
    its batch.

    It reads the classifier's weights whenever it draws, so training may go on in between, after which the classifier is
    probed again; if they change while it draws, `draw` refuses the votes. The layers must stay as they are: if layers
    are added, removed or replaced, or settings of Keras' layers change, `draw` refuses; other changes made by code are
    not noticed.

    Noise is addressed by (seed, example id, stream, sample): the same image under the same id gets the same noise,
    whoever asks for it, so votes add up. Every forward pass has the same number of rows, a multiple of 96, filled
    across images and padded. With TensorFlow's CPU kernels, a row's outputs are identical to the bit, whatever its
    place and the other rows. On processors with AVX-512, as far as we found, the numbers of rows and of threads do not
    matter either; without it, another number of rows, or one thread instead of several, may round differently. So may
    another kind of machine or another build of TensorFlow. `count` and `draw` may be called from several threads at
    once, but not in a fork of the process that made it, where TensorFlow would wait for ever.

    Examples:
        >>> import keras
        >>> import numpy as np
        >>> from macer_tf import SmoothedClassifier
        >>> model = keras.Sequential([keras.Input((1, 1, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
        >>> model.set_weights([np.array([[0.0, 1.0]]), np.array([0.5, 0.0])])  # class 1 where the pixel is above 1/2
        >>> smoothed = SmoothedClassifier(model, sigma=0.25, seed=0)
        >>> images = np.array([0, 102, 255]).reshape(3, 1, 1, 1) / 255  # at 0.5, 0.1 and 0.5 from there
        >>> certificates = smoothed.certify(images, n0=100, n=1000, alpha=0.001)
        >>> certificates
        Certificates(3 images, sigma=0.25, n=1,000, alpha=0.001: 100.0 % certified)
        >>> certificates.predictions
        array([0, 0, 1])
        >>> bool((certificates.radii < [0.5, 0.1, 0.5]).all())
        True

    Args:
        classifier: a `MACERModel` or another `NoisyTrainingModel` (its base classifier is taken), or any Keras model,
            images -> [batch, classes], two classes or more, whose largest output is its class.
        sigma: noise level in units of a pixel in [0, 1]; by default that of the model it was trained in.
        seed: whole number in [0, 2**32); drawn from the operating system if None.
        microbatch: noisy copies in one forward pass (in training, images in one), rounded up to a multiple of 96; by
            default 768, fewer for large images (576 at 32x32x3).
        precision: "float32" or "bfloat16", what the base classifier computes in; by default its own. A certificate
            holds for this precision only: see `InferenceGraph`.
        betas: inverse temperatures to draw soft votes at, see `Drawn`.
        levels: steps of the pixel grid from 0 to 1, 255 for 8-bit pixels: images lie on the multiples of 1 / levels.
            Other levels make another classifier, with other certificates.

    Raises:
        ValueError: for a sigma, seed, microbatch, beta or levels out of range, or a precision that the classifier
            cannot be converted to; for a classifier that does not take floats or returns more than one tensor,
            that `probing.probe` finds not to be a function of one image, or that returns probabilities where there are
            betas. A classifier that takes images of any size is probed when the first images are drawn, and any one
            again when it draws with other weights.
    """

    def __init__(
        self,
        classifier: keras.Model,
        sigma: float | None = None,
        seed: int | None = None,
        microbatch: int | None = None,
        precision: str | None = None,
        betas: Iterable[float] = (),
        levels: int = 255,
    ) -> None:
        if isinstance(classifier, NoisyTrainingModel):
            sigma = classifier.sigma if sigma is None else sigma
            classifier = classifier.classifier
        base_classifier.check(classifier)
        check(sigma=sigma)
        assert sigma is not None  # the check refuses None
        if microbatch is not None and not (is_whole(microbatch) and microbatch >= 1):
            raise ValueError(f"microbatch must be a whole number from 1. Received: microbatch={microbatch!r}")
        self._classifier = classifier
        check_levels(levels)
        self._noise = _traced_noise(float(sigma), int(levels))
        self._seed = secrets.randbits(32) if seed is None else check_seed(seed)
        if isinstance(betas, str) or not isinstance(betas, Iterable):
            raise ValueError(f"betas must be several numbers, such as (1.0, 16.0). Received: betas={betas!r}")
        self._betas = tuple(betas)
        for beta in self._betas:
            check(beta=beta)
            if beta > _LARGEST_FLOAT32:
                raise ValueError(f"beta must be a number that float32 holds. Received: beta={beta!r}")
        self._microbatch = None if microbatch is None else int(microbatch)
        self._graph = InferenceGraph(classifier, precision)
        self._process = os.getpid()
        self._passes: dict[tuple, Callable] = {}
        self._probed: dict[tuple[int, ...], list[int]] = {}
        shape = getattr(classifier, "input_shape", None)
        if shape is not None and None not in shape[1:]:
            self._probe(shape[1:])
            self._graph.check_unchanged()

    def __reduce__(self):
        raise TypeError(
            "A SmoothedClassifier cannot be copied or pickled. Save its classifier, load it where it is needed, and "
            "make a SmoothedClassifier from it with the same settings."
        )

    # Read-only: a traced graph holds them, and a radius at a sigma other than the noise's is a false certificate.
    @property
    def classifier(self) -> keras.Model:
        """The base classifier."""
        return self._classifier

    @property
    def sigma(self) -> float:
        """Noise level in units of a pixel in [0, 1]."""
        return self._noise.sigma

    @property
    def levels(self) -> int:
        """Steps of the pixel grid from 0 to 1: images lie on the multiples of 1 / levels."""
        return self._noise.levels

    @property
    def seed(self) -> int:
        """The seed that, with the example ids, determines the noise."""
        return self._seed

    @property
    def precision(self) -> str:
        """What the base classifier computes in, e.g. "float32"."""
        return self._graph.precision

    @property
    def betas(self) -> tuple[float, ...]:
        """Inverse temperatures of the soft votes."""
        return self._betas

    def count(self, image: ArrayLike, example_id: int, stream: int, start: int, count: int) -> np.ndarray:
        """Class counts of one image's samples `start` to `start + count - 1`: see `draw`.

        Returns:
            int64 [classes], adding up to `count`.
        """
        _check_not_traced()
        return self.draw(as_array("Pixels", image)[None], [example_id], stream, [start], [count]).counts[0]

    def draw(
        self,
        images: ArrayLike,
        example_ids: Sequence[int] | np.ndarray,
        stream: int,
        starts: Sequence[int] | np.ndarray,
        counts: Sequence[int] | np.ndarray,
        progress: Callable[[int], object] | None = None,
    ) -> Drawn:
        """Votes of each image's samples `start` to `start + count - 1`, in forward passes filled across images.

        Args:
            images: floats [images, height, width, channels] in [0, 1], multiples of 1 / levels.
            example_ids: whole numbers in [0, 2**32), one per image.
            stream: `noise.SELECTION` or `noise.ESTIMATION`.
            starts: whole numbers from 0, one per image.
            counts: whole numbers from 1, one per image.
            progress: called after each forward pass with the number of samples that it drew.

        Returns:
            `Drawn`; an image's counts add up to its count.

        Raises:
            ValueError: if the classifier returns NaN or infinite outputs, or not [batch, classes] of two classes or
                more; if its layers are no longer what they were, or its weights change meanwhile; if a pixel is off the
                grid or outside [0, 1], or an example id, stream, start or count is out of range; in a forked process.
        """
        images = self._ready(images, example_ids, stream, starts, counts)
        with self._held_still(images) as check_weights:
            return self._draw(images, example_ids, stream, starts, counts, progress, check_weights)

    def _ready(self, images, example_ids, stream, starts, counts):
        """Images on the grid, once everything that `draw` takes is checked and the classifier is probed."""
        if os.getpid() != self._process:
            raise ValueError(
                "A SmoothedClassifier cannot be used in a fork of the process that made it, where TensorFlow would "
                'wait for ever; make it in the new process, and start that by multiprocessing\'s "spawn", or use '
                f"threads. Received: process {os.getpid()}, made in {self._process}"
            )
        images = to_grid(_as_images(images), self.levels)
        if not len(images) == len(example_ids) == len(starts) == len(counts) >= 1:
            raise ValueError(
                f"Expected an id, a start and a count for each image. Received: {len(images)} images, "
                f"{len(example_ids)} ids, {len(starts)} starts, {len(counts)} counts"
            )
        for example_id, start, count in zip(example_ids, starts, counts, strict=True):
            _check_samples("count", count)
            _check_address(example_id, stream, start, count, images[0].size)
        self._check_shape(images.shape)
        if images.shape[1:] not in self._probed:
            self._probe(images.shape[1:])  # which also makes the weights of a classifier that has none yet
        return images

    @contextlib.contextmanager
    def _held_still(self, images):
        """Wraps drawing: the weights must not change meanwhile, and the classifier is probed with these weights.

        Yields a function that checks the weights of a pass, see `InferenceGraph.held_still`.
        """
        with self._graph.held_still() as (weights, check_weights):
            # Weights such as a last layer's zeros hide what later ones show.
            if self._probed[images.shape[1:]] != weights:
                self._graph.check_unchanged()
                self._probe(images.shape[1:])
            yield check_weights

    def _draw(self, images, example_ids, stream, starts, counts, progress, check_weights):
        """`draw` of what was checked, images on the grid, while the weights are held still."""
        self._graph.check_unchanged()
        # Lists, because a pandas Series is indexed by its labels.
        example_ids, starts, counts = ([int(one) for one in numbers] for numbers in (example_ids, starts, counts))
        totals = None
        rows = rows_of_a_pass(images.shape[1:], self._microbatch)
        for pieces in passes(counts, rows):
            places, offsets, counted = (np.array(column, np.int64) for column in zip(*pieces, strict=True))
            addresses = [
                (self._seed, example_ids[place], stream, starts[place] + offset)
                for place, offset in zip(places, offsets, strict=True)
            ]
            block, finite, weights = self._draw_pass(rows, images[places], np.array(addresses, np.int64), counted)
            check_weights(weights)
            if not finite.numpy().all():
                place = places[np.argmin(finite.numpy())]
                raise ValueError(
                    f"The classifier returned NaN or infinite outputs for image {example_ids[place]}; "
                    "it cannot be certified."
                )
            block = block.numpy()
            if totals is None:
                totals = np.zeros((len(images), *block.shape[1:]), np.int64)
            totals[places] += block  # a pass has at most one piece of an image
            if progress is not None:
                progress(int(counted.sum()))
        assert totals is not None  # there are images, and each count is at least 1
        return Drawn(
            totals[:, 0],
            {beta: (totals[:, 1 + 2 * i], totals[:, 2 + 2 * i]) for i, beta in enumerate(self._betas)},
        )

    def _check_shape(self, shape):
        """Refuses images of a shape that the classifier does not take: some layers see only the number of pixels."""
        expected = base_classifier.image_shape(self._classifier)
        if expected is not None and (
            len(expected) != len(shape)
            or any(known not in (None, side) for known, side in zip(expected[1:], shape[1:], strict=True))
        ):
            raise ValueError(f"The classifier takes images {expected[1:]}. Received: images {tuple(shape[1:])}")

    def _probe(self, image_shape):
        """Probes the base classifier as it is now."""
        outputs = probe(self._graph, image_shape, self.precision, rows_of_a_pass(image_shape, self._microbatch))
        if self._betas and are_probabilities(outputs):
            raise ValueError(
                "Soft votes need logits, but the classifier returns probabilities; remove its softmax, or pass no "
                "betas."
            )
        self._probed[image_shape] = self._graph.weights_as_now()

    def _draw_pass(self, rows, images, addresses, counted):
        """`draw_pass` and the weights' checksums in a graph, traced once for each image shape and number of rows."""
        key = rows, images.shape[1:]

        def in_graph(*arguments):
            return *draw_pass(self._graph, self._noise, rows, *arguments, self._betas), self._graph.checksums()

        if key not in self._passes:
            self._passes[key] = tf.function(
                in_graph,
                input_signature=[
                    tf.TensorSpec([None, *images.shape[1:]], tf.float32),
                    tf.TensorSpec([None, 4], tf.int64),
                    tf.TensorSpec([None], tf.int64),
                ],
                autograph=False,  # nothing here needs it, and it took most of the time of tracing
            )
        return self._passes[key](images, addresses, counted)

    def votes(
        self, images: ArrayLike, n0: int, n: int, example_ids: ArrayLike | None = None, verbose: int = 0
    ) -> Votes:
        """`Votes` of n0 selection and n estimation samples for each image, with soft moments at `betas`.

        Args:
            images: float [images, height, width, channels] in [0, 1], multiples of 1 / levels.
            n0: samples that choose the class, a whole number from 1.
            n: samples that bound its probability, a whole number from 1.
            example_ids: one whole number in [0, 2**32) per image, all different; by default 0, 1, 2, ...
            verbose: 0 for silence, 1 for a progress bar of samples, 2 for one line at the end, as in Keras.

        Raises:
            ValueError: before any sampling, for bad images, ids or numbers of samples; see also `draw`.
        """
        n0, n = _check_samples("n0", n0), _check_samples("n", n)
        if self._betas and max(n0, n) > MAX_SOFT_SAMPLES:
            raise ValueError(f"Soft votes hold up to {MAX_SOFT_SAMPLES:,} samples per image. Received: {n0=}, {n=}")
        images, example_ids = check_images(images, example_ids)
        starts = [0] * len(images)
        progress = keras.utils.Progbar(len(images) * (n0 + n), verbose=verbose, unit_name="sample").add
        on_grid = self._ready(images, example_ids, noise.ESTIMATION, starts, [max(n0, n)] * len(images))
        with self._held_still(on_grid) as check_weights:
            drawn: list[Drawn] = [
                self._draw(on_grid, example_ids, stream, starts, [samples] * len(starts), progress, check_weights)
                for stream, samples in ((noise.SELECTION, n0), (noise.ESTIMATION, n))
            ]
        selection, estimation = drawn
        soft = {
            float(beta): SoftMoments(*estimation.soft[beta], selection_sums=selection.soft[beta][0])
            for beta in self._betas
        }
        return Votes(selection.counts, estimation.counts, soft, noise.uniforms(self.seed, example_ids))

    def certify(
        self,
        images: ArrayLike,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        example_ids: ArrayLike | None = None,
        verbose: int = 0,
    ) -> certificates.Certificates:
        """CERTIFY (Cohen et al. 2019): a class and a certified l2 radius for each image, or ABSTAIN (-1).

        Args:
            images: float [images, height, width, channels] in [0, 1], multiples of 1 / levels.
            n0: samples that choose the class. With 0, the samples that bound its probability choose it too, at half of
                alpha, see `certificates.certify_without_selection`.
            n: independent samples that bound its probability.
            alpha: largest probability that an image's certificate is false.
            example_ids: see `votes`.
            verbose: see `votes`.

        Returns:
            `certificates.Certificates`.

        Raises:
            ValueError: before any sampling, for bad images or numbers of samples that could never certify.
        """
        n = _check_samples("n", n)
        if is_whole(n0) and n0 == 0:
            certificates.check_can_certify(n, alpha, share=0.5)
            counts = self._estimation_counts(images, n, example_ids, verbose)
            return certificates.certify_without_selection(Votes(np.zeros_like(counts), counts), self.sigma, alpha)
        n0 = _check_samples("n0", n0)
        certificates.check_can_certify(n, alpha)
        return certificates.certify(self.votes(images, n0, n, example_ids, verbose), self.sigma, alpha)

    def predict(
        self, images: ArrayLike, n: int = 1000, alpha: float = 0.001, example_ids: ArrayLike | None = None
    ) -> np.ndarray:
        """PREDICT (Cohen et al. 2019): the smoothed classifier's class, or ABSTAIN (-1), without a radius.

        Args:
            images: float [images, height, width, channels] in [0, 1], multiples of 1 / levels.
            n: samples of each image.
            alpha: largest probability that an image's class is not the smoothed classifier's.
            example_ids: see `votes`.

        Returns:
            int64 [images].

        Raises:
            ValueError: before any sampling, as `certify`.
        """
        n = _check_samples("n", n)
        certificates.check_can_predict(n, alpha)
        return certificates.predict(self._estimation_counts(images, n, example_ids), alpha)[0]

    def _estimation_counts(self, images, n, example_ids, verbose=0):
        """int64 [images, classes]: class counts of n estimation samples of each image."""
        images, example_ids = check_images(images, example_ids)
        progress = keras.utils.Progbar(len(images) * n, verbose=verbose, unit_name="sample").add
        return self.draw(images, example_ids, noise.ESTIMATION, [0] * len(images), [n] * len(images), progress).counts


class _TracedNoise(NamedTuple):
    """What `draw_pass` needs of a `GridNoise`; `draw` is a graph of its own."""

    sigma: float
    levels: int
    draw: Callable[..., tf.Tensor]


@functools.lru_cache(maxsize=32)
def _traced_noise(sigma, levels):
    """`GridNoise` whose draws are traced once for all classifiers and numbers of rows, as they depend on neither."""
    grid = GridNoise(sigma, levels)
    return _TracedNoise(grid.sigma, grid.levels, tf.function(grid.draw, autograph=False))


def passes(counts: Sequence[int], rows: int) -> Iterator[list[tuple[int, int, int]]]:
    """How to draw `counts[i]` samples of each image i in forward passes of `rows` rows, the last one padded.

    Yields:
        The pieces of each pass: (image, offset of its first sample, samples), at most `rows` samples in all.
    """
    image, offset = 0, 0
    while image < len(counts):
        pieces, space = [], rows
        while space and image < len(counts):
            samples = min(space, counts[image] - offset)
            pieces.append((image, offset, samples))
            space, offset = space - samples, offset + samples
            if offset == counts[image]:
                image, offset = image + 1, 0
        yield pieces


def draw_pass(
    classifier: Callable[[tf.Tensor], tf.Tensor],
    noise_of: GridNoise,
    rows: int,
    images: tf.Tensor,
    addresses: tf.Tensor,
    counted: tf.Tensor,
    betas: Sequence[float] = (),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Votes of noisy copies of one or more images in one forward pass of a fixed number of rows, in the graph.

    Args:
        classifier: images -> [batch, classes] in inference mode: an `InferenceGraph`.
        noise_of: `GridNoise`.
        rows: number of rows of the pass, at least 2; in a multiple of 96, a row's place changes no bit of its outputs.
        images: float32 [pieces, height, width, channels], whole numbers, see `to_grid`.
        addresses: int64 [pieces, 4]: seed, example id, stream and first sample of each piece, see `noise.gaussian`.
        counted: int64 [pieces], at least 1: samples of each piece, at most `rows` in all.
        betas: see `Drawn`.

    Returns:
        int64 [pieces, 1 + 2 * len(betas), classes]: counts, then `Drawn`'s sums and squares of each beta; and bool
        [pieces], whether a piece's outputs were all finite. If not, its votes mean nothing.

    Raises:
        ValueError: while tracing, if the output is not [batch, classes] of two classes or more.
    """
    pieces = tf.shape(counted)[0]
    # The last piece draws as many extra samples as fill the pass; they are not counted.
    missing = rows - tf.reduce_sum(counted)
    drawn = tf.tensor_scatter_nd_add(counted, [[pieces - 1]], [missing])
    noisy = tf.TensorArray(tf.float32, pieces, infer_shape=False, element_shape=[None, *images.shape[1:]])

    def add_piece(i, noisy):
        seed, example_id, stream, start = tf.unstack(addresses[i])
        samples = noise_of.draw(tuple(images.shape[1:]), seed, example_id, stream, start, drawn[i])
        return i + 1, noisy.write(i, images[i] + samples)

    _, noisy = tf.while_loop(lambda i, _: i < pieces, add_piece, (0, noisy))
    outputs = classifier(tf.ensure_shape(noisy.concat(), [rows, *images.shape[1:]]) / noise_of.levels)
    owners = tf.repeat(tf.range(pieces), drawn)
    owners = tf.where(tf.range(rows, dtype=tf.int64) < rows - missing, owners, -1)  # below 0: of no piece
    return _votes(outputs, owners, pieces, betas)


def count_block(
    classifier: Callable[[tf.Tensor], tf.Tensor],
    image: tf.Tensor,
    noise_of: GridNoise,
    seed: int | tf.Tensor,
    example_id: int | tf.Tensor,
    stream: int | tf.Tensor,
    start: int | tf.Tensor,
    count: int | tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Class counts of `count` noisy copies of one image in one forward pass of as many rows, in the graph.

    Args:
        classifier: images -> [batch, classes] in inference mode: an `InferenceGraph`.
        image: float32 tensor of known shape [height, width, channels], whole numbers, see `to_grid`.
        noise_of: `GridNoise`.
        seed, example_id, stream, start, count: see `noise.gaussian`.

    Returns:
        int64 [classes], and a bool: whether all outputs were finite. If not, the counts mean nothing.

    Raises:
        ValueError: as `draw_pass`.
    """
    # The sum is of whole numbers below 2^24, which float32 adds exactly; the division rounds a function of it.
    outputs = classifier((image + noise_of.draw(image.shape, seed, example_id, stream, start, count)) / noise_of.levels)
    votes, finite = _votes(outputs, tf.zeros([count], tf.int32), 1)
    return votes[0, 0], finite[0]


def _votes(outputs, owners, pieces, betas=()):
    """What `draw_pass` returns, for outputs whose rows belong to `owners`, int32 [rows] (below 0: to none)."""
    check_outputs(outputs, owners.shape[0])
    votes = [tf.one_hot(tf.argmax(outputs, axis=-1), outputs.shape[-1], dtype=tf.int64)]
    is_finite = tf.reduce_all(tf.math.is_finite(outputs), axis=-1)
    for beta in betas:
        scores = tf.cast(outputs, tf.float32)
        scaled = beta * scores
        # Where that overflows, as with a class masked by -1e38, the differences do not, or only to a softmax of 0.
        below = beta * (scores - tf.reduce_max(scores, axis=-1, keepdims=True))
        soft = tf.nn.softmax(tf.where(tf.reduce_all(tf.math.is_finite(scaled), axis=-1, keepdims=True), scaled, below))
        soft = tf.cast(tf.floor(soft * UNITS), tf.int64)
        votes += [soft, soft * soft]
    return (
        tf.math.unsorted_segment_sum(tf.stack(votes, axis=1), owners, pieces),
        tf.math.unsorted_segment_sum(tf.cast(~is_finite, tf.int32), owners, pieces) == 0,
    )


def default_microbatch(image_shape: Sequence[int]) -> int:
    """Noisy copies in one forward pass: 576 at 32x32x3, otherwise about as many pixels in all; from 96 to 768."""
    return min(-(-512 * 32 * 32 * 3 // (_ROWS * math.prod(image_shape))) * _ROWS, _MOST_ROWS)


def rows_of_a_pass(image_shape: Sequence[int], microbatch: int | None = None) -> int:
    """Rows of each forward pass of a `SmoothedClassifier`: its microbatch, rounded up to a multiple of 96."""
    return default_microbatch(image_shape) if microbatch is None else -(-microbatch // _ROWS) * _ROWS


def check_images(images: ArrayLike, example_ids: ArrayLike | None = None) -> tuple[np.ndarray, list[int]]:
    """Checks images and ids, and returns both.

    Raises:
        ValueError: unless images are finite floats [images, height, width, channels] in [0, 1], at least one, and the
            ids are as many different whole numbers in [0, 2**32).
    """
    images = _as_images(images)
    check_floats(images.dtype)
    if not np.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"Pixels must be finite and lie in [0, 1]. Received: values from {images.min()} to {images.max()}"
        )
    example_ids = np.arange(len(images)) if example_ids is None else as_array("example_ids", example_ids)
    if example_ids.shape != (len(images),) or not np.issubdtype(example_ids.dtype, np.integer):
        raise ValueError(
            f"example_ids must be one whole number per image. Received: {example_ids.dtype} {example_ids.shape}"
        )
    if len(np.unique(example_ids)) < len(images) or example_ids.min() < 0 or example_ids.max() >= 2**32:
        raise ValueError(
            "example_ids must be different whole numbers from 0 to 4294967295. Received: "
            f"{len(np.unique(example_ids))} different ones, from {example_ids.min()} to {example_ids.max()}"
        )
    return images, example_ids.tolist()


def _as_images(given: ArrayLike) -> np.ndarray:
    """An array [images, height, width, channels]; one without pixels, or of another shape, is refused."""
    _check_not_traced()
    images = as_array("Pixels", given)
    if images.ndim != 4 or images.size == 0:
        raise ValueError(
            "Images, at least one and of one pixel or more, must have shape [images, height, width, channels]. "
            f"Received: {images.shape or type(given).__name__}"
        )
    return images


def _check_not_traced():
    """Refuses a call in a graph, which would hold no pixels yet."""
    if not tf.executing_eagerly():
        raise ValueError(
            "A SmoothedClassifier counts its votes in Python, so it cannot be called while TensorFlow traces a graph: "
            "in a tf.function, in a data set's map, or in a step of fit. Call it with arrays, outside of these"
        )


def _check_address(example_id, stream, start, count, pixels):
    """Refuses what is out of range: noise there would be that of another seed, stream or sample."""
    if not (
        all(map(is_whole, (example_id, stream, start)))
        and 0 <= example_id < 2**32
        and stream in noise.STREAMS
        and start >= 0
        and (int(start) + int(count)) * (pixels + 4) < 2**63
    ):
        raise ValueError(
            f"example_id must lie in 0..4294967295, stream in {sorted(noise.STREAMS)}, start be 0 or above. "
            f"Received: example_id={example_id}, stream={stream}, start={start}, count={count}"
        )


def _check_samples(name, value):
    """Returns a number of samples as an int: sums of NumPy's narrower types wrap around."""
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name}, a number of samples, must be a whole number from 1. Received: {name}={value}")
    if value > MOST_SAMPLES:
        raise ValueError(f"{name}, a number of samples, must be at most {MOST_SAMPLES:,}. Received: {name}={value}")
    return int(value)
