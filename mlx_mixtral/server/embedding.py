"""Vectors of texts, as clients get them."""

from __future__ import annotations

import base64

import numpy as np


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """[n, D], each of length 1 (one without a length stays so), float32 in little-endian order."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: np.ndarray = (vectors / np.where(lengths, lengths, 1)).astype("<f4")
    return unit


def encoded(vector: np.ndarray, base_64: bool) -> list[float] | str:
    """Numbers, or their bytes in base64."""
    if base_64:
        return base64.b64encode(vector.tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
