"""Several texts in one pass: no padding, and each weight is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import mlx.core as mx

from mlx_mixtral.model.attention import Cache, Span
from mlx_mixtral.model.transformer import Transformer


class Part(NamedTuple):
    """The next tokens of one text.

    Attributes:
        length: how many, one or more.
        caches: of the text before them, one a layer; no other part has the same.
        last: of so many of the last of them, one or more, the hidden states are asked for.
    """

    length: int
    caches: Sequence[Cache]
    last: int = 1


def together(model: Transformer, ids: mx.array, parts: Sequence[Part]) -> mx.array:
    """Token ids [N] of several texts, one text after the other -> normed hidden states [M, D].

    Each text continues what its caches hold, as by itself: all rows are multiplied together, but
    rows of different texts never see each other. The numbers are those of ``Transformer.hidden``
    up to the rounding of sums, which MLX adds up in another order for many rows than for few.

    Args:
        parts: the texts; M is the sum of their ``last``.
    """
    window = model.config.sliding_window
    masks = [
        part.caches[0].make_mask(part.length, return_array=False, window_size=window)
        for part in parts
    ]
    ends = list(accumulate(part.length for part in parts))
    rows = [slice(end - part.length, end) for part, end in zip(parts, ends, strict=True)]
    positions = mx.array([place for part in parts for place in _places(part)])
    asked = [n for part, end in zip(parts, ends, strict=True) for n in range(end - part.last, end)]
    layers, x = model.model.layers, model.model.embed_tokens(ids)
    for n, layer in enumerate(layers):
        # Of what is not asked for, the last layer's keys and values are all that counts.
        prune = len(asked) < ends[-1] and n == len(layers) - 1
        spans = [
            Span(where, mask, part.caches[n], part.last if prune else None)
            for where, mask, part in zip(rows, masks, parts, strict=True)
        ]
        x = layer.together(x, positions, spans, mx.array(asked) if prune else None)
    hidden: mx.array = model.model.norm(x)
    return hidden


def _places(part: Part) -> range:
    """Where in its text a part's tokens stand."""
    offset = part.caches[0].offset
    return range(offset, offset + part.length)
