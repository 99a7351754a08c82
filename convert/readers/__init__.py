"""Where weights come from. Each reader turns one foreign form into a ``Source``.

A reader lists matrices (``Part``), each knowing its shape and where its bytes lie, under the
model's canonical names (see ``mlx_mixtral.weights``); ``assemble`` makes tensors of them and
checks that they are the whole model. Nothing is read before ``Part.read`` asks for it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import mlx.core as mx

from mlx_mixtral.config import ModelConfig, QuantSpec
from mlx_mixtral.errors import ModelError
from mlx_mixtral.weights import FLOATS, expected_shapes


class Part(Protocol):
    """A weight matrix that fits in memory: one expert's, or a tensor that is not stacked.

    ``read`` and ``codes`` are called from several threads at once, each with parts of its own;
    an array that is lazy has to be evaluated in the thread that asked for it.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights, [out, in], quantized or not."""

    @property
    def dtype(self) -> mx.Dtype:
        """What ``read`` returns, and what scales are kept in: float32, float16 or bfloat16."""

    @property
    def nbytes(self) -> int:
        """How many bytes of the files it takes."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold these bytes."""

    @property
    def spec(self) -> QuantSpec | None:
        """How MLX stores a matrix like this one at no real loss; None: in 16 bits."""

    @property
    def exact(self) -> bool:
        """Whether ``spec`` is the matrix's own format, so that ``codes`` can be called."""

    def read(self) -> mx.array:
        """The weights, dequantized if need be.

        Raises:
            ModelError: the file ended, or its data cannot be right.
        """

    def codes(self) -> tuple[mx.array, ...]:
        """The matrix as MLX's arrays for ``spec``: weight, scales and, in affine mode, biases."""


@dataclass(frozen=True)
class Tensor:
    """A weight: one part, or a stack of experts [experts, out, in] with one part an expert."""

    name: str
    parts: tuple[Part, ...]
    stacked: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        inner = self.parts[0].shape
        return (len(self.parts), *inner) if self.stacked else inner

    @property
    def dtype(self) -> mx.Dtype:
        return self.parts[0].dtype

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def spec(self) -> QuantSpec | None:
        """The parts' common one, or the widest of them."""
        specs = [part.spec for part in self.parts if part.spec]
        if len(specs) < len(self.parts):
            return None
        return max(specs, key=lambda spec: spec.bits + 32 / spec.group_size)

    @property
    def exact(self) -> bool:
        return all(part.exact and part.spec == self.spec for part in self.parts)


@dataclass(frozen=True)
class Source:
    """A model to convert.

    ``tensors`` holds every weight of the model, in the model's order, under its canonical name.
    """

    folder: Path | None
    """Where tokenizer, template and licence lie; None: they come in ``made`` alone."""
    config: ModelConfig
    """Shapes and constants; its quantization says nothing about ``tensors``."""
    tensors: Mapping[str, Tensor]
    form: str
    """What it is, for people: ``"Hugging Face safetensors"``."""
    made: Mapping[str, bytes] = field(default_factory=dict)
    """Files that go into the new folder and are in no file of ``folder``: name -> content."""
    notes: tuple[str, ...] = ()
    """What a person should know: one sentence each."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold weights, in order."""
        parts = (part for tensor in self.tensors.values() for part in tensor.parts)
        return tuple(sorted({file for part in parts for file in part.files}))


@dataclass(frozen=True)
class Named:
    """A part and its place: module path, expert number (None: not stacked), its name at home."""

    path: str
    expert: int | None
    part: Part
    origin: str


def assemble(found: Iterable[Named], config: ModelConfig) -> dict[str, Tensor]:
    """The model's tensors, complete and checked, in the model's order.

    Raises:
        ModelError: a tensor is missing, left over, given twice, or of a wrong shape or dtype.
    """
    places: dict[str, dict[int | None, Named]] = {}
    for named in found:
        place = places.setdefault(named.path, {})
        if named.expert in place:
            raise ModelError(f"{_file(named)}: a second tensor for {named.path} ({named.origin})")
        place[named.expert] = named
    shapes = expected_shapes(config)
    for path in places.keys() - shapes.keys():
        extra = next(iter(places[path].values()))
        raise ModelError(f"{_file(extra)}: tensor {extra.origin} has no place in this model")
    _check_all_there(places, shapes)
    return {f"{path}.weight": _tensor(path, shape, places[path]) for path, shape in shapes.items()}


def _check_all_there(
    places: Mapping[str, Mapping[int | None, Named]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    missing = [
        path if expert is None else f"expert {expert} of {path}"
        for path, shape in shapes.items()
        for expert in _experts(shape)
        if expert not in places.get(path, {})
    ]
    if missing:
        more = f" (and {len(missing) - 1} more tensors)" if len(missing) > 1 else ""
        raise ModelError(f"{missing[0]} is missing{more}; the download may be incomplete")


def _experts(shape: tuple[int, ...]) -> list[int | None]:
    """The numbers of a stack's parts; None stands for a tensor that is not stacked."""
    return list(range(shape[0])) if len(shape) == 3 else [None]


def _tensor(path: str, shape: tuple[int, ...], place: Mapping[int | None, Named]) -> Tensor:
    stacked, wanted = len(shape) == 3, _experts(shape)
    if extra := [named for key, named in place.items() if key not in wanted]:
        raise ModelError(f"{_file(extra[0])}: {extra[0].origin} has no place in this model")
    for named in place.values():
        part, inner = named.part, shape[1:] if stacked else shape
        if part.shape != inner:
            raise ModelError(
                f"{_file(named)}: {named.origin} has shape {list(part.shape)}, "
                f"the configuration asks for {list(inner)}"
            )
        if part.dtype not in FLOATS:
            raise ModelError(f"{_file(named)}: {named.origin} is {part.dtype}, not a weight")
        if part.dtype != place[wanted[0]].part.dtype:
            raise ModelError(f"{_file(named)}: {named.origin} is {part.dtype}, others are not")
    return Tensor(f"{path}.weight", tuple(place[key].part for key in wanted), stacked)


def _file(named: Named) -> str:
    return named.part.files[0].name
