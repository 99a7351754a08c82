"""Softmax attention over keys and values, however they are kept."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

FEW_ROWS = 32
"""Queries up to which packed keys are multiplied as they are.

On 2 cores of a CPU that is faster up to 16 and even at 32. Beyond, the scores are what counts
on a GPU: heads x queries x context of them would be written out for a chunk of a prompt.
"""


class Packed(NamedTuple):
    """Keys or values [B, K, S, hd], quantized in groups along hd (MLX's affine form)."""

    codes: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int


Kept = mx.array | Packed


def attend(
    q: mx.array, keys: Kept, values: Kept, scale: float, mask: mx.array | str | None
) -> mx.array:
    """q [B, H, L, hd], keys and values [B, K, S, hd] -> [B, H, L, hd], H / K heads a key.

    Args:
        mask: which of the S places each of the L queries sees: all (None), all up to its own,
            the last L places being the queries' ("causal"), or where it is true ([L, S]).
    """
    if isinstance(keys, Packed) and isinstance(values, Packed) and q.shape[2] <= FEW_ROWS:
        return _attend_packed(q, keys, values, scale, mask)
    # Unpacked once a layer and chunk, for the fused kernel, which never writes the scores out.
    k, v = _unpacked(keys), _unpacked(values)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def _unpacked(kept: Kept) -> mx.array:
    return mx.dequantize(*kept) if isinstance(kept, Packed) else kept


def _attend_packed(
    q: mx.array, keys: Packed, values: Packed, scale: float, mask: mx.array | str | None
) -> mx.array:
    """The heads that share a key become rows of one product, so that it is read once."""
    batch, heads, length, head_dim = q.shape
    kv_heads, places = keys.codes.shape[1:3]
    rows = (q * scale).reshape(batch, kv_heads, -1, head_dim)
    scores = _multiply(rows, keys, transpose=True)
    if mask is not None:
        if isinstance(mask, str):
            mask = mx.arange(places) <= mx.arange(places - length, places)[:, None]
        by_query = mx.unflatten(scores, 2, (-1, length))
        scores = mx.where(mask, by_query, -mx.inf).reshape(scores.shape)
    weights = mx.softmax(scores, axis=-1, precise=True)
    return _multiply(weights, values, transpose=False).reshape(batch, heads, length, head_dim)


def _multiply(rows: mx.array, packed: Packed, *, transpose: bool) -> mx.array:
    codes, scales, biases, group_size, bits = packed
    return mx.quantized_matmul(rows, codes, scales, biases, transpose, group_size, bits)
