"""A picture through a kernel: the one-layer model of zoo.filters, run by any backend or by onnxruntime.

Colours are filtered one by one. Zeros around the picture are the model's own padding; another border
is put on in NumPy, and the model adds none. What comes out is no picture yet: sharpened pixels leave
[0, 1] and edges are negative as often as positive, so `to_picture` chooses how to show them.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

import backends
from backends.process.client import Worker
from backends.reference.network import ReferenceNetwork
from export.inference.session import Session
from export.onnx.file import serialize
from export.onnx.graph import to_onnx
from zoo import runs
from zoo.errors import BackendUnavailable, InvalidInput, nearest
from zoo.filters import Kernel, filter_model, find_kernel
from zoo.images import decoding
from zoo.model import Model
from zoo.primitives import MODES, PADDINGS, pad, padding_for
from zoo.weights import Weights

if TYPE_CHECKING:
    from export.crosscheck import Witness

Array = np.ndarray

ONNX = "onnx"
REFERENCE_BYTES = 2 * 2**30  # of windows that the reference would unfold
LEVELS = 2**13  # on either side of zero, in the histogram that is equalised
CLIP_LIMIT = 0.03  # of the adaptive equalisation, as documented


class Prepared(NamedTuple):
    """A filter for one picture: its model and weights, and the images (channels, 1, H, W), float32."""

    model: Model
    weights: Weights
    images: Array


@dataclass(frozen=True)
class Options:
    """How to filter and to show.

    kernel: a name of zoo.filters.KERNELS or a file. mode: how far the kernel reaches beyond the
    picture. padding: what it finds there, a name of zoo.primitives.PADDINGS. grey: filter the
    luminance instead of each colour. contrast: a name of CONTRASTS. backend: "onnx" or a backend's name.
    """

    kernel: str
    mode: str = "same"
    padding: str = "zero"
    grey: bool = False
    contrast: str = "equalize"
    backend: str = ONNX

    def __post_init__(self) -> None:
        known = {"mode": MODES, "padding": tuple(PADDINGS), "contrast": tuple(CONTRASTS)}
        for option, names in known.items():
            value = getattr(self, option)
            if value not in names:
                raise InvalidInput(f"unknown {option} {value!r}", f"--{option}", nearest(value, names))
        if self.backend != ONNX:
            if self.backend.partition(":")[0] not in (all_names := backends.names()):
                hint = nearest(self.backend, (ONNX, *all_names))
                raise InvalidInput(f"unknown backend {self.backend!r}", "--backend", hint)
            backends.require(self.backend)
        if self.contrast == "adaptive" and importlib.util.find_spec("skimage") is None:
            raise BackendUnavailable(
                "adaptive contrast needs scikit-image, not installed", "", "run: pip install scikit-image"
            )


def filter_file(picture: Path, options: Options, out: Path | None, onnx: Path | None) -> dict[str, Any]:
    """Filter a picture file into a PNG file, and tell what was done.

    out: default, beside no matter what, <picture>-<kernel>.png in the current folder. onnx: also
    write the filter there, as an ONNX file for pictures of this size. Raises InvalidInput before
    anything is written.
    """
    name, kernel = find_kernel(options.kernel)
    out = out or Path(f"{picture.stem}-{name}.png")
    _check_targets(picture, out, onnx, options)
    pixels = decoding.read_colour(picture)
    pixels = decoding.luminance(pixels) if options.grey else pixels
    prepared = prepare(pixels, kernel, options.mode, options.padding)
    values = run(prepared, options.backend)
    runs.write_atomically(out, to_png(to_picture(values, options.contrast)))
    if onnx:
        runs.write_atomically(onnx, serialize(to_onnx(prepared.model, prepared.weights)))
    return {
        "picture": str(picture),
        "kernel": name,
        "rows": [list(row) for row in kernel],
        "mode": options.mode,
        "padding": options.padding,
        "contrast": options.contrast,
        "backend": options.backend,
        "input_shape": list(pixels.shape),
        "output_shape": list(values.shape),
        "least": float(values.min()),
        "largest": float(values.max()),
        "path": str(out),
        "onnx": str(onnx) if onnx else None,
        "onnx_input_shape": ["batch", *prepared.model.input_shape],
    }


def apply(
    picture: Array, kernel: Kernel, mode: str = "same", padding: str = "zero", backend: str = ONNX
) -> Array:
    """A picture (H, W) or (H, W, colours) convolved with a kernel: (H', W') or (H', W', colours).

    Computed in float32, by the reference in float64.
    """
    return run(prepare(picture, kernel, mode, padding), backend)


def prepare(picture: Array, kernel: Kernel, mode: str = "same", padding: str = "zero") -> Prepared:
    """The filter for a picture (H, W) or (H, W, colours), and the picture as it takes it.

    Raises InvalidInput if the picture is smaller than the kernel needs it.
    """
    planes = np.moveaxis(picture, -1, 0) if picture.ndim == 3 else picture[None]
    if padding != "zero":
        (top, bottom), (left, right) = (padding_for(mode, m) for m in np.shape(kernel))
        planes = np.stack([pad(plane, (bottom, right, top, left), padding) for plane in planes])
        mode = "valid"
    model, weights = filter_model(kernel, mode, *planes.shape[1:])
    return Prepared(model, weights, np.ascontiguousarray(planes[:, None], dtype=np.float32))


def run(prepared: Prepared, backend: str = ONNX) -> Array:
    """What a backend, or onnxruntime ("onnx"), makes of the picture: (H', W') or (H', W', colours)."""
    model, weights, images = prepared
    if backend == ONNX:
        outputs = _each(Session(serialize(to_onnx(model, weights))), images)
    elif backend == "reference":
        windows = 8 * model.macs  # bytes: a float64 for each element of each window
        if windows > REFERENCE_BYTES:
            what = f"the reference would unfold {windows / 1e9:.1f} GB of windows"
            raise InvalidInput(what, "--backend", "use another one")
        outputs = _each(ReferenceNetwork(model, weights), images)
    else:
        with Worker(backend) as worker:
            outputs = _each(worker.build(model, weights), images)
    if not np.isfinite(outputs).all():
        raise InvalidInput("the filtered values are beyond float32", "--kernel", "give smaller numbers")
    planes = outputs[:, 0]
    return np.moveaxis(planes, 0, -1) if len(planes) > 1 else planes[0]


def _each(network: Witness, images: Array) -> Array:
    """One image at a time: a runtime that unfolds windows would unfold those of the whole batch."""
    return np.concatenate([network.predict(image[None]) for image in images])


def to_picture(values: Array, contrast: str) -> Array:
    """Filtered values (H, W) or (H, W, colours) as levels in [0, 1], by one of CONTRASTS."""
    return np.clip(CONTRASTS[contrast](values), 0, 1)


def _stretch(values: Array) -> Array:
    """The least value becomes black, the largest white; the colours keep their proportions."""
    least, largest = values.min(), values.max()
    return values if least == largest else (values - least) / (largest - least)


def _equalize(values: Array) -> Array:
    """Each value becomes the share of values below it, so that all levels are used alike.

    The histogram, one for all colours, has a bin around zero: what a filter leaves of a plain surface
    is zero but for rounding, and must not be torn apart. (Pillow's equalize has 256 levels only,
    and after a filter for edges most pixels share a few of them.)
    """
    bins = np.rint(values * (LEVELS / (np.abs(values).max() or 1))).astype(np.int16) + np.int16(LEVELS)
    shares = np.bincount(bins.ravel(), minlength=2 * LEVELS + 1).cumsum() / bins.size
    lowest = shares[bins.min()]
    return values if lowest == 1 else ((shares - lowest) / (1 - lowest)).astype(values.dtype)[bins]


def _equalize_adaptively(values: Array) -> Array:
    """The document's: contrast-limited equalisation in tiles (CLAHE), colour by colour."""
    from skimage import exposure

    scaled = values / (np.abs(values).max() or 1)
    planes = scaled[..., None] if scaled.ndim == 2 else scaled
    equalized = [
        exposure.equalize_adapthist(planes[..., i], clip_limit=CLIP_LIMIT) for i in range(planes.shape[-1])
    ]
    return np.stack(equalized, axis=-1).reshape(values.shape)


CONTRASTS: dict[str, Callable[[Array], Array]] = {
    "none": lambda values: values,
    "stretch": _stretch,
    "equalize": _equalize,
    "adaptive": _equalize_adaptively,
}


def to_png(levels: Array) -> bytes:
    """Levels (H, W) or (H, W, 3) in [0, 1] as a PNG file of 8 bits."""
    content = io.BytesIO()
    Image.fromarray(np.rint(levels * 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def _check_targets(picture: Path, out: Path, onnx: Path | None, options: Options) -> None:
    for path, option, suffix in ((out, "--out", ".png"), (onnx, "--onnx", ".onnx")):
        if path is None:
            continue
        if path.suffix.lower() != suffix:
            raise InvalidInput(f"not the name of a {suffix} file", f"{option} {path}", f"end it in {suffix}")
        if path.is_dir():
            raise InvalidInput("a folder of that name exists", f"{option} {path}", "give another name")
    if out.exists() and picture.exists() and out.samefile(picture):
        raise InvalidInput("the picture would be overwritten", f"--out {out}", "give another name")
    if onnx and options.padding != "zero":
        raise InvalidInput(
            f"the ONNX file pads with zeros, not {options.padding}", "--onnx", "leave out one of the two"
        )
