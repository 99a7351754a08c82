"""Grouped-query attention with rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.model.attend import Kept, attend

Mask = mx.array | str | None


class Cache(Protocol):
    """The keys and values of the tokens so far, of one layer (mlx-lm's KV caches fit)."""

    offset: int

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Kept, Kept]: ...

    def make_mask(self, n: int, *, return_array: bool, window_size: int | None) -> Mask: ...


class Span(NamedTuple):
    """The rows of one text among those of several, for one layer.

    Attributes:
        rows: which they are.
        mask, cache: as the text would have them by itself.
        last: attend from so many of its last tokens only; None: from all.
    """

    rows: slice
    mask: Mask
    cache: Cache
    last: int | None


class Attention(nn.Module):
    """Softmax attention of H query heads over K key/value heads (H / K queries share one).

    Positions turn the half-split pairs (i, i + head_dim / 2) of each query and key
    (RoPE, Su et al. 2021, arXiv:2104.09864).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, self.head_dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.rope_theta = config.rope_theta
        self.scale = self.head_dim**-0.5
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = nn.Linear(d, width, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, d, bias=False)

    def __call__(
        self, x: mx.array, mask: Mask, cache: Cache | None, last: int | None = None
    ) -> mx.array:
        """[B, L, D] -> [B, L, D]; with a cache, x continues the tokens that it holds.

        Args:
            last: attend from so many of the last tokens only: [B, last, D].
        """
        # [B, H + 2K, L, hd]: queries, keys and values; the first two are turned together.
        qkv = self._heads(x).swapaxes(1, 2)
        turned = self._rope(qkv[:, : -self.kv_heads], cache.offset if cache is not None else 0)
        y = self._attend(turned, qkv[:, -self.kv_heads :], mask, cache, last)
        return self.o_proj(y.swapaxes(1, 2).flatten(2))

    def together(self, x: mx.array, positions: mx.array, spans: Sequence[Span]) -> mx.array:
        """Rows [N, D] of several texts, each at its position [N] -> [M, D], those asked for."""
        # [N, H + 2K, 1, hd]: as many texts of one token each, until keys and values part them.
        qkv = self._heads(x)[:, :, None]
        turned = self._rope(qkv[:, : -self.kv_heads], positions)
        values = qkv[:, -self.kv_heads :]
        y = [
            self._attend(turned[s.rows].swapaxes(0, 2), values[s.rows].swapaxes(0, 2), *s[1:])
            for s in spans
        ]
        return self.o_proj(mx.concatenate([one.swapaxes(0, 2) for one in y]).flatten(1))

    def _heads(self, x: mx.array) -> mx.array:
        return mx.unflatten(self.qkv_proj(x), -1, (-1, self.head_dim))

    def _attend(
        self, turned: mx.array, v: mx.array, mask: Mask, cache: Cache | None, last: int | None
    ) -> mx.array:
        """Queries and keys [B, H + K, L, hd], values [B, K, L, hd] -> [B, H, L, hd]."""
        q, k = turned[:, : self.heads], turned[:, self.heads :]
        keys, values = (k, v) if cache is None else cache.update_and_fetch(k, v)
        if last is not None:
            q, mask = q[:, :, -last:], _below(mask, last)
        return attend(q, keys, values, self.scale, mask)

    def _rope(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x, self.head_dim, traditional=False, base=self.rope_theta, scale=1.0, offset=offset
        )


def _below(mask: Mask, rows: int) -> Mask:
    """The last rows of a mask; "causal" counts from the end anyway."""
    return mask[..., -rows:, :] if isinstance(mask, mx.array) else mask
