"""Images of any source arrive as the pixels that are in it, under everybody's numbers, or with the reason why not."""

import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import sources
from pipeline.utils.errors import InputError

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
    return sources.Folder(str(tmp_path / "folder"), shape).open()


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
    assert sources.select(np.arange(10), **settings).tolist() == chosen


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
    assert sources.select(range(60), skip=skip, max=stop).tolist() == theirs


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"skip": 0}, "skip must be a whole number from 1. Received: 0"),
        ({"start": 10}, "start=10 leaves none of the 10 images, which are numbered from 0 to 9."),
        (
            {"skip": 20, "start": 1, "max": 5},
            "skip=20, start=1, max=5 leave none of the 10 images, which are numbered from 0 to 9.",
        ),
    ],
)
def test_an_empty_selection_is_refused(settings, said):
    with pytest.raises(InputError) as refusal:
        sources.select(np.arange(10), **settings)
    assert str(refusal.value) == said


# Sources are plain values


@pytest.mark.parametrize(
    "source", [sources.TFDSSplit("digits", (8, 8, 1)), sources.Folder("a", SHAPE), sources.Archive("a.npz", SHAPE)]
)
def test_a_source_survives_the_way_to_a_worker(source):
    assert pickle.loads(pickle.dumps(source)) == source
    values = asdict(source)
    assert json.loads(json.dumps(values)) == {**values, "shape": list(source.shape)}


def test_a_source_read_from_json_opens_the_same_images(archive):
    source = sources.Archive(archive(images=pixels(0, (2, *SHAPE))), SHAPE)
    again = sources.Archive(**json.loads(json.dumps(asdict(source))))
    assert [again.open().digest(i) for i in (0, 1)] == [source.open().digest(i) for i in (0, 1)]


# TFDS


def test_digits_are_the_ones_that_runs_are_tested_on():
    from sklearn.datasets import load_digits

    opened = sources.TFDSSplit("digits", (8, 8, 1)).open()
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
    source = sources.TFDSSplit("svhn_cropped_partial", (32, 32, 3), str(shared_tfds), "holdout[:7]")
    opened = source.open()
    assert opened.ids.tolist() == list(range(7))
    image = opened.image(3)
    assert (image.dtype, image.shape) == (np.float32, (32, 32, 3))
    assert 0 <= image.min() < image.max() <= 1
    assert len({opened.digest(i) for i in range(7)}) == 7
    mistyped = sources.TFDSSplit(source.dataset, source.shape, source.data_dir, "tset")
    assert "no split 'tset' for split" in refused(mistyped)


def test_a_tfds_split_of_another_shape_is_refused():
    said = refused(sources.TFDSSplit("digits", (28, 28, 1)))
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


@pytest.mark.parametrize(
    "place", ["parent", "itself", "root of the disk", "sibling", "inside of a sibling", "loop outside"]
)
def test_a_folder_that_is_reached_in_two_ways_is_refused(save, tmp_path, place):
    """Its images would count twice, or without end."""
    save("cat/deep/a.png", pixels(0))
    folder = tmp_path / "folder"
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "back").symlink_to(folder)
    target = {
        "parent": tmp_path, "itself": folder / "link", "root of the disk": "/", "sibling": folder / "cat",
        "inside of a sibling": folder / "cat" / "deep", "loop outside": tmp_path / "outside",
    }[place]  # fmt: skip
    name = "cat/deep/link" if place in ("parent", "root of the disk") else "a_link"
    if place == "itself":
        (folder / "cat" / "link").symlink_to(folder)
    else:
        (folder / name).symlink_to(target)
    assert "remove the link" in refused(sources.Folder(str(folder), SHAPE))


def test_links_to_folders_elsewhere_and_to_files_are_followed(save, tmp_path):
    path = save("cat/a.png", pixels(0))
    (path.parent / "b.png").symlink_to(path.rename(tmp_path / "elsewhere.png"))
    path = save("cat/a.png", pixels(0))
    # Of two names of a file, one alone may be here.
    save("../first.png", pixels(0)).rename(tmp_path / "elsewhere2.png")
    (path.parent / "c.png").hardlink_to(tmp_path / "elsewhere2.png")
    (path.parent / "d.png").symlink_to(tmp_path / "gone.png")
    opened = open_folder(tmp_path)
    for i in range(3):
        np.testing.assert_array_equal(opened.image(i) * 255, pixels(0))
    with pytest.raises(sources.ImageError, match=r"d\.png cannot be read \(No such file or directory\)"):
        opened.image(3)


@pytest.mark.parametrize("place", ["cat/b.png", "dog/a.png"])
@pytest.mark.parametrize("target", ["inside", "outside", "hard"])
def test_a_file_that_two_links_reach_is_refused(save, tmp_path, place, target):
    """It would count twice, and under two labels."""
    path = save("cat/a.png", pixels(0))
    save("dog/c.png", pixels(1))
    if target == "outside":
        outside = path.rename(tmp_path / "outside.png")
        path.symlink_to(outside)
    (tmp_path / "folder" / place).parent.mkdir(exist_ok=True)
    if target == "hard":
        (tmp_path / "folder" / place).hardlink_to(path)
    else:
        (tmp_path / "folder" / place).symlink_to(path)
    said = refused(sources.Folder(str(tmp_path / "folder"), SHAPE))
    assert "are the same file, which would count twice; remove the link." in said


def test_copies_of_an_image_are_images_of_their_own(save, tmp_path):
    for name in ("cat/a.png", "cat/b.png", "dog/a.png"):
        save(name, pixels(0))
    opened = open_folder(tmp_path)
    assert (len(opened.ids), len({opened.digest(i) for i in range(3)})) == (3, 1)


def test_hidden_files_are_nobodys_content(save, tmp_path):
    save("cat/a.png", pixels(0))
    save("dog/b.png", pixels(1))
    for name in ("cat/._a.png", ".git/x.png", "__MACOSX/cat/a.png", "dog/.ipynb_checkpoints/b.png", "cat/@eaDir/a.jpg"):
        save(name, pixels(2))
    for name in (".DS_Store", "cat/Thumbs.db", "dog/.DS_Store"):
        (tmp_path / "folder" / name).touch()
    opened = open_folder(tmp_path)
    assert (opened.class_names, len(opened.ids)) == (("cat", "dog"), 2)


def test_the_order_is_the_same_however_accents_are_spelt(save, tmp_path):
    """U+00E9 comes behind z, e and U+0301 behind e: as some file systems give them back for the same name."""
    orders = []
    for place, name in enumerate(["caf\u00e9", "cafe\u0301"]):
        for folder in (name, "cafz"):
            save(f"../{place}/{folder}/a.png", pixels(0))
        opened = sources.Folder(str(tmp_path / str(place)), SHAPE, {"caf\u00e9": 7, "cafz": 3}).open()
        orders.append([opened.label(i) for i in opened.ids])
    assert orders == [[3, 7], [3, 7]]


def test_class_numbers_are_those_that_are_given(save, tmp_path):
    for name in ("cat", "dog", "emu"):
        save(f"{name}/a.png", pixels(0))
    numbers = {"emu": 0, "cat": 5, "dog": 5, "yak": 8}
    opened = sources.Folder(str(tmp_path / "folder"), SHAPE, numbers).open()
    assert [opened.label(i) for i in opened.ids] == [5, 5, 0]
    assert opened.class_names is None
    del numbers["dog"]
    assert refused(sources.Folder(str(tmp_path / "folder"), SHAPE, numbers)).startswith(
        "No class number is given for the sub-folders dog of"
    )
    save("../flat/a.png", pixels(0))
    assert "Class numbers are for sub-folders" in refused(sources.Folder(str(tmp_path / "flat"), SHAPE, numbers))


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["0", "1", "2"], [0, 1, 2]),
        (["10", "2", "9"], [10, 2, 9]),  # in the order of the files
        (["007", "1"], [7, 1]),
        (["10", "2", "x"], [0, 1, 2]),  # names, by their order
        (["1.5", "2"], [0, 1]),
        (["-1", "2"], [0, 1]),
        (["\u0663", "2"], [1, 0]),
    ],
)
def test_folders_that_are_all_named_by_numbers_have_these(save, tmp_path, folders, labels):
    for name in folders:
        save(f"{name}/a.png", pixels(0))
    opened = open_folder(tmp_path)
    found = {opened.name(i).split("/")[0]: opened.label(i) for i in opened.ids.tolist()}
    assert found == dict(zip(folders, labels, strict=True))
    assert (opened.class_names is None) is all(name.isascii() and name.isdigit() for name in folders)


def test_two_folders_of_one_number_are_refused(save, tmp_path):
    save("1/a.png", pixels(0))
    save("01/a.png", pixels(1))
    assert "The sub-folders 01 and 1 of " in refused(sources.Folder(str(tmp_path / "folder"), SHAPE))


def test_a_class_need_not_be_named_in_valid_text(save, tmp_path):
    """As folders out of an old archive are: a page and a model card are in UTF-8."""
    for name in ("dog", os.fsdecode(b"caf\xe9")):
        save(f"{name}/a.png", pixels(0))
    opened = open_folder(tmp_path)
    assert (opened.class_names, opened.label(0)) == ((r"caf\xe9", "dog"), 0)


def test_images_have_the_names_of_their_files(save, archive, tmp_path):
    for name in ("dog/b c.png", "cat/deep/a.png", os.fsdecode(b"cat/\xff.png")):
        save(name, pixels(0))
    opened = open_folder(tmp_path)
    assert opened.names(opened.ids[[2, 0]]) == ("dog/b c.png", "cat/deep/a.png")
    assert opened.name(1) == r"cat/\xff.png"
    opened = sources.Archive(archive(images=pixels(0, (2, *SHAPE))), SHAPE).open()
    assert (opened.names(opened.ids), opened.name(0)) == (None, None)


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
        (SHAPE, pixels(0, (6, 4, 3)), None, "bad.png is 6x4, not 4x6; save it in that size, or certify it resized"),
        (SHAPE, pixels(0, (4, 6, 4)), None, "bad.png is not opaque: what lies behind it is not known; save it with "),
        ((4, 6, 1), pixels(0), None, "bad.png is in the colour mode RGB, but greyscale is needed; save it in greys"),
        ((4, 6, 1), pixels(0, (4, 6, 4)), None, "bad.png is in the colour mode RGBA, but greyscale is needed; save "),
    ],
)
def test_an_image_of_another_kind_is_an_error_of_its_own(save, tmp_path, shape, array, mode, said):
    save("bad.png", array, mode)
    save("good.png", pixels(1, shape))
    opened = open_folder(tmp_path, shape)
    with pytest.raises(sources.ImageError) as refusal:
        opened.image(0)
    assert said in str(refusal.value)
    np.testing.assert_array_equal(opened.image(1), pixels(1, shape) / np.float32(255))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_opaque_throughout_is_taken_and_what_is_not_refused(tmp_path, mode):
    (tmp_path / "folder").mkdir()
    grey = pixels(0, (4, 6))
    image = Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "folder" / "a.png", **({"transparency": bytes([255] * 256)} if mode == "P" else {}))
    if mode == "P":
        image.save(tmp_path / "folder" / "b.png", transparency=bytes([254] * 256))
    else:
        image.putalpha(254)
        image.save(tmp_path / "folder" / "b.png")
    opened = open_folder(tmp_path)
    np.testing.assert_array_equal(opened.image(0), np.repeat(grey[..., None], 3, axis=-1) / np.float32(255))
    with pytest.raises(sources.ImageError, match=r"b\.png is not opaque"):
        opened.image(1)


def test_sixteen_bits_of_greyscale_are_scaled_by_their_own_largest_value(save, tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (4, 6, 1), np.uint16)
    deep[0, :2, 0] = 0, 65535
    save("a.png", deep)
    opened, coloured = open_folder(tmp_path, (4, 6, 1)), open_folder(tmp_path)
    np.testing.assert_allclose(opened.image(0), deep / 65535, rtol=1e-7)
    assert (opened.image(0).min(), opened.image(0).max()) == (0, 1)
    np.testing.assert_array_equal(coloured.image(0), np.repeat(opened.image(0), 3, axis=-1))


def test_sixteen_bits_of_colour_are_refused(tmp_path):
    """Pillow reads their upper halves and says nothing."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    rows = b"".join(b"\0" + bytes(6 * 6) for _ in range(4))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(png + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    with pytest.raises(sources.ImageError, match=r"a\.png is in the colour mode RGB, 16 bits deep; save it in RGB wi"):
        open_folder(tmp_path).image(0)


def test_webp_and_bmp_are_taken_and_a_printers_colours_are_not(save, tmp_path):
    save("a.webp", pixels(0), lossless=True)
    save("b.BMP", pixels(1))
    save("c.jpg", pixels(2), mode="CMYK")
    opened = open_folder(tmp_path)
    for i in (0, 1):
        np.testing.assert_array_equal(opened.image(i), pixels(i) / np.float32(255))
    with pytest.raises(sources.ImageError, match=r"c\.jpg is in the colour mode CMYK, a printer's.*; save it in RGB$"):
        opened.image(2)


@pytest.mark.parametrize("name", ["a.gif", "a.TIF", "a.tiff", "a.ppm", "a.tga"])
def test_an_image_of_another_format_is_refused_and_not_missed(save, tmp_path, name):
    save(name, pixels(0))
    save("b.png", pixels(1))
    opened = open_folder(tmp_path)
    with pytest.raises(
        sources.ImageError, match=rf"{name} cannot be read \(it is not a PNG, .*; save it as one of these\)"
    ):
        opened.image(0)
    np.testing.assert_array_equal(opened.image(1) * 255, pixels(1))


def test_what_is_in_a_file_decides_and_not_its_suffix(save, tmp_path):
    save("a.png", pixels(0)).rename(tmp_path / "folder" / "a.jfif")
    np.testing.assert_array_equal(open_folder(tmp_path).image(0) * 255, pixels(0))


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_what_moves_is_refused(save, tmp_path, name):
    more = [Image.fromarray(pixels(1))]
    save(name, pixels(0), save_all=True, append_images=more)
    with pytest.raises(sources.ImageError, match=r"is animated: it has 2 images; save the one to use"):
        open_folder(tmp_path).image(0)


def test_damaged_exif_data_is_no_page_on_the_terminal(save, tmp_path):
    cut_off = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x05\x01\x12\0\x03\0\0"
    save("a.png", pixels(0), exif=cut_off)
    folder, repository = str(tmp_path / "folder"), Path(__file__).resolve().parents[3]
    program = f"from pipeline.data import sources; print(sources.Folder({folder!r}).open().image(0).shape)"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=repository)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_as_their_orientation_says(save, tmp_path, orientation):
    """The eight of EXIF's table: which side of the scene row 0 and column 0 of the file are."""
    as_seen = pixels(0)
    stored = {
        1: as_seen, 2: as_seen[:, ::-1], 3: as_seen[::-1, ::-1], 4: as_seen[::-1],
        5: as_seen.swapaxes(0, 1), 6: np.rot90(as_seen, 1), 7: as_seen[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(as_seen, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    save("a.png", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_array_equal(open_folder(tmp_path).image(0), as_seen / np.float32(255))


def resized(tmp_path, shape=SHAPE):
    return sources.Folder(str(tmp_path / "folder"), shape, resize=True).open()


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_half_the_size_weighs_four_pixels_by_1_3_3_1(save, tmp_path, dtype, largest):
    """A triangle of twice the width of a pixel, in both directions; the sides are in the ratio of the shape's."""
    stored = 64 * np.random.default_rng(0).integers(0, largest // 64, (8, 12, 1)).astype(dtype)
    save("a.png", stored)
    image = resized(tmp_path, (4, 6, 1)).image(0)
    weights = np.zeros((6, 12))
    for place in range(1, 5):
        weights[place, 2 * place - 1 : 2 * place + 3] = np.array([1, 3, 3, 1]) / 8
    expected = weights[1:3, :8] @ stored[..., 0] @ weights.T
    np.testing.assert_array_equal(np.rint(image[1:3, 1:5, 0] * largest), expected[:, 1:5])
    np.testing.assert_array_equal(image, np.rint(image * largest).astype(np.float32) / np.float32(largest))


def test_what_is_resized_is_the_middle_upright(save, tmp_path):
    """Of 4x12 as it is seen, columns 3 to 8."""
    as_seen = np.zeros((4, 12, 3), np.uint8)
    as_seen[:, 3:9] = pixels(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("a.png", np.ascontiguousarray(np.rot90(as_seen, 1)), exif=exif)
    np.testing.assert_array_equal(resized(tmp_path).image(0) * 255, pixels(0))


def test_resized_images_have_digests_of_their_own_for_each_size(save, tmp_path, monkeypatch):
    save("a.png", pixels(0))
    before = open_folder(tmp_path).digest(0)
    digests = [before, *(resized(tmp_path, shape).digest(0) for shape in (SHAPE, (2, 3, 3), (23, 2, 3)))]
    assert len(set(digests)) == 4
    # Another version may compute other pixels, of resized images alone.
    monkeypatch.setattr("PIL.__version__", "99.0")
    assert resized(tmp_path).digest(0) not in digests
    assert open_folder(tmp_path).digest(0) == before
    # It has the size already.
    np.testing.assert_array_equal(resized(tmp_path).image(0), open_folder(tmp_path).image(0))


def test_resizing_takes_nothing_that_is_refused_otherwise(save, tmp_path, archive):
    save("a.png", pixels(0, (8, 12, 4)))
    save("b.jpg", pixels(0, (8, 12, 3)), mode="CMYK")
    (tmp_path / "folder" / "c.png").write_bytes(b"no image")
    opened = resized(tmp_path)
    for i, said in enumerate(("is not opaque", "is in the colour mode CMYK", "cannot be read")):
        with pytest.raises(sources.ImageError, match=said):
            opened.image(i)
    path = archive(images=pixels(0, (2, *SHAPE)))
    with pytest.raises(InputError, match="Only files in a folder can be resized, not arrays"):
        sources.at(path, SHAPE, resize=True)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder's name"])
def test_what_is_no_plain_file_is_an_error_of_its_own(save, tmp_path, kind):
    save("b.png", pixels(1))
    path = tmp_path / "folder" / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(os.path.relpath(path))
        listening.close()
    else:
        path.mkdir()
        (tmp_path / "folder" / "b.png").rename(path / "b.png")
        assert open_folder(tmp_path).label(0) == 0
        return
    opened = open_folder(tmp_path)
    with pytest.raises(sources.ImageError, match=r"a\.png (is a pipe or a device|cannot be read)") as refusal:
        opened.image(0)
    with pytest.raises(sources.ImageError):
        opened.digest(0)
    assert "\n" not in str(refusal.value)
    assert opened.image(1).shape == SHAPE


def test_no_image_is_larger_than_a_bound_in_bytes_or_in_pixels(save, tmp_path):
    path = save("a.png", pixels(0))
    with open(save("b.png", pixels(0)), "ab") as file:
        file.truncate(2**26 + 1)
    content = path.read_bytes()
    for name, side in (("c.png", 60_000), ("d.png", 10_000)):
        claim = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
        claimed = content[:12] + claim + struct.pack(">I", zlib.crc32(claim)) + content[33:]
        (path.parent / name).write_bytes(claimed)
    opened = open_folder(tmp_path)
    with pytest.raises(sources.ImageError, match=r"b\.png is larger than 64 MiB, the most that is accepted$"):
        opened.image(1)
    for i in (2, 3):
        with pytest.raises(
            sources.ImageError, match=r"[cd]\.png cannot be read \(Image size \(\d+ pixels\) exceeds limit"
        ):
            opened.image(i)


def test_no_line_about_an_image_differs_from_run_to_run_or_commands_a_terminal(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "\x1b[2Jb\nad\u202e.png").write_bytes(b"no image")
    with pytest.raises(sources.ImageError) as refusal:
        open_folder(tmp_path).image(0)
    assert str(refusal.value).endswith(
        r"\x1b[2Jb\nad\u202e.png cannot be read (it is not a PNG, JPEG, WebP or BMP image, or is damaged; save it as "
        "one of these)"
    )
    assert "0x" not in str(refusal.value)


def test_pixels_and_digest_are_of_one_read(save, tmp_path):
    path = save("a.png", pixels(0))
    other = save("../other.png", pixels(1)).read_bytes()
    opened = open_folder(tmp_path)
    digest = opened.digest(0)
    np.testing.assert_array_equal(opened.image(0, digest), pixels(0) / np.float32(255))
    path.write_bytes(other)
    with pytest.raises(sources.ImageError, match="the image was changed while it was certified"):
        opened.image(0, digest)
    np.testing.assert_array_equal(opened.image(0, opened.digest(0)), pixels(1) / np.float32(255))


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
    with pytest.raises(sources.ImageError, match=r"a\.png cannot be read \(") as refusal:
        opened.image(0)
    assert "\n" not in str(refusal.value)
    assert opened.image(1).shape == SHAPE
    if damage == "gone":
        with pytest.raises(sources.ImageError, match=r"a\.png cannot be read \("):
            opened.digest(0)
    else:
        assert opened.digest(0) != before


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp"])
def test_whatever_is_damaged_fails_alone_and_in_one_line(save, tmp_path, name):
    """Pillow raises a dozen kinds of exceptions, and any that were let through would end the whole job."""
    exif = Image.Exif()
    exif[0x0112] = 3
    path = save(name, pixels(0), **({} if name == "a.bmp" else {"exif": exif}))
    content, rng = path.read_bytes(), np.random.default_rng(0)
    opened, failed = open_folder(tmp_path), 0
    for _ in range(300):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[rng.integers(0, len(damaged), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged[: rng.integers(len(damaged) // 2, 2 * len(damaged))].tobytes())
        try:
            image = opened.image(0)
        except sources.ImageError as error:
            failed += "\n" not in str(error)
        else:
            assert (image.shape, image.dtype) == (SHAPE, np.float32)
            assert 0 <= image.min() <= image.max() <= 1
    assert failed > 30


def test_folders_without_order_are_refused(save, tmp_path):
    folder = tmp_path / "folder"
    assert "Cannot read the folder" in refused(sources.Folder(str(folder), SHAPE))
    folder.mkdir()
    said = "holds no image. Accepted: files that end in .png, .jpg, .jpeg, .webp, .bmp."
    assert said in refused(sources.Folder(str(folder), SHAPE))
    save("cat/a.png", pixels(0))
    save("b.png", pixels(0))
    said = "has images of its own, such as b.png, and others in sub-folders: put all into sub-folders"
    assert said in refused(sources.Folder(str(folder), SHAPE))


# Archives


def test_archives_of_bytes_and_of_floats_are_the_same_images(archive):
    both = pixels(0, (3, *SHAPE))
    for stored in (both, both / np.float64(255), both.astype(np.float32) / np.float32(255)):
        opened = sources.Archive(archive(images=stored, labels=np.array([2, 0, 1])), SHAPE).open()
        assert [opened.label(i) for i in opened.ids] == [2, 0, 1]
        assert opened.class_names is None
        for i in range(3):
            assert opened.image(i).dtype == np.float32
            np.testing.assert_array_equal(opened.image(i), both[i] / np.float32(255))


def test_archives_without_labels_or_channels(archive):
    opened = sources.Archive(archive(images=pixels(0, (3, 4, 6))), (4, 6, 1)).open()
    assert (opened.label(2), opened.has_labels) == (None, False)
    np.testing.assert_array_equal(opened.image(2)[..., 0], pixels(0, (3, 4, 6))[2] / np.float32(255))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "1 of its values are not finite"),
        (np.inf, "1 of its values are not finite"),
        (1.5, "its pixels must be in [0, 1]; they are from 0 to 1.5"),
        (-0.25, "its pixels must be in [0, 1]; they are from -0.25 to 0"),
        (1 + 1e-7, "its pixels must be in [0, 1]; they are from 0 to 1.0000001"),
        (-1e-30, "its pixels must be in [0, 1]; they are from -1e-30 to 0"),
    ],
)
def test_an_image_that_is_no_image_is_an_error_of_its_own(archive, value, said):
    stored = np.zeros((2, *SHAPE), np.float32)
    stored[1, 2, 3, 0] = value
    opened = sources.Archive(archive(images=stored), SHAPE).open()
    assert opened.image(0).max() == 0
    with pytest.raises(sources.ImageError) as refusal:
        opened.image(1)
    assert str(refusal.value) == said


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"z\x1b[2J": pixels(0)},
            r"has no array 'images', nor image, x, X, data, arr_0, x_test, X_test, test_images. It "
            r"has: z\x1b[2J",
        ),
        (
            {"x": pixels(0), "X_test": pixels(0)},
            "which arrays are meant? Call them 'images' and 'labels'. It has: x, X_t",
        ),
        ({f"arr_{i}": pixels(0) for i in range(4)}, "which arrays are meant?"),
        ({f"z{i}": pixels(0) for i in range(30)}, "z18, z19, ..."),
        (
            {"x": np.zeros((2, *SHAPE)), "label": [0, 1], "targets": [0, 1]},
            "which array has the labels of 'x'? Call it 'y'",
        ),
        ({"images": np.zeros((2, *SHAPE), np.int64)}, "images must be uint8, or floats in [0, 1]. Received: int64"),
        ({"images": np.zeros((2, 3, 4, 6))}, "images of shape 4x6x3 are needed. Received: 2x3x4x6"),
        ({"images": np.zeros((0, *SHAPE))}, "one or more images of shape 4x6x3 are needed. Received: 0x4x6x3"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.zeros(3, int)}, "one for each of the 2 images"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.array([0, 0.5])}, "labels must be integers"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.array([0, np.nan])}, "labels must be integers"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.array(["0", "1"])}, "labels must be integers"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.array([[0.9, 0.1], [0, 1]])}, "not one 1 and 0 elsewhere"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.array([[1, 1], [0, 1]])}, "not one 1 and 0 elsewhere"),
        ({"images": np.zeros((2, *SHAPE)), "labels": np.zeros((2, 0))}, "labels must be integers"),
        (
            {"images": np.zeros((2, *SHAPE)), "labels": np.array([0, 2**63], np.uint64)},
            "labels must be at most 2147483647",
        ),
        (
            {"images": np.zeros((2, *SHAPE)), "labels": np.array([0, -1])},
            "labels must be 0 or above. Leave out images without a label, or leave out labels if none has one. "
            "Received: -1",
        ),
        ({"images": np.array([None])}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_other_archives_are_refused(archive, arrays, said):
    assert said in refused(sources.Archive(archive(**arrays), SHAPE))


@pytest.mark.parametrize(
    "names", ["image label", "x_test y_test", "test_images test_labels", "x y", "X y", "data targets", "arr_0 arr_1"]
)
def test_the_names_that_people_give_arrays_are_known(archive, names):
    of_images, of_labels = names.split()
    arrays = {
        of_images: pixels(0, (2, *SHAPE)),
        of_labels: [3, 1],
        "x_train": pixels(1, (5, *SHAPE)),
        "y_train": [0] * 5,
    }
    opened = sources.Archive(archive(**arrays), SHAPE).open()
    assert [opened.label(i) for i in opened.ids] == [3, 1]
    np.testing.assert_array_equal(opened.image(1), arrays[of_images][1] / np.float32(255))


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32), ("0", "1", "2")),
        (np.array([[False, False, True], [True, False, False], [False, True, False]]), ("0", "1", "2")),
        (np.array([[2], [0], [1]]), None),
        (np.array([2.0, 0.0, 1.0]), None),
    ],
    ids=["one-hot", "one-hot of truths", "a column", "floats"],
)
def test_labels_as_people_have_them(archive, labels, named):
    opened = sources.Archive(archive(images=pixels(0, (3, *SHAPE)), labels=labels), SHAPE).open()
    assert [opened.label(i) for i in opened.ids] == [2, 0, 1]
    assert opened.class_names == named


def test_columns_first_in_memory_are_the_same_images(archive):
    stored = np.asfortranarray(pixels(0, (2, *SHAPE)))
    opened = sources.Archive(archive(images=stored), SHAPE).open()
    np.testing.assert_array_equal(opened.image(1), stored[1] / np.float32(255))


def claiming(path, shape, dtype="|u1", content=b""):
    """An .npz file whose images claim to be of a shape."""
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content)
    return sources.Archive(str(path), SHAPE)


def test_no_archive_takes_more_memory_than_a_bound(tmp_path):
    of_terabytes = (2**35, *SHAPE)
    assert "images would take 2.25 TiB; the most that is accepted is 8 GiB: split it into several files." in refused(
        claiming(tmp_path / "a.npz", of_terabytes)
    )
    # 300 MB of zeros are 300 kB when packed; it is the size that is claimed and packed that counts.
    bomb = claiming(tmp_path / "b.npz", (2**22, *SHAPE), content=b"\0" * 4096)
    assert "images would grow from" in refused(bomb)
    assert "cannot be read" in refused(claiming(tmp_path / "c.npz", (3, *SHAPE), content=bytes(71)))
    assert "images is cut off" in refused(claiming(tmp_path / "d.npz", (1, *SHAPE), content=bytes(71)))
    assert "images is longer than it says" in refused(claiming(tmp_path / "e.npz", (1, *SHAPE), content=bytes(73)))
    assert "4x6x3 are needed. Received: -1x4x6x3" not in refused(claiming(tmp_path / "f.npz", (-1, *SHAPE)))
    assert claiming(tmp_path / "g.npz", (1, *SHAPE), content=bytes(72)).open().image(0).max() == 0
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "g.npz", "a") as twice:
        twice.writestr("images.npy", b"")
    assert "two of its arrays have the same name" in refused(sources.Archive(str(tmp_path / "g.npz"), SHAPE))
    os.mkfifo(tmp_path / "h.npz")
    assert "is a pipe or a device" in refused(sources.Archive(str(tmp_path / "h.npz"), SHAPE))


def test_what_lies_at_a_path_is_told_by_what_it_is(save, archive, tmp_path):
    folder = save("cat/a.png", pixels(0)).parent.parent
    upper = tmp_path / "A.NPZ"
    upper.write_bytes(Path(archive(images=pixels(0, (1, *SHAPE)))).read_bytes())
    assert sources.at(str(folder), SHAPE, {"cat": 3}) == sources.Folder(str(folder), SHAPE, {"cat": 3})
    assert sources.at(str(upper), SHAPE).open().image(0).shape == SHAPE
    (tmp_path / "x.npy").touch()
    for path, classes, said in [
        (
            tmp_path / "x.npy",
            None,
            "or in an .npz file with the arrays images and labels, as np.savez writes it. Received",
        ),
        (tmp_path / "nowhere", None, "There is no folder or file"),
        (upper, {"cat": 3}, "Class numbers are for a folder's sub-folders"),
    ]:
        with pytest.raises(InputError, match=said):
            sources.at(str(path), SHAPE, classes)


def test_a_byte_of_an_archive_that_is_flipped_is_found_or_changes_nothing(archive, tmp_path):
    stored, labels = pixels(0, (1, 2, 2, 1)), np.array([3], np.uint8)
    content = Path(archive(images=stored, labels=labels)).read_bytes()
    path, found = tmp_path / "flipped.npz", 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        try:
            opened = sources.Archive(str(path), (2, 2, 1)).open()
        except InputError as refusal:
            found += "\n" not in str(refusal)
            continue
        np.testing.assert_array_equal(opened.image(0), stored[0] / np.float32(255))
        assert opened.label(0) in (3, None)  # the name of the labels may be another
    assert found > len(content) / 2


def test_damaged_archives_are_refused(archive, tmp_path):
    path = tmp_path / "b.npz"
    assert refused(sources.Archive(str(path), SHAPE)) == f"There is no file {path}."
    path.write_bytes((tmp_path / archive(images=pixels(0, (9, *SHAPE)))).read_bytes()[:300])
    assert "cannot be read as an .npz file" in refused(sources.Archive(str(path), SHAPE))
    np.save(tmp_path / "c.npy", pixels(0))
    assert "cannot be read as an .npz file" in refused(sources.Archive(str(tmp_path / "c.npy"), SHAPE))


# Of all


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 2), (0, 6, 3)])
def test_shapes_are_of_images(archive, shape):
    assert "Images are of shape (height, width, 1 or 3)" in refused(sources.Archive(archive(images=pixels(0)), shape))


@pytest.mark.parametrize("example_id", [-1, 3])
def test_there_is_no_image_beyond_the_ends(archive, example_id):
    opened = sources.Archive(archive(images=pixels(0, (3, *SHAPE))), SHAPE).open()
    for ask in (opened.image, opened.label, opened.digest):
        with pytest.raises(IndexError, match=f"from 0 to 2. Received: {example_id}"):
            ask(example_id)


def test_digests_tell_contents_apart_but_not_places(archive, save, tmp_path):
    stored = pixels(0, (3, *SHAPE))
    changed = stored.copy()
    changed[2, 0, 0, 0] ^= 1

    def digest(example_id, **arrays):
        return sources.Archive(archive(**arrays), SHAPE).open().digest(example_id)

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
    assert sources.Folder(str(tmp_path / "moved"), SHAPE).open().digest(0) == here
