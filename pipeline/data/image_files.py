"""Anyone's image files: found in a folder, read once, and decoded to exactly the pixels they hold, or refused.

They are resized only on request, because a radius is about the pixels that were certified.
"""

import contextlib
import io
import os
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from macer_tf import files
from pipeline.utils.errors import InputError, reason
from serving import files as serving_files
from serving.files import is_url
from serving.terminal import printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# These are images too, so leaving them out silently would be wrong; their content decides whether they are accepted.
_OTHER_SUFFIXES = (
    *(".jpe", ".jfif", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".dib", ".psd", ".dng"),
)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_GREY, _COLOUR = ("1", "L", "LA", "I;16"), ("RGB", "RGBA", "P", "PA")
# Exact in the wanted number of channels, if opaque. A printer's colours are not, nor is colour as greyscale.
_EXACT_MODES = {1: _GREY, 3: _GREY + _COLOUR}
_PIL_MODES = {1: "L", 3: "RGB"}
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH = 24  # its offset in the file
_MOST_BYTES = 2**26
UPRIGHT = b"upright "
# Appended to the message about an image of another size, except where it is for training.
OR_RESIZED = ", or certify it resized"
# An image that claims to be so large raises an error, instead of printing a page on the terminal.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# What Pillow finds odd in an image's EXIF data says nothing about its pixels, and is common in photographs.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# What network drives put beside images.
_THUMBNAILS = "@eaDir"


class ImageError(ValueError):
    """An image that cannot be certified, and the reason; others can."""


def is_hidden(name):
    """Whether a file or folder of this name is not content, such as .DS_Store or ._cat.png."""
    return serving_files.is_hidden(name) or name == _THUMBNAILS


def is_among(folder, images):
    """Whether a folder lies where images are looked for: in the folder `images` or below. No URL does, nor None."""
    if folder is None or is_url(folder) or is_url(images):
        return False
    folder, images = (Path(os.path.realpath(one)) for one in (folder, images))
    return folder.is_relative_to(images) and not any(map(is_hidden, folder.relative_to(images).parts))


def spelling(name):
    """One spelling of a name with accents, however a file system spells them."""
    return unicodedata.normalize("NFC", name)


def in_order(path):
    """A sort key for paths that gives the same order on any file system."""
    return [(spelling(part), part) for part in Path(path).parts]


def find(root):
    """The paths of the image files under a folder, in order; hidden files and folders are skipped.

    Raises:
        InputError: if a folder or a file can be reached in two ways, so that images would count twice.
        OSError: if a folder cannot be read.
    """

    def refuse(error):
        raise error

    found, ways, above = [], {}, set()
    # Links are followed, because a class that is a link to a folder must not silently disappear.
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        _check_is_new(folder, real, ways, above)
        ways[real] = folder
        above.update(map(str, Path(real).parents))
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        # Checked at once, because walking what lies below a link to / takes a long time.
        for path in (os.path.join(folder, name) for name in subfolders):
            if os.path.islink(path):
                _check_is_new(path, os.path.realpath(path), ways, above)
        found += [Path(folder, name) for name in names if _is_image(name)]
    found.sort(key=in_order)
    _check_no_file_twice(found)
    return found


def _is_image(name):
    return not is_hidden(name) and name.lower().endswith((*SUFFIXES, *_OTHER_SUFFIXES))


def _check_no_file_twice(found):
    """Raises InputError if two paths are the same file, through a symbolic or a hard link; a copy is another file."""
    if any(map(os.path.islink, found)):
        _check_different(found, map(os.path.realpath, found))
    linked = [(path, status) for path in found if (status := _status(path)) and status.st_nlink > 1]
    _check_different([path for path, _ in linked], [(status.st_dev, status.st_ino) for _, status in linked])


def _check_different(found, files_of):
    paths = {}
    for path, file in zip(found, files_of, strict=True):
        before = paths.setdefault(file, path)
        if before is not path:
            raise InputError(f"{path} and {before} are the same file, which would count twice; remove the link.")


def _status(path):
    try:
        return os.stat(path)
    except OSError:  # reported when it is read
        return None


def resized_to(shape):
    """The rule by which images are `decode`d to the height and width of a shape, instead of only turned `UPRIGHT`."""
    # Includes the version, because another one may compute other pixels.
    return f"upright, resized to {shape[0]}x{shape[1]} by Pillow {PIL.__version__} ".encode()


def content(path, rule=UPRIGHT):
    """What an image is identified by and decoded from: the rule, and its file's bytes, read once.

    Raises:
        ImageError: if it cannot be read, is not a plain file, or is larger than 64 MiB.
    """
    try:
        # What is decoded to other pixels under another rule must have another digest.
        return rule + files.read(path, _MOST_BYTES)
    except OSError as error:
        raise ImageError(f"{printable(path)} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ImageError(reason(error).removesuffix(".")) from None


def decode(path, content, shape, rule=UPRIGHT):
    """float32 [H, W, C] in [0, 1], of this shape: the pixels that the content of a file shows, upright.

    Args:
        path: of the file, for messages.
        content: as `content` returns it.
        shape: (H, W, C).
        rule: the rule given to `content`. With `resized_to(shape)`, the largest central part with the shape's aspect
            ratio is resized, antialiased and bilinear, to whole levels of the file's.

    8 bits are divided by 255, 16 bits of greyscale by 65,535; greyscale becomes colour where 3 channels are asked for.
    An image's EXIF orientation is applied.

    Raises:
        ImageError: if it is damaged, of another size, not opaque, animated, or of a kind that these channels cannot
            represent exactly. The line names `path`.
    """
    name, file = printable(path), content.removeprefix(rule)
    height, width, channels = shape
    with _opened(name, file) as image:
        upright = _upright(name, image, shape if rule == UPRIGHT else None)
        picture = _in_channels(name, upright, _is_deep(file), channels)
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
        largest = 65535 if _is_deep(file) else 255
        pixels = np.asarray(picture).astype(np.float32) / np.float32(largest)
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], channels, axis=-1)


def shape(path, content):
    """(H, W, C) of an image, upright, without reading its pixels; C is 1 for greyscale, else 3.

    Raises:
        ImageError: if it is damaged. The line names `path`.
    """
    with _opened(printable(path), content.removeprefix(UPRIGHT)) as image:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        width, height = reversed(image.size) if is_turned else image.size
        return height, width, 1 if image.mode in _GREY else 3


@contextlib.contextmanager
def _opened(name, file):
    try:
        with Image.open(io.BytesIO(file), formats=_FORMATS) as image:
            yield image
            return
    except ImageError:
        raise
    except UnidentifiedImageError:
        why = "it is not a PNG, JPEG, WebP or BMP image, or is damaged; save it as one of these"
    except Exception as error:  # Pillow raises any kind of exception for damaged files
        why = reason(error)
    raise ImageError(f"{name} cannot be read ({why})")


def _check_is_new(folder, real, ways, above):
    if real in ways:
        raise InputError(
            f"{folder} is the same folder as {ways[real]}, whose images would count twice: remove the link to it."
        )
    if real in above:
        raise InputError(f"{folder} is a link to a folder above it, whose images would count again: remove the link.")


def _is_deep(content):
    return content.startswith(_PNG_MAGIC) and content[_PNG_BIT_DEPTH] == 16


def _upright(name, image, shape):
    """The image as it is displayed, which must have the shape unless that is None."""
    height, width, _ = shape or (*reversed(image.size), None)
    # Checked before a pixel is decoded: a few bytes can claim to be gigabytes.
    if image.size not in ((width, height), (height, width)):
        raise _other_size(name, image, height, width)
    # A photograph may have a preview beside it; an animation is not one image.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ImageError(f"{name} is animated: it has {image.n_frames} images; save the one to use")
    image = ImageOps.exif_transpose(image)
    if shape and image.size != (width, height):
        raise _other_size(name, image, height, width)
    return image


def _other_size(name, image, height, width):
    size = f"{image.height}x{image.width}, not {height}x{width}"
    return ImageError(f"{name} is {size}; save it in that size{OR_RESIZED}")


def _in_channels(name, image, is_deep, channels):
    """The image with 8 bits per channel; or, with one channel of whole numbers, with 16."""
    # Pillow reads 16 bits per colour without warning, and drops half of them.
    if image.mode not in _EXACT_MODES[channels] or is_deep != (image.mode == "I;16"):
        raise ImageError(f"{name} is {_kind_and_remedy(image.mode, is_deep, channels)}")
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        layers = image if is_deep else image.convert("RGBA")
        if is_deep or layers.getchannel("A").getextrema() != (255, 255):
            raise ImageError(f"{name} is not opaque: what lies behind it is not known; save it with a background")
        image = layers if image.mode in _COLOUR else image
    if is_deep:
        # A mode that Pillow can resize.
        return Image.fromarray(np.asarray(image).astype(np.int32))
    return image.convert(_PIL_MODES[channels])


def _kind_and_remedy(mode, is_deep, channels):
    kind = "in greyscale" if channels == 1 else "in RGB"
    if mode in ("CMYK", "YCCK"):
        return f"in the colour mode {mode}, a printer's, which no screen shows exactly; save it {kind}"
    if is_deep and mode != "I;16":
        return (
            f"in the colour mode {mode}, 16 bits deep; save it {kind} with 8 bits (with 16, only greyscale is accepted)"
        )
    if mode in _COLOUR and channels == 1:
        return f"in the colour mode {mode}, but greyscale is needed; save it in greyscale"
    return f"in the colour mode {mode}; save it {kind} with 8 bits"
