"""Certification on an engine of real processes is that of one machine to the bit, whatever happens to the workers."""

import io
import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.certification import driver, workers
from pipeline.certification.sampling_plan import SamplingPlan
from pipeline.certification.vote_store import VoteStore
from pipeline.data import sources
from pipeline.utils.errors import InputError
from serving import exit as exit_lib
from tests import forks
from tests.kills import Ended, leave

sys.path.insert(0, str(Path(__file__).parent))  # as on the workers
SIGMA, SEED, N0, N = 0.5, 3, 30, 6000
FIXED = SamplingPlan(N0, N, 0.01)


@pytest.fixture(scope="session")
def sampler(tmp_path_factory, digits):
    """Of a network of random weights, and of 12 digits as image files, of which the one of id 7 is damaged."""
    import keras

    from macer_tf import networks

    folder = tmp_path_factory.mktemp("sampler")
    keras.utils.set_random_seed(0)
    networks.small_cnn().save(folder / "model.keras")
    (folder / "images").mkdir()
    for place, image in enumerate(digits[0][-12:]):
        Image.fromarray((image[..., 0] * 255).astype(np.uint8)).save(folder / "images" / f"{place:02}.png")
    content = (folder / "images" / "07.png").read_bytes()
    (folder / "images" / "07.png").write_bytes(content[:40])
    source = sources.at(str(folder / "images"), (8, 8, 1))
    return workers.Sampler(str(folder / "model.keras"), source, SIGMA, SEED)


@pytest.fixture
def draw(tmp_path, sampler):
    """A function: plan, `Engine` or None -> (`Outcome`, what was printed)."""

    def run(plan, engine=None, name="votes", sampler=sampler):
        store = VoteStore(
            tmp_path / name / "store", {"n0": plan.n0}, plan.first_look, 10, (), engine and engine.handed_in
        )  # fmt: skip
        out = io.StringIO()
        with redirect_stdout(out):
            outcome = driver.run(sampler, np.arange(12), 10, plan, store, num_workers=2, engine=engine)
        return outcome, out.getvalue()

    return run


def assert_same(outcome, expected):
    assert outcome.failures == expected.failures
    for name in ("selection", "estimation"):
        np.testing.assert_array_equal(getattr(outcome.votes, name), getattr(expected.votes, name))
    np.testing.assert_array_equal(outcome.ids, expected.ids)


@pytest.mark.parametrize(
    "plan", [FIXED, SamplingPlan(N0, N, 0.01, tolerance=0.1), SamplingPlan(N0, N, 0.01, radii=(0.2,))]
)
def test_votes_are_those_of_one_machine_and_a_damaged_image_fails_no_job(cluster, draw, tmp_path, plan):
    expected, _ = draw(plan, name="one")
    outcome, out = draw(plan, cluster.engine(), name="two")
    assert_same(outcome, expected)
    assert list(outcome.failures) == [7]
    if plan is FIXED:
        assert (outcome.votes.estimation.sum(1) == N).all()
        assert (outcome.votes.selection.sum(1) == N0).all()
        shares = re.findall(r"by 2 workers, (\d+) % by the busiest\.", out)
        assert max(map(int, shares)) <= 60
    assert [path.suffix for path in (tmp_path / "two" / "store").iterdir() if path.suffix != ".parquet"] == [".json"]


@pytest.mark.parametrize("place", [0, 1])
def test_a_worker_that_is_killed_costs_no_vote(cluster, draw, place):
    expected, _ = draw(FIXED, name="one")
    before = len(cluster.workers())

    def kill():
        # The first two are the self-check's, the next two those of the first job.
        while len(started := cluster.workers()) < before + 4:
            time.sleep(0.02)
        os.kill(started[before + 2 + place], signal.SIGKILL)

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    outcome, out = draw(FIXED, cluster.engine(patience=8.0), name="two")
    assert_same(outcome, expected)
    assert "A job was lost" in out
    killing.join(0)
    assert not killing.is_alive()


def test_ctrl_c_cancels_the_job_says_how_to_go_on_and_no_worker_draws_on(
    cluster, draw, tmp_path, sampler, monkeypatch, capsys
):
    plan = SamplingPlan(N0, 10_000_000, 0.01)
    store = tmp_path / "votes" / "store"
    monkeypatch.setattr("serving.exit.os._exit", leave)
    before = signal.signal(signal.SIGINT, lambda *_: None)

    def interrupt():
        while not list(store.glob("*.votes")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(Ended, match="130"):
            exit_lib.exit_status(
                lambda: (None, tmp_path), lambda _: draw(plan, cluster.engine()), "Do this to go on.", at_once=True
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Interrupted. Do this to go on." in capsys.readouterr().err
    time.sleep(3)  # what is in hand
    votes = set(store.glob("*.votes"))
    time.sleep(6)  # longer than a worker waits before it hands in
    assert set(store.glob("*.votes")) == votes
    assert list(store.glob("*.wanted")) == []


def test_votes_and_model_go_by_url_where_there_is_no_shared_folder(cluster, draw, tmp_path):
    expected, _ = draw(FIXED, name="one")
    from tests.cluster import shelf  # noqa: F401

    outcome, _ = draw(FIXED, cluster.engine(handed_in="shelf://bucket/votes"), name="two")
    assert_same(outcome, expected)
    left = [path.name for path in Path(os.environ["SHELF"]).iterdir()]
    assert len(left) == 1
    assert left[0].endswith("model.keras")


def test_a_worker_without_the_package_is_one_line(cluster, draw, sampler, tmp_path, monkeypatch):
    module = tmp_path / "somewhere_else.py"
    module.write_text(
        "from dataclasses import dataclass\n\nfrom pipeline.data.sources import Folder\n\n\n"
        "@dataclass(frozen=True)\nclass Mine(Folder):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import somewhere_else

    mine = workers.Sampler(
        sampler.model_path, somewhere_else.Mine(sampler.source.path, sampler.source.shape), SIGMA, SEED
    )
    with pytest.raises(
        RuntimeError, match=r"No module named 'somewhere_else', on a worker: its Python needs this package"
    ) as error:
        draw(FIXED, cluster.engine(), sampler=mine)
    assert "\n" not in str(error.value)


def test_a_model_that_a_worker_cannot_read_is_one_line(cluster, draw, sampler, monkeypatch):
    def elsewhere(sampler, place):
        return workers.Sampler("/nowhere/model.keras", sampler.source, SIGMA, SEED, fingerprint="0" * 64)

    monkeypatch.setattr(workers.Sampler, "for_engine", elsewhere)
    with pytest.raises(
        RuntimeError, match=r"failed: /nowhere/model.keras cannot be read on \S+ \(No such file"
    ) as error:
        draw(FIXED, cluster.engine())
    assert "\n" not in str(error.value)


def test_workers_that_do_not_share_the_folder_are_one_line(cluster, draw, monkeypatch):
    monkeypatch.setattr("pipeline.certification.bundles.Mark.set", lambda mark: None)
    with pytest.raises(
        InputError, match=r"A worker on \S+ does not see \S+: votes must be handed in at a URL, or in a folder"
    ):
        draw(FIXED, cluster.engine())


def test_ctrl_c_ends_a_worker_in_one_line():
    """As in a terminal in which Flink runs, too. The engine that it asks for work says nothing."""
    with socket.create_server(("localhost", 0)) as engine:
        address = f"localhost:{engine.getsockname()[1]}"
        worker = forks.Fork(["-m", "pipeline.worker", "--id=1", f"--provision_endpoint={address}"])
        engine.settimeout(60)
        with engine.accept()[0]:
            worker.send_signal(signal.SIGINT)
            printed, said = worker.communicate(60)
    assert (worker.returncode, printed) == (130, "")
    assert said.endswith("\nInterrupted.\n")
    assert "Traceback" not in said
