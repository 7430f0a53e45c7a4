"""Certification on Beam: image ids -> chunks of samples -> votes, in the vote store.

The driver asks the budget what each image still needs, a Beam pipeline draws it, and so on until nothing is missing.
Workers record their votes and return nothing; what a lost worker or bundle did not deliver is requested again. Workers
are threads of this process, or run on an engine: then a job that hands in nothing for a while counts as lost.
"""

import dataclasses
import threading
import time
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.utils.shared import Shared

from macer_tf.votes import Votes
from pipeline.certification import sampling_plan, self_check
from pipeline.certification import tally as tally_lib
from pipeline.certification.bundles import Mark
from pipeline.certification.engine import Failure, Job, cause
from pipeline.certification.follower import Follower
from pipeline.certification.vote_store import VoteStore
from pipeline.certification.workers import DrawVotes, Explode, HandInVotes, Watch
from pipeline.cli.console import duration, print_if_long
from pipeline.utils import places
from serving.exit import before_interrupted
from serving.fingerprints import fingerprint

# Beam 2.77's workers send their data every so many milliseconds, from a thread that no lock separates from the one that
# is writing: what they send gets lost or garbled. At 0, they send when a buffer is full and at the end.
worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0

# After this long without a busy worker, none is left. And after an error or at the end, workers that still draw have
# this long to finish.
_SECONDS_OF_SILENCE = 120.0
# Jobs in a row that may bring nothing before the driver gives up.
_TRIES = 3
# Votes to ask for in one job on an engine, because each job costs some ten seconds.
_VALUES_AT_ONCE_ON_AN_ENGINE = 20_000_000
_CHUNKS_AT_ONCE_ON_AN_ENGINE = 200_000
# How often to check whether a worker says that it cannot draw.
_SECONDS_BETWEEN_LOOKS = 2.0
# Votes that the driver and the ledgers hold separately before they are added up: memory grows with them.
_VALUES_AT_ONCE = 1_000_000


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was drawn.

    Attributes:
        ids: int64 [images], rising, of the images that have their votes.
        votes: their `Votes`.
        failures: example id -> why it has no votes.
        share_of_alpha: see `SamplingPlan.share_of_alpha`.
        digests: example id -> what identifies the image that was voted on.
        drawn_since: when the first sample of this noise was drawn, seconds since the epoch.
    """

    ids: np.ndarray
    votes: Votes
    failures: dict
    share_of_alpha: float | None = None
    digests: dict = dataclasses.field(default_factory=dict)
    drawn_since: float | None = None

    @property
    def is_first_look(self):
        """Whether the plan was made before any sample of this noise was drawn."""
        return self.share_of_alpha is None


@dataclass(frozen=True)
class Forecast:
    """What drawing will take.

    Attributes:
        samples: how many are to be drawn, at most.
        is_at_most: whether there may be fewer in the end.
        per_second: how many are drawn per second; None if that was not measured: see `Loaded.samples_per_second`.
    """

    samples: int
    is_at_most: bool
    per_second: float | None

    @property
    def seconds(self):
        """How long it takes, at most; None if the speed was not measured."""
        return self.samples / self.per_second if self.per_second else None

    def as_json(self):
        """The same as JSON values by name."""
        return {"samples": self.samples, "is_at_most": self.is_at_most, "seconds": self.seconds}

    def __str__(self):
        at_most = "at most " if self.is_at_most else ""
        amount = f"{at_most}{self.samples:,} noisy samples, a forward pass each"
        if self.per_second is None:
            return amount
        seconds = duration(self.seconds)
        return f"{amount}: {at_most or 'about '}{seconds} at {self.per_second:,.0f} per second, measured just now"


def forecast_in(root, sampler, loaded, of, ids, num_classes, plan, *, labels):
    """The `Forecast` of what `run_in` would draw; nothing is written.

    Args, Raises: as in `run_in`.
    """
    identity = _identity(sampler, loaded, of, plan)
    store = VoteStore(_folder(root, identity), identity, plan.first_look, num_classes, plan.betas, is_read_only=True)
    share_of_alpha = _checked_share_of_alpha(plan, store)
    tally = tally_lib.Tally(plan, sampler.sigma, sampler.seed, num_classes, loaded.images, ids, labels, share_of_alpha)
    tally.take(store.pieces())
    return _forecast(loaded, tally)


def run_in(root, sampler, loaded, of, ids, num_classes, plan, *, labels, num_workers, engine=None, cheaper=()):
    """`run` with the votes that a folder keeps of this classifier under this noise.

    Args:
        root: `Path`; the votes are in root/votes.
        sampler, ids, num_classes, plan, labels, num_workers, engine, cheaper: see `run`.
        loaded: what `sampler.load` returned.
        of: what identifies the classifier, JSON values by name: its "model", "precision", ...

    Returns:
        `Outcome`.

    Raises:
        InputError, RuntimeError: as `run`, and as `VoteStore`.
    """
    identity = _identity(sampler, loaded, of, plan)
    handed_in = None if engine is None or engine.handed_in is None else places.absolute(engine.handed_in)
    store = VoteStore(_folder(root, identity), identity, plan.first_look, num_classes, plan.betas, handed_in)
    how = {"labels": labels, "num_workers": num_workers, "loaded": loaded, "engine": engine, "cheaper": cheaper}
    return run(sampler, ids, num_classes, plan, store, **how)


def _identity(sampler, loaded, of, plan):
    return {**of, "sigma": sampler.sigma, "seed": sampler.seed, "n0": plan.n0, "noise": loaded.noise}


def _folder(root, identity):
    return root / "votes" / fingerprint(identity)[:16]


def run(sampler, ids, num_classes, plan, store, *, labels=None, num_workers, loaded=None, engine=None, cheaper=()):
    """Draws on Beam's local runner, or on an engine, what the plan needs and the store does not have.

    Args:
        sampler: `Sampler`.
        ids: integers [images], of the sampler's source.
        num_classes: number of the model's classes.
        plan: `SamplingPlan`.
        store: `VoteStore`.
        labels: int64 [images], -1 where not known; or None.
        num_workers: number of threads that draw at the same time.
        loaded: what `sampler.load` returned, if it was called before: images that have changed since get no votes.
        engine: `Engine`; None: threads of this process.
        cheaper: names of settings that would make this shorter, for `console.print_if_long`.

    Returns:
        `Outcome`.

    Raises:
        InputError: before any sampling, if the store's votes cannot be certified for this plan, or the engine cannot
            be used.
        RuntimeError: if a worker fails, or jobs no longer bring anything; the cause is in the message.
    """
    share_of_alpha = _checked_share_of_alpha(plan, store)
    # Kept alive, because otherwise every round would load the model again.
    shared = Shared()
    loaded = shared.acquire(sampler.load if loaded is None else lambda: loaded)
    tally = tally_lib.Tally(plan, sampler.sigma, sampler.seed, num_classes, loaded.images, ids, labels, share_of_alpha)
    # What a killed run left in ledgers. Its failures are forgotten, because what it could not read may be fixed by now.
    store.compact()
    tally.take(store.pieces())
    if tally.held:
        print(f"  {tally.held:,} samples have already been drawn.")
    if tally.missing(1):
        if engine is None:
            forecast = _forecast(loaded, tally)
            print(f"  To draw: {forecast}.", flush=True)
            if forecast.seconds is not None:
                print_if_long(forecast.seconds, cheaper)
            _draw_all(sampler, shared, tally, store, num_workers)
        else:
            print(f"  To draw: {_to_draw(tally)}, on {engine.runner}.", flush=True)
            self_check.run(engine, store.place)
            _draw_all_on(engine, sampler, tally, store)
    store.compact()
    certified_ids = tally.ids_with_votes()
    votes = tally.votes(certified_ids.tolist())
    return Outcome(certified_ids, votes, tally.failures, share_of_alpha, tally.digests(), store.opened_at)


def _checked_share_of_alpha(plan, store):
    """`SamplingPlan.share_of_alpha`; what a choice after a look means is printed.

    Raises:
        InputError: if the store's votes cannot be certified for this plan.
    """
    share_of_alpha = plan.share_of_alpha(store.first_looks)
    if share_of_alpha is not None:
        first = next(first for first in store.first_looks if first != plan.first_look)
        plan.check_another_look(first, share_of_alpha)
        print(
            f"  Samples of this noise were first drawn for {sampling_plan.in_words(first)}: these certificates use "
            "the bound that holds whenever one looks (anytime-valid), which is a little lower."
        )
    return share_of_alpha


def tasks(chunks):
    """Lists of chunks of one stream, each with about as many samples as a whole chunk: what a worker draws at once."""
    lists, samples = [], 0
    for chunk in sorted(chunks, key=lambda chunk: chunk.stream):
        is_full = samples + chunk.count > tally_lib.SAMPLES_PER_CHUNK
        if not lists or is_full or lists[-1][0].stream != chunk.stream:
            lists.append([])
            samples = 0
        lists[-1].append(chunk)
        samples += chunk.count
    return lists


def _draw_all(sampler, shared, tally, store, num_workers):
    most_chunks = max(_VALUES_AT_ONCE // tally.values_of_a_piece, 1)
    on_ledgers = barren = 0
    with Follower(tally, store.follow()) as follower:
        while chunks := tally.missing(most_chunks):
            lost = _draw(sampler, shared, chunks, store, num_workers, follower)
            follower.poll()
            barren = barren + 1 if tally.missing(len(chunks)) == chunks else 0
            if barren and lost is None:
                raise RuntimeError("The certification workers wrote none of the votes that they were to draw.")
            if barren == _TRIES:
                raise RuntimeError(f"Beam failed {_TRIES} times in a row: {lost.line}")
            if lost:
                print(f"  Beam failed ({lost.line}); what is missing will be drawn again.", flush=True)
            on_ledgers += len(chunks)
            if on_ledgers >= most_chunks:
                store.compact()
                on_ledgers = 0


def _draw(sampler, shared, chunks, store, num_workers, follower):
    """Has workers draw chunks. Beam runs in its own thread, because nothing else shows whether its workers are alive.

    Returns:
        The `Failure` of Beam itself, such as a worker that it could not start; or None.

    Raises:
        RuntimeError: for an error in a worker, or if none responds any more.
    """
    lists = [[tuple(chunk) for chunk in task] for task in tasks(chunks)]
    options = PipelineOptions(
        direct_num_workers=min(num_workers, len(lists)), direct_running_mode="multi_threading", flags=[]
    )
    watched = Shared()
    watch, errors = watched.acquire(Watch), []

    def run():
        try:
            with beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
                _ = (
                    pipeline
                    | "Chunks to draw" >> beam.Create(lists)
                    # Otherwise all chunks of an example would go to one worker.
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
            break
    if error := watch.error:
        line = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise RuntimeError(f"A certification worker failed: {line}") from error
    if thread.is_alive():
        raise RuntimeError("A certification worker failed: no worker answers any more")
    return cause(errors[0]) if errors else None


def long_tasks(chunks):
    """`tasks`, but adjacent chunks that are a task each become one: a job's description must not be a long list."""
    lists = []
    for task in tasks(chunks):
        last = lists[-1][0] if lists and len(lists[-1]) == len(task) == 1 else None
        if last and last[:3] == task[0][:3] and last.start + last.count == task[0].start:
            lists[-1] = [last._replace(count=last.count + task[0].count)]
        else:
            lists.append(task)
    return lists


def _draw_all_on(engine, sampler, tally, store):
    most_chunks = min(max(_VALUES_AT_ONCE_ON_AN_ENGINE // tally.values_of_a_piece, 1), _CHUNKS_AT_ONCE_ON_AN_ENGINE)
    sampler, barren = sampler.for_engine(store.place), 0
    reader = store.follow_bundles()
    with Follower(tally, reader) as follower:
        while chunks := tally.missing(most_chunks):
            before = follower.taken
            reader.samples.clear()
            failure = _draw_on(engine, sampler, chunks, store, follower)
            follower.poll()
            if reader.samples:
                print(f"  {_shares(reader.samples)}", flush=True)
            barren = 0 if follower.taken > before else barren + 1
            if barren:
                _check_goes_on(engine, failure, barren)
            if failure:
                print(f"  A job was lost ({failure.line}); what it still owed is requested again.", flush=True)
            store.compact()


def _check_goes_on(engine, failure, barren):
    """Raises RuntimeError if another job would bring nothing either."""
    if failure is None:
        raise RuntimeError(f"{engine.runner} says that the job is done, but its workers handed in nothing.")
    if barren == _TRIES or failure.is_final:
        raise RuntimeError(
            f"The certification job on {engine.runner} failed: {failure.line}. What was drawn is kept: the same "
            "command resumes from there"
        )


def _draw_on(engine, sampler, chunks, store, follower):
    """Has an engine draw chunks. Returns the `Failure` of the job, or None."""
    mark = Mark(store.place)
    mark.set()

    def build(pipeline):
        _ = (
            pipeline
            | "Samples to draw" >> beam.Create([[tuple(chunk) for chunk in task] for task in long_tasks(chunks)])
            | beam.ParDo(Explode(tally_lib.SAMPLES_PER_CHUNK))
            | beam.Reshuffle()
            | beam.ParDo(HandInVotes(sampler, Shared(), store.bundle_writer(), mark))
        )

    job = Job(engine.options(), build)
    with before_interrupted(mark.remove), before_interrupted(job.cancel):
        try:
            with job:
                return job.failure or _watch(engine, job, follower, mark)
        finally:
            mark.remove()


def _watch(engine, job, follower, mark):
    """Waits until a job ends or has brought nothing for too long. Returns its `Failure`, or None."""
    taken, since = follower.taken, time.monotonic()
    while job.is_running(_SECONDS_BETWEEN_LOOKS):
        if refusal := mark.refusal():
            return Failure(refusal, is_final=True)
        if follower.error:
            raise RuntimeError(f"Cannot read what workers handed in: {follower.error}") from follower.error
        if follower.taken > taken:
            taken, since = follower.taken, time.monotonic()
        if time.monotonic() - since > engine.patience:
            return Failure(f"no new votes for {duration(engine.patience)}")
    return job.failure


def _shares(samples):
    """How much each worker drew, in words."""
    total, most = sum(samples.values()), max(samples.values())
    workers = f"{len(samples):,} workers, {100 * most / total:.0f} % by the busiest" if len(samples) > 1 else "1 worker"
    return f"{total:,} samples drawn by {workers}."


def _forecast(loaded, tally):
    """The `Forecast` of what is missing, from a short measurement."""
    to_draw = _to_draw(tally)
    ids = (chunk.example_id for chunk in tally.missing(1000))
    return dataclasses.replace(to_draw, per_second=loaded.samples_per_second(ids, to_draw.samples))


def _to_draw(tally):
    return Forecast(tally.most - tally.held, bool(tally.spares or not tally.plan.is_fixed), None)
