"""All experts of a layer in memory, stacked, and multiplied where they lie."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.model.moe import swiglu
from mlx_mixtral.tuning import tuned


class ResidentExperts(nn.Module):
    """The SwiGLU experts of one layer, one array a projection.

    Args:
        slots: make room for so many experts only; None: for all.
    """

    def __init__(self, config: ModelConfig, slots: int | None = None) -> None:
        super().__init__()
        e, d, f = config.num_local_experts, config.hidden_size, config.intermediate_size
        held = e if slots is None else slots
        self.gate_up_proj = StackedLinear(held, d, 2 * f)
        self.down_proj = StackedLinear(held, f, d)
        self._experts = e
        # MLX's grouped kernel, which reads an expert once for all of its tokens, wants at
        # least four rows an expert, 16 in all, and rows sorted by expert. Fewer rows are
        # multiplied one by one, and sorting them would only cost time.
        self._sort_from = tuned().sort_from or max(16, 4 * e)
        self._grouped_from = max(16, 4 * held)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """x [T, D], indices [T, K] -> [T, K, D]"""
        return self.among(x, indices, indices.size)

    def among(self, x: mx.array, indices: mx.array, rows: int) -> mx.array:
        """As a call, for a part of a task: multiplied the way that ``rows`` rows would be."""
        # Not [:, None]: its strides send MLX's CPU backend a way four times as long.
        if rows < self._sort_from:
            return self._answer(x.reshape(-1, 1, 1, x.shape[-1]), indices, False).squeeze(-2)
        tokens, k = indices.shape
        order = mx.argsort(indices.flatten())
        sorted_x, experts = x[order // k], indices.flatten()[order]
        if rows > indices.size < self._grouped_from:
            # A part that is too small for that kernel would go another way than the whole.
            more = mx.full(self._grouped_from - indices.size, indices.size - 1)
            sorted_x = mx.concatenate([sorted_x, sorted_x[more]])
            experts = mx.concatenate([experts, experts[more]])
        answers = self._answer(sorted_x[:, None], experts, True)[: indices.size]
        return mx.unflatten(answers.squeeze(-2)[mx.argsort(order)], 0, (tokens, k))

    def _answer(self, x: mx.array, experts: mx.array, ordered: bool) -> mx.array:
        return self.down_proj(swiglu(self.gate_up_proj(x, experts, ordered)), experts, ordered)


class StackedLinear(nn.Module):
    """E linear maps in one array [E, out, in]; each row is multiplied by the one it names."""

    def __init__(self, experts: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = mx.zeros((experts, n_out, n_in))

    def __call__(self, x: mx.array, experts: mx.array, ordered: bool) -> mx.array:
        """x [..., 1, in] with experts [...] -> [..., 1, out]; ordered: experts ascend."""
        weight = self.weight.swapaxes(-1, -2)
        return mx.gather_mm(x, weight, rhs_indices=experts, sorted_indices=ordered)

    def to_quantized(self, group_size: int, bits: int, mode: str) -> QuantizedStackedLinear:
        """An empty quantized map of the same shape, for weights to be loaded into."""
        return QuantizedStackedLinear(self.weight.shape, group_size, bits, mode)


class QuantizedStackedLinear(nn.Module):
    """``StackedLinear`` in MLX's packed form: codes, and scales (and biases) a group."""

    def __init__(self, shape: tuple[int, ...], group_size: int, bits: int, mode: str) -> None:
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        experts, n_out, n_in = shape
        self.weight = mx.zeros((experts, n_out, n_in * bits // 32), mx.uint32)
        self.scales = mx.zeros((experts, n_out, n_in // group_size))
        if mode == "affine":
            self.biases = mx.zeros((experts, n_out, n_in // group_size))

    def __call__(self, x: mx.array, experts: mx.array, ordered: bool) -> mx.array:
        """x [..., 1, in] with experts [...] -> [..., 1, out]; ordered: experts ascend."""
        return mx.gather_qmm(
            x,
            self.weight,
            self.scales,
            self.get("biases"),
            rhs_indices=experts,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            sorted_indices=ordered,
        )
