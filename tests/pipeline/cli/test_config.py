"""Files of settings are what the command line is, whoever wrote them, and a mistake in one is one line."""

import json
import re

import pytest

from pipeline.cli import config
from pipeline.experiments import presets
from pipeline.experiments import settings as settings_lib
from pipeline.jobs import sweep as sweep_lib
from pipeline.utils.errors import InputError

FLAGS = {
    "dataset": "mnist", "sigma": "0.5", "epochs": "500", "flip": "yes", "lr_drop_epochs": "100,300",
    "clip_norm": "none", "n": "1e5", "certify": "all", "soft_betas": "1,4", "unlabelled": "no", "l2": "1e-4",
}  # fmt: skip
AS_YAML = """\
# Mine.
dataset: mnist
sigma: .5e0
epochs: 500   # passes
flip: yes
lr_drop_epochs: [100, 300]
clip_norm: ~
n: 1e5
certify: "all"
soft_betas:
  - 1
  - 4
unlabelled: false
l2: 1e-4
"""
AS_JSON = {
    "dataset": "mnist", "sigma": 0.5, "epochs": 500, "flip": True, "lr_drop_epochs": [100, 300], "clip_norm": None,
    "n": 100000, "certify": "all", "soft_betas": [1, 4], "unlabelled": False, "l2": 1e-4,
}  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """A function: text -> path of a file of settings."""

    def write(text, name="settings.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def parse(*arguments):
    arguments = [str(argument) for argument in arguments]
    expanded = config.expand(arguments, settings_lib.known)
    with config.named(arguments, expanded):
        return settings_lib.parse(expanded)


def without_config(parsed):
    settings, preset = parsed
    return {**settings, "config": None}, preset


@pytest.mark.parametrize(
    "text",
    [AS_YAML, json.dumps(AS_JSON), json.dumps(AS_JSON, indent="\t"), str(AS_YAML).replace("\n", "\r\n"),
     "".join(f"{name}: {text}\n" for name, text in FLAGS.items()),
     "".join(f"'{name}': '{text}'\n" for name, text in FLAGS.items())],
    ids=["yaml", "json", "json with tabs", "of Windows", "as the flags", "quoted"],
)  # fmt: skip
def test_a_file_is_the_command_line_in_other_words(written, text):
    expected = settings_lib.parse([f"--{name}={value}" for name, value in FLAGS.items()])
    assert without_config(parse("--config", written(text))) == expected
    assert without_config(parse(f"--config={written(text, 'other')}")) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_may_be_in_an_encoding_of_windows(tmp_path, encoding):
    path = tmp_path / "of Windows.json"
    path.write_text(json.dumps(AS_JSON, indent="\t"), encoding=encoding)
    assert without_config(parse("--config", path)) == without_config(parse(*(f"--{n}={v}" for n, v in FLAGS.items())))


def test_flags_win_wherever_they_stand(written):
    path = written("dataset: mnist\nepochs: 500\nn: 500\n")
    for arguments in (["--config", path, "--epochs", "600"], ["--epochs=600", "--config", path]):
        settings, _ = parse(*arguments)
        assert (settings["epochs"], settings["n"], settings["dataset"]) == (600, 500, "mnist")


def test_numbers_are_as_they_are_written(written):
    """YAML's own rules make 8 of 010, 750 of 12:30, and a float with other digits of a long one."""
    settings, _ = parse("--config", written("dataset: mnist\nseed: 010\nsigma: 0.1000000000000000055511\n"))
    assert (settings["seed"], settings["sigma"]) == (10, 0.1)
    with pytest.raises(InputError, match=r"epochs must be a whole number from 1 to 1000000\. Received: 12:30"):
        parse("--config", written("dataset: mnist\nepochs: 12:30\n"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("dataset: mnist\nepoch: 5\n", "unknown setting epoch. Did you mean epochs"),
        ("dataset: mnist\nlr: 5\n", "unknown setting lr. Did you mean learning_rate?"),
        ("dataset: mnist\nbatch-size: 5\n", "unknown setting batch-size. Did you mean batch_size"),
        ("dataset: mnist\n--epochs: 5\n", "unknown setting --epochs. Did you mean epochs"),
        ("dataset: mnist\nxyzzy: 5\n", "unknown setting xyzzy. --help lists them."),
        ("dataset: mnist\nepochs: many\n", "epochs must be a whole number from 1 to 1000000. Received: many"),
        ("dataset: mnist\nepochs: 0\n", "epochs must be a whole number from 1 to 1000000. Received: 0"),
        (
            "dataset: mnist\nepochs: {a: 1}\n",
            "epochs must be a whole number from 1 to 1000000; write one `name: value` per line",
        ),
        ("dataset: mnist\nepochs: [[1]]\n", "epochs must be a whole number from 1 to 1000000; write"),
        ('{"dataset": "mnist", "epochs": {"a": 1}}', "epochs must be a whole number from 1 to 1000000"),
        ("dataset: mnist\nepochs: 5\nepochs: 6\n", "epochs is given twice."),
        ('{"dataset": "mnist", "epochs": 5, "epochs": 6}', "epochs is given twice."),
        ("dataset: mnist\njson: yes\n", "json is for the command line, not for a file."),
        ("config: other.yaml\n", "config is for the command line, not for a file."),
        ("dataset: mnist\nepochs: 5: 6\n", "is neither YAML nor JSON (line 2: mapping values are not allowed here)."),
        ("dataset: mnist\n\tepochs: 5\n", "is neither YAML nor JSON (line "),
        ('{"dataset": "mnist"\n "epochs": 5}', "is neither YAML nor JSON (line 2"),
        ("mnist\n", "must hold settings: one `name: value` per line, such as `epochs: 30`."),
        ("[1, 2]", "must hold settings"),
        ("? [a, b]\n: 5\n", "must hold settings"),
        ("a: 1\n---\nb: 2\n", "is neither YAML nor JSON (line 2: expected a single document in the stream, but found"),
        ('dataset: mnist\n"": 5\n', "unknown setting ''. --help lists them."),
        ("dataset: !!python/object/apply:os.system [id]\n", "dataset must be text; write"),
        ("dataset: mnist\nattack: pgd\n", "settings.yaml: attack is not a setting of the method macer"),
        ("a: &a [*a]\n", "unknown setting a."),
        ("\x00", "is neither YAML nor JSON"),
    ],
)
def test_a_mistake_is_one_line(written, text, line):
    path = written(text)
    with pytest.raises(InputError, match=re.escape(line)) as error:
        parse("--config", path)
    told = str(error.value)
    assert "\n" not in told
    assert path in told


def test_a_flag_that_does_not_go_with_a_file_names_whichever_is_to_be_changed(written):
    path = written("dataset: digits\nentropy: 0\n")
    with pytest.raises(InputError, match=f"^{re.escape(path)}: entropy is not a setting of the method smoothadv"):
        parse("--config", path, "--method", "smoothadv", "--dataset", "digits")
    with pytest.raises(InputError, match=r"^--epsilon is not a setting of the method macer"):
        parse("--config", path, "--epsilon", "1")


def test_a_file_that_is_not_there_or_no_text_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read --config .*nowhere\.yaml \(.*No such file"):
        parse("--config", tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="Cannot read --config"):
        parse("--config", tmp_path)
    (tmp_path / "bytes").write_bytes("# grün\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"^--config .*bytes is not text; save it in UTF-8\.$"):
        parse("--config", tmp_path / "bytes")


@pytest.mark.parametrize(
    "text",
    ["epochs: 1" + "# more\n" * 2**18, "#" * 2**20 + "\nepochs: 1", "epochs: 1" + "9" * 2**20],
    ids=["lines", "a line before", "digits"],
)
def test_a_file_that_is_too_large_is_not_cut(written, text):
    with pytest.raises(InputError, match=r"Cannot read --config .* is larger than 1 MiB") as told:
        parse("--config", written(text))
    assert "\n" not in str(told.value)


def test_an_empty_file_says_nothing(written):
    assert without_config(parse("--config", written(""), "--dataset", "digits")) == settings_lib.parse(
        ["--dataset", "digits"]
    )


@pytest.mark.parametrize("preset", [preset.name for preset in presets.PRESETS])
def test_what_is_written_of_a_run_gives_it_back(written, preset):
    drops = ["--lr_schedule=step", "--lr_drop_epochs=1,2"]
    for changes in ([], [*drops, "--clip_norm=none", "--min_accuracy=0.3", "--certify=all", "--pipeline_root=a b"]):
        settings, found = settings_lib.parse([f"--preset={preset}", *changes])
        path = written(config.dumps("python -m pipeline.run", settings_lib.written(settings)))
        assert without_config(parse("--config", path)) == (settings, found)


def test_what_is_written_of_a_run_on_images_of_ones_own_gives_it_back(written):
    flags = ["--train_images=a b", "--test_images=c.npz", "--sigma=0.5", "--push_dir=served"]
    expected = settings_lib.parse(flags)
    path = written(config.dumps("python -m pipeline.run", settings_lib.written(expected[0])))
    assert without_config(parse("--config", path)) == expected


@pytest.mark.parametrize(
    "text",
    ["a b", "yes", "null", "~", "'", '"', "a: b", "#", "- a", "1:30", "", " ", "\u00e9\u4e2d", "a,b", "[a]", "*a"],
)
def test_any_text_is_given_back(written, text):
    path = written(config.dumps("program", {"network": text, "test_images": "b", "push_dir": text or "c"}))
    expanded = config.expand(["--config", path], settings_lib.known)
    assert expanded[:3] == [f"--network={text}", "--test_images=b", f"--push_dir={text or 'c'}"]


def test_a_sweep_over_the_settings_of_a_run_takes_the_swept_one_from_the_flag(written):
    settings, _ = settings_lib.parse(["--dataset", "digits", "--epochs", "3"])
    path = written(config.dumps("python -m pipeline.run", settings_lib.written(settings)))
    arguments = config.expand(["--config", path, "--sweep", "lam=0,1"], settings_lib.known)
    sweep = sweep_lib.parse(arguments)
    assert [member.settings["lam"] for member in sweep.members] == [0, 1]
    assert {member.settings["epochs"] for member in sweep.members} == {3}


def test_beams_own_options_may_stand_in_a_file_that_names_a_runner(written):
    arguments = ["--dataset", "digits", "--config", written("runner: FlinkRunner\nflink_master: localhost:8081\n")]
    assert parse(*arguments)[0]["beam"] == ("--runner=FlinkRunner", "--flink_master=localhost:8081")
