"""What each matrix would lose with each number of bits: an error, measured, times its weight.

The error is that of the weights themselves, |W - Q|^2 / |W|^2, on a sample of their rows: cheap,
and of this very model. What a unit of it does to the predictions differs by kind; it grows in
proportion, and those of several matrices add up. That weight was measured on the demo model by
quantizing one kind in one layer at a time (``examples/demo_model/sensitivity.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from convert.quantize import Effort, dequantize, quantize
from convert.readers import Source, Tensor
from mlx_mixtral.config import ModelConfig, QuantSpec
from mlx_mixtral.weights import expected_shapes

WEIGHTS = {
    "embed_tokens": 0.016,
    "qkv": 0.046,
    "o": 0.043,
    "gate_up": 0.015,
    "down": 0.016,
    "lm_head": 0.078,
}
"""Nats of divergence a unit of error; of what every layer has, for all layers together. What
layers of one kind differ by is left out: it says more of that model than of the next one."""
PARTS, ROWS = 2, 32
"""Of each stack of experts, and of each of these."""

_KINDS = {
    "self_attn.q_proj": "qkv",
    "self_attn.k_proj": "qkv",
    "self_attn.v_proj": "qkv",
    "self_attn.o_proj": "o",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "down_proj": "down",
    "embed_tokens": "embed_tokens",
    "lm_head": "lm_head",
}


@dataclass(frozen=True)
class Unit:
    """Matrices that get the same spec, because they are multiplied together.

    Attributes:
        kind: a key of ``WEIGHTS``.
        layer: its number; None outside of the layers.
        names: of the tensors.
    """

    kind: str
    layer: int | None
    names: tuple[str, ...]


def units(config: ModelConfig) -> list[Unit]:
    """All that can be quantized, in the model's order."""
    found: dict[tuple[str, int | None], list[str]] = {}
    for path in expected_shapes(config):
        kind = next((kind for end, kind in _KINDS.items() if path.endswith(end)), None)
        if kind:
            layer = int(path.split(".")[2]) if ".layers." in path else None
            found.setdefault((kind, layer), []).append(f"{path}.weight")
    return [Unit(kind, layer, tuple(names)) for (kind, layer), names in found.items()]


def losses(
    source: Source, unit: Unit, specs: Sequence[QuantSpec], effort: Effort
) -> dict[QuantSpec, float]:
    """What the predictions would lose, in nats, by spec; those that do not fit are left out.

    Raises:
        ModelError: the files ended, or their data cannot be right.
    """
    tensors = [source.tensors[name] for name in unit.names]
    samples = [(_sample(tensor), tensor) for tensor in tensors]
    weight = WEIGHTS[unit.kind]
    if unit.layer is not None:
        weight /= source.config.num_hidden_layers
    widths = {tensor.shape[-1] for tensor in tensors}
    return {
        spec: weight * _error([sample for sample, _ in samples], spec, effort)
        for spec in specs
        if not any(width % spec.group_size for width in widths)
    }


def _sample(tensor: Tensor) -> mx.array:
    """Rows of a few parts, evenly spread, as they will be quantized."""
    step = max(1, len(tensor.parts) // PARTS)
    sampled = []
    for part in tensor.parts[::step][:PARTS]:
        rows = part.shape[0]
        count = min(ROWS, rows)
        at = mx.array([i * rows // count for i in range(count)])
        sampled.append(part.read()[at])
        mx.eval(sampled[-1])  # one part in memory at a time
    return mx.concatenate(sampled)


def _error(samples: Sequence[mx.array], spec: QuantSpec, effort: Effort) -> float:
    """|W - Q|^2 / |W|^2 of all of them together."""
    lost = held = 0.0
    for sample in samples:
        half = mx.float16 if sample.dtype == mx.float16 else mx.bfloat16
        exact = sample.astype(half).astype(mx.float32)
        rough = dequantize(quantize(sample, half, spec, effort), spec)
        lost += float(mx.square(exact - rough).sum())
        held += float(mx.square(exact).sum())
    return lost / held if held else 0.0
