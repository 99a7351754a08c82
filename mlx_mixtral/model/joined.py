"""Linear maps of the same input, multiplied together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# Maps that read the same input lie in one array, one below the other: fewer and larger
# products, none of them too small for a GPU. The rows of a matrix do not know of each other,
# so it changes no number.
JOINED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "block_sparse_moe.switch_mlp.gate_up_proj": (
        "block_sparse_moe.switch_mlp.gate_proj",
        "block_sparse_moe.switch_mlp.up_proj",
    ),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


class SideBySide(nn.Module):
    """What cannot lie in one array, because its parts are quantized differently."""

    def __init__(self, maps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.maps = list(maps)

    def __call__(self, x: mx.array, *how: Any) -> mx.array:
        """What the maps answer to ``x``, one after the other along the last axis."""
        return mx.concatenate([one(x, *how) for one in self.maps], axis=-1)
