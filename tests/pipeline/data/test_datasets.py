"""Data sets arrive whole, in order and in range, or one line says what to do. No test uses a network."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import datasets
from pipeline.utils.errors import InputError

# TFDS 4.9.10 reads a field that protobuf 6.31 deprecates; nothing here can change that.
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = REPOSITORY.parent / "shared"
REAL = SHARED / "tfds"


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"NOT TESTED ON REAL DATA: no {name} in {REAL}")
    return REAL


def refused(*args, **kwargs):
    """The one line that load() refuses these arguments with."""
    with pytest.raises(InputError) as refusal:
        datasets.load(*args, **kwargs)
    message = str(refusal.value)
    assert "\n" not in message
    return message


@pytest.fixture
def no_network(monkeypatch):
    """Every request fails at once, as it does without a network; the URLs asked for are kept."""
    import requests

    asked = []

    def refuse(url, **_):
        asked.append(url)
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", refuse)
    return asked


def prepare(data_dir, name="tiny", *, image=None, label=None, splits=None, **more):
    """Prepares a small TFDS data set that TFDS has no code for. Returns its version directory."""
    import tensorflow_datasets as tfds

    features = {
        "image": image or tfds.features.Image(shape=(4, 6, 3), encoding_format="png"),
        "label": label or tfds.features.ClassLabel(names=["cat", "dog", "emu"]),
        **more,
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        data_dir=data_dir,
        features=tfds.features.FeaturesDict({key: value for key, value in features.items() if value != "none"}),
        split_datasets={
            split: list(enumerate(rows))
            for split, rows in (splits or {"train": examples(9), "test": examples(3, first=9)}).items()
        },
        disable_shuffling=True,
    )
    return Path(data_dir) / name / "1.0.0"


def examples(count, first=0, shape=(4, 6, 3)):
    return [{"image": np.full(shape, i, np.uint8), "label": i % 3} for i in range(first, first + count)]


# Real data


def test_digits():
    digits = datasets.load("digits")
    assert digits.train.images.shape == (1437, 8, 8, 1)
    assert digits.test.images.shape == (360, 8, 8, 1)
    for split in (digits.train, digits.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
    # scikit-learn's order: the set opens with 0 1 2 ... 9 and closes with ... 8 9 8.
    assert digits.train.labels[:10].tolist() == list(range(10))
    assert digits.test.labels[-3:].tolist() == [8, 9, 8]
    assert digits.train.images.max() == digits.pixel_max == 16
    assert digits.num_classes == len(digits.class_names) == 10
    assert digits.test.description == "the last 360 of scikit-learn's digits"


def test_digits_do_not_wait_for_tensorflow():
    code = "import sys; from pipeline.data import datasets as d; d.load('digits'); print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_digits_have_no_other_splits():
    assert "Received: train_split=test" in refused("digits", train_split="test")


def test_mnist():
    mnist = datasets.load("mnist", real("mnist"))
    assert mnist.train.images.shape == (60000, 28, 28, 1)
    assert mnist.test.images.shape == (10000, 28, 28, 1)
    # Known of MNIST: its histograms, and the mean and deviation that everybody normalises with.
    assert np.bincount(mnist.train.labels).tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert np.bincount(mnist.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train.images.mean() / mnist.pixel_max == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train.images.std() / mnist.pixel_max == pytest.approx(0.3081, abs=5e-5)
    assert mnist.test.description == "test split of mnist 3.0.1 (10,000 images)"


def test_cifar10_is_in_the_published_order():
    cifar10 = datasets.load("cifar10", real("cifar10"))
    assert np.bincount(cifar10.train.labels).tolist() == [5000] * 10
    assert np.bincount(cifar10.test.labels).tolist() == [1000] * 10
    assert cifar10.class_names[:3] == ("airplane", "automobile", "bird")
    means = cifar10.train.images.mean(axis=(0, 1, 2), dtype=np.float64) / cifar10.pixel_max
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    logs = sorted(SHARED.glob("published_logs/macer-cifar10-*.tsv"))
    if not logs:
        pytest.skip("ORDER NOT TESTED: no published logs")
    index, label = np.loadtxt(logs[0], skiprows=1, usecols=(0, 1), dtype=int, unpack=True)
    assert len(index) > 9000
    assert np.array_equal(cifar10.test.labels[index], label)


def test_partial_svhn_which_tfds_does_not_know():
    data_dir = real("svhn_cropped_partial")
    svhn = datasets.load("svhn_cropped_partial", data_dir, test_split="holdout")
    assert svhn.train.images.shape == (900, 32, 32, 3)
    assert svhn.test.images.shape == (183, 32, 32, 3)
    assert svhn.test.description == "holdout split of svhn_cropped_partial 3.1.0 (183 images)"
    # SVHN's published training images open with the house numbers 19, 23, 25, 93, 31, 33, 28.
    assert svhn.train.labels[:14].tolist() == [1, 9, 2, 3, 2, 5, 9, 3, 3, 1, 3, 3, 2, 8]
    # It has no official test split, and none is made up.
    message = refused("svhn_cropped_partial", data_dir)
    assert "no split 'test'" in message
    assert "train, holdout" in message


# Prepared data


@pytest.mark.parametrize("digested", [2**28, 0], ids=["by content", "by size and time"])
def test_the_fingerprint_is_of_what_would_be_read(tmp_path, monkeypatch, digested):
    """Two folders of one relative name, data that are prepared anew, and a newer version beside."""
    monkeypatch.setattr(datasets.fingerprints, "SOON_DIGESTED_BYTES", digested)
    assert datasets.fingerprint("tiny", tmp_path / "data") is None
    found = []
    for place, first in (("one", 0), ("two", 3)):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        directory = prepare("data", splits={"train": examples(3, first), "test": examples(3)})
        found += [datasets.fingerprint("tiny", "data")]
        assert datasets.fingerprint("tiny", tmp_path / place / "data") == found[-1]
    shutil.copytree(directory, directory.with_name("1.10.0"))
    (tmp_path / "two" / "data" / "tiny" / "1.10.0" / "features.json").write_text("{}")
    found += [datasets.fingerprint("tiny", "data")]
    assert len(set(found)) == 3


def test_prepared_data_without_code_needs_no_network(tmp_path, no_network):
    prepare(tmp_path)
    tiny = datasets.load("tiny", tmp_path)
    assert tiny.train.images[:, 0, 0, 0].tolist() == list(range(9))
    assert tiny.test.images.shape == (3, 4, 6, 3)
    assert tiny.train.labels.tolist() == [0, 1, 2] * 3
    assert (tiny.name, tiny.pixel_max, tiny.num_classes) == ("tiny", 255, 3)
    assert tiny.class_names == ("cat", "dog", "emu")
    assert tiny.train.description == "train split of tiny 1.0.0 (9 images)"
    assert no_network == []


def test_the_newest_version_is_taken(tmp_path):
    old = prepare(tmp_path)
    new = old.with_name("1.10.0")
    shutil.copytree(old, new)
    info = json.loads((new / "dataset_info.json").read_text())
    (new / "dataset_info.json").write_text(json.dumps({**info, "version": "1.10.0"}))
    (old.with_name("1.9.0")).mkdir()
    assert datasets.load("tiny", tmp_path).train.description == "train split of tiny 1.10.0 (9 images)"


def test_builders_with_configs(tmp_path):
    directory = prepare(tmp_path)
    for config in ("small", "large"):
        shutil.copytree(directory, tmp_path / "zoo" / config / "1.0.0")
    (directory.parent / "1.0.0" / "features.json").unlink()
    assert len(datasets.load("zoo/small", tmp_path).train.labels) == 9
    assert "Unknown dataset 'zoo'" in refused("zoo", tmp_path)
    (tmp_path / "zoo" / ".config").mkdir()
    (tmp_path / "zoo" / ".config" / "metadata.json").write_text('{"default_config_name": "large"}')
    assert len(datasets.load("zoo", tmp_path).train.labels) == 9
    (tmp_path / "zoo" / ".config" / "metadata.json").write_text("{}")
    assert f"cannot look into {tmp_path / 'zoo'}" in refused("zoo", tmp_path)


@pytest.mark.parametrize("features", [("id",), ("file_name",), ("id", "file_name"), ("id", "image/file_name")])
def test_images_are_called_as_the_data_set_calls_them(tmp_path, features):
    """By the file's name, or else by the id; the order of this data set's ids is no order of files."""
    import tensorflow_datasets as tfds

    rows = [row | {name: f"{name} {9 - i}\u00e9" for name in features} for i, row in enumerate(examples(4))]
    prepare(tmp_path, splits={"train": rows, "test": rows[:2]}, **{name: tfds.features.Text() for name in features})
    split, *_ = datasets.load_split("tiny", tmp_path, "train")
    assert split.names == tuple(f"{features[-1]} {9 - i}\u00e9" for i in range(4))
    assert split.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert datasets.load("tiny", tmp_path).test.names == split.names[:2]


def test_what_is_no_text_is_no_name(tmp_path):
    rows = [row | {"id": i} for i, row in enumerate(examples(4))]
    prepare(tmp_path, splits={"train": rows, "test": rows}, id=np.int64)
    assert datasets.load("tiny", tmp_path).test.names is None


def test_slices_are_splits(tmp_path):
    prepare(tmp_path)
    tiny = datasets.load("tiny", tmp_path, train_split="train[:6]", test_split="train[6:]")
    assert tiny.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert tiny.test.images[:, 0, 0, 0].tolist() == [6, 7, 8]
    assert tiny.test.description == "train[6:] split of tiny 1.0.0 (3 images)"


@pytest.mark.parametrize("test_split", ["train", "train[5:7]", "test+train[:1]"])
def test_test_images_are_never_trained_on(tmp_path, test_split):
    prepare(tmp_path)
    assert "share images" in refused("tiny", tmp_path, train_split="train[:6]", test_split=test_split)


def test_missing_split(tmp_path):
    prepare(tmp_path)
    message = refused("tiny", tmp_path, train_split="training")
    assert message.startswith("tiny has no split 'training' for train_split. Accepted: train, test")


def test_empty_split(tmp_path):
    prepare(tmp_path)
    assert "split 'test[3:]' is empty" in refused("tiny", tmp_path, test_split="test[3:]")


def test_truncated_file(tmp_path):
    directory = prepare(tmp_path)
    file = next(directory.glob("*train*"))
    file.write_bytes(file.read_bytes()[:-7])
    message = refused("tiny", tmp_path)
    assert "split 'train'" in message
    assert "cannot be read (DataLossError: truncated record" in message


def test_file_cut_between_two_records(tmp_path):
    """A valid file of too few records: only counting tells. A record: length (8), crc (4), data, crc (4)."""
    directory = prepare(tmp_path)
    file = next(directory.glob("*train*"))
    content = file.read_bytes()
    first = 16 + int.from_bytes(content[:8], "little")
    file.write_bytes(content[first:])
    message = refused("tiny", tmp_path)
    assert "split 'train'" in message
    assert "holds 8 examples where its description says 9" in message


def test_description_that_counts_too_few(tmp_path):
    directory = prepare(tmp_path)
    info = json.loads((directory / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["shardLengths"] = ["2"]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    assert "holds at least 9 examples where its description says 2" in refused("tiny", tmp_path)


def test_description_that_counts_more_than_any_memory_holds(tmp_path):
    directory = prepare(tmp_path)
    info = json.loads((directory / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["shardLengths"] = [str(10**15)]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    assert "take 72000000.0 GB, too much for memory" in refused("tiny", tmp_path)


def test_names_in_a_description_command_no_terminal(tmp_path):
    directory = prepare(tmp_path)
    (directory / "label.labels.txt").write_text("cat\x1b[2J\ndog\u202e\nemu")
    assert datasets.load("tiny", tmp_path).class_names == (r"cat\x1b[2J", r"dog\u202e", "emu")


def test_hidden_folders_are_no_data_sets(tmp_path):
    directory = prepare(tmp_path)
    shutil.copytree(directory, tmp_path / ".trash" / "1.0.0")
    assert f"what is prepared in {tmp_path}: tiny" in refused("tyni", tmp_path)
    assert ".trash" not in refused("tyni", tmp_path)


def test_unreadable_description(tmp_path):
    directory = prepare(tmp_path)
    (directory / "dataset_info.json").write_text("{")
    assert f"cannot read the description of the data in {directory}" in refused("tiny", tmp_path)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_unfinished_directory_is_not_taken_as_prepared(tmp_path, file):
    directory = prepare(tmp_path)
    (directory / file).unlink()
    message = refused("tiny", tmp_path)
    assert f"{directory} was not finished: it has no {file}" in message


def test_unfinished_directory_of_a_known_builder_is_not_taken_as_prepared(tmp_path, no_network):
    """TFDS itself would: download_and_prepare() reuses any directory that exists."""
    (tmp_path / "svhn_cropped" / "3.1.0").mkdir(parents=True)
    assert "was not finished" in refused("svhn", tmp_path)
    assert no_network == []


def test_directory_tfds_was_killed_in_is_not_taken_as_prepared(tmp_path):
    directory = prepare(tmp_path)
    directory.rename(directory.with_name("incomplete.ABCDEF_1.0.0"))
    assert "Unknown dataset 'tiny'" in refused("tiny", tmp_path)


def test_missing_file(tmp_path):
    directory = prepare(tmp_path)
    file = next(directory.glob("*test*"))
    file.unlink()
    assert f"{file} is missing (1 of 1 files of split 'test')" in refused("tiny", tmp_path)


def test_data_dir_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert f"Received the file {file}" in refused("tiny", file)


# Only image classification


def test_labels_out_of_range(tmp_path):
    directory = prepare(tmp_path)
    features = (directory / "features.json").read_text()
    (directory / "features.json").write_text(features.replace('"numClasses": "3"', '"numClasses": "2"'))
    (directory / "label.labels.txt").write_text("cat\ndog")
    message = refused("tiny", tmp_path)
    assert "labels outside 0..1: 3 of 9, the first is 2 (image 2)" in message


def test_no_label(tmp_path):
    import tensorflow_datasets as tfds

    rows = [{"image": np.zeros((4, 6, 3), np.uint8), "caption": "a cat"}]
    prepare(tmp_path, label="none", caption=tfds.features.Text(), splits={"train": rows, "test": rows})
    message = refused("tiny", tmp_path)
    assert message.startswith("tiny is not an image-classification data set")
    assert message.endswith("Received: caption (Text), image (Image)")


def test_label_that_is_no_class(tmp_path):
    import tensorflow_datasets as tfds

    prepare(tmp_path, label=tfds.features.Scalar(dtype=np.int64))
    assert "label (Scalar)" in refused("tiny", tmp_path)


def test_images_of_16_bits(tmp_path):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(4, 6, 1), dtype=np.uint16, encoding_format="png")
    rows = [{"image": np.zeros((4, 6, 1), np.uint16), "label": 0}]
    prepare(tmp_path, image=image, splits={"train": rows, "test": rows})
    assert "images must be uint8. Received: " in refused("tiny", tmp_path)


def test_images_of_4_channels(tmp_path):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(4, 6, 4), encoding_format="png")
    rows = examples(1, shape=(4, 6, 4))
    prepare(tmp_path, image=image, splits={"train": rows, "test": rows})
    assert "1 or 3 channels. Received: 4" in refused("tiny", tmp_path)


# Shapes


def prepare_two_shapes(tmp_path):
    import tensorflow_datasets as tfds

    rows = examples(2, shape=(8, 12, 3)) + examples(1, first=2, shape=(20, 10, 3))
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    return prepare(tmp_path, image=image, splits={"train": rows, "test": examples(1, shape=(8, 12, 3))})


def test_images_of_several_shapes(tmp_path):
    prepare_two_shapes(tmp_path)
    message = refused("tiny", tmp_path)
    assert "8x12x3 (image 0) and 20x10x3 (image 2); give image_size" in message


def test_image_size_brings_them_to_one_shape(tmp_path):
    prepare_two_shapes(tmp_path)
    tiny = datasets.load("tiny", tmp_path, image_size=5)
    assert tiny.train.images.shape == (3, 5, 5, 3)
    assert tiny.train.images.dtype == np.uint8
    assert [np.unique(image).tolist() for image in tiny.train.images] == [[0], [1], [2]]


def test_undeclared_but_equal_shapes_need_no_image_size(tmp_path):
    prepare_two_shapes(tmp_path)
    assert datasets.load("tiny", tmp_path, train_split="train[:2]").train.images.shape == (2, 8, 12, 3)


def test_train_and_test_of_different_shapes(tmp_path):
    prepare_two_shapes(tmp_path)
    message = refused("tiny", tmp_path, train_split="train[2:]")
    assert "train images are 20x10x3, test images 8x12x3; give image_size" in message


def test_image_size_keeps_the_centre_and_the_antialiased_mean(tmp_path):
    """4 rows of 0 0 | 10 20 30 40 | 0 0: at size 4 the centre unchanged, at size 2 neighbours averaged.

    At size 2 the scale is 1/2; the antialiased triangle of half-width 2 has the weights 1 3 3 1 (/ 8). The
    kept columns, made from 0 10 20 30 and 20 30 40 0, are (0 + 30 + 60 + 30) / 8 = 15 and
    (20 + 90 + 120) / 8 = 28.75, which rounds to 29.
    """
    import tensorflow_datasets as tfds

    row = np.array([0, 0, 10, 20, 30, 40, 0, 0], np.uint8)
    image = np.broadcast_to(row[None, :, None], (4, 8, 1))
    rows = [{"image": image, "label": 0}]
    prepare(
        tmp_path,
        image=tfds.features.Image(shape=(4, 8, 1), encoding_format="png"),
        splits={"train": rows, "test": rows},
    )
    kept = datasets.load("tiny", tmp_path, image_size=4).test.images
    assert kept[0, 0, :, 0].tolist() == [10, 20, 30, 40]
    halved = datasets.load("tiny", tmp_path, image_size=2).test.images
    assert halved[0, 0, :, 0].tolist() == [15, 29]


@pytest.mark.parametrize("image_size", [0, -3])
def test_image_size_must_be_positive(image_size):
    assert f"Received: {image_size}" in refused("tiny", image_size=image_size)


# Too large for memory


def test_large_splits_are_memory_mapped(tmp_path, monkeypatch):
    prepare(tmp_path)
    plain = datasets.load("tiny", tmp_path)
    monkeypatch.setattr(datasets, "_IN_MEMORY_BYTES", 8 * 4 * 6 * 3)  # 8 images: train is above, test below
    assert "choose a smaller image_size or a slice of the split, such as test[:10%]" in refused("tiny", tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    tiny = datasets.load("tiny", tmp_path, scratch=scratch)
    assert isinstance(tiny.train.images, np.memmap)
    assert not isinstance(tiny.test.images, np.memmap)
    tiny.train.images.flush()
    assert np.array_equal(np.load(scratch / "train-images.npy"), plain.train.images)


def test_a_full_disk_is_told_before_it_kills(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.setattr(datasets, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 100))
    assert "make room" in refused("tiny", tmp_path, scratch=tmp_path)


# Names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("mnits", "mnist"), ("cifar", "cifar10"), ("SVHN", "svhn"), ("tinyy", "tiny"), ("digit", "digits")],
)
def test_unknown_names_get_the_nearest(tmp_path, name, nearest):
    prepare(tmp_path)
    message = refused(name, tmp_path)
    assert message.startswith(f"Unknown dataset {name!r}. Did you mean ")
    assert nearest in message.split("?")[0].replace(",", "").split()
    assert message.endswith(f"prepared in {tmp_path}: tiny")


@pytest.mark.parametrize("name", ["../tiny", "/tiny", "tiny/../tiny", "", "."])
def test_names_are_not_paths(tmp_path, name):
    prepare(tmp_path)
    assert f"Unknown dataset {name!r}" in refused(name, tmp_path)


# Without a network


def test_svhn_says_which_files_to_fetch_and_where_to_put_them(tmp_path, no_network):
    start = time.monotonic()
    message = refused("svhn", tmp_path)
    assert time.monotonic() - start < 30
    for file in ("train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"):
        assert f"http://ufldl.stanford.edu/housenumbers/{file}" in message
    assert f"put extra_32x32.mat, test_32x32.mat, train_32x32.mat in {tmp_path / 'downloads' / 'manual'}" in message
    assert "<data_dir>/svhn_cropped/3.1.0/" in message
    assert len(no_network) == 1  # one host, one question
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_there_are_not_asked_for(tmp_path, no_network):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "extra_32x32.mat").touch()
    message = refused("svhn", tmp_path)
    assert "housenumbers/train_32x32.mat" in message
    assert "extra_32x32.mat" not in message
    assert len(no_network) == 1


def test_imagenet_says_what_to_put_where(tmp_path, no_network):
    message = refused("imagenet", tmp_path)
    assert "ILSVRC2012_img_train.tar" in message
    assert str(tmp_path / "downloads" / "manual") in message
    assert no_network == []


def test_other_data_is_refused_before_it_is_downloaded(tmp_path, no_network):
    assert "not an image-classification data set" in refused("imdb_reviews", tmp_path)
    assert no_network == []


PICTURES = np.arange(12 * 4 * 6 * 3, dtype=np.uint8).reshape(12, 4, 6, 3)


@pytest.fixture(scope="module")
def pictures_builder():
    """A builder that TFDS knows, made from one file with a registered checksum."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.core.download import checksums

    content = PICTURES.tobytes()

    class MacerTestPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = {  # noqa: RUF012
            "http://pictures.invalid/get?file=7": checksums.UrlInfo(
                size=len(content),
                checksum=hashlib.sha256(content).hexdigest(),
                filename="pictures.bin",
            )
        }

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(4, 6, 3)),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            path = dl_manager.download(next(iter(self.url_infos)))
            images = np.frombuffer(Path(path).read_bytes(), np.uint8).reshape(12, 4, 6, 3)
            return {"train": self._generate_examples(images[:8]), "test": self._generate_examples(images[8:])}

        def _generate_examples(self, images):
            for key, image in enumerate(images):
                yield key, {"image": image, "label": key % 3}

    yield "macer_test_pictures"
    del registered._DATASET_REGISTRY["macer_test_pictures"]


def test_files_given_by_hand_are_prepared_once(tmp_path, no_network, pictures_builder):
    message = refused(pictures_builder, tmp_path)
    assert "cannot download http://pictures.invalid/get?file=7 (pictures.invalid cannot be reached" in message
    manual = tmp_path / "downloads" / "manual"
    assert f"put pictures.bin in {manual}" in message
    manual.mkdir(parents=True)
    (manual / "pictures.bin").write_bytes(PICTURES.tobytes())
    no_network.clear()
    for _ in range(2):
        loaded = datasets.load(pictures_builder, tmp_path)
        assert np.array_equal(loaded.train.images, PICTURES[:8])
        assert np.array_equal(loaded.test.images, PICTURES[8:])
        shutil.rmtree(manual, ignore_errors=True)
    assert no_network == []


def test_a_file_of_the_wrong_content_is_refused(tmp_path, no_network, pictures_builder):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "pictures.bin").write_bytes(PICTURES.tobytes()[:-1])
    message = refused(pictures_builder, tmp_path)
    assert "wrong checksum" in message
    assert str(manual / "pictures.bin") in message
    assert not (tmp_path / pictures_builder / "1.0.0").exists()
    assert no_network == []


def test_a_finished_download_is_not_asked_for_again(tmp_path, no_network, pictures_builder, monkeypatch):
    """Downloaded, then no network any more before it was prepared."""
    from tensorflow_datasets.core.download import checksums, downloader

    def download(_self, _url, directory, _verify):
        path = directory / "pictures.bin"
        path.write_bytes(PICTURES.tobytes())
        return downloader.DownloadResult(path=path, url_info=checksums.compute_url_info(path))

    def cut_off(*_):
        raise OSError("the power went")

    import tensorflow_datasets as tfds

    builder = tfds.builder_cls(pictures_builder)
    with monkeypatch.context() as patched:
        patched.setattr(datasets, "_unreachable", lambda _: None)
        patched.setattr(downloader._Downloader, "_sync_download", download)
        patched.setattr(builder, "_generate_examples", cut_off)
        assert "OSError: the power went" in refused(pictures_builder, tmp_path)
    loaded = datasets.load(pictures_builder, tmp_path)
    assert np.array_equal(loaded.train.images, PICTURES[:8])
    assert no_network == []


def test_a_link_to_what_is_gone_is_no_data(tmp_path):
    """As in a folder that was copied without what its links lead to: reading it says what is missing."""
    version = tmp_path / "tiny" / "1.0.0"
    version.mkdir(parents=True)
    (version / "tiny-train.tfrecord").symlink_to(tmp_path / "gone")
    assert datasets.is_soon_read("tiny", tmp_path)
    assert datasets.fingerprint("tiny", tmp_path)
