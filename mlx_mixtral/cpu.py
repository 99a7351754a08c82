"""MLX's CPU backend on all cores; nothing of this is used where there is a GPU.

The backend does one operation at a time, and a product with packed weights is one thread's
work, whatever the number of cores. Here the two experts of a token, and the two halves of every
matrix, go to two streams, each with a thread of its own. A long prompt goes another way where
OpenBLAS is at hand (see ``mlx_mixtral.blas``): each expert is unpacked once and multiplied with
all of its tokens.

Measured on 2 cores with 790 M parameters at 4 bits, tokens a second without and with it:
answers 4.8 and 8.9, prompts 4.9 and 9.7, prompts of 512 tokens through OpenBLAS more than 100.
"""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import mlx.nn as nn

from mlx_mixtral.blas import use_system_blas
from mlx_mixtral.experts.resident import (
    QuantizedStackedLinear,
    ResidentExperts,
    StackedLinear,
)
from mlx_mixtral.model.moe import swiglu

UNPACK_FROM = 32
"""Rows that multiply a matrix from which unpacking it for BLAS pays."""
WIDE = 1 << 17
"""Weights of a matrix from which two streams pay, given that handing over costs time too."""

Stacked = StackedLinear | QuantizedStackedLinear


@cache
def second_stream() -> mx.ThreadLocalStream:
    """Beside the default one: in each thread that computes, a stream of that thread's own."""
    return mx.new_thread_local_stream(mx.cpu)


def spread(module: nn.Module) -> None:
    """Put every linear map below ``module`` into two streams."""
    for name, child in module.children().items():
        if isinstance(child, nn.Linear | nn.QuantizedLinear) and _size(child) >= WIDE:
            module[name] = Halved(child)
        for inner in child if isinstance(child, list) else [child]:
            if isinstance(inner, nn.Module):
                spread(inner)


class Halved(nn.Module):
    """A linear map of which each of two streams multiplies one half of the rows."""

    def __init__(self, linear: nn.Linear | nn.QuantizedLinear) -> None:
        super().__init__()
        self.linear = linear

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., out]"""
        rows = self.linear.weight.shape[0]
        if use_system_blas() and x.size // x.shape[-1] >= UNPACK_FROM:
            return x @ _unpacked(self.linear, slice(0, rows)).T
        with mx.stream(second_stream()):
            second = self._multiply(x, rows // 2, rows)
        return mx.concatenate([self._multiply(x, 0, rows // 2), second], axis=-1)

    def _multiply(self, x: mx.array, begin: int, end: int) -> mx.array:
        packed = self.linear
        if isinstance(packed, nn.Linear):
            return x @ packed.weight[begin:end].T
        weight, scales, biases = _packed(packed, slice(begin, end))
        return mx.quantized_matmul(
            x, weight, scales, biases, True, packed.group_size, packed.bits, packed.mode
        )


class SpreadExperts(ResidentExperts):
    """Resident experts on two streams."""

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """x [T, D], indices [T, K] -> [T, K, D]"""
        if indices.shape[1] == 1 or _size(self.gate_proj) < WIDE:
            return super().__call__(x, indices)
        if indices.size < self._sort_from:
            return self._by_choice(x[:, None, None], indices)
        tokens, k = indices.shape
        order = mx.argsort(indices.flatten())
        rows, experts = x[order // k], indices.flatten()[order]
        many = indices.size >= UNPACK_FROM * self.gate_proj.weight.shape[0]
        answers = self._by_expert if use_system_blas() and many else self._by_half
        return mx.unflatten(answers(rows, experts)[mx.argsort(order)], 0, (tokens, k))

    def _by_choice(self, x: mx.array, indices: mx.array) -> mx.array:
        """The first expert of each token in one stream, the others in the second."""
        with mx.stream(second_stream()):
            others = self._answer(x, indices[:, 1:], False)
        first = self._answer(x, indices[:, :1], False)
        return mx.concatenate([first, others], axis=1).squeeze(-2)

    def _by_half(self, rows: mx.array, experts: mx.array) -> mx.array:
        """Rows [N, D], sorted by the expert of each: a half of them in each stream."""
        half = rows.shape[0] // 2
        rows = rows[:, None]
        with mx.stream(second_stream()):
            second = self._answer(rows[half:], experts[half:], True)
        first = self._answer(rows[:half], experts[:half], True)
        return mx.concatenate([first, second]).squeeze(-2)

    def _by_expert(self, rows: mx.array, experts: mx.array) -> mx.array:
        """Rows [N, D], sorted by the expert of each: an expert after the other, unpacked."""
        numbers: list[int] = experts.tolist()  # type: ignore[assignment]
        answers = []
        for expert in sorted(set(numbers)):
            begin = numbers.index(expert)
            mine = rows[begin : begin + numbers.count(expert)]
            gate = mine @ _unpacked(self.gate_proj, expert).T
            up = mine @ _unpacked(self.up_proj, expert).T
            answers.append(swiglu(gate, up) @ _unpacked(self.down_proj, expert).T)
            mx.eval(answers[-1])  # one unpacked expert in memory at a time
        return mx.concatenate(answers)


def _size(linear: nn.Linear | nn.QuantizedLinear | Stacked) -> int:
    """Weights of a matrix; of one expert's, in a stack."""
    rows, width = linear.weight.shape[-2:]
    return rows * width * 32 // linear.bits if "scales" in linear else rows * width


def _unpacked(packed: nn.Linear | nn.QuantizedLinear | Stacked, part: slice | int) -> mx.array:
    """Rows, or one expert, of a weight, in the activations' type."""
    if isinstance(packed, nn.Linear | StackedLinear):
        return packed.weight[part]
    weight, scales, biases = _packed(packed, part)
    return mx.dequantize(weight, scales, biases, packed.group_size, packed.bits, packed.mode)


def _packed(
    packed: nn.QuantizedLinear | QuantizedStackedLinear, part: slice | int
) -> tuple[mx.array, mx.array, mx.array | None]:
    biases = packed.get("biases")
    return packed.weight[part], packed.scales[part], None if biases is None else biases[part]
