"""An ONNX file as the zoo writes it: its metadata, test vectors and hashes, and the same bytes every time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, helper

import zoo
from export.inference import seal
from export.inference.metadata import VERSION, WEIGHTS, about
from export.onnx import expected
from zoo.model import Model
from zoo.weights import digest


def serialize(proto: ModelProto) -> bytes:
    """The bytes of an ONNX model, the same on every call, with their hash in its place if it has one."""
    return seal.fill(_bytes(proto))


def _bytes(proto: ModelProto) -> bytes:
    return bytes(proto.SerializeToString(deterministic=True))


def metadata(model: Model, weights: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What every exported file tells of itself: a function of model, weights and version alone."""
    return {
        **about(model),
        WEIGHTS: digest(weights),
        VERSION: zoo.__version__,
        **expected.carried(model, weights),
    }


def describe(
    proto: ModelProto,
    model: Model,
    weights: Mapping[str, np.ndarray],
    entries: Mapping[str, str] | None = None,
) -> None:
    """Give a finished graph its metadata: what it is, its test vectors, and the hashes of it all.

    entries: more of it, or instead of what is said of the model's own graph.
    """
    helper.set_model_props(proto, {**metadata(model, weights), **(entries or {})})
    parts = seal.list_of_parts(_bytes(proto))
    for key, value in ((seal.PARTS, parts), (seal.KEY, seal.ZEROS)):
        proto.metadata_props.add(key=key, value=value)
    found = seal.digest(_bytes(proto))
    assert found is not None
    proto.metadata_props[-1].value = found[1]
