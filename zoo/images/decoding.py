"""Any picture file, decoded safely, as grey levels (or colours): float64 (H, W) in [0, 1].

A file comes from anywhere, so it is judged before it is decoded: a regular file of bounded size, one
of a few formats, few frames, few pixels. Pillow then decodes it under a budget of reads, because a
small file can name millions of tiny blocks or the same large one a thousand times. Whatever the
encoding, the same pixels give the same grey levels: 16 bits stay 16, transparent ink stays visible,
the camera's orientation is obeyed, and nothing is rounded to 8 bits on the way. Large pictures
become smaller band by band, which bounds memory; a digit needs no more than LONGEST pixels.
"""

from __future__ import annotations

import glob
import io
import math
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin  # noqa: F401  (Image.open would import every plugin to find these two)
from PIL import ExifTags, Image, UnidentifiedImageError

from zoo.errors import InvalidInput, ZooError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
LARGEST_FILE = 2**26  # bytes
MOST_PIXELS = 50_000_000  # a phone's largest photo
MOST_WEBP_PIXELS = 25_000_000  # its decoder holds several copies
MOST_WHOLE_PIXELS = 16_000_000  # where none are left out
MOST_SIDE = 20_000
MOST_FRAMES = 100
MOST_SCANS = 100  # of a progressive JPEG, each of which visits every pixel; ten are usual
MOST_READS = 200_000
MOST_TEXT = 2**22  # bytes of comments, profiles and other metadata
LONGEST = 1200  # pixels of the longer side after decoding, roughly
BAND = 256  # rows at a time
LUMA_RED, LUMA_BLUE = 0.299, 0.114  # Rec. 601; green has the rest


def expand(arguments: Iterable[str]) -> Iterator[tuple[str, ZooError | None]]:
    """The picture files that command-line arguments name, in order: files, folders, patterns.

    A folder gives the pictures in it by their suffix, sorted, not those of its folders. What names
    no picture comes with its error.
    """
    for argument in arguments:
        path = Path(argument)
        try:
            if path.is_dir():
                found = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
                problem = "no picture in the folder"
            elif glob.has_magic(argument) and not path.exists():
                found, problem = _files(glob.glob(argument)), "no file matches"
            else:
                found, problem = [argument], ""
        except (OSError, ValueError) as error:  # too long, NUL, unreadable
            found, problem = [], f"cannot read: {_reason(error)}"
        yield from ((file, None) for file in found)
        if not found:
            yield argument, InvalidInput(problem, argument, f"give {_known()}")


def _files(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not Path(name).is_dir())


def read(path: str | Path) -> np.ndarray:
    """The picture in a file as grey levels, float64 (H, W), 0 is black and 1 is white.

    Of an animated PNG or WebP, or a JPEG of several pictures, the first counts; GIF and TIFF of several
    frames are refused. Transparent parts get a background on which the ink is seen. Raises
    InvalidInput, naming the file, if it is no picture, is damaged, or asks for too much.
    """
    return _decoded(Path(path), _small_grey)


def read_colour(path: str | Path) -> np.ndarray:
    """The picture in a file with every pixel: float64 (H, W, 3) in [0, 1], or (H, W) if it is grey.

    Transparent parts lie on white. Raises InvalidInput as `read` does, and for a picture of more than
    MOST_WHOLE_PIXELS.
    """
    return _decoded(Path(path), _whole_colour)


def luminance(colours: np.ndarray) -> np.ndarray:
    """Grey levels (H, W) of a picture (H, W, 3), by Rec. 601; of a grey one (H, W) itself."""
    return _luma(colours) if colours.ndim == 3 else colours


def _decoded(path: Path, take: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What `take` makes of the first frame of a picture file, turned upright."""
    content = _content(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is judged here, and of odd metadata
        try:
            with Image.open(_Budgeted(content), formats=FORMATS) as image:
                _check(image, content)
                levels = take(image)
                orientation = _orientation(image)
        except ZooError as error:
            raise InvalidInput(error.what, path, error.hint) from None
        except UnidentifiedImageError:
            raise InvalidInput("not a picture", path, f"give {_known()}") from None
        except Image.DecompressionBombError:
            raise InvalidInput("the picture is too large", path, f"at most {MOST_PIXELS:,} pixels") from None
        except MemoryError:
            raise
        except Exception as error:  # a decoder may raise anything on damaged bytes
            raise InvalidInput(f"the picture is damaged: {_reason(error)}", path) from None
    return _upright(levels, orientation)


def _orientation(image: Image.Image) -> object:
    """EXIF's number, 1 to 8; a camera's record that cannot be read does not turn the picture."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises SyntaxError, struct.error and others
        return 1


def _small_grey(image: Image.Image) -> np.ndarray:
    image.draft(None, (LONGEST, LONGEST))  # JPEG alone: decodes at 1/2, 1/4 or 1/8
    image.load()
    return _flatten(*_planes(image))


def _whole_colour(image: Image.Image) -> np.ndarray:
    if image.width * image.height > MOST_WHOLE_PIXELS:
        raise InvalidInput(
            f"{image.width} x {image.height} pixels are too many",
            "",
            f"make it smaller: at most {MOST_WHOLE_PIXELS:,}",
        )
    image.load()
    if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16"):
        grey, opacity = _grey(image)
        return grey * opacity + (1 - opacity)
    if image.has_transparency_data:
        channels = np.asarray(image.convert("RGBA")) / 255
        opacity = channels[..., 3:]
        return np.asarray(channels[..., :3] * opacity + (1 - opacity))
    return np.asarray(image.convert("RGB")) / 255


class _Budgeted(io.BytesIO):
    """A file in memory that ends a decoder which reads too often or too much."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads = MOST_READS
        self.bytes = 8 * len(content) + 2**20

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.reads -= 1
        self.bytes -= len(found)
        if self.reads < 0 or self.bytes < 0:
            raise InvalidInput("the picture has too many parts", "", "save it anew in another program")
        return found


def _content(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput("not a regular file", path, f"give {_known()}")
        if status.st_size > LARGEST_FILE:
            raise InvalidInput(
                f"the file has {status.st_size:,} bytes, at most {LARGEST_FILE:,} are accepted", path
            )
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE)
    except FileNotFoundError:
        raise InvalidInput("no such picture", path) from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read: {_reason(error)}", path) from None
    if not content:
        raise InvalidInput("the file is empty", path)
    return content


def _check(image: Image.Image, content: bytes) -> None:
    """Refuse, before anything is decoded, what would cost too much; raises InvalidInput."""
    width, height = image.size
    most = MOST_WEBP_PIXELS if image.format == "WEBP" else MOST_PIXELS
    if max(width, height) > MOST_SIDE or width * height > most:
        raise InvalidInput(
            f"{width} x {height} pixels are too many", "", f"at most {most:,}, and {MOST_SIDE:,} a side"
        )
    if image.format in ("GIF", "TIFF"):  # they say whether there are more frames, not how many
        if image.is_animated:  # type: ignore[attr-defined]
            raise InvalidInput(f"a {image.format} of several frames", "", "save one of them as a picture")
    elif getattr(image, "n_frames", 1) > MOST_FRAMES:
        raise InvalidInput("an animation of too many frames", "", "save one of them as a picture")
    if sum(len(value) for value in image.info.values() if isinstance(value, (str, bytes))) > MOST_TEXT:
        raise InvalidInput("too much text beside the picture", "", "save it anew in another program")
    if image.info.get("progressive") and content.count(b"\xff\xda") > MOST_SCANS:
        raise InvalidInput("a progressive JPEG of too many scans", "", "save it anew in another program")
    if 0 in image.size:
        raise InvalidInput("a picture without pixels")


def _planes(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Grey times opacity, and opacity: two planes (H, W), reduced to about LONGEST pixels a side."""
    factor = math.ceil(max(image.size) / LONGEST)
    factor = min(factor, *image.size)
    width, height = (side - side % factor for side in image.size)
    rows = max(BAND // factor, 1) * factor
    bands = []
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        grey, opacity = _grey(band)
        bands.append([_block_means(plane, factor) for plane in (grey * opacity, opacity)])
    premultiplied, opacity = (np.concatenate(planes) for planes in zip(*bands, strict=True))
    return premultiplied, opacity


def _grey(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Luminance and opacity of a decoded image, each float64 (H, W) in [0, 1]."""
    if image.mode.startswith("I;16"):
        levels = np.asarray(image)
        key = image.info.get("transparency")
        opacity = np.ones(levels.shape) if key is None else (levels != key).astype(np.float64)
        return levels / 65535, opacity
    if image.mode in ("1", "L") and not image.has_transparency_data:
        levels = np.asarray(image.convert("L")) / 255
        return levels, np.ones(levels.shape)
    if image.mode in ("I", "F"):
        raise InvalidInput(f"pictures of the kind {image.mode!r} have no fixed white", "", "save it as PNG")
    if image.has_transparency_data:
        channels = np.asarray(image.convert("RGBA")) / 255
        return _luma(channels), channels[..., 3]
    channels = np.asarray(image.convert("RGB")) / 255
    return _luma(channels), np.ones(channels.shape[:2])


def _luma(channels: np.ndarray) -> np.ndarray:
    """Rec. 601, written so that equal channels give exactly their level."""
    red, green, blue = (channels[..., i] for i in range(3))
    return green + LUMA_RED * (red - green) + LUMA_BLUE * (blue - green)


def _block_means(plane: np.ndarray, factor: int) -> np.ndarray:
    height, width = plane.shape
    if factor == 1:
        return plane
    return plane.reshape(height // factor, factor, width // factor, factor).mean(axis=(1, 3))


def _flatten(premultiplied: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Lay the picture on a background of one grey, on which its ink is seen.

    Opaque parts of about one grey are the ink itself (a digit cut out): the background is white
    for dark ink and black for light ink. Otherwise they are ink and paper: the background is theirs.
    """
    seen = opacity > 0.5
    if opacity.min() == 1 or not seen.any():
        return premultiplied
    grey = premultiplied[seen] / opacity[seen]
    darkest, middle, lightest = np.percentile(grey, (5, 50, 95))
    if lightest - darkest < 0.25:
        middle = 1.0 if middle < 0.5 else 0.0
    return np.asarray(premultiplied + (1 - opacity) * middle)


def _upright(levels: np.ndarray, orientation: object) -> np.ndarray:
    """The picture as it is meant to be seen; orientation is EXIF's number, 1 to 8."""
    mirrored = np.swapaxes(levels, 0, 1)
    turned = {
        2: levels[:, ::-1],
        3: levels[::-1, ::-1],
        4: levels[::-1],
        5: mirrored,
        6: mirrored[:, ::-1],
        7: mirrored[::-1, ::-1],
        8: mirrored[::-1],
    }
    return turned.get(orientation, levels)  # type: ignore[call-overload]


def _known() -> str:
    return "a PNG, JPEG, BMP, WebP, GIF or TIFF file"


def _reason(error: Exception) -> str:
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return text.splitlines()[0][:200] if text else type(error).__name__
