"""Softmax attention over keys and values, however they are kept."""

from __future__ import annotations

import mlx.core as mx


def attend(
    q: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str | None
) -> mx.array:
    """q [B, H, L, hd], keys and values [B, K, S, hd] -> [B, H, L, hd], H / K heads a key."""
    return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=mask)
