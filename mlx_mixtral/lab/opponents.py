"""mlx-lm on the same weights, to be measured beside this program."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_mixtral.config import ModelConfig
from mlx_mixtral.lab.runs import Side
from mlx_mixtral.model.transformer import Transformer
from mlx_mixtral.network import arrays, places
from mlx_mixtral.weights import expected_shapes

# As it comes; and given float32 weights or scales, the fairer opponent on MLX's CPU
# backend, where 16 bits are slow. On a GPU only the first makes sense.
OPPONENTS = ("mlx-lm", "mlx-lm-f32")


def opponent_dtype(name: str) -> mx.Dtype:
    """What an opponent computes in where it has no files that say so."""
    return mx.float32 if _in_float32(name) else mx.bfloat16


def mlx_lm(name: str, folder: Path | None, config: ModelConfig, ours: Transformer) -> Side:
    """mlx-lm's loop over mlx-lm's model, with its defaults.

    Args:
        folder: what it loads; None: it gets the arrays of ``ours``.
    """
    if folder is None:
        model = _given(config, ours, opponent_dtype(name))
    else:
        model = _lazy(name, folder)
        _share(model, ours)
    mx.eval(model.parameters())
    return their_side(model)


def import_theirs() -> None:
    """Import mlx-lm beforehand where loading is timed: it takes over a second."""
    import mlx_lm.utils  # noqa: F401


def load_theirs(name: str, folder: Path) -> nn.Module:
    """mlx-lm's model of a folder, its weights in memory."""
    model = _lazy(name, folder)
    mx.eval(model.parameters())
    return model


def _lazy(name: str, folder: Path) -> nn.Module:
    from mlx_lm.utils import load_model

    model: nn.Module = load_model(folder, lazy=True)[0]
    if _in_float32(name):
        model.set_dtype(mx.float32)
    return model


def their_side(model: Any) -> Side:
    """mlx-lm's loop over a model of its own."""
    from mlx_lm.generate import generate_step, generation_stream, wired_limit
    from mlx_lm.models.cache import make_prompt_cache

    def tokens(prompt: list[int], count: int, caches: list[Any] | None = None) -> Iterator[Any]:
        # As its own command does: on a Mac the weights are kept from being paged out.
        with wired_limit(model, [generation_stream]):
            ids = mx.array(prompt)
            yield from generate_step(ids, model, max_tokens=count, prompt_cache=caches)

    return Side(tokens, lambda: make_prompt_cache(model), model.model.norm.weight.dtype)


def _in_float32(name: str) -> bool:
    return name.endswith("-f32")


def _share(theirs: nn.Module, ours: Transformer) -> None:
    """Let both use one copy of what they would hold alike, so that 26 GB are not 52.

    The names are the same, and what both read from the same file with the same shape and
    type is the same; what mlx-lm holds in another type, it reads for itself.
    """
    mine = arrays(ours)
    alike = [
        (name, mine[name])
        for name, array in arrays(theirs).items()
        if name in mine and (mine[name].shape, mine[name].dtype) == (array.shape, array.dtype)
    ]
    theirs.load_weights(alike, strict=False)


def _given(config: ModelConfig, ours: Transformer, dtype: mx.Dtype) -> nn.Module:
    """mlx-lm's model of this shape with our weights, its floating ones in ``dtype``."""
    from mlx_lm.models import llama, mixtral

    mine = _canonical(ours, config)
    family: Any = mixtral if config.is_moe else llama
    model: nn.Module = family.Model(family.ModelArgs.from_dict(_hf_config(config)))

    def spec(path: str, module: nn.Module) -> bool | dict[str, int | str]:
        if f"{path}.scales" not in mine or config.quantization is None:
            return False
        found = config.quantization.of(path)
        return bool(found) and found.to_dict()  # type: ignore[union-attr]

    nn.quantize(model, class_predicate=spec)
    model.load_weights(
        [(n, a if a.dtype == mx.uint32 else a.astype(dtype)) for n, a in mine.items()]
    )
    return model


def _canonical(ours: Transformer, config: ModelConfig) -> dict[str, mx.array]:
    """Our arrays under mlx-lm's names; what lies joined is cut up, which takes copies."""
    shapes, mine, found = expected_shapes(config), arrays(ours), {}
    for name, parts in places(ours).items():
        if len(parts) == 1:
            found[parts[0]] = mine[name]
            continue
        rows = [shapes[part.rpartition(".")[0]][-2] for part in parts]
        cuts = list(accumulate(rows[:-1]))
        pieces = mx.split(mine[name], cuts, axis=-2)
        found |= {part: mx.contiguous(piece) for part, piece in zip(parts, pieces, strict=True)}
    return found


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    names = [
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta",
        "num_local_experts", "num_experts_per_tok", "tie_word_embeddings",
    ]  # fmt: skip
    kind = "mixtral" if config.is_moe else "llama"
    return {"model_type": kind} | {name: getattr(config, name) for name in names}
