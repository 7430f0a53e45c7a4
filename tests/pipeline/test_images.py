"""Images of any source arrive as the pixels that are in it, under everybody's numbers, or with the reason why not."""

import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from pipeline import images
from pipeline.errors import InputError

SHAPE = (4, 6, 3)


def pixels(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def save(tmp_path):
    """A function: path below the folder, pixels -> a lossless file there."""

    def save(name, array, mode=None, **options):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(array if array.shape[-1] > 1 else array[..., 0])
        (image.convert(mode) if mode else image).save(path, **options)
        return path

    return save


@pytest.fixture
def archive(tmp_path):
    """A function: arrays -> path of an .npz file."""

    def write(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return str(tmp_path / "a.npz")

    return write


def open_folder(tmp_path, shape=SHAPE):
    return images.Folder(str(tmp_path / "folder"), shape).open()


def refused(source):
    with pytest.raises(InputError) as refusal:
        source.open()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# Which images: by hand after Cohen et al.'s loop


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, list(range(10))),
        ({"skip": 3}, [0, 3, 6, 9]),
        ({"skip": 3, "max": 6}, [0, 3]),  # the index is bounded: `max` images would be six
        ({"skip": 3, "max": 7}, [0, 3, 6]),
        ({"skip": 3, "start": 4}, [6, 9]),  # the images of skip=3 alone, from 4 on
        ({"start": 5, "max": 8}, [5, 6, 7]),
        ({"max": 99}, list(range(10))),
    ],
)
def test_selection(settings, chosen):
    assert images.select(np.arange(10), **settings).tolist() == chosen


@pytest.mark.parametrize("skip", [1, 2, 7, 20])
@pytest.mark.parametrize("multiple", [1, 2, 5])
def test_selection_is_the_fields(skip, multiple):
    """Wherever their loop stops at all, which it does at multiples of skip."""
    theirs, stop = [], multiple * skip
    for i in range(60):
        if i % skip != 0:
            continue
        if i == stop:
            break
        theirs.append(i)
    assert images.select(range(60), skip=skip, max=stop).tolist() == theirs


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"skip": 0}, "--skip must be a whole number from 1. Received: 0"),
        ({"start": 10}, "--skip 1, --start 10 leave none of the 10 images."),
        ({"skip": 20, "start": 1, "max": 5}, "--skip 20, --start 1, --max 5 leave none of the 10 images."),
    ],
)
def test_an_empty_selection_is_refused(settings, said):
    with pytest.raises(InputError) as refusal:
        images.select(np.arange(10), **settings)
    assert str(refusal.value) == said


# Sources are plain values


@pytest.mark.parametrize(
    "source", [images.TFDSSplit("digits", (8, 8, 1)), images.Folder("a", SHAPE), images.Archive("a.npz", SHAPE)]
)
def test_a_source_survives_the_way_to_a_worker(source):
    assert pickle.loads(pickle.dumps(source)) == source
    values = asdict(source)
    assert json.loads(json.dumps(values)) == {**values, "shape": list(source.shape)}


def test_a_source_read_from_json_opens_the_same_images(archive):
    source = images.Archive(archive(images=pixels(0, (2, *SHAPE))), SHAPE)
    again = images.Archive(**json.loads(json.dumps(asdict(source))))
    assert [again.open().digest(i) for i in (0, 1)] == [source.open().digest(i) for i in (0, 1)]


# TFDS


def test_digits_are_the_ones_that_runs_are_tested_on():
    from sklearn.datasets import load_digits

    opened = images.TFDSSplit("digits", (8, 8, 1)).open()
    published = load_digits()
    assert opened.ids.tolist() == list(range(360))
    assert opened.class_names == tuple("0123456789")
    for i in (0, 359):
        # scikit-learn's pixels are 0 to 16; the test images are its last 360.
        np.testing.assert_array_equal(opened.image(i)[..., 0], np.float32(published.images[1437 + i] / 16))
        assert opened.label(i) == published.target[1437 + i]


@pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")
def test_a_tfds_split_is_read_alone(shared_tfds):
    """The data set has no split called test, which a run would need."""
    source = images.TFDSSplit("svhn_cropped_partial", (32, 32, 3), str(shared_tfds), "holdout[:7]")
    opened = source.open()
    assert opened.ids.tolist() == list(range(7))
    image = opened.image(3)
    assert (image.dtype, image.shape) == (np.float32, (32, 32, 3))
    assert 0 <= image.min() < image.max() <= 1
    assert len({opened.digest(i) for i in range(7)}) == 7
    mistyped = images.TFDSSplit(source.dataset, source.shape, source.data_dir, "tset")
    assert "no split 'tset' for --split" in refused(mistyped)


def test_a_tfds_split_of_another_shape_is_refused():
    said = refused(images.TFDSSplit("digits", (28, 28, 1)))
    assert said == "digits: one or more images of shape 28x28x1 are needed. Received: 360x8x8x1"


# Folders


def test_subfolders_are_classes_by_sorted_name(save, tmp_path):
    contents = {"dog/b.png": pixels(0), "dog/a.PNG": pixels(1), "cat/deep/z.png": pixels(2), "emu/x.png": pixels(3)}
    for name, array in contents.items():
        save(name, array)
    (tmp_path / "folder" / "cow").mkdir()  # no image of it, and yet a class
    (tmp_path / "folder" / ".cache").mkdir()
    (tmp_path / "folder" / "dog" / "notes.txt").touch()
    save(".cache/thumb.png", pixels(4))
    opened = open_folder(tmp_path)
    assert opened.class_names == ("cat", "cow", "dog", "emu")
    assert opened.ids.tolist() == [0, 1, 2, 3]
    assert opened.has_labels
    assert [opened.label(i) for i in opened.ids] == [0, 2, 2, 3]
    for i, name in enumerate(["cat/deep/z.png", "dog/a.PNG", "dog/b.png", "emu/x.png"]):
        image = opened.image(i)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, contents[name].astype(np.float32) / np.float32(255))


def test_a_class_that_is_a_link_counts(save, tmp_path):
    save("cat/a.png", pixels(0))
    elsewhere = save("cat/a.png", pixels(0)).parent.rename(tmp_path / "elsewhere")
    save("dog/a.png", pixels(1))
    (tmp_path / "folder" / "cat").symlink_to(elsewhere)
    opened = open_folder(tmp_path)
    assert [opened.label(i) for i in opened.ids] == [0, 1]


def test_a_flat_folder_has_no_labels(save, tmp_path):
    save("b.png", pixels(0))
    save("a.jpg", pixels(1), quality=95)
    opened = open_folder(tmp_path)
    assert (opened.label(0), opened.class_names, opened.has_labels) == (None, None, False)
    np.testing.assert_array_equal(opened.image(1), pixels(0) / np.float32(255))
    assert opened.image(0).shape == SHAPE


def test_greyscale_and_palettes_are_taken_exactly(save, tmp_path):
    grey = pixels(0, (4, 6, 1))
    save("a.png", grey)
    save("b.png", np.repeat(grey, 3, axis=-1), mode="P")
    np.testing.assert_array_equal(open_folder(tmp_path, (4, 6, 1)).image(0), grey / np.float32(255))
    opened = open_folder(tmp_path)
    np.testing.assert_array_equal(opened.image(0), np.repeat(grey, 3, axis=-1) / np.float32(255))
    with Image.open(tmp_path / "folder" / "b.png") as palette:
        assert palette.mode == "P"
        np.testing.assert_array_equal(opened.image(1) * 255, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("shape", "array", "mode", "said"),
    [
        (SHAPE, pixels(0, (6, 4, 3)), None, "bad.png is 6x4, not 4x6"),
        (SHAPE, pixels(0), "RGBA", "bad.png is of the kind RGBA; accepted for 3 channels: 8-bit RGB, P, L, 1, opaque"),
        ((4, 6, 1), pixels(0), None, "bad.png is of the kind RGB; accepted for 1 channels: 8-bit L, 1, opaque"),
        ((4, 6, 1), pixels(0, (4, 6, 1)).astype(np.uint16) * 257, None, "bad.png is 16 bits deep"),
    ],
)
def test_an_image_of_another_kind_is_an_error_of_its_own(save, tmp_path, shape, array, mode, said):
    save("bad.png", array, mode)
    save("good.png", pixels(1, shape))
    opened = open_folder(tmp_path, shape)
    with pytest.raises(images.ImageError) as refusal:
        opened.image(0)
    assert said in str(refusal.value)
    np.testing.assert_array_equal(opened.image(1), pixels(1, shape) / np.float32(255))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped", "gone"])
def test_a_damaged_image_is_an_error_of_its_own(save, tmp_path, damage):
    path = save("a.png", pixels(0))
    save("b.png", pixels(1))
    content = path.read_bytes()
    middle = content.index(b"IDAT") + 12
    flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    opened = open_folder(tmp_path)
    before = opened.digest(0)
    damaged = {"cut": content[: middle + 8], "empty": b"", "text": b"no image", "flipped": flipped}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(images.ImageError, match=r"a\.png cannot be read \(") as refusal:
        opened.image(0)
    assert "\n" not in str(refusal.value)
    assert opened.image(1).shape == SHAPE
    if damage == "gone":
        with pytest.raises(images.ImageError, match=r"a\.png cannot be read \("):
            opened.digest(0)
    else:
        assert opened.digest(0) != before


def test_folders_without_order_are_refused(save, tmp_path):
    folder = tmp_path / "folder"
    assert "Cannot read the folder" in refused(images.Folder(str(folder), SHAPE))
    folder.mkdir()
    said = "holds no image. Accepted: files that end in .png, .jpg, .jpeg."
    assert said in refused(images.Folder(str(folder), SHAPE))
    save("cat/a.png", pixels(0))
    save("b.png", pixels(0))
    said = "has 1 images of its own, such as b.png, and 1 in sub-folders: put all into sub-folders"
    assert said in refused(images.Folder(str(folder), SHAPE))


# Archives


def test_archives_of_bytes_and_of_floats_are_the_same_images(archive):
    both = pixels(0, (3, *SHAPE))
    for stored in (both, both / np.float64(255), both.astype(np.float32) / np.float32(255)):
        opened = images.Archive(archive(images=stored, labels=np.array([2, 0, 1])), SHAPE).open()
        assert [opened.label(i) for i in opened.ids] == [2, 0, 1]
        assert opened.class_names is None
        for i in range(3):
            assert opened.image(i).dtype == np.float32
            np.testing.assert_array_equal(opened.image(i), both[i] / np.float32(255))


def test_archives_without_labels_or_channels(archive):
    opened = images.Archive(archive(images=pixels(0, (3, 4, 6))), (4, 6, 1)).open()
    assert (opened.label(2), opened.has_labels) == (None, False)
    np.testing.assert_array_equal(opened.image(2)[..., 0], pixels(0, (3, 4, 6))[2] / np.float32(255))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "1 of its values are not finite"),
        (np.inf, "1 of its values are not finite"),
        (1.5, "its pixels must be in [0, 1]; they are from 0 to 1.5"),
        (-0.25, "its pixels must be in [0, 1]; they are from -0.25 to 0"),
    ],
)
def test_an_image_that_is_no_image_is_an_error_of_its_own(archive, value, said):
    stored = np.zeros((2, *SHAPE), np.float32)
    stored[1, 2, 3, 0] = value
    opened = images.Archive(archive(images=stored), SHAPE).open()
    assert opened.image(0).max() == 0
    with pytest.raises(images.ImageError) as refusal:
        opened.image(1)
    assert str(refusal.value) == said


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": pixels(0)}, "has no array 'images'. It has: x"),
        ({"images": np.zeros((2, *SHAPE), np.int64)}, "images must be uint8, or floats in [0, 1]. Received: int64"),
        ({"images": np.zeros((2, 3, 4, 6))}, "images of shape 4x6x3 are needed. Received: 2x3x4x6"),
        ({"images": np.zeros((0, *SHAPE))}, "one or more images of shape 4x6x3 are needed. Received: 0x4x6x3"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.zeros(3, int)}, "one for each of the 2 images"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.zeros(2)}, "labels must be integers"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.array([0, -1])}, "labels are from 0. Received: -1"),
        ({"images": np.array([None])}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_other_archives_are_refused(archive, arrays, said):
    assert said in refused(images.Archive(archive(**arrays), SHAPE))


def test_damaged_archives_are_refused(archive, tmp_path):
    path = tmp_path / "b.npz"
    assert refused(images.Archive(str(path), SHAPE)) == f"There is no file {path}."
    path.write_bytes((tmp_path / archive(images=pixels(0, (9, *SHAPE)))).read_bytes()[:300])
    assert "cannot be read as an .npz file" in refused(images.Archive(str(path), SHAPE))
    np.save(tmp_path / "c.npy", pixels(0))
    assert "cannot be read as an .npz file" in refused(images.Archive(str(tmp_path / "c.npy"), SHAPE))


# Of all


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 2), (0, 6, 3)])
def test_shapes_are_of_images(archive, shape):
    assert "Images are of shape (height, width, 1 or 3)" in refused(images.Archive(archive(images=pixels(0)), shape))


@pytest.mark.parametrize("image_id", [-1, 3])
def test_there_is_no_image_beyond_the_ends(archive, image_id):
    opened = images.Archive(archive(images=pixels(0, (3, *SHAPE))), SHAPE).open()
    for ask in (opened.image, opened.label, opened.digest):
        with pytest.raises(IndexError, match=f"from 0 to 2. Received: {image_id}"):
            ask(image_id)


def test_digests_tell_contents_apart_but_not_places(archive, save, tmp_path):
    stored = pixels(0, (3, *SHAPE))
    changed = stored.copy()
    changed[2, 0, 0, 0] ^= 1

    def digest(image_id, **arrays):
        return images.Archive(archive(**arrays), SHAPE).open().digest(image_id)

    plain = digest(0, images=stored)
    assert digest(0, images=changed) == plain  # image 2 is another one
    assert digest(2, images=stored[::-1], labels=np.array([0, 1, 2])) == plain
    as_floats = stored.astype(np.float32) / 255
    others = [
        digest(1, images=stored),
        digest(2, images=stored),
        digest(2, images=changed),
        digest(0, images=as_floats),
    ]
    assert len({plain, *others}) == 5
    assert all(0 <= one < 2**63 for one in (plain, *others))
    save("cat/a.png", pixels(0))
    here = open_folder(tmp_path).digest(0)
    (tmp_path / "folder").rename(tmp_path / "moved")
    assert images.Folder(str(tmp_path / "moved"), SHAPE).open().digest(0) == here
