"""How an expert's bytes on disk become what lies in a slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_mixtral.experts.files import Part, Task

if TYPE_CHECKING:
    from mlx_mixtral.shards import Span

Sources = Sequence[Sequence["Span"]]
"""For each expert the byte ranges that make up a tensor of it, one below the other."""


@dataclass(frozen=True)
class Target:
    """One array of a layer's slots [slots, ...], and where its contents come from.

    Attributes:
        array: evaluated. Its memory is written to, so nothing else may share it.
        sources: one tensor as a rule; codes, scales and biases where the array holds them
            unpacked, as those of a very small model are without a GPU.
        made: from the sources' tensors to the values of a slot; None: they are read as they are.
    """

    array: mx.array
    sources: Sequence[Sources]
    made: Callable[[Sequence[mx.array]], mx.array] | None = None

    def task(self, expert: int, slot: int) -> Task:
        """How an expert comes into a slot."""
        memory = memoryview(self.array).cast("B")  # type: ignore[arg-type]
        size = len(memory) // self.array.shape[0]
        memory = memory[slot * size : (slot + 1) * size]
        if self.made is None:
            return Task(_parts(memory, self.sources[0][expert]))
        return _making(memory, [tensor[expert] for tensor in self.sources], self.made)


def _making(
    memory: memoryview,
    tensors: Sequence[Sequence[Span]],
    made: Callable[[Sequence[mx.array]], mx.array],
) -> Task:
    raw = [np.empty(sum(span.nbytes for span in spans), np.uint8) for spans in tensors]
    parts = [part for r, spans in zip(raw, tensors, strict=True) for part in _parts(r.data, spans)]

    def make() -> None:
        # In a thread that reads, while the device is busy with other things.
        with mx.stream(mx.cpu):
            values = made([_array(r, spans) for r, spans in zip(raw, tensors, strict=True)])
            mx.eval(values)
        memory[:] = memoryview(values).cast("B")  # type: ignore[arg-type]

    return Task(parts, make)


def _parts(memory: memoryview, spans: Sequence[Span]) -> list[Part]:
    parts: list[Part] = []
    at = 0
    for span in spans:
        parts.append((memory[at : at + span.nbytes], span))
        at += span.nbytes
    return parts


def _array(raw: np.ndarray, spans: Sequence[Span]) -> mx.array:
    """[rows, columns]"""
    return mx.array(raw).view(spans[0].mx_dtype).reshape(-1, spans[0].shape[-1])
