"""What somebody might try to look at votes and still get the bound of those who did not: none of it helps."""

import contextlib
import json
import shutil
from statistics import NormalDist

import numpy as np
import pyarrow.parquet as pq
import pytest

from macer_tf import certificates
from pipeline.certification.vote_store import VoteStore
from pipeline.utils.errors import InputError
from tests.attack.certifier import SIGMA, Died, certify

pytestmark = [pytest.mark.attack, pytest.mark.slow]

MORE = {"n": 3000}
OTHER_N0 = {"n0": 21}
SOFT = {"certify": "all", "betas": (1.0,)}


def look(**changed):
    return lambda root: certify(root, **changed)


def killed(**changed):
    def die(root):
        with pytest.raises(Died):
            certify(root, dies_after=2, **changed)

    return die


def delete(*patterns):
    def delete_all(root):
        found = [path for pattern in patterns for path in (root / "votes").glob(pattern)]
        assert found
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return delete_all


def change(pattern, changed):
    """Puts `changed` of each file's content in its place."""

    def change_all(root):
        paths = list((root / "votes").glob(pattern))
        assert paths
        for path in paths:
            path.write_bytes(changed(path.read_bytes()))

    return change_all


def plan_edited(content):
    assert b'"n": 1000' in content
    return content.replace(b'"n": 1000', b'"n": 3000')


def footers(about):
    """Shards whose footers say something else, written by somebody's own script under the same name."""

    def write(root):
        for path in (root / "votes").glob("*/*.parquet"):
            table = pq.read_table(path)
            said = json.loads(table.schema.metadata[b"macer_tf"])
            pq.write_table(table.replace_schema_metadata({b"macer_tf": json.dumps(about(said))}), path)

    return write


def elsewhere(pattern, step):
    """What a step leaves elsewhere is copied into the folder of the same name."""

    def copy(root):
        step(root.with_name("elsewhere"))
        for path in (root.with_name("elsewhere") / "votes").glob(pattern):
            folder = root / "votes" / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.name)

    return copy


def move(pattern, name):
    def move_all(root):
        for path in (root / "votes").glob(pattern):
            path.rename(path.with_name(name))

    return move_all


KNOWN = ("*/votes.json", "looks-*.json")
CHEATS = {
    "more samples": [look(), look(**MORE)],
    "fewer samples": [look(**MORE), look(n=500)],
    "more samples after a kill": [killed(), look(**MORE)],
    "more samples and another n0": [look(), look(**MORE, **OTHER_N0)],
    "more samples and another n0 after a kill": [killed(), look(**MORE, **OTHER_N0)],
    "another n0 alone": [look(), look(**OTHER_N0)],
    "another n0 there and back": [look(), look(**OTHER_N0, **MORE), look(**MORE)],
    "ledgers without votes.json": [killed(), delete("*/votes.json"), look(**MORE)],
    "ledgers without the register": [killed(), delete("looks-*.json"), look(**MORE)],
    "ledgers with neither": [killed(), delete(*KNOWN), look(**MORE)],
    "ledgers with neither, and another n0": [killed(), delete(*KNOWN), look(**MORE, **OTHER_N0)],
    "ledgers at other betas with neither": [killed(**SOFT), delete(*KNOWN), look(**MORE)],
    "ledgers with neither, their first line damaged": [
        killed(), delete(*KNOWN), change("*/*.jsonl", lambda content: b"x" + content[1:]), look(**MORE),
    ],
    "ledgers with neither, their first line cut off": [
        killed(), delete(*KNOWN), change("*/*.jsonl", lambda content: content.partition(b"\n")[2]), look(**MORE),
    ],
    "ledgers and an edited votes.json": [killed(), change("*/votes.json", plan_edited), look(**MORE)],
    "ledgers and an edited register": [killed(), change("looks-*.json", plan_edited), look(**MORE)],
    "ledgers, votes.json deleted and an edited register": [
        killed(), delete("*/votes.json"), change("looks-*.json", plan_edited), look(**MORE),
    ],
    "ledgers and both edited": [killed(), change("*/votes.json", plan_edited),
                                change("looks-*.json", plan_edited), look(**MORE)],
    "ledgers edited as well": [killed(), delete(*KNOWN), change("*/*.jsonl", plan_edited), look(**MORE)],
    "an empty votes.json": [look(), change("*/votes.json", lambda content: b""), look(**MORE)],
    "an empty register": [look(), change("looks-*.json", lambda content: b""), look(**MORE)],
    "a register of nothing": [look(), change("looks-*.json", lambda content: b"{}"), look(**MORE)],
    "a votes.json of old": [look(), change("*/votes.json", lambda content: b'{"plan": {"n": 3000}}'), look(**MORE)],
    "shards with neither": [look(), delete(*KNOWN), look(**MORE)],
    "shards with neither, and another n0": [look(), delete(*KNOWN), look(**MORE, **OTHER_N0)],
    "no shards": [look(), delete("*/*.parquet"), look(**MORE)],
    "no folder": [look(), delete("????????????????"), look(**MORE)],
    "no folder, and another n0": [look(), delete("????????????????"), look(**MORE, **OTHER_N0)],
    "footers of another plan": [
        look(), footers(lambda about: about | {"first_looks": [about["first_looks"][0] | MORE]}), delete(*KNOWN),
        look(**MORE),
    ],
    "footers without a plan": [
        look(), footers(lambda about: {k: v for k, v in about.items() if k != "first_looks"}), delete(*KNOWN),
        look(**MORE),
    ],
    "footers without a plan, and another n0": [
        look(), footers(lambda about: {}), delete(*KNOWN), look(**MORE, **OTHER_N0),
    ],
    "shards renamed": [look(), move("*/*.parquet", "a.parquet"), delete(*KNOWN), look(**MORE)],
    "the folder renamed": [look(), move("????????????????", "backup"), look(**MORE)],
    "the folder renamed, and no register": [
        look(), move("????????????????", "backup"), delete("looks-*.json"), look(**MORE),
    ],
    "a radius, then all": [look(radii=(0.1,), **MORE), look(**MORE)],
    "another radius": [look(radii=(0.1,), **MORE), look(radii=(0.2,), **MORE)],
    "a tolerance, then all": [look(tolerance=0.05, **MORE), look(**MORE)],
    "soft votes first": [look(**SOFT), look(**MORE)],
    "soft certificates after": [look(), look(**MORE, **SOFT)],
    "shards of elsewhere": [elsewhere("*/*.parquet", look()), look(**MORE)],
    "ledgers of elsewhere": [elsewhere("*/*.jsonl", killed()), look(**MORE)],
    "shards of elsewhere at another n0": [elsewhere("*/*.parquet", look(**OTHER_N0)), look(**MORE)],
    "ledgers of elsewhere at another n0": [elsewhere("*/*.jsonl", killed(**OTHER_N0)), look(**MORE)],
    "shards of elsewhere, seen and taken away": [
        elsewhere("*/*.parquet", look()), look(**MORE), delete("*/*.parquet"), look(**MORE),
    ],
    "only the later shard": [look(), delete("*/*.parquet"), look(**MORE), delete(*KNOWN), look(**MORE)],
}  # fmt: skip


@pytest.mark.parametrize("steps", CHEATS.values(), ids=CHEATS.keys())
def test_after_a_look_there_is_no_first_one(tmp_path, steps):
    *before, last = steps
    root = tmp_path / "root"
    root.mkdir()
    with contextlib.suppress(InputError):
        for step in before:
            step(root)
        assert not last(root).is_first_look


HONEST = {
    "at once": [look()],
    "twice": [look(), look()],
    "after a kill": [killed(), look()],
    "after a kill, without votes.json": [killed(), delete("*/votes.json"), look()],
    "without both": [look(), delete(*KNOWN), look()],
    "another alpha": [look(), look(alpha=0.2)],
    "after another look": [look(), look(**MORE), look()],
    "after another n0": [look(), look(**OTHER_N0), look()],
    "on shards of other machines": [elsewhere("*/*.parquet", look(images=range(3, 6))), look(images=range(6))],
}


@pytest.mark.parametrize("steps", HONEST.values(), ids=HONEST.keys())
def test_who_did_not_choose_after_a_look_keeps_the_first(tmp_path, steps):
    root = tmp_path / "root"
    for step in steps:
        outcome = step(root)
    assert outcome.is_first_look


def test_another_seed_or_model_is_other_noise_and_another_sigma_or_n0_is_not(tmp_path):
    identity = {"model": "a", "sigma": 0.5, "seed": 0, "n0": 20}
    VoteStore(tmp_path / "one", identity, {"n": 1}, 2)
    changes = [("model", "b", 2), ("seed", 1, 2), ("n0", 21, 1), ("sigma", 0.25, 1)]
    for name, value, n in changes:
        assert VoteStore(tmp_path / name, identity | {name: value}, {"n": 2}, 2).first_looks == [{"n": n}]


def test_the_best_of_twenty_looks_is_false_no_more_often_than_alpha(tmp_path):
    """At the true probability 0.6; with Clopper-Pearson at each look it is several times as often."""
    p, alpha, images = 0.6, 0.05, range(400)
    true_radius = SIGMA * NormalDist().inv_cdf(p)
    best, naive = np.zeros(len(images)), np.zeros(len(images))
    for place in range(20):
        changed = {"n": 100 * (place + 1), "n0": 20 + place % 2, "alpha": alpha}
        outcome = certify(tmp_path, images, p, **changed)
        assert outcome.is_first_look == (place == 0)
        share = outcome.share_of_alpha or 1
        bound = "clopper-pearson" if outcome.is_first_look else "anytime"
        best = np.maximum(best, certificates.certify(outcome.votes, SIGMA, alpha * share, bound).radii)
        naive = np.maximum(naive, certificates.certify(outcome.votes, SIGMA, alpha).radii)
    error = np.sqrt(alpha * (1 - alpha) / len(images))
    assert (best > true_radius).mean() < alpha + 3 * error
    assert (naive > true_radius).mean() > 2 * alpha + 3 * error
