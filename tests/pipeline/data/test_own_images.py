"""Folders and .npz files to train on: the same pixels as `sources` gives, and what cannot be trained on is one line."""

import os

import numpy as np
import pytest
from PIL import Image

from pipeline.components.example_gen import EXAMPLE_GEN
from pipeline.data import examples, own_images
from pipeline.orchestration.orchestrator import Execution
from pipeline.utils.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """A function: class -> list of uint8 images -> a folder of PNG files, a sub-folder for each class."""

    def make(name, classes, **options):
        for label, images in classes.items():
            (tmp_path / name / label).mkdir(parents=True)
            for place, pixels in enumerate(images):
                Image.fromarray(pixels).save(tmp_path / name / label / f"{place}.png", **options)
        return str(tmp_path / name)

    return make


@pytest.fixture
def npz(tmp_path):
    """A function: name and arrays -> an .npz file."""

    def make(name, **arrays):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        return str(tmp_path / f"{name}.npz")

    return make


def grey(*values, side=4):
    return [np.full((side, side), value, np.uint8) for value in values]


def colour(*values):
    return [np.full((4, 6, 3), value, np.uint8) for value in values]


def test_two_folders_are_a_data_set(folder):
    data = own_images.load(
        folder("train", {"cat": colour(0, 7), "dog": colour(255)}), folder("test", {"cat": [], "dog": colour(9)})
    )
    assert (data.name, data.pixel_max, data.num_classes, data.class_names) == ("images-train", 255, 2, ("cat", "dog"))
    assert (data.train.images.shape, data.train.images.dtype) == ((3, 4, 6, 3), np.uint8)
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 7, 255]
    assert data.train.labels.tolist() == [0, 0, 1]
    assert (data.test.images[0, 3, 5, 2], data.test.labels.tolist()) == (9, [1])
    assert (data.train.names, data.test.names) == (("cat/0.png", "cat/1.png", "dog/0.png"), ("dog/0.png",))


def test_held_out_images_keep_their_names(folder):
    from pipeline.data import datasets

    train, test = folder("train", {"a": grey(0, 1, 2), "b": grey(3)}), folder("test", {"a": grey(4), "b": grey(5)})
    held_out = datasets.hold_out(own_images.load(train, test), 2)
    assert (held_out.train.names, held_out.test.names) == (("a/1.png", "b/0.png"), ("a/0.png", "a/2.png"))


def test_folders_that_are_named_by_numbers_need_not_be_the_same(folder):
    data = own_images.load(folder("train", {"0": grey(1), "2": grey(2), "10": grey(3)}), folder("test", {"2": grey(4)}))
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 10, 2], [2])
    assert data.class_names == tuple(map(str, range(11)))


def test_an_archive_goes_with_a_folder_or_an_archive(folder, npz, capsys):
    archive = npz("train", images=np.stack(grey(1, 2, 3)), labels=[0, 1, 1])
    data = own_images.load(archive, folder("test", {"no": grey(4), "yes": grey(5)}))
    assert (data.class_names, data.train.images.shape) == (("no", "yes"), (3, 4, 4, 1))
    said = "  Labels of the images to train on are the numbers of the sorted folders: 0 is no, 1 is yes.\n"
    assert capsys.readouterr().out == said
    # Floats of 8 bits are exact.
    floats = (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(-1, 1, 1, 1) * np.ones(
        (1, 4, 4, 1), np.float32
    )
    data = own_images.load(npz("floats", x=floats, y=np.arange(256) % 3), archive)
    assert data.train.images[:, 0, 0, 0].tolist() == list(range(256))
    assert data.class_names == ("0", "1", "2")
    own_images.load(archive, folder("numbered", {"0": grey(4), "1": grey(5)}))
    own_images.load(folder("named", {"no": grey(1), "yes": grey(2)}), folder("other", {"no": grey(6), "yes": []}))
    assert capsys.readouterr().out == ""


def test_a_turned_first_photograph_gives_the_shape_as_it_is_seen(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = folder("train", {"a": colour(1), "b": colour(2)}, exif=exif)
    upright = folder("test", {"a": [np.zeros((6, 4, 3), np.uint8)], "b": []})
    assert own_images.load(turned, upright).train.images.shape == (2, 6, 4, 3)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            {"a": grey(1), "b": grey(2)},
            {"a": grey(1), "c": grey(2)},
            "must have the same classes, .* b, c;",
        ),
        (
            {"0": grey(1), "1": grey(2)},
            {"cat": grey(3), "dog": grey(4)},
            "named alike, .*: cat, dog to test on, and num",
        ),
        ({"0": grey(1), "999999999": grey(2)}, {"0": grey(3)}, "numbered 0, 1, .* up to 65,535. Received: 999,999,999"),
        ({"\u00e9": grey(1), "e\u0301": grey(2)}, {"a": grey(3)}, "two sub-folders \u00e9, whose accents are spelt in"),
        ({"a": grey(1), "b": grey(2)}, {"a": grey(1, side=5), "b": []}, "is 5x5, not 4x4; save it in that size$"),
        ({"a": grey(1), "b": colour(2)}, {"a": grey(1), "b": []}, "4x6, not 4x4; save it in that size$"),
        ({"a": grey(1)}, {"a": grey(2)}, "Two classes or more are needed to train. Received: a only"),
        # Nothing else is trained on, whatever it is numbered and whoever is tested.
        ({"1": grey(1)}, {"1": grey(2)}, "Two classes or more are needed to train. Received: 1 only"),
        ({"a": [], "b": grey(1, 2)}, {"a": grey(2), "b": []}, "Two classes or more are needed .* Received: b only"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(folder, train, test, message):
    with pytest.raises(InputError, match=message) as error:
        own_images.load(folder("train", train), folder("test", test))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [b"v" * 250, "\u00e4".encode() * 125, b"\xff" * 240])
def test_a_data_set_s_name_fits_into_names_of_files(tmp_path, monkeypatch, name):
    """Also where a link leads to a name that is not valid text."""
    monkeypatch.chdir(tmp_path)
    os.mkdir(name)
    os.symlink(name, "link")
    found = own_images.name_of("link")
    assert found.startswith("images-")
    assert 100 <= len(found.encode()) <= 107
    assert own_images.name_of("short") == "images-short"


def test_accents_that_are_spelt_in_another_way_are_the_same_class(folder):
    data = own_images.load(
        folder("train", {"\u00e9": grey(1), "z": grey(2)}), folder("test", {"e\u0301": grey(3), "z": grey(4)})
    )
    assert data.test.labels.tolist() == [0, 1]


def test_of_an_archive_in_keras_layout_the_training_images_are_trained_on(npz):
    train, test = np.stack(grey(1, 2, 3)), np.stack(grey(7, 8))
    archive = npz("mnist", x_train=train, y_train=[0, 1, 1], x_test=test, y_test=[0, 1])
    data = own_images.load(archive, npz("test", images=test, labels=[0, 1]))
    assert data.train.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    data = own_images.load(npz("train", x_train=train, y_train=[0, 1, 1]), archive)
    assert (data.train.labels.tolist(), data.test.images[:, 0, 0, 0].tolist()) == ([0, 1, 1], [7, 8])
    with pytest.raises(InputError, match="has no array 'images', nor image, x, X, data, arr_0, x_train, "):
        own_images.load(npz("only test", x_test=test, y_test=[0, 1]), archive)


def test_images_that_are_tested_on_and_trained_on_are_told(folder, npz, tmp_path, capsys):
    """By their pixels, whatever their files and their labels; only those that are in fact tested on."""

    def described(train, test, validation=None):
        outputs = {"examples": tmp_path / f"examples {len(list(tmp_path.iterdir()))}"}
        outputs["examples"].mkdir()
        given = {"train_images": train, "test_images": test, "validation": validation}
        parameters = dict.fromkeys(EXAMPLE_GEN.parameters) | given
        EXAMPLE_GEN.execute(Execution({}, outputs, parameters, tmp_path, tmp_path, 1))
        return examples.read(outputs["examples"]).descriptions

    train = folder("train", {"a": grey(1, 2), "b": grey(3, 1)})
    assert described(train, npz("new", images=np.stack(grey(4, 5)), labels=[0, 1]))["test"] == "images in new.npz"
    assert "training images" not in capsys.readouterr().out
    some = npz("some", images=np.stack(grey(3, 4, 2)), labels=[0, 0, 1])
    of_both = {"train": "images in train", "test": "images in some.npz (2 of them training images, too)"}
    assert described(train, some) == of_both
    assert "  Of the images to test on, 2 of 3 are training images, too, " in capsys.readouterr().out
    # Held out are 1 and 3; 1 is among the others once more.
    told = "2 held out for validation, evenly spaced, of the images in train (1 of them training images, too)"
    assert described(train, some, 2)["test"] == told
    assert "  Of the images to test on, 1 of 2 are training images, too, " in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4"])
def test_8_bits_of_any_float_type_are_exact(npz, dtype):
    pixels = np.arange(256).reshape(-1, 1, 1, 1) * np.ones((1, 4, 4, 1))
    other = npz("test", images=np.stack(grey(1)), labels=[0])
    for name, images in (("divided", pixels / 255), ("scaled", pixels * np.float32(1 / 255))):
        data = own_images.load(npz(name, images=images.astype(dtype), labels=np.arange(256) % 3), other)
        assert data.train.images[:, 0, 0, 0].tolist() == list(range(256))


def test_the_fingerprint_is_of_pixels_names_and_classes(folder, npz, tmp_path):
    path = folder("train", {"a": grey(1), "c": grey(2)})
    found = [own_images.fingerprint(path)]
    (tmp_path / "train" / ".hidden").mkdir()
    assert own_images.fingerprint(path) == found[0]

    def changes(change):
        change()
        found.append(own_images.fingerprint(path))
        assert len(set(found)) == len(found)

    changes((tmp_path / "train" / "b").mkdir)  # c is class 2 now
    changes(lambda: (tmp_path / "train" / "c" / "0.png").rename(tmp_path / "train" / "c" / "1.png"))
    changes(lambda: Image.fromarray(grey(3)[0]).save(tmp_path / "train" / "a" / "0.png"))
    archives = [npz("one", images=np.stack(grey(1)), labels=[0]), npz("two", images=np.stack(grey(2)), labels=[0])]
    assert len({*map(own_images.fingerprint, archives)}) == 2


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.npz")
    with pytest.raises(ValueError, match=r"train\.npz is not a plain file\."):
        own_images.fingerprint(tmp_path / "train.npz")


def test_images_of_one_content_are_refused_where_they_are_fingerprinted(folder):
    train, test = (folder(name, {"a": grey(1), "b": grey(2)}) for name in ("train", "test"))
    parameters = {"train_images": train, "test_images": test}
    with pytest.raises(InputError, match=r"not be trained on: .*train and .*test have the same content\.$"):
        EXAMPLE_GEN.reads(parameters)
    other = folder("other", {"a": grey(3), "b": []})
    assert EXAMPLE_GEN.reads({**parameters, "test_images": other}) == {
        "train_images": own_images.fingerprint(train),
        "test_images": own_images.fingerprint(other),
    }


def test_a_link_that_leads_to_itself_is_no_folder(npz, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    loop, labelled = str(tmp_path / "loop"), npz("labelled", images=np.stack(grey(1, 2)), labels=[0, 1])
    assert own_images.name_of(loop) == "images-loop"
    for paths in ((loop, labelled), (labelled, loop)):
        with pytest.raises(InputError, match="There is no folder or file"):
            own_images.load(*paths)


def test_a_folder_within_the_other_is_one_line(folder, npz):
    """Its images were to be a class of their own of the other."""
    train = folder("train", {"cat": grey(1), "dog": grey(2)})
    test = folder("train/test", {"cat": grey(3), "dog": grey(4)})
    told = "or one would be taken for a class of the other. Received: "
    with pytest.raises(InputError, match=f"{told}{test} in {train}$"):
        own_images.load(train, test)
    with pytest.raises(InputError, match=f"{told}{test} in {train}$"):
        own_images.load(test, train)
    # What no image is looked for in.
    hidden, train = (
        folder("own/.test", {"cat": grey(5), "dog": grey(6)}),
        folder("own", {"cat": grey(1), "dog": grey(2)}),
    )
    archive = npz("own/test", images=np.stack(grey(7)), labels=[1])
    assert len(own_images.load(train, hidden).test.labels) == 2
    assert len(own_images.load(train, archive).test.labels) == 1


def test_what_an_archive_lacks_is_one_line(npz, folder):
    images = np.stack(grey(1, 2))
    labelled = npz("labelled", images=images, labels=[0, 1])
    with pytest.raises(InputError, match="has no labels"):
        own_images.load(npz("bare", images=images), labelled)
    with pytest.raises(InputError, match="go up to number 1, but the labels to 2"):
        own_images.load(labelled, npz("more", images=images, labels=[0, 2]))
    with pytest.raises(InputError, match="image 1 has pixels between the 256 levels of 8 bits"):
        own_images.load(npz("fine", images=np.stack([np.zeros((4, 4)), np.full((4, 4), 0.5)]), labels=[0, 1]), labelled)
    with pytest.raises(InputError, match="height x width x 1 or 3 are needed"):
        own_images.load(npz("flow", images=np.zeros((2, 4, 4, 2), np.uint8), labels=[0, 1]), labelled)
    with pytest.raises(InputError, match="Test images must not be trained on"):
        own_images.load(labelled, labelled)
    with pytest.raises(InputError, match="There is no folder or file"):
        own_images.load(labelled, labelled + "x")
