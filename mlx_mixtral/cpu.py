"""MLX's CPU backend on all cores; nothing of this is used where there is a GPU.

The backend does one operation at a time, and a product with packed weights is one thread's
work, whatever the number of cores, and takes as long for every further row as for the first.
Here the two experts of a token, and the two halves of every matrix, go to two streams, each with
a thread of its own. Many rows go another way where OpenBLAS is at hand (see
``mlx_mixtral.blas``): each matrix is unpacked once and multiplied with all of them. And a model so
small that it does not matter is unpacked whole when it is loaded.
"""

from __future__ import annotations

import math
from functools import cache

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_mixtral.blas import use_system_blas
from mlx_mixtral.experts.resident import (
    QuantizedStackedLinear,
    ResidentExperts,
    StackedLinear,
)
from mlx_mixtral.model.joined import SideBySide
from mlx_mixtral.model.moe import swiglu
from mlx_mixtral.tuning import tuned

UNPACKED_AT_MOST = 1 << 28
"""Bytes of the matrices of a model small enough to be unpacked when it is loaded."""
UNPACK_FROM = 4
"""Rows of a matrix from which unpacking it for BLAS pays ..."""
UNPACK_ODD_FROM = 48
"""... and where its bits are no power of two, which MLX unpacks ten times as slowly."""
TILE = 1 << 18
"""Weights that each stream unpacks at a time."""
WIDE = 1 << 17
"""Weights of a packed matrix from which two streams pay: handing over takes time too ..."""
WIDE_PLAIN = 1 << 20
"""... and of a plain one."""

Linear = nn.Linear | nn.QuantizedLinear
Stacked = StackedLinear | QuantizedStackedLinear


@cache
def second_stream() -> mx.ThreadLocalStream:
    """Beside the default one: in each thread that computes, a stream of that thread's own."""
    return mx.new_thread_local_stream(mx.cpu)


def fit_to_cpu(model: nn.Module, packed: int | None = None) -> None:
    """Unpack a small model; of a large one, put every linear map into two streams.

    Args:
        packed: how many of its weights are packed; None: those that are there.
    """
    if packed is None:
        matrices = [module for _, module in model.named_modules() if "scales" in module]
        packed = sum(math.prod(_shape(matrix)) for matrix in matrices)
    fit = _plain if unpacked_whole(packed) else _halved
    model.update_modules(tree_map(fit, model.leaf_modules(), is_leaf=nn.Module.is_module))


def unpacked_whole(packed: int) -> bool:
    """Whether a model with so many packed weights is small enough for that."""
    return 4 * packed <= UNPACKED_AT_MOST


def _plain(module: nn.Module) -> nn.Module:
    """The same map with its weights unpacked."""
    if "scales" not in module:
        return module
    rows, width = _shape(module)[-2:]
    if isinstance(module, QuantizedStackedLinear):
        plain: nn.Module = StackedLinear(module.weight.shape[0], width, rows)
    elif isinstance(module, nn.QuantizedEmbedding):
        plain = nn.Embedding(rows, width)
    else:
        plain = nn.Linear(width, rows, bias=False)
    plain.weight = _unpacked(module)
    mx.eval(plain.weight)
    return plain


def _halved(module: nn.Module) -> nn.Module:
    if isinstance(module, Linear) and two_streams_pay(module):
        return Halved(module)
    return module


class Halved(nn.Module):
    """A linear map of which each of two streams multiplies one half of the rows."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def __call__(self, x: mx.array) -> mx.array:
        """[..., in] -> [..., out]"""
        if unpacking_pays(self.linear, x.size // x.shape[-1]):
            return _by_blas(x, self.linear)
        half = self.linear.weight.shape[0] // 2
        with mx.stream(second_stream()):
            second = self._multiply(x, slice(half, None))
        return mx.concatenate([self._multiply(x, slice(half)), second], axis=-1)

    def _multiply(self, x: mx.array, rows: slice) -> mx.array:
        packed = self.linear
        if isinstance(packed, nn.Linear):
            return x @ packed.weight[rows].T
        weight, scales, biases = _packed(packed, rows)
        return mx.quantized_matmul(
            x, weight, scales, biases, True, packed.group_size, packed.bits, packed.mode
        )


class SpreadExperts(ResidentExperts):
    """Resident experts on two streams, or through BLAS."""

    def among(self, x: mx.array, indices: mx.array, rows: int) -> mx.array:
        """x [T, D], indices [T, K] -> [T, K, D], the way that ``rows`` rows are multiplied."""
        tokens, k = indices.shape
        if unpacking_pays(self.down_proj, rows // self._experts):
            answers = self._by_expert
        elif not two_streams_pay(self.down_proj):
            return super().among(x, indices, rows)
        elif rows >= self._sort_from:
            answers = self._by_half
        elif k > 1:
            return self._by_choice(x, indices)
        else:
            return super().among(x, indices, rows)
        order = mx.argsort(indices.flatten())
        answered = answers(x[order // k], indices.flatten()[order])
        return mx.unflatten(answered[mx.argsort(order)], 0, (tokens, k))

    def _by_choice(self, x: mx.array, indices: mx.array) -> mx.array:
        """The first expert of each token in one stream, the others in the second."""
        x = x.reshape(-1, 1, 1, x.shape[-1])
        with mx.stream(second_stream()):
            others = self._answer(x, indices[:, 1:], False)
        first = self._answer(x, indices[:, :1], False)
        return mx.concatenate([first, others], axis=1).squeeze(-2)

    def _by_half(self, rows: mx.array, experts: mx.array) -> mx.array:
        """Rows [N, D], sorted by the expert of each: a half of them in each stream."""
        half = rows.shape[0] // 2
        rows = rows.reshape(-1, 1, rows.shape[-1])
        with mx.stream(second_stream()):
            second = self._answer(rows[half:], experts[half:], True)
        first = self._answer(rows[:half], experts[:half], True)
        return mx.concatenate([first, second]).squeeze(-2)

    def _by_expert(self, rows: mx.array, experts: mx.array) -> mx.array:
        """Rows [N, D], sorted by the expert of each: an expert after the other."""
        mx.eval(experts)  # which lets other threads run meanwhile, unlike ``tolist``
        numbers: list[int] = experts.tolist()  # type: ignore[assignment]
        answers = []
        for expert in sorted(set(numbers)):
            begin = numbers.index(expert)
            mine = rows[begin : begin + numbers.count(expert)]
            gate_up = _by_blas(mine, self.gate_up_proj, expert)
            answers.append(_by_blas(swiglu(gate_up), self.down_proj, expert))
        return mx.concatenate(answers)


def unpacking_pays(matrix: nn.Module, rows: int) -> bool:
    """Whether ``rows`` rows are multiplied sooner by BLAS, each matrix unpacked first."""
    odd = "scales" in matrix and matrix.bits not in (2, 4, 8)
    usual = UNPACK_ODD_FROM if odd else UNPACK_FROM
    return use_system_blas() and rows >= (tuned().unpack_from or usual)


def two_streams_pay(matrix: nn.Module) -> bool:
    """Whether a matrix (of one expert) is worth handing a part of the work over."""
    rows, width = _shape(matrix)[-2:]
    if "scales" in matrix:
        return rows * width >= WIDE
    return rows * width >= WIDE_PLAIN and not use_system_blas()  # OpenBLAS uses all cores


def _by_blas(x: mx.array, matrix: nn.Module, *expert: int) -> mx.array:
    """[..., in] -> [..., out]; each stream unpacks every second tile of the matrix."""
    if isinstance(matrix, SideBySide):
        return mx.concatenate([_by_blas(x, one, *expert) for one in matrix.maps], axis=-1)
    if "scales" not in matrix:
        weight: mx.array = matrix.weight[expert] if expert else matrix.weight
        return x @ weight.T
    rows, width = _shape(matrix)[-2:]
    pairs = -(-rows * width // (2 * TILE))
    edges = [rows * n // (2 * pairs) for n in range(2 * pairs + 1)]
    answers: list[mx.array] = []
    for begin, middle, end in zip(edges[:-2:2], edges[1:-1:2], edges[2::2], strict=True):
        with mx.stream(second_stream()):
            second = _unpacked(matrix, *expert, slice(middle, end))
        first = _unpacked(matrix, *expert, slice(begin, middle))
        answers += [x @ first.T, x @ second.T]
        mx.eval(answers[-2:])  # two unpacked tiles in memory at a time
    return mx.concatenate(answers, axis=-1)


def _unpacked(matrix: nn.Module, *part: int | slice) -> mx.array:
    weight, scales, biases = _packed(matrix, *part)
    # In the type of its scales; those of mxfp4 and its like have none to compute in.
    dtype = scales.dtype if mx.issubdtype(scales.dtype, mx.floating) else mx.float32
    spec = (matrix.group_size, matrix.bits, matrix.mode)
    return mx.dequantize(weight, scales, biases, *spec, dtype=dtype)


def _packed(matrix: nn.Module, *part: int | slice) -> tuple[mx.array, mx.array, mx.array | None]:
    biases = matrix.get("biases")
    return matrix.weight[part], matrix.scales[part], None if biases is None else biases[part]


def _shape(matrix: nn.Module) -> tuple[int, ...]:
    """The unpacked matrix's."""
    *rows, width = matrix.weight.shape
    return (*rows, width * 32 // matrix.bits if "scales" in matrix else width)
