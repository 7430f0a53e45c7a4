"""Certification on Beam returns what the library returns, whatever the workers, the chunks and what was interrupted."""

import itertools
import json
import re
import threading
import time
from dataclasses import dataclass
from statistics import NormalDist
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from scipy import stats

from macer_tf import bounds, certificates, confidence, noise
from macer_tf.budgets import RadiusBudget, ToleranceBudget
from macer_tf.evaluation import evaluate
from macer_tf.smoothing import SmoothedClassifier
from macer_tf.votes import Votes
from pipeline.certification import certificate_files, driver, tally, workers
from pipeline.certification.ledger import LedgerWriter
from pipeline.certification.sampling_plan import SamplingPlan
from pipeline.certification.vote_store import VoteStore
from pipeline.data import examples as examples_lib
from pipeline.data import sources
from pipeline.utils.errors import InputError

SIGMA, SEED, N0, N, ALPHA = 0.5, 3, 30, 700, 0.01


@pytest.fixture
def small_model(write_model):
    from macer_tf import networks

    keras.utils.set_random_seed(0)
    return write_model(networks.small_cnn(), SIGMA)


@pytest.fixture
def certify(tmp_path):
    """A function that runs the Beam pipeline -> the directory of certificates.jsonl."""
    outputs = itertools.count()

    def run(model, examples, ids, num_workers=2, store="votes", labels=None, sigma=SIGMA, seed=SEED, **changed):
        output = tmp_path / f"output{next(outputs)}"
        output.mkdir()
        plan = SamplingPlan(**{"n0": N0, "n": N, "alpha": ALPHA, **changed})
        source = examples_lib.Source(str(examples))
        sampler = workers.Sampler(str(model), source, sigma, seed, plan.betas)
        num_classes = examples_lib.read(examples).num_classes
        votes = VoteStore(tmp_path / store / "votes", {"n0": plan.n0}, plan.first_look, num_classes, plan.betas)
        outcome = driver.run(
            sampler, np.asarray(ids), num_classes, plan, votes, labels=labels, num_workers=num_workers
        )  # fmt: skip
        assert outcome.failures == {}
        certificate_files.write(output, outcome, plan, sigma, "float32")
        return output

    return run


def read(output):
    _, ids, votes, kinds = certificate_files.read(output)
    return ids, votes, next(iter(kinds.values()))


def text(output):
    return (output / "certificates.jsonl").read_text()


class Lines:
    """Counts what workers write down."""

    def __init__(self, monkeypatch):
        self.pieces = []
        record = LedgerWriter.record

        def counted(ledger, pieces, failures):
            self.pieces += [piece.chunk for piece in pieces]
            record(ledger, pieces, failures)

        monkeypatch.setattr(LedgerWriter, "record", counted)

    def samples(self):
        """How many were drawn since the last call."""
        drawn, self.pieces = self.pieces, []
        return sum(chunk.count for chunk in drawn)


def ledgers(store):
    """The ledgers of a folder that `certify` made, the oldest first."""
    return sorted((store / "votes").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)


def lines_of(store):
    """The name of a ledger of a folder that `certify` made, its first line, and the lines of all."""
    lines = [path.read_text().splitlines() for path in ledgers(store)]
    return ledgers(store)[0].name, lines[0][0], [line for one in lines for line in one[1:]]


def leave_ledger(store, name, lines, torn):
    """A folder as a killed run leaves it: a ledger, but for its last `torn` characters."""
    (store / "votes").mkdir(parents=True)
    (store / "votes" / name).write_text("\n".join(lines)[:-torn])


class PlanOfOtherThreads(SamplingPlan):
    """A plan during whose every look at `n` another thread takes a failure."""

    def __getattribute__(self, name):
        if name == "n" and (meanwhile := self.__dict__.get("meanwhile")):
            meanwhile.pop()()
        return super().__getattribute__(name)


def test_an_image_may_fail_while_another_thread_looks_at_the_others(monkeypatch):
    images = SimpleNamespace(digest=lambda example_id: example_id)
    plan = PlanOfOtherThreads(N0, N, ALPHA)
    stand = tally.Tally(plan, SIGMA, SEED, 3, images, range(6), None)
    fail = [lambda example_id=example_id: stand.take((), {example_id: "damaged"}) for example_id in range(6)]
    plan.__dict__["meanwhile"] = fail[4:]
    assert stand.most > 0
    split = tally.split
    monkeypatch.setattr(tally, "split", lambda *chunk: (fail and fail.pop(0)()) or split(*chunk))
    assert stand.missing(100)
    assert stand.failures.keys() >= {4, 5}


@pytest.fixture
def drawn(monkeypatch):
    return Lines(monkeypatch)


def test_no_more_workers_are_started_than_there_are_tasks(certify, small_model, digit_examples, monkeypatch):
    """Starting thousands took Beam longer than we wait for a sign of life."""
    monkeypatch.setattr(tally, "SAMPLES_PER_CHUNK", 400)
    asked, options = [], driver.PipelineOptions
    monkeypatch.setattr(driver, "PipelineOptions", lambda **kwargs: asked.append(kwargs) or options(**kwargs))
    certify(small_model, digit_examples, [0, 1], num_workers=1000)
    # The selection samples of both images are one task; 400 and 300 estimation samples of each are four.
    assert [kwargs["direct_num_workers"] for kwargs in asked] == [1, 4]


@pytest.mark.parametrize(("num_workers", "chunk"), [(1, 2000), (4, 2000), (2, 128), (3, 701)])
def test_beam_returns_what_the_library_returns(certify, small_model, digit_examples, monkeypatch, num_workers, chunk):
    monkeypatch.setattr(tally, "SAMPLES_PER_CHUNK", chunk)
    ids = [3, 0, 11, 7]
    output = certify(small_model, digit_examples, ids, num_workers)
    read_ids, votes, certified = read(output)

    smoothed = SmoothedClassifier(keras.models.load_model(small_model, compile=False), SIGMA, SEED, levels=256)
    images = examples_lib.read(digit_examples).scaled("test", sorted(ids))
    expected = smoothed.votes(images, N0, N, example_ids=sorted(ids))
    assert read_ids.tolist() == sorted(ids)
    np.testing.assert_array_equal(votes.selection, expected.selection)
    np.testing.assert_array_equal(votes.estimation, expected.estimation)
    library = smoothed.certify(images, N0, N, ALPHA, example_ids=sorted(ids))
    for name in ("predictions", "radii", "p_lower", "selected"):
        np.testing.assert_array_equal(getattr(certified, name), getattr(library, name))
    assert (certified.sigma, certified.alpha, certified.n0, certified.n) == (SIGMA, ALPHA, N0, N)


def test_votes_half_drawn_give_the_same_and_only_the_rest_is_drawn(
    certify, small_model, digit_examples, tmp_path, monkeypatch, capsys, drawn
):
    monkeypatch.setattr(tally, "SAMPLES_PER_CHUNK", 100)
    monkeypatch.setattr(VoteStore, "compact", lambda store: None)
    undisturbed = text(certify(small_model, digit_examples, range(4), store="undisturbed"))
    assert "already been drawn" not in capsys.readouterr().out
    assert drawn.samples() == 4 * (N0 + N)
    name, first, lines = lines_of(tmp_path / "undisturbed")
    assert len(lines) == 4 * (1 + 7)
    lines.sort(key=lambda line: json.loads(line.partition(" ")[2])[2])  # selection comes first
    monkeypatch.undo()
    monkeypatch.setattr(tally, "SAMPLES_PER_CHUNK", 100)
    drawn = Lines(monkeypatch)

    # Half of the chunks, the last one torn: it is drawn again.
    leave_ledger(tmp_path / "resumed", name, [first, *lines[:16]], torn=5)
    assert text(certify(small_model, digit_examples, range(4), store="resumed")) == undisturbed
    before = sum(json.loads(line.partition(" ")[2])[4] for line in lines[:15])
    assert drawn.samples() == 4 * (N0 + N) - before
    assert f"{before:,} samples have already been drawn." in capsys.readouterr().out

    # Another alpha, more images, fewer images: only what was never drawn is drawn.
    certify(small_model, digit_examples, range(4), store="resumed", alpha=0.2)
    certify(small_model, digit_examples, range(2), store="resumed")
    assert drawn.samples() == 0
    certify(small_model, digit_examples, range(5), store="resumed")
    assert drawn.samples() == N0 + N


def test_shards_of_other_machines_merge_by_copying(certify, small_model, digit_examples, tmp_path, drawn):
    whole = text(certify(small_model, digit_examples, range(6), store="whole"))
    drawn.samples()
    for name, ids in (("first", range(3)), ("second", range(2, 6))):
        certify(small_model, digit_examples, ids, store=name)
    assert drawn.samples() == 7 * (N0 + N)
    merged = tmp_path / "merged" / "votes"
    merged.mkdir(parents=True)
    for name in ("first", "second"):
        (shard,) = (tmp_path / name / "votes").glob("*.parquet")
        shard.rename(merged / shard.name)
    # Image 2 is in both, and counts once.
    assert text(certify(small_model, digit_examples, range(6), store="merged")) == whole
    assert drawn.samples() == 0


def test_more_samples_later_extend_and_the_bound_allows_for_the_look(
    certify, small_model, digit_examples, drawn, capsys
):
    first = text(certify(small_model, digit_examples, range(4)))
    drawn.samples()
    extended = certify(small_model, digit_examples, range(4), n=3 * N)
    assert drawn.samples() == 4 * 2 * N
    assert f"first drawn for n0={N0}, n={N}: these certificates use the bound" in capsys.readouterr().out
    about, _, votes, kinds = certificate_files.read(extended)
    assert about["is_first_look"] is False
    assert (kinds["hard"].bound, kinds["hard"].n) == ("anytime", 3 * N)
    # The votes are those of a run that never looked; only the bound is another.
    at_once = certify(small_model, digit_examples, range(4), n=3 * N, store="at once")
    _, _, same, unlooked = certificate_files.read(at_once)
    np.testing.assert_array_equal(votes.estimation, same.estimation)
    assert unlooked["hard"].bound == "clopper-pearson"
    assert (unlooked["hard"].p_lower >= kinds["hard"].p_lower).all()
    np.testing.assert_array_equal(kinds["hard"].radii, certificates.certify(same, SIGMA, ALPHA, bound="anytime").radii)
    # What was planned before any sample was seen still holds as it did, and needs no sample anew.
    drawn.samples()
    assert text(certify(small_model, digit_examples, range(4))) == first
    assert drawn.samples() == 0
    # Fewer samples than were looked at are a choice after a look, too.
    about, _, votes, kinds = certificate_files.read(certify(small_model, digit_examples, range(4), n=N // 2))
    assert (kinds["hard"].bound, kinds["hard"].n) == ("anytime", N // 2)


@pytest.mark.parametrize(
    ("asked", "bound"), [({}, "clopper-pearson"), ({"radii": (0.1,)}, "anytime"), ({"tolerance": 0.1234567}, "anytime")]
)
def test_another_alpha_is_another_look_where_the_number_of_samples_depends_on_it(
    certify, small_model, digit_examples, asked, bound, capsys
):
    run = {"n": 5000, **asked}
    certify(small_model, digit_examples, range(2), **run)
    about, _, _, kinds = certificate_files.read(certify(small_model, digit_examples, range(2), alpha=2 * ALPHA, **run))
    assert kinds["hard"].bound == bound
    assert about["is_first_look"] == ("tolerance" not in asked)
    # With all their digits: others, given again, would be another look.
    assert (f"tolerance=0.1234567, alpha={ALPHA}: these" in capsys.readouterr().out) == ("tolerance" in asked)


def test_too_few_samples_after_a_look_are_told_of_the_look(certify, small_model, digit_examples):
    """At alpha = 0.1 four votes are enough for Clopper-Pearson, and no less than eight for the bound after a look."""
    certify(small_model, digit_examples, range(2), alpha=0.1)
    with pytest.raises(InputError) as told:
        certify(small_model, digit_examples, range(2), n=4, alpha=0.1)
    message = str(told.value)
    assert message.startswith(
        f"Votes of this model and seed were first drawn for n0={N0}, n={N}, so another n is a choice after a "
        "look and its certificates use the anytime-valid bound; n=4 is too small for that. "
    )
    assert message.endswith(f" Or give n0={N0}, n={N} again, or another seed, whose votes are new.")


def test_soft_certificates_are_refused_after_another_look(certify, small_model, digit_examples):
    soft = {"certify": "all", "betas": (16.0,)}
    certify(small_model, digit_examples, range(2), **soft)
    with pytest.raises(
        InputError, match=f"n0={N0}, n={N}, and certificates other than hard ones need .* give another seed"
    ):
        certify(small_model, digit_examples, range(2), n=2 * N, **soft)


def test_hard_and_soft_certificates_are_the_library_s_from_one_pass(certify, small_model, digit_examples, drawn):
    betas = (1.0, 16.0)
    output = certify(small_model, digit_examples, range(5), certify="all", betas=betas, n=3000)
    assert drawn.samples() == 5 * (N0 + 3000)
    about, _, _, kinds = certificate_files.read(output)
    assert list(kinds) == [
        "hard", "soft-hoeffding-1", "soft-hoeffding-16", "soft-bernstein-1", "soft-bernstein-16", "hard-randomized"
    ]  # fmt: skip
    smoothed = SmoothedClassifier(
        keras.models.load_model(small_model, compile=False), SIGMA, SEED, betas=betas, levels=256
    )
    votes = smoothed.votes(examples_lib.read(digit_examples).scaled("test", range(5)), N0, 3000)
    for kind, certified in zip(about["kinds"], kinds.values(), strict=True):
        expected = certificates.certify(votes, SIGMA, ALPHA, kind["bound"], kind["beta"])
        for name in ("predictions", "radii", "p_lower", "selected"):
            np.testing.assert_array_equal(getattr(certified, name), getattr(expected, name))
    # One kind alone needs no sample anew, and has the same certificates.
    drawn.samples()
    alone = certify(small_model, digit_examples, range(5), certify="soft-bernstein", betas=(16.0,), n=3000)
    np.testing.assert_array_equal(read(alone)[2].radii, kinds["soft-bernstein-16"].radii)
    hard = certify(small_model, digit_examples, range(5), n=3000)
    np.testing.assert_array_equal(read(hard)[2].radii, kinds["hard"].radii)
    assert drawn.samples() == 0


def test_images_whose_selected_class_is_wrong_are_spared_and_no_figure_changes(
    certify, small_model, digit_examples, drawn
):
    _, votes, full = read(certify(small_model, digit_examples, range(12)))
    wrong = np.arange(12) % 3 == 0
    labels = np.where(wrong, (votes.selected + 1) % 10, votes.selected)
    drawn.samples()
    _, spared_votes, spared = read(certify(small_model, digit_examples, range(12), labels=labels, store="spared"))
    assert drawn.samples() == 12 * N0 + (~wrong).sum() * N
    assert (spared_votes.n == np.where(wrong, 0, N)).all()
    radii = (0, 0.1, 0.2, 0.3)
    for one in ("acr", "acr_standard_error", "certified_accuracy"):
        assert getattr(evaluate(full, labels, radii), one) == getattr(evaluate(spared, labels, radii), one)
    # Not where labels are unknown, nor where the certificates of wrong classes are wanted.
    certify(small_model, digit_examples, range(12), labels=np.full(12, -1), store="spared")
    assert drawn.samples() == wrong.sum() * N
    certify(small_model, digit_examples, range(12), labels=labels, skip_wrong=False, store="spared")
    assert drawn.samples() == 0


@pytest.mark.parametrize("asked", [{"radii": (0.1,)}, {"tolerance": 0.05}])
def test_an_adaptive_budget_draws_what_the_library_s_asks_for(certify, small_model, digit_examples, drawn, asked):
    n = 20_000
    output = certify(small_model, digit_examples, range(12), n=n, **asked)
    _, votes, certified = read(output)
    assert drawn.samples() == (votes.n0 + votes.n).sum() < 12 * n / 2
    assert (votes.n <= n).all()
    assert certified.bound == ("anytime" if "radii" in asked else "clopper-pearson")

    # The library's own loop, as `budgets` has it.
    budget = RadiusBudget(0.1, n) if "radii" in asked else ToleranceBudget(0.05, n)
    smoothed = SmoothedClassifier(keras.models.load_model(small_model, compile=False), SIGMA, SEED, levels=256)
    images = examples_lib.read(digit_examples).scaled("test", range(12))
    selection = smoothed.draw(images, range(12), noise.SELECTION, [0] * 12, [N0] * 12).counts
    expected = Votes(selection, np.zeros_like(selection))
    while (more := budget.more(expected, SIGMA, ALPHA)).any():
        wanted = np.flatnonzero(more)
        counts = np.zeros_like(selection)
        counts[wanted] = smoothed.draw(
            images[wanted], wanted, noise.ESTIMATION, expected.n[wanted], more[wanted]
        ).counts
        expected += Votes(np.zeros_like(selection), counts)
    np.testing.assert_array_equal(votes.estimation, expected.estimation)
    np.testing.assert_array_equal(certified.radii, budget.certify(expected, SIGMA, ALPHA).radii)

    # The same again draws nothing, and ends the same.
    drawn.samples()
    assert text(certify(small_model, digit_examples, range(12), n=n, **asked)) == text(output)
    assert drawn.samples() == 0


@pytest.mark.parametrize("asked", [{}, {"radii": (0.1,)}, {"tolerance": 0.05}])
def test_interrupted_anywhere_it_ends_the_same(
    certify, small_model, digit_examples, tmp_path, monkeypatch, drawn, asked
):
    """The votes as a kill leaves them after each of many random numbers of lines, the last one torn."""
    monkeypatch.setattr(tally, "SAMPLES_PER_CHUNK", 300)
    run = {"n": 5000, **asked}
    compact = VoteStore.compact
    monkeypatch.setattr(VoteStore, "compact", lambda store: None)
    undisturbed = certify(small_model, digit_examples, range(5), store="undisturbed", **run)
    total = drawn.samples()
    monkeypatch.setattr(VoteStore, "compact", compact)
    name, first, lines = lines_of(tmp_path / "undisturbed")
    rng = np.random.default_rng(0)
    for place, kept in enumerate(rng.integers(1, len(lines), 3)):
        store = tmp_path / f"killed{place}"
        leave_ledger(store, name, [first, *lines[:kept]], torn=int(rng.integers(1, 40)))
        whole = sum(json.loads(line.partition(" ")[2])[4] for line in lines[: kept - 1])
        resumed = certify(small_model, digit_examples, range(5), store=store.name, **run)
        assert text(resumed) == text(undisturbed)
        assert drawn.samples() == total - whole


def test_what_a_worker_loses_is_drawn_again(certify, small_model, digit_examples, monkeypatch):
    expected = text(certify(small_model, digit_examples, range(4), store="expected"))
    process, calls = workers.DrawVotes.process, itertools.count()

    def lossy(self, chunks):
        # Of the second round, some; of no round all, which would be an error.
        if next(calls) not in (2, 4, 6):
            process(self, chunks)

    monkeypatch.setattr(workers.DrawVotes, "process", lossy)
    monkeypatch.setattr(tally, "SAMPLES_PER_CHUNK", 300)
    assert text(certify(small_model, digit_examples, range(4))) == expected
    assert next(calls) > 1 + 4 * 3


def test_workers_that_write_nothing_are_an_error_not_a_loop(certify, small_model, digit_examples, monkeypatch):
    monkeypatch.setattr(workers.DrawVotes, "process", lambda self, chunks: None)
    with pytest.raises(RuntimeError, match="wrote none of the votes that they were to draw"):
        certify(small_model, digit_examples, range(4))


def test_memory_is_bounded_by_moving_ledgers_to_shards_on_the_way(
    certify, small_model, digit_examples, tmp_path, monkeypatch
):
    expected = text(certify(small_model, digit_examples, range(6), store="expected"))
    monkeypatch.setattr(driver, "_VALUES_AT_ONCE", 40)  # four chunks
    monkeypatch.setattr(tally, "SAMPLES_PER_CHUNK", 300)
    assert text(certify(small_model, digit_examples, range(6))) == expected
    assert len(list((tmp_path / "votes" / "votes").glob("*.parquet"))) == 6  # 6 + 18 chunks
    assert ledgers(tmp_path / "votes") == []


def test_before_sampling_it_says_how_much_and_how_long(certify, small_model, digit_examples, capsys):
    certify(small_model, digit_examples, range(9))
    out = capsys.readouterr().out
    assert re.search(
        rf"To draw: {9 * (N0 + N):,} noisy samples, a forward pass each: about .* at [\d,]+ per second", out
    )
    assert re.search(r"100 %, took .* · 6,570 samples, [\d,]+ per second, 9 of 9 images, \d", out)
    labels = examples_lib.read(digit_examples).labels["test"][:9]
    certify(small_model, digit_examples, range(9), labels=labels, store="labelled")
    assert f"To draw: at most {9 * (N0 + N):,} noisy samples" in capsys.readouterr().out


def test_less_than_a_forward_pass_is_not_measured_first(certify, small_model, digit_examples, capsys):
    certify(small_model, digit_examples, range(2))
    assert f"To draw: {2 * (N0 + N):,} noisy samples, a forward pass each.\n" in capsys.readouterr().out


@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_image_that_fails_stops_no_other(small_model, digit_examples, tmp_path, num_workers):
    """Image 2 is damaged; the others get what they get otherwise."""

    def run(source, name):
        plan = SamplingPlan(N0, N, ALPHA)
        outcome = driver.run(
            workers.Sampler(str(small_model), source, SIGMA, SEED), np.arange(8), 10, plan,
            VoteStore(tmp_path / name / "votes", {}, plan.first_look, 10), num_workers=num_workers,
        )  # fmt: skip
        certificate_files.write(tmp_path / name, outcome, plan, SIGMA, "float32")
        return outcome.failures, [json.loads(line) for line in text(tmp_path / name).splitlines()]

    whole = examples_lib.Source(str(digit_examples))
    failures, rows = run(Damaged(whole), "damaged")
    assert failures == {2: "it is damaged"}
    none, all_rows = run(whole, "whole")
    assert none == {}
    assert rows == [row for row in all_rows if row["example_id"] != 2]


@dataclass(frozen=True)
class Damaged:
    """A source whose image 2 cannot be read."""

    source: object

    def open(self):
        images = self.source.open()

        def image(example_id, digest=None):
            if example_id == 2:
                raise sources.ImageError("it is damaged")
            return images.image(example_id, digest)

        return SimpleNamespace(image=image, digest=images.digest, levels=images.levels)


def test_certificates_by_a_bound_that_was_registered(monkeypatch):
    monkeypatch.setattr(bounds, "BOUNDS", dict(bounds.BOUNDS))
    bounds.register("half")(lambda successes, n, alpha: confidence.clopper_pearson_lower(successes, n, alpha / 2))
    votes = Votes(np.array([[10, 0], [9, 1]]), np.array([[1000, 0], [800, 200]]))
    plan = SamplingPlan(10, 1000, 0.001, "half")
    certified = plan.certificates(votes, 0.25)
    assert list(certified) == ["half"]
    np.testing.assert_array_equal(certified["half"].radii, certificates.certify(votes, 0.25, 0.0005).radii)
    every = SamplingPlan(10, 1000, 0.001, "all", (16.0,)).kinds
    assert [name for name, *_ in every] == ["hard", "soft-hoeffding-16", "soft-bernstein-16", "hard-randomized", "half"]


def test_two_betas_are_two_kinds_however_near_they_are():
    plan = SamplingPlan(N0, N, ALPHA, "all", (16.0, 16.0000001))
    hoeffding = [name for name, bound, _ in plan.kinds if bound == "hoeffding"]
    assert hoeffding == ["soft-hoeffding-16", "soft-hoeffding-16.0000001"]


def test_what_a_killed_run_could_not_read_is_tried_again(small_model, digit_examples, tmp_path):
    plan = SamplingPlan(N0, N, ALPHA)
    store = VoteStore(tmp_path / "votes", {}, plan.first_look, 10)
    store.ledger().record([], {2: "it is damaged"})
    source = examples_lib.Source(str(digit_examples))
    sampler = workers.Sampler(str(small_model), source, SIGMA, SEED)
    outcome = driver.run(sampler, np.arange(4), 10, plan, store, num_workers=2)
    assert (outcome.failures, outcome.ids.tolist()) == ({}, [0, 1, 2, 3])


def test_an_image_that_is_changed_meanwhile_has_no_certificate(small_model, digit_examples, tmp_path):
    """Its votes would be of two images."""
    plan = SamplingPlan(N0, N, ALPHA)
    outcome = driver.run(
        workers.Sampler(str(small_model), Changing(digit_examples), SIGMA, SEED), np.arange(3), 10, plan,
        VoteStore(tmp_path / "votes", {}, plan.first_look, 10), num_workers=2,
    )  # fmt: skip
    assert outcome.failures == {1: "the image was changed while it was certified"}
    assert outcome.ids.tolist() == [0, 2]


@dataclass(frozen=True)
class Changing:
    """A source whose image 1 is another one each time it is looked at."""

    path: str

    def open(self):
        images, looks = examples_lib.Source(str(self.path)).open(), itertools.count()
        return SimpleNamespace(
            image=images.image,
            digest=lambda i: next(looks) if i == 1 else images.digest(i),
            levels=images.levels,
        )


def test_no_image_is_certified_by_outputs_that_are_not_finite(write_model, digit_examples, tmp_path):
    from macer_tf import networks

    classifier = networks.small_cnn()
    classifier.set_weights([np.full_like(weights, np.nan) for weights in classifier.get_weights()])
    sampler = workers.Sampler(
        str(write_model(classifier)), examples_lib.Source(str(digit_examples)), SIGMA, SEED
    )  # fmt: skip
    plan = SamplingPlan(N0, N, ALPHA)
    store = VoteStore(tmp_path / "votes", {}, plan.first_look, 10)
    outcome = driver.run(sampler, np.arange(3), 10, plan, store, num_workers=2)
    assert sorted(outcome.failures) == [0, 1, 2]
    assert all(f"NaN or infinite outputs for image {i}" in reason for i, reason in outcome.failures.items())
    assert list(store.pieces()) == []
    certificate_files.write(tmp_path, outcome, plan, SIGMA, "float32")
    _, ids, votes, kinds = certificate_files.read(tmp_path)
    assert (len(ids), len(votes.n), len(kinds["hard"].radii)) == (0, 0, 0)


def test_a_missing_model_is_one_line(certify, digit_examples, tmp_path):
    with pytest.raises(InputError, match=r"There is no model .*model.keras"):
        certify(tmp_path / "model.keras", digit_examples, range(3))


def test_a_worker_s_error_is_one_line_and_beam_prints_no_page(certify, small_model, digit_examples, monkeypatch, capfd):
    def record(self, pieces, failures):
        raise OSError("No space left on device")

    monkeypatch.setattr(LedgerWriter, "record", record)
    with pytest.raises(RuntimeError, match="A certification worker failed: OSError: No space left on") as error:
        certify(small_model, digit_examples, range(3))
    assert "\n" not in str(error.value)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_full_disk_under_the_log_as_well_ends_certification(certify, small_model, digit_examples, monkeypatch):
    """Where neither votes nor what is said of it can be written: it waits for no worker that died of that."""

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(LedgerWriter, "record", full)
    monkeypatch.setattr("sys.stderr", SimpleNamespace(write=full, flush=full))
    with pytest.raises(RuntimeError, match="A certification worker failed: OSError: No space left on"):
        certify(small_model, digit_examples, range(3))


def test_workers_that_have_nothing_in_hand_and_never_end_are_an_error(
    certify, small_model, digit_examples, monkeypatch
):
    class Stuck(driver.FnApiRunner):
        def run_pipeline(self, *_):
            time.sleep(3600)

    monkeypatch.setattr(driver, "FnApiRunner", Stuck)
    monkeypatch.setattr(driver, "_SECONDS_OF_SILENCE", 0.5)
    with pytest.raises(RuntimeError, match="A certification worker failed: no worker answers any more"):
        certify(small_model, digit_examples, range(3))


class Failing(driver.FnApiRunner):
    """Beam, but that it fails after its work is done, as often as it is told to."""

    failures = 0

    def run_pipeline(self, *arguments):
        result = super().run_pipeline(*arguments)
        if Failing.failures:
            Failing.failures -= 1
            raise RuntimeError('a page\n\tdetails = "CANCELLED"\n>')
        return result


def test_where_beam_itself_fails_what_it_owes_is_drawn_again(certify, small_model, digit_examples, monkeypatch, capsys):
    undisturbed = text(certify(small_model, digit_examples, range(3)))
    process = workers.DrawVotes.process
    monkeypatch.setattr(
        workers.DrawVotes,
        "process",
        lambda self, chunks: process(self, [chunk for chunk in chunks if chunk[0] == 1 or not Failing.failures]),
    )
    monkeypatch.setattr(driver, "FnApiRunner", Failing)
    monkeypatch.setattr(Failing, "failures", 1)
    assert text(certify(small_model, digit_examples, range(3), store="other")) == undisturbed
    assert Failing.failures == 0
    assert "Beam failed (CANCELLED); what is missing will be drawn again." in capsys.readouterr().out


def test_beam_that_fails_and_brings_nothing_is_given_up(certify, small_model, digit_examples, monkeypatch):
    monkeypatch.setattr(driver, "FnApiRunner", Failing)
    monkeypatch.setattr(Failing, "failures", 10)
    monkeypatch.setattr(workers.DrawVotes, "process", lambda self, chunks: None)
    with pytest.raises(RuntimeError, match=r"^Beam failed 3 times in a row: CANCELLED$"):
        certify(small_model, digit_examples, range(3))


def test_another_n0_after_a_look_is_certified_at_half_of_alpha(certify, small_model, digit_examples, tmp_path):
    """Its class may have been chosen for its votes, too: two events, of which each has half."""
    certify(small_model, digit_examples, range(4))
    plan = SamplingPlan(N0 + 1, N, ALPHA)
    store = VoteStore(tmp_path / "votes" / "beside", {"n0": N0 + 1}, plan.first_look, 10)
    sampler = workers.Sampler(str(small_model), examples_lib.Source(str(digit_examples)), SIGMA, SEED)
    outcome = driver.run(sampler, np.arange(4), 10, plan, store, num_workers=2)
    certified = plan.certificates(outcome.votes, SIGMA, outcome.share_of_alpha)["hard"]
    expected = certificates.certify(outcome.votes, SIGMA, ALPHA / 2, bound="anytime")
    np.testing.assert_array_equal(certified.radii, expected.radii)
    assert (outcome.is_first_look, certified.alpha, certified.bound) == (False, ALPHA, "anytime")


def test_lines_are_in_the_order_of_ids_with_all_their_digits(certify, small_model, digit_examples):
    output = certify(small_model, digit_examples, [10, 2, 9])
    rows = [json.loads(line) for line in text(output).splitlines()]
    assert [row["example_id"] for row in rows] == [2, 9, 10]
    for row in rows:
        votes = Votes(np.array([row["selection"]]), np.array([row["estimation"]]))
        certified = certificates.certify(votes, SIGMA, ALPHA)
        assert row["radius"] == certified.radii[0]
        assert row["p_lower"] == certified.p_lower[0]
        assert row["prediction"] == certified.predictions[0]


@pytest.fixture
def quadratic_model(write_model):
    """A function: p -> path of a classifier whose smoothed class 1 has probability p at an image of zeros.

    Its logits are (0, c - sum of squared pixels). The squared noise of 4 pixels, over sigma^2, is chi-squared with 4
    degrees of freedom, so class 1 wins with probability p for c = sigma^2 * its p-quantile.
    """

    def write(p):
        inputs = keras.Input((2, 2, 1))
        pixels = keras.layers.Flatten()(inputs)
        dense = keras.layers.Dense(2)
        classifier = keras.Model(inputs, dense(keras.layers.Multiply()([pixels, pixels])))
        kernel = np.zeros((4, 2), np.float32)
        kernel[:, 1] = -1
        dense.set_weights([kernel, np.array([0, SIGMA**2 * stats.chi2.ppf(p, 4)], np.float32)])
        return write_model(classifier, sigma=SIGMA)

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "p", "path"),
    # By Beam once: it returns what the library returns, as a test above says.
    [("threshold", 0.8, "library"), ("quadratic", 0.45, "library"), ("quadratic", 0.45, "beam")],
)
def test_of_20_000_certificates_as_many_are_false_as_the_bound_says(
    request, certify, write_examples, shape, p, path
):  # fmt: skip
    """Class 1 has probability p at every image, exactly: see the models.

    A certificate is false if it names a class of probability 1/2 or below, or a radius above sigma * Phi^-1 of the
    class' probability. How often that happens is a sum over the binomial counts of selection and estimation, which is
    at most alpha, and which a run must hit within four binomial standard errors.
    """
    num_images, n0, n, alpha = 20_000, 20, 120, 0.05
    model = request.getfixturevalue(f"{shape}_model")(p)
    pixels = np.zeros((num_images, 2, 2, 1), np.uint8)
    if path == "beam":
        examples = write_examples(pixels, np.ones(num_images, int), class_names=("0", "1"))
        _, votes, certified = read(certify(model, examples, range(num_images), n0=n0, n=n, alpha=alpha))
    else:
        smoothed = SmoothedClassifier(keras.models.load_model(model, compile=False), SIGMA, SEED, levels=256)
        votes = smoothed.votes(pixels.astype(np.float32), n0, n)
        certified = certificates.certify(votes, SIGMA, alpha)

    successes = np.arange(n + 1)
    bounds = stats.beta.ppf(alpha, np.maximum(successes, 1), n - successes + 1) * (successes > 0)
    is_one_selected = stats.binom.sf(n0 // 2, n0, p)  # class 0 on a tie
    exact, false = 0, np.zeros(num_images, bool)
    for label, probability, is_selected in ((0, 1 - p, 1 - is_one_selected), (1, p, is_one_selected)):
        threshold = max(probability, 0.5)
        exact += is_selected * stats.binom.pmf(successes, n, probability)[bounds > threshold].sum()
        true_radius = SIGMA * NormalDist().inv_cdf(threshold)
        false |= (certified.predictions == label) & (certified.radii > true_radius)
    assert 0.002 < exact <= alpha
    assert abs(false.mean() - exact) < 4 * np.sqrt(exact * (1 - exact) / num_images)
    # The votes themselves are binomial with this p: no two images share noise, none is biased.
    assert abs(votes.estimation[:, 1].mean() / n - p) < 4 * np.sqrt(p * (1 - p) / (n * num_images))
    assert abs(votes.estimation[:, 1].var() / (n * p * (1 - p)) - 1) < 4 * np.sqrt(2 / num_images)


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
