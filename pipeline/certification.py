"""Certification on Beam: image ids -> chunks of samples -> votes, in the vote store -> certificates.

The driver asks the budget what each image still needs, a Beam pipeline draws it, and so on until nothing is missing.
Workers write their votes down and return nothing: what a lost worker or bundle owed is asked for again.
"""

import contextlib
import itertools
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.utils.shared import Shared

from macer_tf import noise
from macer_tf.certificates import ABSTAIN, Certificates
from macer_tf.smoothing import SmoothedClassifier, default_micro_batch
from macer_tf.votes import SoftMoments, Votes
from pipeline import classifiers, sampling
from pipeline.artifacts import write_text
from pipeline.console import Progress, duration
from pipeline.vote_store import Chunk, Piece, cover

# Beam 2.77's workers send what they have every so many milliseconds, from a thread that no lock keeps apart from the
# one that is writing: what they send gets lost or garbled. At 0 they send when a buffer is full and at the end.
worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0

# Long enough that Beam's overhead vanishes, short enough that little is lost by a kill.
SAMPLES_PER_CHUNK = 2000
_SECONDS_BETWEEN_POLLS = 1.0
# Votes that the driver holds apart, and that ledgers hold, before they are added up: memory grows with them.
_VALUES_AT_ONCE = 1_000_000
_COLUMNS = {
    "id": np.int64, "selection": np.int64, "estimation": np.int64, "prediction": np.int64, "selected": np.int64,
    "radius": np.float64, "p_lower": np.float64,
}  # fmt: skip
_ABOUT = "certification.json"


@dataclass(frozen=True)
class Sampler:
    """What a worker needs to draw votes: plain values, so that it can be sent to any process.

    Attributes:
        model_path: a model that `classifiers.load` loads.
        source: where the images are: `source.open()` has `image(id)` and `digest(id)`, as in `images`.
        sigma, seed, betas: see `SmoothedClassifier`.
    """

    model_path: str
    source: object
    sigma: float
    seed: int
    betas: tuple = ()

    def load(self):
        """The `SmoothedClassifier` and the opened images."""
        smoothed = SmoothedClassifier(classifiers.load(self.model_path), self.sigma, self.seed, betas=self.betas)
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
                if self.images.digest(chunk.example_id) != chunk.digest:
                    raise ValueError("the image was changed while it was certified")
                pixels.append(self.images.image(chunk.example_id))
            except ValueError as error:  # a damaged image: the others go on
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


def run(sampler, ids, num_classes, plan, store, *, labels=None, num_workers):
    """Draws on Beam's local runner what the plan asks for and the store does not hold.

    Args:
        sampler: `Sampler`.
        ids: integers [images], of the sampler's source.
        num_classes: of the model.
        plan: `SamplingPlan`.
        store: `VoteStore`.
        labels: int64 [images], -1 where not known; or None.
        num_workers: threads that draw side by side.

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
    loaded = shared.acquire(sampler.load)
    job = _Job(plan, sampler.sigma, num_classes, loaded.images, ids, labels, is_first_look)
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
    """Lists of chunks of one stream, about `SAMPLES_PER_CHUNK` samples each: what a worker draws at one go."""
    lists, samples = [], SAMPLES_PER_CHUNK
    for chunk in sorted(chunks, key=lambda chunk: chunk.stream):
        if samples + chunk.count > SAMPLES_PER_CHUNK or lists[-1][0].stream != chunk.stream:
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


class _Image:
    """What one image has and still wants."""

    def __init__(self, digest, label, n0):
        self.digest, self.label = digest, label
        self.pieces = {stream: {} for stream in noise.STREAMS}  # (start, count) -> votes
        self.goals = {noise.SELECTION: n0, noise.ESTIMATION: 0}
        self.gaps = {noise.SELECTION: [(0, n0)], noise.ESTIMATION: []}
        self.votes = {}  # stream -> sum, of what it was to have
        self.held = 0
        self.outcome = None  # once it is done


class _Job:
    """Where each image stands. Votes come in by `take`; `missing` is what is to be drawn next.

    Args:
        plan: `SamplingPlan`.
        sigma: noise level.
        num_classes: of the model.
        images: opened source.
        ids, labels: of the images; labels are -1 where not known, or None.
        is_first_look: see `SamplingPlan.certificates`.

    Attributes:
        plan: as given.
        num_images: how many.
        failures: example id -> reason.
        held: number of samples that count.
        spares: whether images whose selected class is not the label are spared.
        outcomes: Counter of the images that are done: "certified", "correct", "wrong", "abstained" and "spared".
    """

    def __init__(self, plan, sigma, num_classes, images, ids, labels, is_first_look):
        self.plan, self._sigma, self._is_first_look = plan, sigma, is_first_look
        self._shape = (1 + 2 * len(plan.betas), num_classes)
        self._budget, self._is_exact = plan.budget, is_first_look and plan.is_exact
        self.spares = plan.spares(labels)
        self._images, self.failures, self.num_images = {}, {}, len(ids)
        self.held, self.outcomes = 0, Counter()
        labels = np.full(len(ids), -1) if labels is None else labels
        for example_id, label in sorted(zip(map(int, ids), labels, strict=True)):
            try:
                self._images[example_id] = _Image(images.digest(example_id), label, plan.n0)
            except ValueError as error:
                self.failures[example_id] = str(error)

    def take(self, pieces, failures=()):
        """Counts votes, and asks the budget what those images still need that have all they were to have."""
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
        """The first so many `Chunk`s to draw, always in the same order."""
        size = SAMPLES_PER_CHUNK
        chunks = (
            Chunk(example_id, image.digest, stream, start, min((start // size + 1) * size, stop) - start)
            for example_id, image in self._images.items()
            if image.outcome is None
            for stream, gaps in image.gaps.items()
            for first, stop in gaps
            for start in itertools.chain((first,), range((first // size + 1) * size, stop, size))
        )
        return list(itertools.islice(chunks, most))

    @property
    def values_of_a_piece(self):
        """How many numbers its votes are."""
        return self._shape[0] * self._shape[1]

    @property
    def most(self):
        """Samples that the images have and may still get, as far as is known."""
        return sum(
            self.plan.n0 + (image.goals[noise.ESTIMATION] or self.plan.n) if image.outcome is None else image.held
            for image in self._images.values()
        )

    def ids_with_votes(self):
        """int64 [images]: those that did not fail."""
        return np.array(sorted(self._images), np.int64)

    def votes(self, example_ids):
        """`Votes` of images that have all they were to have."""
        images = [self._images[example_id] for example_id in example_ids]
        selection, estimation = (
            np.array([image.votes[stream] for image in images], np.int64).reshape(-1, *self._shape)
            for stream in noise.STREAMS
        )
        soft = {
            beta: SoftMoments(estimation[:, sums], estimation[:, sums + 1], selection_sums=selection[:, sums])
            for beta, sums in zip(self.plan.betas, range(1, self._shape[0], 2), strict=True)
        }
        return Votes(selection[:, 0], estimation[:, 0], soft)

    def _is_complete(self, image):
        """Whether the image has all it was to have; then it is added up."""
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
        certified, *_ = self.plan.certificates(votes, self._sigma, self._is_first_look).values()
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


def write(path, outcome, plan, sigma, precision):
    """Writes what `read` reads: a JSON line an image, by rising id, for each kind of certificate; and what they are.

    Args:
        path: directory.
        outcome: `Outcome`.
        plan: `SamplingPlan`.
        sigma: noise level.
        precision: what the classifier computed in.
    """
    votes = outcome.votes
    if len(outcome.ids):
        certified = plan.certificates(votes, sigma, outcome.is_first_look)
    else:
        nothing = np.zeros(0)
        certified = {
            name: Certificates(nothing, nothing, nothing, nothing, sigma, plan.alpha, plan.n0, plan.n, bound, beta)
            for name, bound, beta in plan.kinds
        }
    for place, (name, certificates) in enumerate(certified.items()):
        rows = zip(
            outcome.ids, votes.selection, votes.estimation, certificates.predictions, certificates.selected,
            certificates.radii, certificates.p_lower, strict=True,
        )  # fmt: skip
        lines = [json.dumps(dict(zip(_COLUMNS, (value.tolist() for value in row), strict=True))) + "\n" for row in rows]
        write_text(Path(path) / file_name(place, name, "jsonl"), "".join(lines))
    about = {
        "sigma": sigma,
        "alpha": plan.alpha,
        "n0": plan.n0,
        **plan.first_look,
        "is_first_look": outcome.is_first_look,
        "precision": precision,
        "kinds": [
            {"name": name, "bound": certificates.bound, "beta": certificates.beta}
            for name, certificates in certified.items()
        ],
    }
    write_text(Path(path) / _ABOUT, json.dumps(about, indent=1))


def read(path):
    """What `write` wrote.

    Returns:
        What the certificates are, as in certification.json; ids int64 [images]; hard `Votes`; and kind's name ->
        `Certificates`, the run's own kind first.
    """
    about = json.loads((Path(path) / _ABOUT).read_text())
    certified = {}
    for place, kind in enumerate(about["kinds"]):
        file = Path(path) / file_name(place, kind["name"], "jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        columns = {name: np.array([row[name] for row in rows], dtype) for name, dtype in _COLUMNS.items()}
        counts = [columns[name].reshape(len(rows), -1 if rows else 0) for name in ("selection", "estimation")]
        votes = Votes(*counts)
        n = votes.n
        certified[kind["name"]] = Certificates(
            predictions=columns["prediction"],
            radii=columns["radius"],
            p_lower=columns["p_lower"],
            selected=columns["selected"],
            sigma=about["sigma"],
            alpha=about["alpha"],
            n0=about["n0"],
            n=about["n"] if (n == about["n"]).all() else n,
            bound=kind["bound"],
            beta=kind["beta"],
        )
    return about, columns["id"], votes, certified


def file_name(place, kind, suffix):
    """Of the certificates of the kind in this place: the run's own kind is the first."""
    return f"certificates-{kind}.{suffix}" if place else f"certificates.{suffix}"


@contextlib.contextmanager
def _told_in_one_line():
    """Turns Beam's page about a worker's error into that error's own line."""
    try:
        yield
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].split(" [while running")[0]
        raise RuntimeError(f"A certification worker failed: {line}") from error
