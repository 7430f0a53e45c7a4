"""Certification on Beam returns what the library returns, whatever the workers, the chunks and what was interrupted."""

import itertools
import json
import threading
import time
from dataclasses import dataclass
from statistics import NormalDist
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from scipy import stats

from macer_tf import certificates, noise
from macer_tf.smoothing import SmoothedClassifier
from macer_tf.votes import Votes
from pipeline import certification
from pipeline import examples as examples_lib
from pipeline import images as images_lib
from pipeline.ledger import Chunk, LedgerWriter

SIGMA, SEED, N0, N, ALPHA = 0.5, 3, 30, 700, 0.01


@pytest.fixture
def small_model(write_model):
    from macer_tf import networks

    keras.utils.set_random_seed(0)
    return write_model(networks.small_cnn(), SIGMA)


@pytest.fixture
def certify(tmp_path):
    """A function that runs the Beam pipeline -> the text of certificates.jsonl."""
    outputs = itertools.count()

    def run(model, examples, ids, num_workers=2, ledger="ledger", **changed):
        output = tmp_path / f"output{next(outputs)}"
        output.mkdir()
        (tmp_path / ledger).mkdir(exist_ok=True)
        settings = {"sigma": SIGMA, "seed": SEED, "n0": N0, "n": N, "alpha": ALPHA, **changed}
        source = examples_lib.Source(str(examples))
        sampler = certification.Sampler(str(model), source, settings.pop("sigma"), settings.pop("seed"))
        num_classes = examples_lib.read(examples).num_classes
        failures = certification.run(
            sampler, np.asarray(ids), num_classes, **settings, ledger_path=tmp_path / ledger, num_workers=num_workers,
            output_path=output,
        )  # fmt: skip
        assert failures == {}
        assert [path.name for path in output.iterdir()] == ["certificates.jsonl"]
        return output

    return run


def text(output):
    return (output / "certificates.jsonl").read_text()


def ledger_lines(directory):
    return [line for path in directory.glob("*.jsonl") for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("n0", "n", "size"), [(100, 1000, 300), (1, 1, 300), (300, 600, 300), (301, 299, 300), (7, 9, 1)]
)
def test_chunks_cover_every_sample_once(monkeypatch, n0, n, size):
    monkeypatch.setattr(certification, "SAMPLES_PER_CHUNK", size)
    chunks = certification.chunks(np.array([5, 9]), n0, n)
    assert all(0 < chunk.count <= size for chunk in chunks)
    covered = [
        (chunk.example_id, chunk.stream, sample)
        for chunk in chunks
        for sample in range(chunk.start, chunk.start + chunk.count)
    ]
    wanted = [
        (example, stream, sample)
        for example in (5, 9)
        for stream, samples in ((noise.SELECTION, n0), (noise.ESTIMATION, n))
        for sample in range(samples)
    ]
    assert sorted(covered) == wanted


@pytest.mark.parametrize(("num_workers", "chunk"), [(1, 2000), (4, 2000), (2, 128), (3, 701)])
def test_beam_returns_what_the_library_returns(certify, small_model, digit_examples, monkeypatch, num_workers, chunk):
    monkeypatch.setattr(certification, "SAMPLES_PER_CHUNK", chunk)
    ids = [3, 0, 11, 7]
    output = certify(small_model, digit_examples, ids, num_workers)
    read_ids, votes, certified = certification.read(output, SIGMA, N0, N, ALPHA)

    smoothed = SmoothedClassifier(keras.models.load_model(small_model, compile=False), SIGMA, SEED)
    images = examples_lib.read(digit_examples).scaled("test", sorted(ids))
    expected = smoothed.votes(images, N0, N, example_ids=sorted(ids))
    assert read_ids.tolist() == sorted(ids)
    np.testing.assert_array_equal(votes.selection, expected.selection)
    np.testing.assert_array_equal(votes.estimation, expected.estimation)
    library = smoothed.certify(images, N0, N, ALPHA, example_ids=sorted(ids))
    for name in ("predictions", "radii", "p_lower", "selected"):
        np.testing.assert_array_equal(getattr(certified, name), getattr(library, name))
    assert (certified.sigma, certified.alpha, certified.n0, certified.n) == (SIGMA, ALPHA, N0, N)


def test_a_ledger_half_full_gives_the_same_and_only_the_rest_is_drawn(
    certify, small_model, digit_examples, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(certification, "SAMPLES_PER_CHUNK", 100)
    undisturbed = text(certify(small_model, digit_examples, range(4), ledger="undisturbed"))
    assert "drawn before" not in capsys.readouterr().out
    lines = ledger_lines(tmp_path / "undisturbed")
    assert len(lines) == 4 * (1 + 7)

    (tmp_path / "resumed").mkdir()
    # Half of the chunks, the last one torn: it is drawn again.
    (tmp_path / "resumed" / "killed.jsonl").write_text("\n".join(lines[:16])[:-5])
    assert text(certify(small_model, digit_examples, range(4), ledger="resumed")) == undisturbed
    drawn = [line for line in ledger_lines(tmp_path / "resumed") if line not in lines[:15]]
    assert sorted(drawn) == sorted([*lines[15:], "\n".join(lines[:16])[:-5].splitlines()[-1]])
    before = sum(json.loads(line)[3] for line in lines[:15])
    assert f"{before:,} of {4 * (N0 + N):,} samples were drawn before." in capsys.readouterr().out

    # Another alpha, more images, fewer images: only what was never drawn is drawn.
    count = len(ledger_lines(tmp_path / "resumed"))
    certify(small_model, digit_examples, range(4), ledger="resumed", alpha=0.2)
    certify(small_model, digit_examples, range(2), ledger="resumed")
    assert len(ledger_lines(tmp_path / "resumed")) == count
    certify(small_model, digit_examples, range(5), ledger="resumed")
    assert len(ledger_lines(tmp_path / "resumed")) == count + 8


@pytest.mark.slow
def test_no_vote_is_lost_where_workers_are_fast(certify, write_examples, write_model, monkeypatch, tmp_path):
    """Beam's flushing by time, without a lock, loses or garbles votes: here within seconds at every 10 ms, and now and
    then at Beam's every second. Hence it is off.
    """
    assert certification.worker_handlers.DATA_BUFFER_TIME_LIMIT_MS == 0

    def setup(self):
        self._ledger = LedgerWriter(self._ledger_path)

    def process(self, chunk):
        chunk, counts = Chunk(*chunk), np.array([chunk[3]] + [0] * 9)
        self._ledger.record(chunk, counts)
        yield chunk.example_id, certification.as_votes(chunk, counts)

    monkeypatch.setattr(certification.DrawVotes, "setup", setup)
    monkeypatch.setattr(certification.DrawVotes, "process", process)
    images = np.zeros((300, 2, 2, 1), np.uint8)
    output = certify(
        "no model", write_examples(images, np.zeros(300, int)), range(300), num_workers=4, n0=100, n=100_000
    )
    _, votes, _ = certification.read(output, SIGMA, 100, 100_000, ALPHA)
    assert (votes.n0 == 100).all()
    assert (votes.n == 100_000).all()


def test_sum_votes_does_not_depend_on_how_chunks_are_gathered():
    rng = np.random.default_rng(0)
    votes = [Votes(*rng.integers(0, 9, (2, 1, 4))) for _ in range(6)]
    total = np.sum([[v.selection, v.estimation] for v in votes], axis=0)
    combine = certification.SumVotes()

    def accumulate(part):
        accumulator = combine.create_accumulator()
        for v in part:
            accumulator = combine.add_input(accumulator, v)
        return accumulator

    for order in itertools.islice(itertools.permutations(votes), 0, 720, 37):
        for cut in range(len(order) + 1):
            merged = combine.merge_accumulators([accumulate(order[:cut]), accumulate(order[cut:]), accumulate([])])
            result = combine.extract_output(merged)
            np.testing.assert_array_equal([result.selection, result.estimation], total)
    assert combine.merge_accumulators([accumulate([]), accumulate([])]) is None


@pytest.mark.parametrize("counted", [(29, 700), (30, 699), (30, 701), (31, 700), (0, 700), (60, 1400)])
def test_votes_that_do_not_add_up_are_refused(counted):
    votes = Votes(*(np.array([[number, 0]]) for number in counted))
    with pytest.raises(RuntimeError, match=f"Example 8 has {counted[0]} and {counted[1]} votes instead of 30 and 700"):
        list(certification.Certify(SIGMA, N0, N, ALPHA).process((8, votes)))


def test_a_lost_chunk_is_an_error_not_a_certificate(certify, small_model, digit_examples, monkeypatch):
    class Lossy(certification.DrawVotes):
        def process(self, chunk):
            if chunk[0] != 1 or chunk[1] != noise.SELECTION:
                yield from super().process(chunk)

    monkeypatch.setattr(certification, "DrawVotes", Lossy)
    with pytest.raises(
        RuntimeError, match="worker failed: RuntimeError: Example 1 has 0 and 700 votes instead of 30 and"
    ):
        certify(small_model, digit_examples, range(2))


@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_image_that_fails_stops_no_other(small_model, digit_examples, tmp_path, num_workers):
    """Image 2 is damaged; the others get what they get otherwise."""

    def run(source, name):
        directories = [tmp_path / f"{name}-ledger", tmp_path / f"{name}-output"]
        for directory in directories:
            directory.mkdir()
        failures = certification.run(
            certification.Sampler(str(small_model), source, SIGMA, SEED), np.arange(8), 10, n0=N0, n=N, alpha=ALPHA,
            ledger_path=directories[0], num_workers=num_workers, output_path=directories[1],
        )  # fmt: skip
        return failures, [json.loads(line) for line in text(directories[1]).splitlines()]

    whole = examples_lib.Source(str(digit_examples))
    failures, rows = run(Damaged(whole), "damaged")
    assert failures == {2: "it is damaged"}
    none, all_rows = run(whole, "whole")
    assert none == {}
    assert rows == [row for row in all_rows if row["id"] != 2]


@dataclass(frozen=True)
class Damaged:
    """A source whose image 2 cannot be read."""

    source: object

    def open(self):
        images = self.source.open()

        def image(image_id):
            if image_id == 2:
                raise images_lib.ImageError("it is damaged")
            return images.image(image_id)

        return SimpleNamespace(image=image)


def test_no_image_is_certified_by_outputs_that_are_not_finite(write_model, digit_examples, tmp_path):
    from macer_tf import networks

    classifier = networks.small_cnn()
    classifier.set_weights([np.full_like(weights, np.nan) for weights in classifier.get_weights()])
    sampler = certification.Sampler(
        str(write_model(classifier)), examples_lib.Source(str(digit_examples)), SIGMA, SEED
    )  # fmt: skip
    (tmp_path / "output").mkdir()
    (tmp_path / "votes").mkdir()
    failures = certification.run(
        sampler, np.arange(3), 10, n0=N0, n=N, alpha=ALPHA, ledger_path=tmp_path / "votes", num_workers=2,
        output_path=tmp_path / "output",
    )  # fmt: skip
    assert sorted(failures) == [0, 1, 2]
    assert all(f"NaN or infinite outputs for image {i}" in reason for i, reason in failures.items())
    assert text(tmp_path / "output") == ""
    assert ledger_lines(tmp_path / "votes") == []


def test_a_missing_model_is_one_line(certify, digit_examples, tmp_path):
    with pytest.raises(
        RuntimeError, match=r"A certification worker failed: .*There is no model .*model.keras"
    ) as error:
        certify(tmp_path / "model.keras", digit_examples, range(3))
    assert "\n" not in str(error.value)


def test_lines_are_in_the_order_of_ids_with_all_their_digits(certify, small_model, digit_examples):
    output = certify(small_model, digit_examples, [10, 2, 9])
    rows = [json.loads(line) for line in text(output).splitlines()]
    assert [row["id"] for row in rows] == [2, 9, 10]
    for row in rows:
        votes = Votes(np.array([row["selection"]]), np.array([row["estimation"]]))
        certified = certificates.certify(votes, SIGMA, ALPHA)
        assert row["radius"] == certified.radii[0]
        assert row["p_lower"] == certified.p_lower[0]
        assert row["prediction"] == certified.predictions[0]


def test_a_false_radius_is_as_rare_as_alpha_says(certify, threshold_model, write_examples):
    """600 certifications of an image whose smoothed class 1 has probability 0.8, exactly.

    The true radius is sigma * Phi^-1(0.8). At alpha = 0.05 a radius is above it in at most 5 % of cases; the exact
    share is P(lower bound > 0.8) over Binomial(n, 0.8), which a run must hit within four binomial standard errors.
    """
    p, n, images = 0.8, 120, 600
    examples = write_examples(np.zeros((images, 2, 2, 1), np.uint8), np.ones(images, int), class_names=("0", "1"))
    output = certify(threshold_model(p), examples, range(images), n0=20, n=n, alpha=0.05)
    _, votes, certified = certification.read(output, SIGMA, 20, n, 0.05)

    false = np.mean((certified.predictions == 0) | (certified.radii > SIGMA * NormalDist().inv_cdf(p)))
    successes = np.arange(n + 1)
    bounds = stats.beta.ppf(0.05, np.maximum(successes, 1), n - successes + 1) * (successes > 0)
    exact = stats.binom.pmf(successes, n, p)[bounds > p].sum()
    assert 0.02 < exact <= 0.05
    assert abs(false - exact) < 4 * np.sqrt(exact * (1 - exact) / images)
    # The votes themselves are binomial with this p: no two images share noise, none is biased.
    assert abs(votes.estimation[:, 1].mean() / n - p) < 4 * np.sqrt(p * (1 - p) / (n * images))
    assert abs(votes.estimation[:, 1].var() / (n * p * (1 - p)) - 1) < 4 * np.sqrt(2 / images)
    assert np.mean(certified.predictions == 1) > 0.95


def test_workers_load_one_after_another(certify, small_model, digit_examples, monkeypatch):
    """np.load parses headers by `ast`, which Python 3.11 cannot do in two threads: SystemError, now and then."""
    busy = threading.Lock()
    read = examples_lib.read

    def read_alone(path):
        assert busy.acquire(blocking=False), "two threads read the examples at once"
        time.sleep(0.2)
        busy.release()
        return read(path)

    monkeypatch.setattr(examples_lib, "read", read_alone)
    assert len(text(certify(small_model, digit_examples, [0, 1, 2, 3], num_workers=4)).splitlines()) == 4
