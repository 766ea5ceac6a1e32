"""A model as a program: readable source in PyTorch, Keras or NumPy that needs no zoo.

One module per language, one rule per layer, named and ordered as in `backends`. A program says the
same as the backend's lowering and computes in the same order, so that both give the same bits from
the same weights; tests/backends/test_code.py runs every one. Nothing here imports NumPy or a framework.

>>> import zoo
>>> from backends import programs
>>> print(programs.program(zoo.get("convnet"), "torch").splitlines()[0])
\"""The network convnet as a PyTorch program.
"""

from __future__ import annotations

import importlib

from zoo.errors import InvalidInput, nearest
from zoo.model import Model

LANGUAGES = {
    "torch": "backends.pytorch.program",
    "keras": "backends.keras3.program",
    "numpy": "backends.reference.program",
}


def program(model: Model, language: str) -> str:
    """The source of a program that computes what the model computes.

    language: "torch", "keras" or "numpy". Run as `python net.py weights.safetensors images.npy
    [outputs.npy]` it prints the class of every image (float32 (N, C, H, W) in [0, 1]) and saves the
    outputs: bit for bit those of the backend. Without labels it prints the outputs' shape.
    Raises InvalidInput for an unknown language, UnsupportedLayer if a layer has no rule in it.
    """
    if language not in LANGUAGES:
        raise InvalidInput(f"unknown language {language!r}", "--code", nearest(language, LANGUAGES))
    source: str = importlib.import_module(LANGUAGES[language]).program(model)
    return source
