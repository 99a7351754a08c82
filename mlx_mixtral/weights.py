"""A model folder's tensors under one set of names, none of them read before it is asked for.

The canonical names are those of MLX's own Mixtral since May 2024: experts stacked as
``model.layers.N.block_sparse_moe.switch_mlp.{gate,up,down}_proj.weight`` [experts, out, in],
RoPE half-split. Also understood are Hugging Face checkpoints (one tensor an expert, or
transformers 5's fused ``mlp.experts.gate_up_proj``) and the older MLX folders with one
tensor an expert. All of them differ only in where the bytes lie: a canonical tensor is one
byte range of a file, or a stack of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_mixtral.config import ModelConfig, QuantSpec
from mlx_mixtral.errors import ModelError
from mlx_mixtral.shards import Shards, Span, read_folder

FLOATS: tuple[mx.Dtype, ...] = (mx.bfloat16, mx.float16, mx.float32)


@dataclass(frozen=True)
class Tensor:
    """A tensor under its canonical name: one span, or a stack of spans of equal shape."""

    name: str
    spans: tuple[Span, ...]
    stacked: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        inner = self.spans[0].shape
        return (len(self.spans), *inner) if self.stacked else inner

    @property
    def dtype(self) -> mx.Dtype:
        return self.spans[0].mx_dtype

    @property
    def nbytes(self) -> int:
        return sum(span.nbytes for span in self.spans)

    def read(self, shards: Shards | None = None) -> mx.array:
        """The whole tensor, lazily where the files allow it."""
        shards = shards or Shards()
        parts = [shards.read(span) for span in self.spans]
        return mx.stack(parts) if self.stacked else parts[0]

    def parts(self) -> list[Span]:
        """The experts of a stacked tensor one by one; otherwise the tensor itself.

        Reading part by part keeps no more than one expert in memory.
        """
        if self.stacked or len(self.shape) < 3:
            return list(self.spans)
        (span,), (experts, *inner) = self.spans, self.shape
        size = math.prod(inner)
        return [span.part(e * size, tuple(inner)) for e in range(experts)]


def open_weights(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of an MLX folder or Hugging Face safetensors checkpoint, complete and checked.

    Reads headers only. Every shape is compared with what ``config`` asks for.

    Raises:
        ModelError: a shard is missing or truncated, or a tensor is missing, unknown, given
            twice, or of a wrong shape or dtype; the message names it.
    """
    found: dict[str, dict[int | None, Span]] = {}
    for raw_name, span in read_folder(folder).items():
        for name, expert, piece in _canonical(raw_name, span, config):
            if expert in found.setdefault(name, {}):
                raise ModelError(f"{span.file.name}: a second tensor for {name} ({raw_name})")
            found[name][expert] = piece
    tensors = {name: _assemble(name, spans, config) for name, spans in found.items()}
    check(tensors, config)
    return tensors


# --- names


LAYER = r"model\.layers\.(\d+)\."
EXPERT_PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
SINGLE_EXPERT = re.compile(
    LAYER + r"block_sparse_moe\.experts\.(\d{1,4})\.(w[123])\.(weight|scales|biases)"
)
FUSED_EXPERTS = re.compile(LAYER + r"mlp\.experts\.(gate_up_proj|down_proj)")
MOE_ROUTER_5 = re.compile(LAYER + r"mlp\.gate\.weight")
# Old checkpoints carry RoPE's frequencies, which follow from the configuration.
DERIVED = re.compile(LAYER + r"self_attn\.rotary_emb\.inv_freq")


def _canonical(raw: str, span: Span, config: ModelConfig) -> Iterable[tuple[str, int | None, Span]]:
    """(canonical name, expert number or None, where it lies) of one tensor of a file."""
    if DERIVED.fullmatch(raw) or (config.tie_word_embeddings and raw.startswith("lm_head.")):
        return
    if match := SINGLE_EXPERT.fullmatch(raw):
        layer, expert, w, kind = match.groups()
        yield f"{_experts(layer)}.{EXPERT_PROJECTIONS[w]}.{kind}", int(expert), span
    elif match := FUSED_EXPERTS.fullmatch(raw):
        layer, projection = match.groups()
        yield from _split_fused(f"{_experts(layer)}", projection, raw, span)
    elif match := MOE_ROUTER_5.fullmatch(raw):
        yield f"model.layers.{match[1]}.block_sparse_moe.gate.weight", None, span
    else:
        yield raw, None, span


def _experts(layer: str) -> str:
    return f"model.layers.{layer}.block_sparse_moe.switch_mlp"


def _split_fused(
    prefix: str, projection: str, raw: str, span: Span
) -> Iterable[tuple[str, int | None, Span]]:
    """transformers 5 stacks the experts, and gate above up: [E, 2F, D]."""
    if projection == "down_proj":
        yield f"{prefix}.down_proj.weight", None, span
        return
    if len(span.shape) != 3 or span.shape[1] % 2:
        raise ModelError(f"{span.file.name}: {raw} has shape {list(span.shape)}, not [E, 2F, D]")
    experts, rows, width = span.shape
    half = rows // 2 * width
    for e in range(experts):
        for i, name in enumerate(("gate_proj", "up_proj")):
            yield f"{prefix}.{name}.weight", e, span.part((2 * e + i) * half, (rows // 2, width))


def _assemble(name: str, spans: dict[int | None, Span], config: ModelConfig) -> Tensor:
    if set(spans) == {None}:
        return Tensor(name, (spans[None],))
    experts = range(config.num_local_experts)
    if missing := [e for e in experts if e not in spans]:
        raise ModelError(f"expert {missing[0]} of {name} is missing; fetch the model again")
    if len(spans) != len(experts):
        raise ModelError(f"{name} has {len(spans)} experts where config.json says {len(experts)}")
    ordered = tuple(spans[e] for e in experts)
    for span in ordered:
        if (span.shape, span.dtype) != (ordered[0].shape, ordered[0].dtype):
            raise ModelError(
                f"{span.file.name}: an expert of {name} is {span.dtype} {list(span.shape)}, "
                f"the first one {ordered[0].dtype} {list(ordered[0].shape)}"
            )
    return Tensor(name, ordered, stacked=True)


# --- what has to be there


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every module path with weights, and the shape of its 16-bit weight."""
    d, f, hd = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * hd, config.num_key_value_heads * hd
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (d,),
        "self_attn.q_proj": (q, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, q),
        "post_attention_layernorm": (d,),
    }
    stack: tuple[int, ...] = ()
    if config.is_moe:
        e = config.num_local_experts
        layer["block_sparse_moe.gate"] = (e, d)
        feed_forward, stack = "block_sparse_moe.switch_mlp", (e,)
    else:
        feed_forward = "mlp"
    layer[f"{feed_forward}.gate_proj"] = (*stack, f, d)
    layer[f"{feed_forward}.up_proj"] = (*stack, f, d)
    layer[f"{feed_forward}.down_proj"] = (*stack, d, f)

    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (config.vocab_size, d)}
    for n in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{n}.{path}": shape for path, shape in layer.items()}
    shapes["model.norm"] = (d,)
    if not config.tie_word_embeddings:
        shapes["lm_head"] = (config.vocab_size, d)
    return shapes


def packed_shapes(shape: tuple[int, ...], spec: QuantSpec) -> dict[str, tuple[int, ...]]:
    """The shapes of a quantized matrix: ``weight``, ``scales`` and, in affine mode, ``biases``."""
    *rows, width = shape
    scales = (*rows, width // spec.group_size)
    packed = {"weight": (*rows, width * spec.bits // 32), "scales": scales}
    return packed | {"biases": scales} if spec.mode == "affine" else packed


def packed_kinds(spec: QuantSpec) -> dict[str, tuple[mx.Dtype, ...]]:
    """The dtypes that the tensors of ``packed_shapes`` may have."""
    scales = FLOATS if spec.mode == "affine" else (mx.uint8,)
    return {"weight": (mx.uint32,), "scales": scales, "biases": FLOATS}


def check(tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Strict in both directions: raises ModelError for a tensor missing, left over or misshapen."""
    wanted: set[str] = set()
    for path, shape in expected_shapes(config).items():
        shapes, kinds = {"weight": shape}, {"weight": FLOATS}
        if len(shape) > 1 and f"{path}.scales" in tensors:
            spec = config.quantization.of(path) if config.quantization else None
            if spec is None:
                raise ModelError(f"{path} is quantized, but config.json does not say how")
            if shape[-1] % spec.group_size:
                raise ModelError(
                    f"config.json: groups of {spec.group_size} do not divide {path}'s "
                    f"{shape[-1]} columns"
                )
            shapes, kinds = packed_shapes(shape, spec), packed_kinds(spec)
        for kind, want in shapes.items():
            _check_one(tensors, f"{path}.{kind}", want, kinds[kind])
        wanted |= {f"{path}.{kind}" for kind in shapes}
    if extra := sorted(set(tensors) - wanted):
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        where = tensors[extra[0]].spans[0].file.name
        raise ModelError(f"{where}: tensor {extra[0]} has no place in this model{more}")


def _check_one(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    kinds: tuple[mx.Dtype, ...],
) -> None:
    if (tensor := tensors.get(name)) is None:
        raise ModelError(f"tensor {name} is missing; the download may be incomplete")
    file = tensor.spans[0].file.name
    if tensor.shape != shape:
        raise ModelError(
            f"{file}: {name} has shape {list(tensor.shape)}, config.json asks for {list(shape)}"
        )
    if tensor.dtype not in kinds:
        raise ModelError(f"{file}: {name} is {tensor.dtype}, which cannot be right")
