"""Hugging Face checkpoints and MLX folders in safetensors, in 16 or 32 bits or MLX's own codes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from convert.readers import Named, Source, assemble
from convert.readers.extent import Extent, Joined
from convert.readers.plain import Packed
from mlx_mixtral.config import ModelConfig, QuantSpec, read_config
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.shards import Span
from mlx_mixtral.weights import Tensor, expected_shapes, open_weights, packed_shapes


def read_folder(folder: Path) -> Source:
    """The model in ``folder``; headers are read, and no weights.

    Raises:
        UsageError: there is no such folder.
        ModelError: the folder's config or weights are damaged, incomplete or of another
            architecture.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give the folder that holds config.json")
    config = read_config(folder)
    tensors = open_weights(folder, config)
    return Source(folder, config, assemble(_parts(tensors, config), config), _form(tensors, config))


@dataclass(frozen=True)
class Stored:
    """Floats in a safetensors file, which MLX reads straight into its own memory."""

    span: Span

    spec = None
    exact = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.span.shape

    @property
    def dtype(self) -> mx.Dtype:
        return self.span.mx_dtype

    @property
    def nbytes(self) -> int:
        return self.span.nbytes

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.span.file,)

    def read(self) -> mx.array:
        try:
            values = self.span.read()
            mx.eval(values)
        except RuntimeError as error:  # MLX's, when the file has changed since it was opened
            raise ModelError(f"{self.span.file} cannot be read ({error})") from None
        return values

    def codes(self) -> tuple[mx.array, ...]:
        raise TypeError("floats have no codes")


def _parts(tensors: Mapping[str, Tensor], config: ModelConfig) -> Iterator[Named]:
    for path, shape in expected_shapes(config).items():
        experts = range(shape[0]) if len(shape) == 3 else [None]
        if spec := _spec(path, tensors, config):
            kinds = [tensors[f"{path}.{kind}"].parts() for kind in packed_shapes(shape, spec)]
            scales = tensors[f"{path}.scales"].dtype
            # The scales of mxfp4 and its like are exponents; the norms tell the model's type.
            dtype = scales if scales != mx.uint8 else tensors["model.norm.weight"].dtype
            for expert, spans in zip(experts, zip(*kinds, strict=True), strict=True):
                packed = Packed(tuple(_extent(span) for span in spans), spec, dtype)
                yield Named(path, expert, packed, f"{path}.weight")
        else:
            parts = tensors[f"{path}.weight"].parts()
            for expert, span in zip(experts, parts, strict=True):
                yield Named(path, expert, Stored(span), f"{path}.weight")


def _spec(path: str, tensors: Mapping[str, Tensor], config: ModelConfig) -> QuantSpec | None:
    if f"{path}.scales" not in tensors or config.quantization is None:
        return None
    return config.quantization.of(path)


def _extent(span: Span) -> Extent:
    return Extent(Joined((span.file,)), span.offset, span.shape, span.mx_dtype)


def _form(tensors: Mapping[str, Tensor], config: ModelConfig) -> str:
    if config.quantization and any(name.endswith(".scales") for name in tensors):
        spec = config.quantization.default
        return f"MLX safetensors, {spec.bits} bits in groups of {spec.group_size}"
    return "safetensors of Hugging Face or MLX"
