"""Data sets: MNIST and other folders of IDX files, and the embedded `digits` that needs no network.

>>> from zoo import data
>>> data.load("digits").name
'digits'
"""

from zoo.data.idx import FILES, read_idx
from zoo.data.sets import (
    CLASSES,
    Dataset,
    Split,
    cache_folder,
    check_fits,
    data_folder,
    describe,
    digits,
    find,
    load,
    only_test,
    present,
    read_folder,
    split,
    to_float,
)

__all__ = [
    "CLASSES",
    "FILES",
    "Dataset",
    "Split",
    "cache_folder",
    "check_fits",
    "data_folder",
    "describe",
    "digits",
    "find",
    "load",
    "only_test",
    "present",
    "read_folder",
    "read_idx",
    "split",
    "to_float",
]
