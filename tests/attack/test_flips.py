"""Every byte of every kind of state file, changed: it is refused by name, redrawn or harmless, and nothing else."""

import itertools

import keras
import numpy as np
import pytest

from pipeline.certification import certificate_files
from pipeline.training import backups
from pipeline.utils.errors import InputError
from tests.attack.certifier import Died, certify

pytestmark = [pytest.mark.attack, pytest.mark.slow]

# A bit within letters and digits, and one that leaves ASCII.
BITS = (0x01, 0x80)


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink()}


def restore(root, before):
    for path in contents(root):
        if path not in before:
            path.unlink()
    for path, content in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def flipped(path, every=1):
    """Changes the file at one place after another; yields what tells the place."""
    content = path.read_bytes()
    for position in range(0, len(content), every):
        changed = content[position] ^ BITS[position % len(BITS)]
        path.write_bytes(content[:position] + bytes([changed]) + content[position + 1 :])
        yield f"{path.name}, byte {position}"
    path.write_bytes(content)


def tried(action, path, place):
    """What the action returns, or None if it is refused: in one line that names the path."""
    try:
        return action()
    except InputError as error:
        line = str(error)
    assert str(path) in line, place
    assert "\n" not in line, place
    return None


def result(root):
    outcome = certify(root, output=root / "output")
    about, ids, votes, kinds = certificate_files.read(root / "output")
    certified = [(name, kind.bound, kind.radii.tolist(), kind.p_lower.tolist()) for name, kind in kinds.items()]
    return about, ids.tolist(), votes.estimation.tolist(), outcome.failures, certified


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with a shard and, as a kill left it, a ledger."""
    root = tmp_path_factory.mktemp("root")
    certify(root, images=range(2))
    with pytest.raises(Died):
        certify(root, dies_after=1)
    return root


@pytest.mark.parametrize(
    ("pattern", "has_register"),
    [("looks-*.json", True), *itertools.product(("*/votes.json", "*/*.jsonl", "*/*.parquet"), (True, False))],
)
def test_a_changed_byte_in_the_votes_changes_no_certificate(root, pattern, has_register):
    before = contents(root)
    try:
        expected = result(root)
        restore(root, before)
        if not has_register:
            next((root / "votes").glob("looks-*.json")).unlink()
        state = contents(root)
        (path,) = (root / "votes").glob(pattern)
        refused = redrawn = 0
        for place in flipped(path, every=1 if has_register else 5):
            damaged = path.read_bytes()
            found = tried(lambda: result(root), path, place)
            assert found in (None, expected), place
            refused += found is None
            redrawn += found is not None
            restore(root, state | {path: damaged})
        assert (redrawn if path.suffix == ".jsonl" else refused) > 0.9 * (refused + redrawn)
    finally:
        restore(root, before)


def test_a_changed_byte_in_certificates_is_refused_or_harmless(root, tmp_path):
    certify(root, output=tmp_path / "output")
    about, *_, kinds = certificate_files.read(tmp_path / "output")
    for name in ("certification.json", "certificates.jsonl"):
        for place in flipped((tmp_path / "output" / name).resolve()):
            again = tried(lambda: certificate_files.read(tmp_path / "output"), tmp_path / "output", place)
            if again is not None:
                assert again[0] == about, place
                np.testing.assert_array_equal(again[3]["hard"].radii, kinds["hard"].radii)


def test_a_changed_byte_in_a_backup_is_refused_or_harmless(tmp_path):
    def trained():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="mse")
        model.optimizer.build(model.trainable_variables)
        record = backups.Record(5)
        backup = backups.Backup(tmp_path, record)
        for callback in (record, backup):
            callback.set_model(model)
        return model, record, backup

    model, record, backup = trained()
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    record.done, record.history = 5, [{"smoothed_accuracy": 0.5, "loss": 1.25, "learning_rate": 0.1}]
    record.times, record.seconds, record.core_seconds = [1.5e9], [2.5], [4.5]
    backup.on_epoch_end(0)
    expected, weights = record.state(), model.get_weights()

    model, record, backup = trained()
    backup.restore(model)
    assert record.state() == expected
    files = sorted(path for path in backup.latest().iterdir())
    assert [path.name for path in files] == ["model.keras", "state.json"]
    for path in files:
        accepted = 0
        for place in flipped(path, every=7 if path.suffix == ".keras" else 1):
            if not tried(lambda: backup.restore(model) or True, backup.latest(), place):
                continue
            accepted += 1
            assert record.state() == expected, place
            for ours, theirs in zip(model.get_weights(), weights, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        assert accepted < 20


def test_the_store_refuses_what_is_no_file_of_its_own(tmp_path):
    """A folder, a list, a number, nothing, deep nesting: in the place of each kind of state file."""
    for place, content in enumerate([None, b"[]", b"3", b"", b"[" * 100_000, b"\xff\xfe", b'{"checksum": "x"}']):
        for pattern in ("looks-*.json", "*/votes.json", "*/*.parquet"):
            root = tmp_path / f"{place}{pattern[-6]}{len(pattern)}"
            certify(root, images=range(1))
            (path,) = (root / "votes").glob(pattern)
            path.unlink()
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)
            with pytest.raises(InputError) as error:
                certify(root, images=range(1))
            assert str(path) in str(error.value)
            assert "\n" not in str(error.value)
