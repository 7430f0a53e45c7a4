"""Certification on Beam: image ids -> chunks of samples -> votes, in the vote store.

The driver asks the budget what each image still needs, a Beam pipeline draws it, and so on until nothing is missing.
Workers write their votes down and return nothing: what a lost worker or bundle owed is asked for again.
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
from pipeline.certification import sampling_plan
from pipeline.certification import tally as tally_lib
from pipeline.certification.follower import Follower
from pipeline.certification.vote_store import VoteStore
from pipeline.certification.workers import DrawVotes, Watch
from pipeline.cli.console import duration
from serving.fingerprints import fingerprint

# Beam 2.77's workers send what they have every so many milliseconds, from a thread that no lock keeps apart from the
# one that is writing: what they send gets lost or garbled. At 0 they send when a buffer is full and at the end.
worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0

# After so long in which no worker had anything in hand, there is none any more; and after an error or at the end, so
# long do those that still draw have to come to an end.
_SECONDS_OF_SILENCE = 120.0
# Votes that the driver holds apart, and that ledgers hold, before they are added up: memory grows with them.
_VALUES_AT_ONCE = 1_000_000


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was drawn.

    Attributes:
        ids: int64 [images], rising, of the images that have their votes.
        votes: `Votes` of these.
        failures: example id -> why it has none.
        share_of_alpha: see `SamplingPlan.share_of_alpha`.
        digests: example id -> what tells the image that was voted on from others.
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


def run_in(root, sampler, loaded, of, ids, num_classes, plan, *, labels, num_workers):
    """`run` with the votes that are kept in a folder, of this classifier under this noise.

    Args:
        root: `Path`; the votes are in root/votes.
        sampler, ids, num_classes, plan, labels, num_workers: see `run`.
        loaded: what `sampler.load` returned.
        of: what tells the classifier from others, JSON values by name: its "model", "precision", ...

    Returns:
        `Outcome`.

    Raises:
        InputError, RuntimeError: as `run`, and as `VoteStore`.
    """
    identity = {**of, "sigma": sampler.sigma, "seed": sampler.seed, "n0": plan.n0, "noise": loaded.noise}
    folder = root / "votes" / fingerprint(identity)[:16]
    store = VoteStore(folder, identity, plan.first_look, num_classes, plan.betas)
    return run(sampler, ids, num_classes, plan, store, labels=labels, num_workers=num_workers, loaded=loaded)


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
    share_of_alpha = plan.share_of_alpha(store.first_looks)
    if share_of_alpha is not None:
        first = next(first for first in store.first_looks if first != plan.first_look)
        plan.check_another_look(first, share_of_alpha)
        print(
            f"  Samples of this noise were first drawn for {sampling_plan.in_words(first)}: these certificates are by "
            "the bound that holds whenever one looks (anytime-valid), which is a little lower."
        )
    # Held on to, or every round would load the model anew.
    shared = Shared()
    loaded = shared.acquire(sampler.load if loaded is None else lambda: loaded)
    tally = tally_lib.Tally(plan, sampler.sigma, sampler.seed, num_classes, loaded.images, ids, labels, share_of_alpha)
    # What a killed run left on ledgers. Its failures are forgotten: what it could not read may have been mended.
    store.compact()
    tally.take(store.pieces())
    if tally.held:
        print(f"  {tally.held:,} samples were drawn before.")
    if tally.missing(1):
        _forecast(loaded, tally)
        _draw_all(sampler, shared, tally, store, num_workers)
    store.compact()
    certified_ids = tally.ids_with_votes()
    votes = tally.votes(certified_ids.tolist())
    return Outcome(certified_ids, votes, tally.failures, share_of_alpha, tally.digests(), store.opened_at)


def tasks(chunks):
    """Lists of chunks of one stream, of about as many samples as a whole chunk has: what a worker draws at one go."""
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
    on_ledgers = 0
    with Follower(tally, store) as follower:
        while chunks := tally.missing(most_chunks):
            _draw(sampler, shared, chunks, store, num_workers, follower)
            follower.poll()
            if tally.missing(len(chunks)) == chunks:
                raise RuntimeError("The certification workers wrote down nothing of what they were to draw.")
            on_ledgers += len(chunks)
            if on_ledgers >= most_chunks:
                store.compact()
                on_ledgers = 0


def _draw(sampler, shared, chunks, store, num_workers, follower):
    """Has workers draw chunks. Beam runs in a thread of its own, as nothing else tells whether its workers live."""
    options = PipelineOptions(direct_num_workers=num_workers, direct_running_mode="multi_threading", flags=[])
    watched = Shared()
    watch, errors = watched.acquire(Watch), []

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


def _forecast(loaded, tally):
    """Prints how many forward passes are to be made, and how long that will take, from a short measurement."""
    rate = loaded.samples_per_second(chunk.example_id for chunk in tally.missing(1000))
    if rate is None:
        return
    samples = tally.most - tally.held
    at_most = "at most " if tally.spares or not tally.plan.is_fixed else ""
    print(
        f"  To draw: {at_most}{samples:,} noisy samples, a forward pass each: {at_most or 'about '}"
        f"{duration(samples / rate)} at {rate:,.0f} per second, as just measured.",
        flush=True,
    )


def _in_one_line(error):
    """An exception's own line; of Beam's page about a worker's error, that error's."""
    if isinstance(error, RuntimeError):
        return (str(error).strip().splitlines() or ["RuntimeError"])[-1].split(" [while running")[0]
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
