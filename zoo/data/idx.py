"""IDX, the file format of MNIST: read strictly, packed or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from zoo.errors import DataError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
LARGEST_IDX = 2**27  # bytes; three times MNIST


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, .gz or not; raises DataError if it is not sound.

    Nothing beyond the size that the header announces is ever unpacked.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4)
            if len(header) < 4 or header[:2] != b"\0\0":
                raise DataError("not an IDX file", path)
            if header[2] != 8:
                raise DataError(f"IDX element type {header[2]:#x}, only unsigned bytes are read", path)
            if header[3] != dimensions:
                raise DataError(f"{header[3]} dimensions where {dimensions} are expected", path)
            sizes = file.read(4 * dimensions)
            if len(sizes) < 4 * dimensions:
                raise DataError("the IDX header is cut off", path)
            shape = tuple(int(n) for n in np.frombuffer(sizes, dtype=">u4"))
            count = int(np.prod(shape, dtype=object))
            if not 0 < count <= LARGEST_IDX:
                raise DataError(f"the IDX header announces the shape {shape}", path)
            values = bytearray()
            while chunk := file.read(min(2**24, count + 1 - len(values))):
                values += chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"the .gz is damaged: {error}", path, "fetch it again") from None
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", path) from None
    if len(values) != count:
        relation = "more" if len(values) > count else "fewer"
        raise DataError(f"{relation} values than the {count:,} that the IDX header announces", path)
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
