"""Certification on Beam: images -> chunks of samples -> Votes -> CombinePerKey(sum) -> certificates."""

import contextlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
from apache_beam.utils.shared import Shared

from macer_tf import certificates, noise
from macer_tf.certificates import Certificates
from macer_tf.smoothing import SmoothedClassifier
from macer_tf.votes import Votes
from pipeline import classifiers
from pipeline.console import Progress
from pipeline.ledger import Chunk, LedgerReader, LedgerWriter

# Beam 2.77's workers send what they have every so many milliseconds, from a thread that no lock keeps apart from the
# one that is writing: votes get lost or garbled. At 0 they send when a buffer is full and at the end of a bundle.
worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0

# Long enough that Beam's overhead vanishes, short enough that little is lost by a kill.
SAMPLES_PER_CHUNK = 2000
_SECONDS_BETWEEN_POLLS = 1.0


def chunks(ids, n0, n):
    """All `Chunk`s of n0 selection and n estimation samples for each example id."""
    return [
        Chunk(int(example_id), stream, start, min(SAMPLES_PER_CHUNK, samples - start))
        for example_id in ids
        for stream, samples in ((noise.SELECTION, n0), (noise.ESTIMATION, n))
        for start in range(0, samples, SAMPLES_PER_CHUNK)
    ]


@dataclass(frozen=True)
class Sampler:
    """What a worker needs to draw votes: plain values, so that it can be sent to any process.

    Attributes:
        model_path: a model that `classifiers.load` loads.
        source: where the images are: `source.open().image(id)` is one, as in `images`.
        sigma, seed: see `SmoothedClassifier`.
    """

    model_path: str
    source: object
    sigma: float
    seed: int

    def load(self):
        """The `SmoothedClassifier` and the opened images."""
        return SmoothedClassifier(classifiers.load(self.model_path), self.sigma, self.seed), self.source.open()


class DrawVotes(beam.DoFn):
    """Chunk -> (image id, Votes of that chunk), on the ledger before they go on; or (image id, why there are none).

    Args:
        sampler: `Sampler`.
        ledger_path: directory of the ledger.
    """

    def __init__(self, sampler, ledger_path):
        self._sampler, self._ledger_path = sampler, str(ledger_path)
        self._shared = Shared()
        self._ledger = None

    def setup(self):
        # Under the lock of Shared: np.load parses its header by `ast`, which Python 3.11 cannot do in two threads.
        self._loaded = self._shared.acquire(lambda: _Loaded(*self._sampler.load()))
        self._ledger = LedgerWriter(self._ledger_path)

    def process(self, chunk):
        chunk = Chunk(*chunk)
        try:
            image = self._loaded.images.image(chunk.example_id)
            counts = self._loaded.smoothed.count(image, chunk.example_id, chunk.stream, chunk.start, chunk.count)
        except ValueError as error:  # a damaged image, or outputs that are not finite: the other images go on
            yield chunk.example_id, str(error)
            return
        self._ledger.record(chunk, counts)
        yield chunk.example_id, as_votes(chunk, counts)

    def teardown(self):
        if self._ledger is not None:
            self._ledger.close()


@dataclass(frozen=True)
class _Loaded:
    """What the workers of one process share."""

    smoothed: SmoothedClassifier
    images: object


class SumVotes(beam.CombineFn):
    """Votes of disjoint chunks of one image -> their sum; if one of them has a text, why there are none, that text."""

    def create_accumulator(self):
        return None

    def add_input(self, accumulator, votes):
        for one in (accumulator, votes):
            if isinstance(one, str):
                return one
        return votes if accumulator is None else accumulator + votes

    def merge_accumulators(self, accumulators):
        merged = None
        for votes in accumulators:
            if votes is not None:
                merged = self.add_input(merged, votes)
        return merged

    def extract_output(self, accumulator):
        return accumulator


class Certify(beam.DoFn):
    """(image id, Votes) -> a JSON line of the votes and the certificate, or of why there is none.

    Raises:
        RuntimeError: if the votes do not add up to n0 and n: a chunk was lost or counted twice.
    """

    def __init__(self, sigma, n0, n, alpha):
        self._sigma, self._n0, self._n, self._alpha = sigma, n0, n, alpha

    def process(self, element):
        example_id, votes = element
        if isinstance(votes, str):
            yield json.dumps({"id": example_id, "failed": votes})
            return
        if (votes.n0[0], votes.n[0]) != (self._n0, self._n):
            raise RuntimeError(
                f"Example {example_id} has {votes.n0[0]} and {votes.n[0]} votes instead of {self._n0} and {self._n}."
            )
        certificate = certificates.certify(votes, self._sigma, self._alpha)
        yield json.dumps(
            {
                "id": example_id,
                "selection": votes.selection[0].tolist(),
                "estimation": votes.estimation[0].tolist(),
                "prediction": int(certificate.predictions[0]),
                "selected": int(certificate.selected[0]),
                "radius": float(certificate.radii[0]),
                "p_lower": float(certificate.p_lower[0]),
            }
        )


def as_votes(chunk, counts):
    """The `Votes` [1, classes] of one chunk."""
    nothing = np.zeros_like(counts)
    selection, estimation = (counts, nothing) if chunk.stream == noise.SELECTION else (nothing, counts)
    return Votes(selection[None], estimation[None])


def run(sampler, ids, num_classes, *, n0, n, alpha, ledger_path, num_workers, output_path):
    """Certifies images on Beam's local runner, drawing only the chunks that are not on the ledger.

    Args:
        sampler: `Sampler`.
        ids: integers [images], of the sampler's source.
        num_classes: of the model.
        n0, n, alpha: see `SmoothedClassifier.certify`.
        ledger_path: directory of the ledger.
        num_workers: threads that certify side by side.
        output_path: directory to write `certificates.jsonl` to, one line an image, by rising id.

    Returns:
        id -> why it has no certificate, of the images that could not be read or that the model has no finite output
        for. The others have theirs.

    Raises:
        RuntimeError: if a worker fails; its own error is in the message.
    """
    wanted = chunks(ids, n0, n)
    ledger = LedgerReader(ledger_path, wanted, num_classes)
    total, done = len(ids) * (n0 + n), ledger.poll()
    if done:
        print(f"  {done:,} of {total:,} samples were drawn before.")
    missing = [tuple(chunk) for chunk in wanted if chunk not in ledger.counts]
    recorded = {}
    for chunk, counts in ledger.counts.items():
        recorded[chunk.example_id] = SumVotes().add_input(recorded.get(chunk.example_id), as_votes(chunk, counts))
    beam_output = Path(output_path) / "unsorted"
    options = PipelineOptions(direct_num_workers=num_workers, direct_running_mode="multi_threading", flags=[])
    with (
        _told_in_one_line(),
        _progress(ledger, total, done, len(ids)),
        beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline,
    ):
        drawn = (
            pipeline
            | "Chunks to draw" >> beam.Create(missing)
            # Otherwise one example's chunks all land on one worker.
            | beam.Reshuffle()
            | beam.ParDo(DrawVotes(sampler, ledger_path))
        )
        on_ledger = pipeline | "Votes on the ledger" >> beam.Create(recorded.items())
        _ = (
            (drawn, on_ledger)
            | beam.Flatten()
            | beam.CombinePerKey(SumVotes())
            | beam.ParDo(Certify(sampler.sigma, n0, n, alpha))
            | beam.io.WriteToText(str(beam_output), num_shards=1, shard_name_template="")
        )
    rows = sorted(map(json.loads, beam_output.read_text().splitlines()), key=lambda row: row["id"])
    if [row["id"] for row in rows] != sorted(int(example_id) for example_id in ids):
        raise RuntimeError("Beam lost or repeated an example.")
    beam_output.unlink()
    failures = {row["id"]: row["failed"] for row in rows if "failed" in row}
    lines = [json.dumps(row) + "\n" for row in rows if "failed" not in row]
    (Path(output_path) / "certificates.jsonl").write_text("".join(lines))
    return failures


def read(path, sigma, n0, n, alpha):
    """What `run` wrote to `path`: example ids int64 [images], `Votes` and `Certificates`."""
    rows = [json.loads(line) for line in (Path(path) / "certificates.jsonl").read_text().splitlines()]

    def column(name, dtype):
        return np.array([row[name] for row in rows], dtype)

    def counts(name):
        # Where every image failed, no row tells how many classes there are.
        return column(name, np.int64) if rows else np.zeros((0, 0), np.int64)

    certified = Certificates(
        predictions=column("prediction", np.int64),
        radii=column("radius", np.float64),
        p_lower=column("p_lower", np.float64),
        selected=column("selected", np.int64),
        sigma=sigma,
        alpha=alpha,
        n0=n0,
        n=n,
    )
    return (
        column("id", np.int64),
        Votes(counts("selection"), counts("estimation")),
        certified,
    )


@contextlib.contextmanager
def _told_in_one_line():
    """Turns Beam's page about a worker's error into that error's own line."""
    try:
        yield
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].split(" [while running")[0]
        raise RuntimeError(f"A certification worker failed: {line}") from error


class _progress:
    """A thread that follows the ledger, because no local Beam runner says how far it is."""

    def __init__(self, ledger, total, done, num_images):
        self._ledger, self._total, self._num_images = ledger, total, num_images
        self._per_image = total // num_images
        self._progress = Progress("Certification", total, done)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, kind, error, traceback):
        self._stop.set()
        self._thread.join()
        if kind is None:
            done = self._ledger.poll()
            self._progress.finish(done, self._details(done))

    def _follow(self):
        while not self._stop.wait(_SECONDS_BETWEEN_POLLS):
            done = self._ledger.poll()
            self._progress.update(done, self._details(done))

    def _details(self, done):
        return f"{done:,} of {self._total:,} samples, {done // self._per_image} of {self._num_images} images' worth"
