"""Where weights come from. Each reader turns one foreign form into a ``Source``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlx.core as mx

from mlx_mixtral.config import ModelConfig


class Part(Protocol):
    """A weight matrix that fits in memory: one expert's, or a tensor that is not stacked.

    ``read`` is called from several threads at once, each with parts of its own; an array
    that is lazy has to be evaluated in the thread that asked for it.
    """

    @property
    def nbytes(self) -> int: ...
    def read(self) -> mx.array: ...


class Tensor(Protocol):
    """A weight, known by its shape before any of it is read.

    A stack of experts [experts, out, in] has one part an expert; any other tensor is one part.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> mx.Dtype: ...
    @property
    def nbytes(self) -> int: ...
    def parts(self) -> Sequence[Part]: ...


@dataclass(frozen=True)
class Source:
    """A model to convert: its folder (for the tokenizer's files), config and tensors.

    ``tensors`` holds every weight of the model, in the model's order, under its canonical
    name (see ``mlx_mixtral.weights``).
    """

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, Tensor]
