"""Publishing, rolling back and listing versions; what a kill or another publisher can do meanwhile."""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving import card, manifest, weights
from serving import publish as publish_lib
from serving.fingerprints import sealed, unsealed, weights_fingerprint
from serving.publish import content_fingerprint, listing, main, publish, read_publication, rollback
from serving.versions import versions
from tests.serving import kill_at_every_step, saved_models

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def saved_model(tmp_path):
    return saved_models.write(tmp_path / "model")


@pytest.fixture
def blessing(tmp_path):
    """The blessing of `saved_model`."""
    return saved_models.write_blessing(tmp_path / "blessing.json")


@pytest.fixture
def base(tmp_path):
    return tmp_path / "base"


@pytest.fixture
def push(tmp_path, base):
    """A function: content -> the version that a pipeline pushes, blessed and loaded before."""

    def run(content):
        directory = tmp_path / content
        if not directory.exists():
            saved_models.write(directory, content)
        blessing = saved_models.write_blessing(tmp_path / f"{content}.json", content)
        return publish(directory, base, blessing=blessing, check=None)

    return run


def numbers(base):
    return [int(path.name) for path in versions(base)]


def content(version):
    return (version / "saved_model.pb").read_text()


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_versions_count_up_and_are_never_overwritten(saved_model, base, blessing):
    assert publish(saved_model, base, blessing=blessing, check=None) == base / "1"
    (base / "7").mkdir()
    (base / "notes").mkdir()
    assert publish(saved_model, base, blessing=blessing, check=None) == base / "8"
    assert numbers(base) == [1, 7, 8]
    assert weights.fingerprint_of_saved_model(base / "8") == weights_fingerprint([saved_models.weights("graph")])
    assert list((base / "7").iterdir()) == []


def test_numbers_are_ordered_as_numbers(push, base):
    (base / "9").mkdir(parents=True)
    (base / "10").mkdir()
    assert push("a") == base / "11"
    assert numbers(base) == [9, 10, 11]


def test_everybody_may_read_what_is_published(saved_model, base, blessing):
    before = os.umask(0o077)
    try:
        version = publish(saved_model, base, blessing=blessing, check=None)
    finally:
        os.umask(before)
    for path in (base, version, *version.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_the_model_itself_is_not_touched(saved_model, base, blessing):
    before = content_fingerprint(saved_model)
    publish(saved_model, base, blessing=blessing, check=None)
    assert content_fingerprint(saved_model) == before
    assert sorted(path.name for path in saved_model.iterdir()) == ["assets.extra", "saved_model.pb", "variables"]
    assert sorted(path.name for path in (saved_model / "assets.extra").iterdir()) == [
        "manifest.json",
        "model_card.json",
    ]
    assert (saved_model / "saved_model.pb").stat().st_mode & 0o777 == 0o600


def test_what_is_not_blessed_is_refused(saved_model, base):
    with pytest.raises(ValueError, match=r"is not blessed: there is no record .*; give its --blessing") as error:
        publish(saved_model, base, check=None)
    one_line(error)
    assert list(base.iterdir()) == []


def test_the_blessing_of_another_model_is_refused(saved_model, base, tmp_path):
    other = saved_models.write_blessing(tmp_path / "other.json", "other")
    with pytest.raises(ValueError, match=r"is not blessed: .*other\.json is for another model") as error:
        publish(saved_model, base, blessing=other, check=None)
    one_line(error)
    assert list(base.iterdir()) == []
    # Whoever gives a blessing means it: what was published as blessed before does not stand in for it.
    own = saved_models.write_blessing(tmp_path / "own.json")
    staged = publish(saved_model, base, blessing=own, check=None)
    with pytest.raises(ValueError, match="is for another model"):
        publish(staged, base, blessing=other, check=None)


def test_what_is_forced_says_so(saved_model, base, blessing):
    forced = publish(saved_model, base, force=True, check=None)
    record = json.loads((forced / "assets.extra" / "publication.json").read_text())
    assert (record["blessed"], record["forced"]) == (False, True)
    # And its card, which has lost nothing by that.
    assert card.read(forced) == {**card.read(saved_model), "forced": True}
    # Nothing that was forced counts as blessed elsewhere.
    with pytest.raises(ValueError, match="is not blessed: there is no record"):
        publish(forced, base.with_name("production"), check=None)
    # What is blessed needs no force, and is not called forced.
    blessed = publish(saved_model, base, blessing=blessing, force=True, check=None)
    assert (read_publication(blessed).blessed, read_publication(blessed).forced) == (True, False)
    assert content_fingerprint(blessed) == content_fingerprint(saved_model)


def test_what_was_forced_and_is_blessed_later_is_the_same_as_if_it_had_never_been(saved_model, base, blessing):
    forced = publish(saved_model, base, force=True, check=None)
    blessed = publish(forced, base, blessing=blessing, check=None)
    assert "forced" not in card.read(blessed)
    assert content_fingerprint(blessed) == content_fingerprint(saved_model)
    assert [line.blessing for line in listing(base)] == ["forced", "blessed"]


@pytest.mark.parametrize("standing", ["blessed", "forced"])
def test_what_is_served_already_is_not_published_again(push, saved_model, base, blessing, standing):
    given = {"blessing": blessing} if standing == "blessed" else {"force": True}
    loaded = []
    first = publish(saved_model, base, **given, check=loaded.append)
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*")}
    # By force it would not be served as less than it is.
    for again in (given, {**given, "force": True}, {"force": True}):
        assert publish(saved_model, base, **again, check=loaded.append) == first
    assert {path: path.stat().st_mtime_ns for path in base.rglob("*")} == before
    assert len(loaded) == 1
    # Back to it, from another: that is a new version.
    push("other")
    assert publish(saved_model, base, **given, check=None) == base / "3"


def test_what_is_served_already_and_is_not_blessed_is_refused_all_the_same(saved_model, base, tmp_path, blessing):
    publish(saved_model, base, blessing=blessing, check=None)
    bad = saved_models.write_blessing(tmp_path / "bad.json", blessed=False, reasons=["too bad"])
    for given, reason in (({}, "there is no record"), ({"blessing": bad}, "too bad")):
        with pytest.raises(ValueError, match=f"is not blessed: {reason}"):
            publish(saved_model, base, **given, check=None)


@pytest.mark.parametrize("change", ["graph", "card", "publication"])
def test_a_served_version_that_was_changed_is_published_anew(saved_model, base, blessing, change):
    first = publish(saved_model, base, blessing=blessing, check=None)
    match change:
        case "graph":
            (first / "saved_model.pb").write_text("grapf")
        case "card":
            saved_models.write_card(first, {**card.read(first), "scaling": "none"})
        case "publication":
            (first / "assets.extra" / "publication.json").unlink()
    assert publish(saved_model, base, blessing=blessing, check=None) == base / "2"
    assert [line.blessing for line in listing(base)][1] == "blessed"


def test_force_does_not_make_up_for_a_missing_or_broken_card(saved_model, base):
    path = saved_model / "assets.extra" / "model_card.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="The model card must have the fields"):
        publish(saved_model, base, force=True, check=None)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no model card .*; export it with serving\.export") as error:
        publish(saved_model, base, force=True, check=None)
    one_line(error)
    assert not base.exists()


def test_what_only_the_card_says_was_forced_is_listed_as_forced(saved_model, base):
    forced = publish(saved_model, base, force=True, check=None)
    (forced / "assets.extra" / "publication.json").unlink()
    assert [line.blessing for line in listing(base)] == ["forced"]


def test_a_blessing_goes_along_from_base_to_base(saved_model, base, blessing):
    staged = publish(saved_model, base, blessing=blessing, check=None)
    promoted = publish(staged, base.with_name("production"), check=None)
    assert read_publication(promoted).blessed
    assert content_fingerprint(promoted) == content_fingerprint(saved_model)


@pytest.mark.parametrize("change", ["edited", "added", "removed", "renamed"])
def test_a_changed_model_loses_its_blessing(saved_model, base, change, blessing):
    version = publish(saved_model, base, blessing=blessing, check=None)
    index = version / "variables" / "variables.index"
    match change:
        case "edited":
            index.write_text("Index")
        case "added":
            (version / "more").write_text("")
        case "removed":
            index.unlink()
        case "renamed":
            index.rename(index.with_name("other"))
    for force in (False, True):
        with pytest.raises(ValueError, match=r"is damaged: its files are not those .*: '.*; export it again\."):
            publish(version, base.with_name("production"), force=force, check=None)
    assert [line.blessing for line in listing(base)] == ["changed"]


@pytest.mark.parametrize("change", ["variables", "graph", "card", "publication", "blessing"])
def test_what_only_says_that_it_is_another_blessed_model_is_neither_listed_nor_published_as_one(push, base, change):
    """Versions 1 and 2 are blessed; 1 is given a part of 2, and its manifest is made anew where that helps."""
    first, second = push("first"), push("other")
    push("third")
    match change:
        case "variables":
            saved_models.write_variables(first, "other")
            manifest.write(first)
        case "graph":
            shutil.copy(second / "saved_model.pb", first)
            manifest.write(first)
        case "card":
            saved_models.write_card(first, card.read(second))
        case "publication":
            shutil.copy(second / "assets.extra" / "publication.json", first / "assets.extra")
        case "blessing":
            path = first / "assets.extra" / "publication.json"
            theirs = json.loads((second / "assets.extra" / "publication.json").read_text())["blessing"]
            ours = unsealed(json.loads(path.read_text()))
            path.write_text(json.dumps(sealed({**ours, "blessing": theirs})))
    assert [line.blessing for line in listing(base)] == ["changed", "blessed", "blessed"]
    with pytest.raises(ValueError, match="is not blessed: ") as error:
        publish(first, base.with_name("production"), check=None)
    one_line(error)
    with pytest.raises(ValueError, match=r"Version 1 of .* is not what was published: .*; publish it again") as error:
        rollback(base, 1, check=None)
    one_line(error)
    assert numbers(base) == [1, 2, 3]


def test_every_flipped_byte_of_a_publication_blesses_nothing(push, base):
    version = push("first")
    path = version / "assets.extra" / "publication.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert read_publication(version) is None
        if place % 20 == 0:
            assert [line.blessing for line in listing(base)] == ["changed"]


def test_a_version_whose_publication_is_damaged_is_not_rolled_back_to(push, base):
    first = push("first")
    push("second")
    path = first / "assets.extra" / "publication.json"
    path.write_text(path.read_text().replace("true", "True"))
    with pytest.raises(ValueError, match=r"is not what was published: its publication\.json was changed"):
        rollback(base, 1, check=None)


def test_hidden_files_are_not_published_and_change_nothing(push, saved_model, base, blessing):
    for name in (".DS_Store", "variables/._variables.index", "assets.extra/desktop.ini", "__MACOSX/._graph"):
        (saved_model / name).parent.mkdir(exist_ok=True)
        (saved_model / name).write_text("litter")
    (saved_model / ".link").symlink_to("nowhere")
    version = publish(saved_model, base, blessing=blessing, check=None)
    names = {path.relative_to(version).as_posix() for path in version.rglob("*")}
    assert not [name for name in names if "." in (name[0], name.split("/")[-1][0]) or "MACOSX" in name]
    assert content_fingerprint(version) == content_fingerprint(saved_model)
    (version / ".DS_Store").write_text("litter")
    assert [line.blessing for line in listing(base)] == ["blessed"]
    # Nor is litter in the base a version or in anybody's way.
    (base / ".DS_Store").write_text("litter")
    push("other")
    assert content(rollback(base, check=None)) == "graph"


def test_a_full_disk_leaves_nothing_half(saved_model, base, blessing, monkeypatch, capsys):
    inner, count = os.fsync, 0

    def full(descriptor):
        nonlocal count
        count += 1
        if count == place:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    for place in range(1, 8):
        count = 0
        with pytest.raises(OSError, match="No space left") as raised:
            publish(saved_model, base, blessing=blessing, check=None)
        assert Path(raised.value.filename).is_relative_to(base.parent), place
        assert [path.name for path in base.iterdir()] == [], place


def test_a_full_disk_is_told_with_the_folder_that_is_full(saved_model, base, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("serving.versions.shutil.copyfileobj", full)
    assert main(["publish", str(saved_model), str(base), "--force"]) == 1
    assert capsys.readouterr().err == f"error: cannot use {base}: No space left on device\n"


def test_a_path_is_printed_so_that_no_terminal_obeys_it(saved_model, tmp_path, capsys, monkeypatch):
    base = tmp_path / "a\x1b[31m"
    monkeypatch.setattr(publish_lib, "load_test", lambda *_, **__: None)
    for _ in range(2):
        assert main(["publish", str(saved_model), str(base), "--force"]) == 0
    assert main(["list", str(base)]) == 0
    shutil.rmtree(base / "1")
    assert main(["list", str(base)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\\x1b[31m") == 3
    assert "\x1b" not in printed


def test_a_publisher_that_was_stopped_is_not_waited_for_without_end(push, saved_model, base, blessing, monkeypatch):
    push("a")
    monkeypatch.setattr("serving.versions._LOCK_SECONDS", 0.1)
    held = os.open(base, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another publisher holds it; end that process and try again"):
            publish(saved_model, base, blessing=blessing, check=None)
    finally:
        os.close(held)
    assert publish(saved_model, base, blessing=blessing, check=None) == base / "2"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", "no", '{"blessed": true}', "[" * 100_000,
     '{"published": "2026", "blessed": 1, "forced": false, "fingerprint": "a"}',
     '{"published": "2026", "blessed": true, "forced": false, "fingerprint": "a", "rolled_back_to": true}',
     '{"published": "\\u001b[2J", "blessed": true, "forced": false, "fingerprint": "a"}',
     '{"published": "2026", "blessed": true, "forced": false, "fingerprint": "a", "more": 1}',
     '{"published": "' + "2" * 2**20 + '", "blessed": true, "forced": false, "fingerprint": "a"}'],
)  # fmt: skip
def test_a_publication_that_is_none_blesses_nothing(saved_model, base, text):
    (saved_model / "assets.extra" / "publication.json").write_text(text)
    assert read_publication(saved_model) is None
    with pytest.raises(ValueError, match="is not blessed: there is no record"):
        publish(saved_model, base, check=None)


def test_what_fails_the_check_is_not_published_and_leaves_nothing(push, saved_model, base, blessing):
    push("a")
    seen = []

    def check(copy):
        seen.append((copy.parent, content(copy), read_publication(copy).blessed, numbers(base)))
        raise RuntimeError("cannot be loaded")

    with pytest.raises(RuntimeError, match="cannot be loaded"):
        publish(saved_model, base, blessing=blessing, check=check)
    # What was checked is what would have been served, before it was.
    assert seen == [(base, "graph", True, [1])]
    assert [path.name for path in base.iterdir()] == ["1"]


@pytest.mark.parametrize("where", ["file", "directory", "outside", "dangling", "fifo"])
def test_links_inside_a_saved_model_are_refused(saved_model, base, tmp_path, where, blessing):
    odd = saved_model / "variables" / "odd"
    (tmp_path / "secret").write_text("secret")
    match where:
        case "file":
            odd.symlink_to("variables.index")
        case "directory":
            odd.symlink_to("..", target_is_directory=True)
        case "outside":
            odd.symlink_to(tmp_path / "secret")
        case "dangling":
            odd.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(odd)
    with pytest.raises(ValueError, match=r"variables/odd is a symbolic link or not a plain file") as error:
        publish(saved_model, base, blessing=blessing, check=None)
    one_line(error)
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("name", ["007", "+5", "-1", " 3", "4\n", "00"])
def test_names_that_a_server_would_read_as_numbers_are_refused(saved_model, base, name, blessing):
    (base / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"A model server takes .* for version -?[0-9]+; rename it") as error:
        publish(saved_model, base, blessing=blessing, check=None)
    one_line(error)
    assert [path.name for path in base.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_a_version_that_is_no_directory_is_refused(push, saved_model, base, tmp_path, kind, blessing):
    push("a")
    if kind == "file":
        (base / "5").write_text("")
    else:
        (base / "5").symlink_to(tmp_path if kind == "link" else "nowhere")
    for act in (
        lambda: publish(saved_model, base, blessing=blessing, check=None),
        lambda: rollback(base),
        lambda: versions(base),
    ):
        with pytest.raises(ValueError, match="5 has the name of a version but is a symbolic link or a file"):
            act()
    assert sorted(path.name for path in base.iterdir()) == ["1", "5"]


def test_names_beyond_int64_are_no_versions(push, base):
    """TensorFlow Serving ignores them: one more than that would never be served."""
    (base / str(2**63)).mkdir(parents=True)
    (base / "٣").mkdir()
    assert push("a") == base / "1"
    (base / str(2**63 - 1)).mkdir()
    with pytest.raises(ValueError, match="is the highest possible version"):
        push("b")


def test_a_base_inside_the_model_is_refused(saved_model, blessing):
    for base in (saved_model, saved_model / "base", saved_model / "variables" / ".." / "base"):
        with pytest.raises(ValueError, match="lies inside the SavedModel"):
            publish(saved_model, base, blessing=blessing, check=None)
    assert not (saved_model / "base").exists()


def test_a_link_to_the_base_is_followed_once(saved_model, base, tmp_path, blessing):
    base.mkdir()
    (tmp_path / "link").symlink_to(base)
    assert publish(saved_model, tmp_path / "link", blessing=blessing, check=None) == tmp_path / "link" / "1"
    assert numbers(base) == [1]


def test_what_is_no_saved_model_is_refused(tmp_path, base, blessing):
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "absent", tmp_path / "file", tmp_path):
        with pytest.raises(ValueError, match=r"is not a SavedModel: it has no saved_model\.pb"):
            publish(wrong, base, blessing=blessing, check=None)
    assert not base.exists()


@pytest.mark.parametrize("verb", ["publish", "force", "rollback"])
def test_a_kill_at_any_step_leaves_whole_versions_and_the_next_publisher_cleans_up(tmp_path, verb):
    for name in kill_at_every_step.NAMES:
        saved_models.write(tmp_path / name, name)
    script = kill_at_every_step.__file__
    process = subprocess.run(
        [sys.executable, script, tmp_path, verb], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["kills"] > 100
    # A few steps come behind the rename, most before it.
    assert 0 < result["finished"] < 20


def test_reading_weights_in_a_process_without_tensorflow_writes_no_page():
    code = (
        "from serving.weights import fingerprint_of_saved_model as read\ntry: read('absent')\nexcept ValueError: pass"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")


PUBLISHER = """
import sys
from pathlib import Path
from serving.publish import publish
model, base, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
def check(copy):
    print("checking", copy.name, flush=True)
    sys.stdin.readline()
for _ in range(times):
    print(publish(model, base, force=True, check=check if sys.argv[4] == "wait" else None).name, flush=True)
"""


def publisher(model, base, times=1, wait=False):
    """By force, so that it needs no TensorFlow to look at weights."""
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, model, base, str(times), "wait" if wait else "go"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_publishers_at_once_all_succeed_and_what_is_seen_is_whole(tmp_path, base):
    models = {name: saved_models.write(tmp_path / name, name) for name in ("a", "b", "c", "d")}
    processes = {name: publisher(model, base, times=10) for name, model in models.items()}
    while any(process.poll() is None for process in processes.values()):
        for version in versions(base):
            assert content(version) in models
            assert read_publication(version).fingerprint == content_fingerprint(version)
    published = {name: process.communicate()[0].split() for name, process in processes.items()}
    for name, mine in published.items():
        assert [content(base / number) for number in mine] == [name] * 10
    assert {path.name for path in base.iterdir()} == {number for mine in published.values() for number in mine}
    last = len(versions(base))
    assert numbers(base) == list(range(1, last + 1))
    # Only what was not the last one was published.
    assert all(content(base / str(number)) != content(base / str(number + 1)) for number in range(1, last))


def test_a_living_publisher_is_left_alone_and_a_killed_one_cleaned_up(saved_model, push, base):
    living, killed = (publisher(saved_model, base, wait=True) for _ in range(2))
    beside = {process: process.stdout.readline().split()[1] for process in (living, killed)}
    killed.kill()
    killed.communicate()
    assert {path.name for path in base.iterdir()} == set(beside.values())
    assert push("a") == base / "1"
    assert {path.name for path in base.iterdir()} == {"1", beside[living]}
    assert living.communicate("go on\n")[0] == "2\n"
    assert living.returncode == 0
    assert {path.name for path in base.iterdir()} == {"1", "2"}
    assert content(base / "2") == "graph"


def test_a_rollback_is_a_new_version_of_the_old_model(push, base):
    for name in ("a", "b", "c"):
        push(name)
    assert rollback(base, check=None) == base / "4"
    assert [content(version) for version in versions(base)] == ["a", "b", "c", "b"]
    assert read_publication(base / "4").rolled_back_to == 2
    assert read_publication(base / "4").blessed
    # Again: further back, not forth to the bad one.
    rollback(base, check=None)
    assert [content(version) for version in versions(base)] == ["a", "b", "c", "b", "a"]
    with pytest.raises(ValueError, match="no model older than version 1; name a version with --to"):
        rollback(base, check=None)
    # And any of them can be had back.
    assert rollback(base, 3, check=None) == base / "6"
    assert content(base / "6") == "c"
    assert read_publication(base / "6").rolled_back_to == 3


def test_a_rollback_passes_over_the_same_model(push, base):
    for name in ("a", "b"):
        push(name)
    shutil.copytree(base / "2", base / "3")
    (base / "2" / "saved_model.pb").touch()
    assert content(rollback(base, check=None)) == "a"


def test_a_rollback_keeps_what_was_forced_forced(push, saved_model, base):
    forced = publish(saved_model, base, force=True, check=None)
    push("b")
    version = rollback(base, check=None)
    publication = read_publication(version)
    assert (publication.blessed, publication.forced, publication.rolled_back_to) == (False, True, 1)
    assert card.read(version) == card.read(forced)
    assert card.read(version)["forced"] is True
    assert [line.blessing for line in listing(base)] == ["forced", "blessed", "forced"]


def test_a_rollback_passes_over_the_same_model_that_was_forced(push, saved_model, base, blessing):
    """They differ in what their cards say of the publication, and would serve the same."""
    push("a")
    publish(saved_model, base, force=True, check=None)
    publish(saved_model, base, blessing=blessing, check=None)
    assert content_fingerprint(base / "2") != content_fingerprint(base / "3")
    with pytest.raises(ValueError, match="is already the same as version 2"):
        rollback(base, 2, check=None)
    assert content(rollback(base, check=None)) == "a"


def test_a_rollback_to_nothing_is_told_in_one_line(push, base):
    for to, message in ((None, "no version in"), (1, "no version in")):
        with pytest.raises(ValueError, match=message):
            rollback(base, to, check=None)
    push("a")
    push("b")
    for to, message in ((3, "There are: 1, 2"), (2, "is already the same as version 2"), (-1, "There are: 1, 2")):
        with pytest.raises(ValueError, match=message) as error:
            rollback(base, to, check=None)
        one_line(error)
    (base / "1" / "saved_model.pb").write_text("evil")
    with pytest.raises(ValueError, match=r"1 is damaged: .*'saved_model\.pb' was changed"):
        rollback(base, 1, check=None)
    assert numbers(base) == [1, 2]


def test_a_version_from_before_records_can_be_rolled_back_to(push, base):
    saved_models.write(base / "1", "old")
    push("new")
    version = rollback(base, check=None)
    assert content(version) == "old"
    assert not read_publication(version).blessed
    assert [line.blessing for line in listing(base)] == ["unblessed", "blessed", "unblessed"]


def test_the_listing(push, saved_model, base, tmp_path, capsys):
    measured = saved_models.write_blessing(tmp_path / "measured.json", "a", acr=0.49825, n=10_000)
    publish(saved_models.write(tmp_path / "a", "a"), base, blessing=measured, check=None)
    shutil.copytree(saved_model, base / "2")
    (base / "2" / "assets.extra" / "model_card.json").unlink()
    publish(saved_model, base, force=True, check=None)
    rollback(base, 1, check=None)
    assert main(["list", str(base)]) == 0
    lines = capsys.readouterr().out.splitlines()
    date = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
    a, graph = (weights_fingerprint([saved_models.weights(name)])[:12] for name in ("a", "graph"))
    of_card, acr = r"0\.25 +1,000 +0\.001", r"0\.498 \(n=10,000\)"
    assert lines[0].split() == ["version", "published", "sigma", "n", "alpha", "ACR", "fingerprint"]
    assert re.fullmatch(rf" +1  {date} +blessed +{of_card} +{acr}  {a}", lines[1])
    # Without a card, the fingerprint of its files.
    assert re.fullmatch(rf" +2  {date} +unblessed( +-){{4}}  {content_fingerprint(base / '2')[:12]}", lines[2])
    assert re.fullmatch(rf" +3  {date} +forced +{of_card} +-  {graph}", lines[3])
    assert re.fullmatch(rf" +4  {date}  served  blessed +{of_card} +{acr}  {a}  rolled back to 1", lines[4])
    assert len({line.index(line.split()[-1]) for line in lines[:4]}) == 1  # columns
    assert lines[5] == (
        "sigma, n, alpha: of the certificates that a version answers with. ACR: measured by the Evaluator, at its n."
    )
    assert len(lines) == 6
    first = listing(base)[0]
    assert (first.sigma, first.n, first.alpha, first.acr, first.acr_n) == (0.25, 1000, 0.001, 0.49825, 10_000)


@pytest.mark.parametrize("acr", [-0.1, "0.5", None, True, 1e400, [0.5]])
def test_an_acr_that_is_none_is_no_blessing(saved_model, base, tmp_path, acr):
    odd = saved_models.write_blessing(tmp_path / "odd.json", acr=acr)
    with pytest.raises(ValueError, match=r"is not blessed: acr in .*odd\.json must be a number from 0\. Received: "):
        publish(saved_model, base, blessing=odd, check=None)


@pytest.mark.parametrize("fingerprint", ["\x1b[2J" + "a" * 60, "A" * 64, 5, None, "a" * 65])
def test_a_foreign_cards_fingerprint_is_not_printed(saved_model, base, fingerprint):
    shutil.copytree(saved_model, base / "1")
    path = base / "1" / "assets.extra" / "model_card.json"
    path.write_text(json.dumps({**card.read(saved_model), "fingerprint": fingerprint}))
    assert [line.fingerprint for line in listing(base)] == [content_fingerprint(base / "1")]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "the following arguments are required: verb; see python -m serving.publish --help"),
        (["serve"], 2, "invalid choice: 'serve'"),
        (["publish", "MODEL"], 2, "the following arguments are required: base"),
        (["publish", "MODEL", "BASE"], 2, "is not blessed: there is no record that the Evaluator blessed it; give its"),
        (["publish", "MODEL", "BASE", "--blessing", "absent.json"], 2, "cannot read "),
        (["publish", "MODEL", "BASE", "--blessing", "BASE"], 2, "(Is a directory)"),
        (["publish", "MODEL", "BASE", "--blessing", ""], 2, "--blessing must not be empty. Received: ''"),
        (["publish", "MODEL", "BASE", "--blessing", "MODEL/saved_model.pb"], 2, "saved_model.pb is not JSON: "),
        (["publish", "absent", "BASE"], 2, "is not a SavedModel"),
        (["publish", "MODEL/variables", "BASE", "--force"], 2, "is not a SavedModel"),
        (["publish", "MODEL", "BASE", "--forc"], 2, "unrecognized arguments: --forc; see python"),
        (["publish", "MODEL", "BASE", "--force", "--force"], 2, "--force is given twice; give it once; see python"),
        (["publish", "MODEL", "BASE", "--blessing", "a", "--blessing=b"], 2, "--blessing is given twice; give it"),
        (["rollback", "BASE", "--to", "1", "--to", "1"], 2, "--to is given twice; give it once; see python -m"),
        (["rollback", "BASE"], 2, "There is no version"),
        (["rollback", "BASE", "--to", "../1"], 2, "argument --to: must be the number of a version. Received: '../1'"),
        (["rollback", "BASE", "--to", "/etc"], 2, "must be the number of a version"),
        (["rollback", "BASE", "--to", "²"], 2, "must be the number of a version"),
        (["list", "MODEL/saved_model.pb"], 1, "Not a directory"),
        (["list", "absent"], 2, "There is no folder absent."),
        (
            ["publish", "MODEL", "gs://bucket/m", "--force"],
            2,
            "Expected a path on this machine, not a URL. Received: gs",
        ),
        (["rollback", "s3://bucket/m"], 2, "Expected a path on this machine, not a URL."),
        (["publish", "MODEL", "/dev/null/base", "--force"], 1, "/dev/null/base: Not a directory"),
    ],
)
def test_errors_are_one_line_and_a_status(saved_model, base, capsys, arguments, status, message):
    base.mkdir()
    arguments = [text.replace("MODEL", str(saved_model)).replace("BASE", str(base)) for text in arguments]
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(base.iterdir()) == []


def test_ctrl_c_publishes_nothing_and_leaves_nothing(push, saved_model, base, monkeypatch, capsys):
    push("a")

    def interrupted(path):
        raise KeyboardInterrupt

    # Publishing gets as far as the fingerprint of the copy.
    monkeypatch.setattr(publish_lib, "content_fingerprint", interrupted)
    assert main(["publish", str(saved_model), str(base), "--force"]) == 130
    assert "Interrupted" in capsys.readouterr().err
    assert [path.name for path in base.iterdir()] == ["1"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from macer_tf import networks
    from macer_tf.model import MACERModel
    from serving.export import export

    directory = tmp_path_factory.mktemp("exported") / "saved_model"
    model = MACERModel(networks.small_cnn(), sigma=0.25, seed=0)
    export(model, directory, n0=10, n=50, alpha=0.01, model_fingerprint=saved_models.model("trained"))
    return directory


@pytest.mark.slow
def test_the_command_line_loads_what_it_publishes_in_a_fresh_process(exported, base, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Wherever it is called from.
    assert main(["publish", str(exported), "base", "--force"]) == 0
    assert capsys.readouterr().out == "Published base/1, forced: it is not blessed.\n"
    saved_models.write_blessing(tmp_path / "blessing.json", "trained", weights=card.read(exported)["fingerprint"])
    assert main(["publish", str(exported), "base", "--blessing", "blessing.json"]) == 0
    assert capsys.readouterr().out == "Published base/2.\n"
    assert main(["publish", str(exported), "base", "--force"]) == 0
    assert capsys.readouterr().out == "base/2 is already this very model; nothing was published.\n"
    assert [line.blessing for line in listing(base)] == ["forced", "blessed"]


@pytest.mark.slow
def test_the_command_line_does_not_publish_what_cannot_be_loaded(exported, base, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(exported, damaged)
    (damaged / "variables" / "variables.index").unlink()
    assert main(["publish", str(damaged), str(base), "--force"]) == 2
    assert "is damaged: its files are not those that were exported" in capsys.readouterr().err
    manifest.write(damaged)
    assert main(["publish", str(damaged), str(base), "--force"]) == 1
    printed = capsys.readouterr().err
    assert re.fullmatch(r"error: Not published, since it failed in a fresh process: .*Error.*\n", printed)
    assert list(base.iterdir()) == []
