"""Which experts are chosen, without disturbing them at it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

from mlx_mixtral.model.moe import Experts, SparseMoE


class RecordedExperts(nn.Module):
    """Experts of a layer, wherever they lie, that keep what they were last asked.

    Attributes:
        indices: of the last call, the experts that each token chose, best first [T, K]; lazy, so
            that keeping it waits for nothing. None before the first call.
    """

    indices: mx.array | None

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts
        object.__setattr__(self, "indices", None)  # or it would count as a weight

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """x [T, D], indices [T, K] -> [T, K, D]"""
        object.__setattr__(self, "indices", indices)
        return self.experts(x, indices)


@contextmanager
def recorded(layers: Iterable[nn.Module]) -> Iterator[list[RecordedExperts]]:
    """Record the experts of some layers, such as ``model.model.layers``, while the context lasts.

    Yields one record a layer. After a pass over tokens [B, L], ``record.indices`` is [B x L, K];
    of the last layer only as many tokens as that computed (see ``Transformer.hidden``).
    """
    blocks: list[SparseMoE] = [layer.block_sparse_moe for layer in layers]
    records = [RecordedExperts(block.switch_mlp) for block in blocks]
    for block, record in zip(blocks, records, strict=True):
        block.switch_mlp = record
    try:
        yield records
    finally:
        for block, record in zip(blocks, records, strict=True):
            block.switch_mlp = record.experts
