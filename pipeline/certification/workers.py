"""What runs in Beam's workers: from chunks of samples to recorded votes."""

import contextlib
import dataclasses
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np

from macer_tf import noise
from macer_tf.smoothing import SmoothedClassifier, default_microbatch
from pipeline.certification import classifiers
from pipeline.certification.pieces import Chunk, Piece, split
from pipeline.data import sources
from pipeline.utils import places
from pipeline.utils.errors import InputError


@dataclass(frozen=True)
class Sampler:
    """What a worker needs to draw votes: plain values, so that it can be sent to any process.

    Attributes:
        model_path: a model that `classifiers.load` loads.
        source: where the images are; `source.open()` has `image`, `digest` and `levels` as `sources.Images` has.
        sigma, seed, betas: see `SmoothedClassifier`.
        loading: `classifiers.Loading`.
        levels: see `SmoothedClassifier`; None takes what the images say.
        fingerprint: the model's `places.fingerprint_of`; None: it is not compared.
    """

    model_path: str
    source: object
    sigma: float
    seed: int
    betas: tuple = ()
    loading: classifiers.Loading = classifiers.DEFAULT
    levels: int | None = None
    fingerprint: str | None = None

    def for_engine(self, place):
        """A copy for workers on any machine that sees `place`; a model that is only on this machine is copied there.

        Raises:
            InputError: if it cannot be written there, or if only this machine could read the images.
        """
        fingerprint, path = places.fingerprint_of(self.model_path), places.absolute(self.model_path)
        if places.is_url(place):
            folder = places.join(place, f"model-{fingerprint[:16]}")
            try:
                places.upload(path, places.join(folder, Path(path).name) if Path(path).is_dir() else folder)
            except OSError as error:
                raise places.cannot_write(place, error) from None
            path = places.join(folder, Path(path).name)
        source, loading = sources.anywhere(self.source), self.loading.with_code()
        return dataclasses.replace(self, model_path=path, fingerprint=fingerprint, source=source, loading=loading)

    def load(self, model=None):
        """The `SmoothedClassifier` and the opened images.

        Args:
            model: what `classifiers.load` returned, if it was loaded before.

        Raises:
            InputError: in one line, if the model cannot be loaded or certified, or the images cannot be opened.
        """
        if model is None:
            path = self.model_path
            if self.fingerprint is not None:
                path = str(places.local(path, self.fingerprint))
            model = classifiers.load(path, self.loading)
        images = self.source.open()
        levels = self.levels or images.levels
        try:
            smoothed = SmoothedClassifier(model, self.sigma, self.seed, betas=self.betas, levels=levels)
        except ValueError as error:
            raise InputError(
                f"The model {self.loading.name or self.model_path} cannot be certified. {error}"
            ) from error
        return Loaded(smoothed, images)


@dataclass(frozen=True)
class Loaded:
    """What the workers of one process share."""

    smoothed: SmoothedClassifier
    images: object

    @property
    def noise(self):
        """The kind of noise, in words; votes under different noise are kept apart by it."""
        return f"exact, on the grid of 1/{self.smoothed.levels}"

    def draw(self, chunks):
        """The pieces of chunks of one stream; and, where there are none, why: example id -> reason."""
        pixels, failures = [], {}
        for chunk in chunks:
            try:
                pixels.append(self.images.image(chunk.example_id, chunk.digest))
            except ValueError as error:  # a damaged or different image: the others go on
                failures[chunk.example_id] = str(error)
        chunks = [chunk for chunk in chunks if chunk.example_id not in failures]
        if not chunks:
            return [], failures
        ids, starts, counts = ([getattr(chunk, name) for chunk in chunks] for name in ("example_id", "start", "count"))
        try:
            drawn = self.smoothed.draw(np.stack(pixels), ids, chunks[0].stream, starts, counts)
        except ValueError as error:  # outputs that are not finite
            if len(chunks) == 1:
                return [], {**failures, ids[0]: str(error)}
            pieces = []
            for chunk in chunks:
                drawn_alone, failed = self.draw([chunk])
                pieces += drawn_alone
                failures |= failed
            return pieces, failures
        votes = np.stack([drawn.counts, *(moment for moments in drawn.soft.values() for moment in moments)], axis=1)
        return [Piece(chunk, piece_votes) for chunk, piece_votes in zip(chunks, votes, strict=True)], failures

    def samples_per_second(self, example_ids, missing):
        """Noisy samples per second, on the first of these images that can be read; None if none can, or if it fails.

        Also None if the `missing` samples fill few forward passes: measuring would take as long as drawing.
        """
        for example_id in example_ids:
            try:
                image = self.images.image(example_id)
                break
            except ValueError:
                continue
        else:
            return None
        most = default_microbatch(image.shape)
        if missing < 8 * most:
            return None
        seconds = []
        # The first pass traces the graph. A short pass is measured twice.
        while len(seconds) < 2 or (len(seconds) == 2 and seconds[-1] < 0.1):
            started = time.perf_counter()
            try:
                self.smoothed.count(image, example_id, noise.SELECTION, 0, most)
            except ValueError:
                return None
            seconds.append(time.perf_counter() - started)
        return most / min(seconds[1:])


class Watch:
    """Knows whether workers are busy, and keeps what stops them.

    Beam is not left to do so: it prints a page about an error to a stderr that may be on the very disk that is full,
    and if that fails, it waits for the worker for ever.

    Attributes:
        error: the first error of a worker, or None.
    """

    def __init__(self):
        self.error = None
        self._lock, self._in_hand, self._last = threading.Lock(), 0, time.monotonic()

    @contextlib.contextmanager
    def at_work(self):
        """Wraps what a worker does; an exception in it is kept as `error` and goes no further."""
        with self._lock:
            self._in_hand += 1
        try:
            yield
        except (Exception, SystemExit) as error:  # which would otherwise end a thread without a word
            self.error = self.error or error
        finally:
            with self._lock:
                self._in_hand -= 1
                self._last = time.monotonic()

    def seconds_of_silence(self):
        """For how long no worker has been busy."""
        with self._lock:
            return 0.0 if self._in_hand else time.monotonic() - self._last


class DrawVotes(beam.DoFn):
    """A list of `Chunk`s of one stream -> nothing; their votes, or why there are none, go into the ledger.

    Args:
        sampler: `Sampler`.
        shared: `Shared` of what `sampler` loads.
        watched: `Shared` of a `Watch`. After an error, workers draw no more.
        store: `VoteStore`.
    """

    def __init__(self, sampler, shared, watched, store):
        self._sampler, self._shared, self._watched, self._store = sampler, shared, watched, store

    def setup(self):
        self._watch = self._watched.acquire(Watch)
        with self._watch.at_work():
            # Under Shared's lock: np.load parses its header with `ast`, which Python 3.11 cannot do in two threads.
            self._loaded = self._shared.acquire(self._sampler.load)
            self._ledger = self._store.ledger()

    def process(self, chunks):
        with self._watch.at_work():
            if self._watch.error is None:
                self._ledger.record(*self._loaded.draw([Chunk(*chunk) for chunk in chunks]))


class Explode(beam.DoFn):
    """A task, or one with a single long chunk -> tasks of as many samples as a worker draws at once."""

    def __init__(self, samples):
        self._samples = samples

    def process(self, chunks):
        if len(chunks) > 1:
            yield chunks
        else:
            yield from ([tuple(chunk)] for chunk in split(Chunk(*chunks[0]), self._samples))


class HandInVotes(beam.DoFn):
    """A list of `Chunk`s of one stream -> nothing; their votes, or why there are none, are handed in.

    For workers of an engine, in any process on any machine. Errors are left to Beam: the engine repeats the bundle, or
    fails.

    Args:
        sampler: `Sampler.for_engine`.
        shared: `Shared` of what it loads.
        writer: `BundleWriter`.
        mark: `Mark`; without it, nothing more is drawn. What cannot be loaded is reported beside it.
    """

    def __init__(self, sampler, shared, writer, mark):
        self._sampler, self._shared, self._writer, self._mark = sampler, shared, writer, mark
        self._loaded = None

    def process(self, chunks):
        # Not an error: a cancelled job ends at once, even where the engine does not end it.
        if not self._mark.is_set():
            return
        if self._loaded is None:
            try:
                self._loaded = self._shared.acquire(self._sampler.load)
            except InputError as error:
                self._mark.refuse(str(error))
                raise
        self._writer.record(*self._loaded.draw([Chunk(*chunk) for chunk in chunks]))

    def finish_bundle(self):
        self._writer.hand_in()
