"""How well outputs fit labels: loss, accuracy and its interval."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np


def cross_entropy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log_softmax(outputs)[label], in float64. outputs: (N, classes), labels: (N,)."""
    z = outputs.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_softmax = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return float(-log_softmax[np.arange(len(labels)), labels].mean())


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of rows whose largest output is at their label."""
    return float((outputs.argmax(axis=1) == labels).mean())


def interval(accuracy: float, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy measured on so many images (Wilson, 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = accuracy + z**2 / (2 * images)
    half = z * math.sqrt(accuracy * (1 - accuracy) / images + z**2 / (4 * images**2))
    return (centre - half) / (1 + z**2 / images), (centre + half) / (1 + z**2 / images)
