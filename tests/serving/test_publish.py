import os
import shutil

import pytest

from serving.publish import publish


@pytest.fixture
def saved_model(tmp_path):
    directory = tmp_path / "model"
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(b"graph")
    (directory / "variables" / "variables.index").write_bytes(b"index")
    (directory / "saved_model.pb").chmod(0o600)
    return directory


def servable(base):
    """What a model server would load: the version directories."""
    return sorted(entry.name for entry in base.iterdir() if entry.name.isdecimal())


def test_versions_count_up_and_are_never_overwritten(saved_model, tmp_path):
    base = tmp_path / "base"
    assert publish(saved_model, base) == base / "1"
    (base / "7").mkdir()
    (base / "notes").mkdir()
    assert publish(saved_model, base) == base / "8"
    assert servable(base) == ["1", "7", "8"]
    assert (base / "8" / "variables" / "variables.index").read_bytes() == b"index"


def test_everybody_may_read_what_is_published(saved_model, tmp_path):
    version = publish(saved_model, tmp_path / "base")
    assert (version / "saved_model.pb").stat().st_mode & 0o777 == 0o644
    assert version.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("step", ["copytree", "rename"])
def test_a_kill_before_the_rename_leaves_nothing_a_server_would_load(saved_model, tmp_path, monkeypatch, step):
    base = tmp_path / "base"
    publish(saved_model, base)
    module, real = (shutil, shutil.copytree) if step == "copytree" else (os, os.rename)

    def killed(source, target, *args, **kwargs):
        if step == "copytree":
            real(source, target, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, step, killed)
    with pytest.raises(KeyboardInterrupt):
        publish(saved_model, base)
    assert servable(base) == ["1"]
    monkeypatch.undo()
    assert publish(saved_model, base) == base / "2"
    assert servable(base) == ["1", "2"]
