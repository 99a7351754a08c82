"""The keys and values of one layer: for as many tokens as a window holds, packed if asked."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import mlx.core as mx

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import UsageError
from mlx_mixtral.model.attend import Kept, Packed

STEP = 256
"""Places that a buffer grows by."""
REWIND = 256
"""Tokens that can always be taken back, window or not."""
SINKS = 4
"""First tokens that stay visible beside a window that a person asked for."""
PACKED_BITS = (8, 4)


@dataclass(frozen=True)
class KVSettings:
    """How keys and values are kept.

    Attributes:
        bits: 8 or 4 quantizes them in groups of 64 (32 where a head demands it), to 8.5 or
            4.5 bits of 16; None keeps them in the activations' type.
        window: a token sees this many tokens, itself included, and the first four of the
            text, without which a model that was trained to see everything loses the thread
            (attention sinks: Xiao et al. 2023, arXiv:2309.17453; positions stay those in the
            text). None: it sees all of them, or the model's own sliding window if it has one.
            Of two windows the smaller one counts.

    Raises:
        UsageError: other bits, or a window that is no positive number.
    """

    bits: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        for value in (self.bits, self.window):
            if value is not None and type(value) is not int:
                raise UsageError(f"kv_bits and kv_window take whole numbers, not {value!r}")
        if self.bits not in (None, *PACKED_BITS):
            raise UsageError(f"kv_bits has to be 8 or 4, not {self.bits}")
        if self.window is not None and self.window < 1:
            raise UsageError(f"kv_window has to be 1 or more, not {self.window}")

    def __str__(self) -> str:
        kept = f"kv-bits {self.bits}" if self.bits else "unquantized keys and values"
        return f"{kept}, kv-window {self.window}" if self.window else kept


@dataclass(frozen=True)
class Layout:
    """What the settings come to for a model.

    Attributes:
        window: tokens that a token sees, itself included; None: all.
        sinks: first tokens that it sees besides.
        bits: None where nothing is quantized.
        group_size: elements of a head that share a scale.
    """

    window: int | None = None
    sinks: int = 0
    bits: int | None = None
    group_size: int = 64

    @classmethod
    def of(cls, config: ModelConfig, settings: KVSettings) -> Layout:
        """Raises UsageError for heads that cannot be quantized."""
        own, asked = config.sliding_window, settings.window
        group = 64 if config.head_dim % 64 == 0 else 32
        if settings.bits and config.head_dim % group:
            raise UsageError(f"kv_bits: heads of {config.head_dim} cannot be quantized; leave it")
        if asked is not None and (own is None or asked < own):
            return cls(asked, SINKS, settings.bits, group)
        return cls(own, 0, settings.bits, group)

    @property
    def most(self) -> int | None:
        """Places that a windowed buffer has in the end: some older tokens stay, for rewinding."""
        if self.window is None:
            return None
        return _in_steps(self.sinks + self.window + REWIND + STEP)

    def places(self, tokens: int) -> int:
        """Places for a text of so many tokens."""
        return min(_in_steps(tokens), self.most or _in_steps(tokens))


def kv_bytes(
    config: ModelConfig,
    tokens: int,
    settings: KVSettings | None = None,
    dtype: mx.Dtype = mx.bfloat16,
) -> int:
    """Bytes that the keys and values of ``tokens`` tokens take, unused places included.

    While a prompt's chunk is computed, one layer at a time takes the chunk's besides where
    there is a window, and all of its own in ``dtype`` where it is quantized.

    Args:
        dtype: of the activations.
    """
    layout = Layout.of(config, settings or KVSettings())
    a_head = config.head_dim * dtype.size
    if layout.bits:
        scales = 2 * config.head_dim // layout.group_size * dtype.size
        a_head = config.head_dim * layout.bits // 8 + scales
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads
    return heads * a_head * layout.places(tokens)


class LayerKV:
    """The KV cache of one layer.

    The tokens' entries stand in the order of the text in one buffer, the sinks first::

        position    0 1 2 3 | 90 91 92 ... 700 |
        place       0 1 2 3 |  4  5  6 ... 614 | 615 ... free

    Here ``gap`` is 86: so many tokens behind the sinks were left out. That happens when the
    buffer is full, many at once, and leaves ``REWIND`` tokens more than the window needs.

    Attributes:
        offset: tokens of the text so far.
        gap: those of them that are left out.
        parts: the buffers, tokens along axis 2: keys and values [B, K, places, hd], or codes,
            scales and biases of the keys, then of the values.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.offset = self.gap = 0
        self.parts: list[mx.array] = []

    @property
    def held(self) -> int:
        """Places in use."""
        return self.offset - self.gap

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def places(self) -> int:
        return self.parts[0].shape[2] if self.parts else 0

    @property
    def earliest(self) -> int:
        """The shortest beginning of the text that can be gone back to with ``trim``."""
        window, sinks = self.layout.window, self.layout.sinks
        # The token after it sees the tokens from it - window + 1 on, and those have to be here.
        return self.gap + sinks + window - 1 if self.gap and window else 0

    def trim(self, count: int) -> None:
        """Take the last ``count`` tokens back.

        Raises:
            ValueError: what the next token would see is no longer there (see ``earliest``).
        """
        if self.offset - count < self.earliest:
            raise ValueError(f"{count} tokens back is before {self.earliest}")
        self.offset -= count

    def fork(self, length: int) -> LayerKV:
        """The cache of the text's first ``length`` tokens; ValueError as of ``trim``."""
        twin = copy(self)
        twin.trim(self.offset - length)
        # Arrays of their own, or one's writing into a place would change the other.
        twin.parts = [part[..., : _in_steps(twin.held), :] for part in self.parts]
        return twin

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Kept, Kept]:
        """Take in n tokens' keys and values [B, K, n, hd]; what the n queries may have to see.

        ``make_mask(n)``, asked for before, tells what each of them sees of it.
        """
        arrived = [*self._packed(keys), *self._packed(values)]
        begin, end = self._make_room(keys.shape[2], arrived)
        for part, new in zip(self.parts, arrived, strict=True):
            part[..., begin:end, :] = new
        self.offset += keys.shape[2]
        seen = [part[..., :end, :] for part in self.parts]
        most = self.layout.most
        if most and end > most:  # a long chunk, which only its own queries see whole
            self._move(self._gap_to_leave(), most)
        half = len(seen) // 2
        return self._as_kept(seen[:half]), self._as_kept(seen[half:])

    def make_mask(
        self, n: int, *, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """What the next n queries see of what ``update_and_fetch`` will return (see ``attend``).

        Args:
            return_array: as booleans [n, places] in any case.
            window_size: a window that the model has by itself.
        """
        window, sinks = self.layout.window, self.layout.sinks
        if window_size is not None and (window is None or window_size < window):
            window, sinks = window_size, 0
        gap, end = self._gap_for(n), self.offset + n
        all_seen = not gap and (window is None or end <= sinks + window)
        if all_seen and not return_array:
            return None if n == 1 else "causal"
        places = mx.arange(end - gap)
        key = mx.where(places < self.layout.sinks, places, places + gap) if gap else places
        query = mx.arange(self.offset, end)[:, None]
        seen = key <= query
        if window is not None:
            seen = seen & ((key > query - window) | (key < sinks))
        return seen

    def _gap_for(self, n: int) -> int:
        """The gap once there is room for n more tokens."""
        most = self.layout.most
        return self.gap if most is None or self.held + n <= most else self._gap_to_leave()

    def _gap_to_leave(self) -> int:
        """The gap that leaves what the next token sees, and as much as can be taken back."""
        window, sinks = self.layout.window or 0, self.layout.sinks
        return max(self.gap, self.offset - window + 1 - REWIND - sinks)

    def _make_room(self, n: int, arrived: list[mx.array]) -> tuple[int, int]:
        """Places for n more tokens, (first, last + 1); the oldest ones go if there are none."""
        gap = self._gap_for(n)
        begin, end = self.offset - gap, self.offset - gap + n
        enough = max(end, self.layout.places(end))
        if not self.parts:
            self.parts = [mx.zeros((*a.shape[:2], enough, a.shape[3]), a.dtype) for a in arrived]
        elif gap != self.gap:
            self._move(gap, max(end, self.layout.most or 0))
        elif end > self.places:
            self._move(gap, enough)
        return begin, end

    def _move(self, gap: int, places: int) -> None:
        """Into new buffers of ``places`` places, without what a wider gap leaves out."""
        sinks = self.layout.sinks if gap else 0
        begin = sinks + gap - self.gap
        free = places - (self.offset - gap)
        self.parts = [
            mx.concatenate(
                [
                    part[..., :sinks, :],
                    part[..., begin : self.held, :],
                    mx.zeros((*part.shape[:2], free, part.shape[3]), part.dtype),
                ],
                axis=2,
            )
            for part in self.parts
        ]
        self.gap = gap

    def _packed(self, x: mx.array) -> list[mx.array]:
        layout = self.layout
        return list(mx.quantize(x, layout.group_size, layout.bits)) if layout.bits else [x]

    def _as_kept(self, parts: list[mx.array]) -> Kept:
        if self.layout.bits is None:
            return parts[0]
        codes, scales, biases = parts
        return Packed(codes, scales, biases, self.layout.group_size, self.layout.bits)


def _in_steps(count: int) -> int:
    return -(-count // STEP) * STEP
