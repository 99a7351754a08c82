"""Models of the real shapes with random weights: speed without a download.

How fast a matrix is multiplied does not depend on what it holds, so random codes tell a
machine's speed with Mixtral before 26 GB have been fetched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_mixtral.config import ModelConfig, Quantization, QuantSpec
from mlx_mixtral.errors import UsageError
from mlx_mixtral.generation.prefill import prefill_chunk
from mlx_mixtral.lab.opponents import opponent_dtype
from mlx_mixtral.loading import Progress
from mlx_mixtral.memory import free_memory, total_memory
from mlx_mixtral.model.joined import JOINED
from mlx_mixtral.model.transformer import Transformer
from mlx_mixtral.network import activation_dtype, arrays, empty_network, ready, weight_dtype
from mlx_mixtral.weights import expected_shapes, packed_shapes

SHAPES = {
    "8x7b": ModelConfig(32000, 4096, 14336, 32, 32, 8, 128),
    "8x22b": ModelConfig(32768, 6144, 16384, 56, 48, 8, 128, max_position_embeddings=65536),
    "7b": ModelConfig(32768, 4096, 14336, 32, 32, 8, 128, num_local_experts=0),
}
BITS = (2, 3, 4, 5, 6, 8, 16)
GROUP_SIZES = (32, 64, 128)


def shape_config(shape: str, bits: int, group_size: int, layers: int | None = None) -> ModelConfig:
    """The configuration of a shape, quantized alike throughout but for its router.

    Raises:
        UsageError: an unknown shape, or bits, groups or layers that it cannot have.
    """
    if (config := SHAPES.get(shape)) is None:
        raise UsageError(f"--shape {shape!r} is unknown; choose one of {', '.join(SHAPES)}")
    if bits not in BITS:
        raise UsageError(f"--bits {bits} is not possible; choose one of {_listed(BITS)}")
    if group_size not in GROUP_SIZES:
        raise UsageError(
            f"--group-size {group_size} is not possible; choose one of {_listed(GROUP_SIZES)}"
        )
    most = config.num_hidden_layers
    if layers is not None and not 1 <= layers <= most:
        raise UsageError(f"--layers {layers}: {shape} has 1 to {most} layers to give")
    quantization = None if bits == 16 else Quantization(QuantSpec(bits, group_size))
    return replace(config, num_hidden_layers=layers or most, quantization=quantization)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def tensors(config: ModelConfig, dtype: mx.Dtype) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
    """Name -> shape and dtype of every array of the model, as loading would leave them."""
    found = {}
    for path, shape in expected_shapes(config).items():
        spec = _spec(config, path, shape)
        shapes = packed_shapes(shape, spec) if spec else {"weight": shape}
        for kind, form in shapes.items():
            packed = bool(spec) and kind == "weight"
            name = f"{path}.{kind}"
            found[name] = (form, mx.uint32 if packed else weight_dtype(name, dtype))
    return found


def _spec(config: ModelConfig, path: str, shape: tuple[int, ...]) -> QuantSpec | None:
    """Norms and the router stay as they are, as in what ``mixtral-mlx convert`` writes."""
    if config.quantization is None or len(shape) < 2 or path.endswith("block_sparse_moe.gate"):
        return None
    return config.quantization.of(path)


def weight_bytes(config: ModelConfig, dtype: mx.Dtype) -> int:
    """Bytes of all arrays of the model."""
    return sum(math.prod(shape) * dtype.size for shape, dtype in tensors(config, dtype).values())


def needed_bytes(
    config: ModelConfig, dtype: mx.Dtype, prompt: int, generate: int, against: Sequence[str] = ()
) -> int:
    """About what a bench takes at its worst: weights, keys and values, one chunk of the prompt;
    and for each opponent what it cannot share."""
    needed = weight_bytes(config, dtype) + _run_bytes(config, dtype, prompt, generate)
    for name in against:
        theirs = opponent_dtype(name)
        needed += _copied_bytes(config, dtype, theirs) + _run_bytes(
            config, theirs, prompt, generate
        )
    return needed


def _run_bytes(config: ModelConfig, dtype: mx.Dtype, prompt: int, generate: int) -> int:
    size, rows = dtype.size, min(prompt, prefill_chunk())
    heads = config.num_attention_heads
    kv = 2 * config.num_key_value_heads * config.head_dim * size * config.num_hidden_layers
    # Gate, up and their product, of every expert that a token chose; and, where attention
    # is not fused, the scores.
    paths = config.num_experts_per_tok if config.is_moe else 1
    work = rows * (3 * paths * config.intermediate_size + heads * prompt) * size
    return kv * (prompt + generate) + work


def _copied_bytes(config: ModelConfig, ours: mx.Dtype, theirs: mx.Dtype) -> int:
    """What an opponent holds besides our weights: floats of another type, and, in arrays of
    their own, the parts of what lies joined here."""
    joined = tuple(part for parts in JOINED.values() for part in parts)
    copied = 0
    for name, (shape, kind) in tensors(config, ours).items():
        packed = kind == mx.uint32
        if name.rpartition(".")[0].endswith(joined) or not (packed or kind == theirs):
            copied += math.prod(shape) * (kind if packed else theirs).size
    return copied


def check_memory(
    config: ModelConfig, what: str, prompt: int, generate: int, against: Sequence[str] = ()
) -> None:
    """Refuse what would not fit before anything is made.

    Raises:
        UsageError: with what is needed, what there is, and how many layers would fit.
    """
    dtype, free = activation_dtype(mx.bfloat16), free_memory()

    def needed(config: ModelConfig, against: Sequence[str]) -> int:
        return needed_bytes(config, dtype, prompt, generate, against)

    whole = needed(config, against)
    if whole <= free:
        return
    one, two = (needed(replace(config, num_hidden_layers=n), against) for n in (1, 2))
    fitting = 1 + (free - one) // (two - one) if free >= one else 0
    wide = ", where MLX computes in float32" if dtype == mx.float32 else ""
    beside = f" beside {' and '.join(against)}" if against else ""
    alone = ", without --against" if against and needed(config, ()) <= free else ""
    advice = f"--layers {fitting} fits" if fitting else "not even one layer fits"
    raise UsageError(
        f"{what} needs {whole / 1e9:.1f} GB here{beside}{wide}; of this machine's "
        f"{total_memory() / 1e9:.1f} GB, {free / 1e9:.1f} GB can be used: "
        f"fewer --bits{alone}, or {advice}"
    )


def random_model(config: ModelConfig, progress: Progress | None = None) -> Transformer:
    """A model of these shapes with random weights, made on the device one array at a time.

    The steps are those of ``loading.load_model``, with chance in place of files.
    """
    dtype = activation_dtype(mx.bfloat16)
    specs = {path: _spec(config, path, shape) for path, shape in expected_shapes(config).items()}
    model = empty_network(config, specs)
    total, done = weight_bytes(config, dtype), 0
    keys = _keys()
    for name, empty in arrays(model).items():
        kind = empty.dtype if empty.dtype == mx.uint32 else weight_dtype(name, dtype)
        value = _random(name, empty.shape, kind, next(keys), config)
        mx.eval(value)
        model.load_weights([(name, value)], strict=False)
        done += value.nbytes
        if progress:
            progress(done, total)
    mx.clear_cache()
    return ready(model)


def _keys() -> Iterator[mx.array]:
    key = mx.random.key(0)
    while True:
        key, one = mx.random.split(key)
        yield one


def _random(
    name: str, shape: tuple[int, ...], dtype: mx.Dtype, key: mx.array, config: ModelConfig
) -> mx.array:
    """Weights of a size that keeps activations near 1, so that nothing overflows or vanishes."""
    if dtype == mx.uint32:
        # split() is the one function that gives MLX's random bits as they come; randint
        # goes through floats, and its lowest bits are zeros.
        count = math.prod(shape)
        return mx.random.split(key, (count + 1) // 2).flatten()[:count].reshape(shape)
    if name.endswith("norm.weight"):
        return mx.ones(shape, dtype)
    if name.endswith((".scales", ".biases")):
        return _affine(name, shape, dtype, config)
    if len(shape) == 3:  # expert by expert: the numbers are made in float32
        parts = [_normal(shape[1:], dtype, k) for k in mx.random.split(key, shape[0])]
        return mx.stack(parts)
    return _normal(shape, dtype, key)


def _normal(shape: tuple[int, ...], dtype: mx.Dtype, key: mx.array) -> mx.array:
    value = mx.random.normal(shape, dtype, scale=shape[-1] ** -0.5, key=key)
    mx.eval(value)
    return value


def _affine(name: str, shape: tuple[int, ...], dtype: mx.Dtype, config: ModelConfig) -> mx.array:
    """Scales, or biases, that centre evenly spread codes and give them variance 1 / width."""
    spec = config.quantization.of(name.rpartition(".")[0]) if config.quantization else None
    assert spec is not None  # only packed matrices have scales
    levels, width = 2**spec.bits, shape[-1] * spec.group_size
    scale = (12 / width) ** 0.5 / levels
    return mx.full(shape, scale if name.endswith(".scales") else -scale * (levels - 1) / 2, dtype)
