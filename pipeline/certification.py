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
from macer_tf.smoothing import SmoothedClassifier, default_microbatch
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
# After so long in which no worker had anything in hand, there is none any more; and after an error or at the end, so
# long do those that still draw have to come to an end.
_SECONDS_OF_SILENCE = 120.0
# Votes that the driver holds apart, and that ledgers hold, before they are added up: memory grows with them.
_VALUES_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Sampler:
    """What a worker needs to draw votes: plain values, so that it can be sent to any process.

    Attributes:
        model_path: a model that `classifiers.load` loads.
        source: where the images are: `source.open()` has what `images.Images` has of `image`, `digest` and `levels`.
        sigma, seed, betas: see `SmoothedClassifier`.
        loading: `classifiers.Loading`.
        levels: see `SmoothedClassifier`; None is what the images say.
    """

    model_path: str
    source: object
    sigma: float
    seed: int
    betas: tuple = ()
    loading: classifiers.Loading = classifiers.DEFAULT
    levels: int | None = None

    def load(self, model=None):
        """The `SmoothedClassifier` and the opened images.

        Args:
            model: what `classifiers.load` returned, where it was loaded before.

        Raises:
            InputError: in one line, if the model cannot be loaded or certified, or the images cannot be opened.
        """
        model = classifiers.load(self.model_path, self.loading) if model is None else model
        images = self.source.open()
        levels = self.levels or images.levels
        try:
            smoothed = SmoothedClassifier(model, self.sigma, self.seed, betas=self.betas, levels=levels)
        except ValueError as error:
            raise InputError(
                f"The model {self.loading.name or self.model_path} cannot be certified. {error}"
            ) from error
        return _Loaded(smoothed, images)


@dataclass(frozen=True)
class _Loaded:
    """What the workers of one process share."""

    smoothed: SmoothedClassifier
    images: object

    @property
    def noise(self):
        """What the noise is, in words, as votes are told apart by it."""
        return f"exact, on the grid of 1/{self.smoothed.levels}"

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
        most = default_microbatch(image.shape)
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


class _Watch:
    """Sees whether workers are at work, and keeps what stops them.

    Not Beam: of an error, it prints a page to a stderr that may lie on the very disk that is full, and if that fails it
    waits for the worker for ever.

    Attributes:
        error: the first one of a worker, or None.
    """

    def __init__(self):
        self.error = None
        self._lock, self._in_hand, self._last = threading.Lock(), 0, time.monotonic()

    @contextlib.contextmanager
    def at_work(self):
        """Around what a worker does; an exception in it is kept as `error` and goes no further."""
        with self._lock:
            self._in_hand += 1
        try:
            yield
        except Exception as error:
            self.error = self.error or error
        finally:
            with self._lock:
                self._in_hand -= 1
                self._last = time.monotonic()

    def seconds_of_silence(self):
        """For how long no worker has had anything in hand."""
        with self._lock:
            return 0.0 if self._in_hand else time.monotonic() - self._last


class DrawVotes(beam.DoFn):
    """A list of `Chunk`s of one stream -> nothing; their votes, or why there are none, go to the ledger.

    Args:
        sampler: `Sampler`.
        shared: `Shared` of what it loads.
        watched: `Shared` of a `_Watch`. After an error, workers draw no more.
        store: `VoteStore`.
    """

    def __init__(self, sampler, shared, watched, store):
        self._sampler, self._shared, self._watched, self._store = sampler, shared, watched, store

    def setup(self):
        self._watch = self._watched.acquire(_Watch)
        with self._watch.at_work():
            # Under the lock of Shared: np.load parses its header by `ast`, which Python 3.11 cannot do in two threads.
            self._loaded = self._shared.acquire(self._sampler.load)
            self._ledger = self._store.ledger()

    def process(self, chunks):
        with self._watch.at_work():
            if self._watch.error is None:
                self._ledger.record(*self._loaded.draw([Chunk(*chunk) for chunk in chunks]))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was drawn.

    Attributes:
        ids: int64 [images], rising, of the images that have their votes.
        votes: `Votes` of these.
        failures: example id -> why it has none.
        share_of_alpha: see `SamplingPlan.share_of_alpha`.
    """

    ids: np.ndarray
    votes: Votes
    failures: dict
    share_of_alpha: float | None = None

    @property
    def is_first_look(self):
        """Whether the plan was made before any sample of this noise was drawn."""
        return self.share_of_alpha is None


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
    share_of_alpha = plan.share_of_alpha(store.first_plans)
    if share_of_alpha is not None:
        first = next(first for first in store.first_plans if first != plan.first_look)
        plan.check_another_look(first, share_of_alpha)
        print(f"  Samples of this noise were first drawn for {sampling.in_words(first)}: these certificates are by the "
              "bound that holds whenever one looks (anytime-valid), which is a little lower.")  # fmt: skip
    # Held on to, or every round would load the model anew.
    shared = Shared()
    loaded = shared.acquire(sampler.load if loaded is None else lambda: loaded)
    job = job_lib.Job(plan, sampler.sigma, num_classes, loaded.images, ids, labels, share_of_alpha)
    # What a killed run left on ledgers. Its failures are forgotten: what it could not read may have been mended.
    store.compact()
    job.take(store.pieces())
    if job.held:
        print(f"  {job.held:,} samples were drawn before.")
    if job.missing(1):
        _forecast(loaded, job)
        _draw_all(sampler, shared, job, store, num_workers)
    store.compact()
    certified_ids = job.ids_with_votes()
    return Outcome(certified_ids, job.votes(certified_ids.tolist()), job.failures, share_of_alpha)


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
            _draw(sampler, shared, chunks, store, num_workers, follower)
            follower.poll()
            if job.missing(len(chunks)) == chunks:
                raise RuntimeError("The certification workers wrote down nothing of what they were to draw.")
            on_ledgers += len(chunks)
            if on_ledgers >= most_chunks:
                store.compact()
                on_ledgers = 0


def _draw(sampler, shared, chunks, store, num_workers, follower):
    """Has workers draw chunks. Beam runs in a thread of its own, as nothing else tells whether its workers live."""
    options = PipelineOptions(direct_num_workers=num_workers, direct_running_mode="multi_threading", flags=[])
    watched = Shared()
    watch, errors = watched.acquire(_Watch), []

    def run():
        try:
            with beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
                _ = (
                    pipeline
                    | "Chunks to draw" >> beam.Create([[tuple(chunk) for chunk in task] for task in tasks(chunks)])
                    # Otherwise one example's chunks all land on one worker.
                    | beam.Reshuffle()
                    | beam.ParDo(DrawVotes(sampler, shared, watched, store))
                )
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    stopped_at = None
    while thread.is_alive():
        thread.join(0.05)
        now = time.monotonic()
        watch.error = watch.error or follower.error
        if watch.error:
            stopped_at = stopped_at or now
        if watch.seconds_of_silence() > _SECONDS_OF_SILENCE or now - (stopped_at or now) > _SECONDS_OF_SILENCE:
            errors.append(RuntimeError("no worker answers any more"))
            break
    for error in (watch.error, *errors):
        if error is not None:
            raise RuntimeError(f"A certification worker failed: {_in_one_line(error)}") from error


class _Follower:
    """Follows the ledgers while workers write them, from a thread that also tells how far they are.

    No local runner of Beam says how far it is.

    Attributes:
        error: what stopped the thread, or None.
    """

    def __init__(self, job, store):
        self._job, self._reader = job, store.follow()
        self._by_images = job.plan.radius is not None  # how many samples they will need is not known
        self._progress = Progress("Certification", *self._state()[::-1])
        self._started, self._first_held = time.monotonic(), job.held
        self._lock, self._stop, self.error = threading.Lock(), threading.Event(), None
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
            self._job.take(*self._reader.poll())

    def _follow(self):
        while not self._stop.wait(_SECONDS_BETWEEN_POLLS):
            try:
                self.poll()
                done, total = self._state()
                self._progress.update(done, self._details(), total)
            except Exception as error:  # for the thread that waits for the workers
                self.error = error
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


def _in_one_line(error):
    """An exception's own line; of Beam's page about a worker's error, that error's."""
    if isinstance(error, RuntimeError):
        return (str(error).strip().splitlines() or ["RuntimeError"])[-1].split(" [while running")[0]
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
