"""The CNN zoo: each documented CNN specified once, as data, and realised by every backend.

This package says WHAT: layers, models, recipes, weights, data, training, runs, the command line.
It imports no framework, and importing it imports no NumPy.

>>> import zoo
>>> model = zoo.get("cnn-padded")
>>> model.parameters
28938
>>> [node.path for node in model.walk()][:3]
['conv1', 'relu1', 'pool1']
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zoo.model import Model
from zoo.models.registry import get, names
from zoo.spec.file import load_spec

if TYPE_CHECKING:
    import numpy as np

    from zoo.pretrained import Pretrained

__all__ = ["Model", "__version__", "get", "init_weights", "load", "load_spec", "names"]
__version__ = "0.2.0"

# Builds of onnxruntime from 1.29 on report every model to their maker and mark the machine with files in
# the user's cache and temporary folder, unless they are told not to before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def init_weights(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Initial canonical weights: {"conv1.weight": float32 (O, I, kh, kw), ...}; see zoo.weights."""
    from zoo import weights

    return weights.init_weights(model, seed)


def load(name: str) -> Pretrained:
    """A model with the trained weights that come with the package; see zoo.pretrained.

    >>> model, weights = load("cnn-padded")
    """
    from zoo import pretrained

    return pretrained.load(name)
