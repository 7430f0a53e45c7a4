"""Certification on Beam: image ids -> chunks of samples -> votes, in the vote store.

The driver asks the budget what each image still needs, a Beam pipeline draws it, and so on until nothing is missing.
Workers write their votes down and return nothing: what a lost worker or bundle owed is asked for again.
"""

import contextlib
import threading
import time
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.utils.shared import Shared

from macer_tf import noise
from macer_tf.smoothing import SmoothedClassifier, default_micro_batch
from macer_tf.votes import Votes
from pipeline import classifiers, sampling
from pipeline import job as job_lib
from pipeline.console import Progress, duration
from pipeline.errors import InputError
from pipeline.vote_store import Chunk, Piece

# Beam 2.77's workers send what they have every so many milliseconds, from a thread that no lock keeps apart from the
# one that is writing: what they send gets lost or garbled. At 0 they send when a buffer is full and at the end.
worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0

_SECONDS_BETWEEN_POLLS = 1.0
# Votes that the driver holds apart, and that ledgers hold, before they are added up: memory grows with them.
_VALUES_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Sampler:
    """What a worker needs to draw votes: plain values, so that it can be sent to any process.

    Attributes:
        model_path: a model that `classifiers.load` loads.
        source: where the images are: `source.open()` has `image(id, digest)` and `digest(id)`, as in `images`.
        sigma, seed, betas: see `SmoothedClassifier`.
        loading: `classifiers.Loading`.
    """

    model_path: str
    source: object
    sigma: float
    seed: int
    betas: tuple = ()
    loading: classifiers.Loading = classifiers.DEFAULT

    def load(self, model=None):
        """The `SmoothedClassifier` and the opened images.

        Args:
            model: what `classifiers.load` returned, where it was loaded before.

        Raises:
            InputError: in one line, if the model cannot be loaded or certified, or the images cannot be opened.
        """
        model = classifiers.load(self.model_path, self.loading) if model is None else model
        try:
            smoothed = SmoothedClassifier(model, self.sigma, self.seed, betas=self.betas)
        except ValueError as error:
            raise InputError(
                f"The model {self.loading.name or self.model_path} cannot be certified. {error}"
            ) from error
        return _Loaded(smoothed, self.source.open())


@dataclass(frozen=True)
class _Loaded:
    """What the workers of one process share."""

    smoothed: SmoothedClassifier
    images: object

    def draw(self, chunks):
        """The pieces of chunks of one stream, and why there are none: example id -> reason."""
        pixels, failures = [], {}
        for chunk in chunks:
            try:
                pixels.append(self.images.image(chunk.example_id, chunk.digest))
            except ValueError as error:  # a damaged or another image: the others go on
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

    def samples_per_second(self, example_ids):
        """Noisy samples a second, on the first of these images that can be read; None if none can, or if it fails."""
        for example_id in example_ids:
            try:
                image = self.images.image(example_id)
                break
            except ValueError:
                continue
        else:
            return None
        most = default_micro_batch(image.shape)
        for samples in (most // 8, most):
            seconds = []
            for _ in range(3):
                started = time.perf_counter()
                try:
                    self.smoothed.count(image, example_id, noise.SELECTION, 0, samples)
                except ValueError:
                    return None
                seconds.append(time.perf_counter() - started)
            # The first one traces the graph.
            rate = samples / min(seconds[1:])
            if seconds[-1] > 0.1:
                break
        return rate


class DrawVotes(beam.DoFn):
    """A list of `Chunk`s of one stream -> nothing; their votes, or why there are none, go to the ledger.

    Args:
        sampler: `Sampler`.
        shared: `Shared` of what it loads.
        store: `VoteStore`.
    """

    def __init__(self, sampler, shared, store):
        self._sampler, self._shared, self._store = sampler, shared, store

    def setup(self):
        # Under the lock of Shared: np.load parses its header by `ast`, which Python 3.11 cannot do in two threads.
        self._loaded = self._shared.acquire(self._sampler.load)
        self._ledger = self._store.ledger()

    def process(self, chunks):
        self._ledger.record(*self._loaded.draw([Chunk(*chunk) for chunk in chunks]))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was drawn.

    Attributes:
        ids: int64 [images], rising, of the images that have their votes.
        votes: `Votes` of these.
        failures: example id -> why it has none.
        is_first_look: see `SamplingPlan.certificates`.
    """

    ids: np.ndarray
    votes: Votes
    failures: dict
    is_first_look: bool


def run(sampler, ids, num_classes, plan, store, *, labels=None, num_workers, loaded=None):
    """Draws on Beam's local runner what the plan asks for and the store does not hold.

    Args:
        sampler: `Sampler`.
        ids: integers [images], of the sampler's source.
        num_classes: of the model.
        plan: `SamplingPlan`.
        store: `VoteStore`.
        labels: int64 [images], -1 where not known; or None.
        num_workers: threads that draw side by side.
        loaded: what `sampler.load` returned, where it was called before: images that are others by now get no votes.

    Returns:
        `Outcome`.

    Raises:
        InputError: before any sampling, where the store's votes cannot be certified for this plan.
        RuntimeError: if a worker fails; its own error is in the message.
    """
    is_first_look = store.first_plans == [plan.first_look]
    if not is_first_look:
        first = next(first for first in store.first_plans if first != plan.first_look)
        plan.check_another_look(first)
        print(f"  Votes here were first drawn for {sampling.in_words(first)}: these certificates are by the bound that "
              "holds whenever one looks (anytime-valid), which is a little lower.")  # fmt: skip
    # Held on to, or every round would load the model anew.
    shared = Shared()
    loaded = shared.acquire(sampler.load if loaded is None else lambda: loaded)
    job = job_lib.Job(plan, sampler.sigma, num_classes, loaded.images, ids, labels, is_first_look)
    job.take(store.pieces())
    if job.held:
        print(f"  {job.held:,} samples were drawn before.")
    if job.missing(1):
        _forecast(loaded, job)
        _draw_all(sampler, shared, job, store, num_workers)
    # What a killed run left on ledgers, too.
    store.compact()
    certified_ids = job.ids_with_votes()
    return Outcome(certified_ids, job.votes(certified_ids.tolist()), job.failures, is_first_look)


def tasks(chunks):
    """Lists of chunks of one stream, of about as many samples as a whole chunk has: what a worker draws at one go."""
    lists, samples = [], 0
    for chunk in sorted(chunks, key=lambda chunk: chunk.stream):
        is_full = samples + chunk.count > job_lib.SAMPLES_PER_CHUNK
        if not lists or is_full or lists[-1][0].stream != chunk.stream:
            lists.append([])
            samples = 0
        lists[-1].append(chunk)
        samples += chunk.count
    return lists


def _draw_all(sampler, shared, job, store, num_workers):
    most_chunks = max(_VALUES_AT_ONCE // job.values_of_a_piece, 1)
    on_ledgers = 0
    with _Follower(job, store) as follower:
        while chunks := job.missing(most_chunks):
            with _told_in_one_line():
                _draw(sampler, shared, chunks, store, num_workers)
            follower.poll()
            if job.missing(len(chunks)) == chunks:
                raise RuntimeError("The certification workers wrote down nothing of what they were to draw.")
            on_ledgers += len(chunks)
            if on_ledgers >= most_chunks:
                store.compact()
                on_ledgers = 0


def _draw(sampler, shared, chunks, store, num_workers):
    options = PipelineOptions(direct_num_workers=num_workers, direct_running_mode="multi_threading", flags=[])
    with beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
        _ = (
            pipeline
            | "Chunks to draw" >> beam.Create([[tuple(chunk) for chunk in task] for task in tasks(chunks)])
            # Otherwise one example's chunks all land on one worker.
            | beam.Reshuffle()
            | beam.ParDo(DrawVotes(sampler, shared, store))
        )


class _Follower:
    """Follows the ledgers while workers write them, from a thread that also tells how far they are.

    No local runner of Beam says how far it is.
    """

    def __init__(self, job, store):
        self._job, self._reader = job, store.follow()
        self._by_images = job.plan.radius is not None  # how many samples they will need is not known
        self._progress = Progress("Certification", *self._state()[::-1])
        self._started, self._first_held = time.monotonic(), job.held
        self._lock, self._stop, self._error = threading.Lock(), threading.Event(), None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback):
        self._stop.set()
        self._thread.join()
        if kind is None:
            done, total = self._state()
            self._progress.finish(done, self._details(), total)

    def poll(self):
        """Takes what was written since the last call."""
        with self._lock:
            if self._error:
                raise self._error
            self._job.take(*self._reader.poll())

    def _follow(self):
        while not self._stop.wait(_SECONDS_BETWEEN_POLLS):
            try:
                self.poll()
                done, total = self._state()
                self._progress.update(done, self._details(), total)
            except Exception as error:  # for the thread that waits for the workers
                self._error = error
                return

    def _state(self):
        """How much is done, of how much."""
        if self._by_images:
            return self._done(), self._job.num_images
        return self._job.held, self._job.most

    def _done(self):
        return self._job.outcomes.total() + len(self._job.failures)

    def _details(self):
        job = self._job
        rate = (job.held - self._first_held) / (time.monotonic() - self._started)
        outcomes = [(count, name) for name, count in sorted(job.outcomes.items())]
        outcomes += [(len(job.failures), "failed")] if job.failures else []
        return ", ".join(
            [
                f"{job.held:,} samples, {rate:,.0f} a second",
                f"{self._done():,} of {job.num_images:,} images",
                *(f"{count:,} {name}" for count, name in outcomes),
            ]
        )


def _forecast(loaded, job):
    """Prints how many forward passes are to be made, and how long that will take, from a short measurement."""
    rate = loaded.samples_per_second(chunk.example_id for chunk in job.missing(1000))
    if rate is None:
        return
    samples = job.most - job.held
    at_most = "at most " if job.spares or not job.plan.is_fixed else ""
    print(
        f"  To draw: {at_most}{samples:,} noisy samples, a forward pass each: {at_most or 'about '}"
        f"{duration(samples / rate)} at {rate:,.0f} a second, as just measured.",
        flush=True,
    )


@contextlib.contextmanager
def _told_in_one_line():
    """Turns Beam's page about a worker's error into that error's own line."""
    try:
        yield
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].split(" [while running")[0]
        raise RuntimeError(f"A certification worker failed: {line}") from error
