"""Certification as `pipeline.certify` carries it out, of a classifier that is a coin: no network, no Beam, no wait."""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import numpy as np

from pipeline.certification import certificate_files, driver
from pipeline.certification.pieces import Piece
from pipeline.certification.sampling_plan import SamplingPlan
from pipeline.certification.vote_store import VoteStore
from serving.fingerprints import fingerprint

SIGMA, NUM_CLASSES = 0.5, 2
_MOST = 20_000


class Died(Exception):
    """The process is no more."""


class Loaded:
    """What a sampler loads."""

    images = SimpleNamespace(digest=lambda example_id: 1000 + example_id)

    def samples_per_second(self, example_ids, missing):
        """None: it is not measured."""


@dataclass(frozen=True)
class Coin:
    """A sampler, as `certification.Sampler`, whose samples are class 1 with probability p."""

    p: float
    sigma: float = SIGMA
    seed: int = 0

    def load(self):
        return Loaded()

    def pieces(self, chunks, betas):
        for chunk in chunks:
            votes = _classes(self.p, chunk.example_id, chunk.stream)[chunk.start : chunk.start + chunk.count]
            counts = np.bincount(votes, minlength=NUM_CLASSES)
            yield Piece(chunk, np.stack([counts] * (1 + 2 * len(betas))))


@cache
def _classes(p, example_id, stream):
    return (np.random.default_rng([7, example_id, stream]).random(_MOST) < p).astype(np.int64)


@contextmanager
def drawing(coin, dies_after):
    """Workers draw the coin's votes, in this thread; after so many tasks, they die."""
    left = [dies_after]

    def draw(sampler, shared, chunks, store, num_workers, follower):
        ledger = store.ledger()
        for task in driver.tasks(chunks):
            if left[0] == 0:
                raise Died
            left[0] = None if left[0] is None else left[0] - 1
            ledger.record(coin.pieces(task, store.betas), {})

    before, driver._draw = driver._draw, draw
    try:
        yield
    finally:
        driver._draw = before


def certify(root, images=range(3), p=0.8, dies_after=None, output=None, **changed):
    """Certifies images; `changed` are settings of the plan. Returns the `Outcome`; its files go to `output`."""
    plan = SamplingPlan(**{"n0": 20, "n": 1000, "alpha": 0.05} | changed)
    identity = {"model": "coin", "sigma": SIGMA, "seed": 0, "n0": plan.n0, "precision": "float32"}
    folder = root / "votes" / fingerprint(identity)[:16]
    store = VoteStore(folder, identity, plan.first_look, NUM_CLASSES, plan.betas)
    coin = Coin(p)
    with drawing(coin, dies_after):
        outcome = driver.run(coin, np.array(images), NUM_CLASSES, plan, store, num_workers=1)
    if output is not None:
        unfinished = output / "unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        certificate_files.write(unfinished, outcome, plan, SIGMA, "float32")
        certificate_files.finish(unfinished, output)
    return outcome


def certified(outcome, **changed):
    """The certificates of an outcome, by kind."""
    plan = SamplingPlan(**{"n0": 20, "n": 1000, "alpha": 0.05} | changed)
    return plan.certificates(outcome.votes, SIGMA, outcome.share_of_alpha)
