"""What a conversion will write, laid out before anything is computed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import mlx.core as mx

from convert.calibration import Calibration
from convert.quantize import Effort, cooked, quantize, raw, slots
from convert.readers import Part, Source, Tensor
from convert.recipe import as_it_is, check_shapes, spec_of
from convert.writer import ShardWriter, Slot, combined
from mlx_mixtral.config import ModelConfig, Quantization, QuantSpec
from mlx_mixtral.errors import ModelError


@dataclass(frozen=True)
class Job:
    """One part's way through: the ``index``-th of ``count`` equal parts of its slots."""

    part: Part
    kept: bool
    spec: QuantSpec | None
    effort: Effort
    dtype: mx.Dtype
    slots: tuple[Slot, ...]
    index: int
    count: int

    @property
    def name(self) -> str:
        """Of the source's tensor."""
        return self.slots[0].name

    @property
    def places(self) -> list[tuple[str, int, int]]:
        """(slot, offset, size) of the bytes it writes."""
        sizes = [slot.nbytes // self.count for slot in self.slots]
        return [(s.name, n * self.index, n) for s, n in zip(self.slots, sizes, strict=True)]

    def run(self, writer: ShardWriter) -> int:
        """Returns the checksum of what was written.

        Raises:
            ModelError: the file ended, or its data cannot be right.
        """
        crc = self.put(self.arrays(), writer)
        mx.clear_cache()  # MLX would keep the memory for arrays of this size to come
        return crc

    def arrays(self) -> tuple[mx.array, ...]:
        """What becomes of the part, without calibration."""
        if not self.kept:
            return quantize(self.weight(), self.dtype, self.spec, self.effort)
        codes = self.part.codes()
        mx.eval(codes)
        return codes

    def weight(self) -> mx.array:
        """The part, as it is to be quantized; checked, where that is little beside the work."""
        weight = self.part.read()
        if self.effort != "fast" and not mx.isfinite(weight).all():
            raise ModelError(
                f"{self.name} holds values that are not numbers; fetch the model again"
            )
        return weight

    def put(self, arrays: Sequence[mx.array], writer: ShardWriter) -> int:
        """Write what became of the part. Returns the checksum."""
        checksums = [
            writer.put(name, raw(array), at)
            for (name, at, _), array in zip(self.places, arrays, strict=True)
        ]
        return combined(checksums)

    def written(self, writer: ShardWriter) -> tuple[mx.array, ...]:
        """What ``put`` was given, read back."""
        shape = (*((self.part.shape[0],) if len(self.part.shape) > 1 else ()), -1)
        return tuple(
            cooked(writer.get(*place), slot).reshape(shape)
            for place, slot in zip(self.places, self.slots, strict=True)
        )


@dataclass(frozen=True)
class Plan:
    """Everything about the new model that is known before it is computed."""

    source: Source
    config: ModelConfig
    slots: Mapping[str, tuple[Slot, ...]]
    """What each source tensor becomes, by name, in order."""
    dtypes: Mapping[str, mx.Dtype]
    """What each tensor, or its scales, are stored in."""
    effort: Effort = "fast"
    calibration: Calibration | None = None
    """What the best effort looks at; no other needs it."""

    def spec(self, name: str) -> QuantSpec | None:
        """How tensor ``name`` is quantized."""
        return spec_of(self.config.quantization, name)

    def kept(self, name: str) -> bool:
        """Whether tensor ``name`` keeps the codes it came with."""
        tensor = self.source.tensors[name]
        return tensor.spec is not None and tensor.exact and tensor.spec == self.spec(name)

    def effort_for(self, name: str) -> Effort:
        """The effort that tensor ``name`` takes: there is but one way to copy."""
        spec = self.spec(name)
        idle = spec is None or spec.mode != "affine" or self.kept(name)
        return "fast" if idle else self.effort

    @property
    def source_bytes(self) -> int:
        """Bytes of weights to read."""
        return sum(tensor.nbytes for tensor in self.source.tensors.values())

    @property
    def output_bytes(self) -> int:
        """Bytes of weights to write."""
        return sum(slot.nbytes for group in self.slots.values() for slot in group)

    @property
    def working_bytes(self) -> int:
        """Room on the disk that is needed meanwhile: hidden states, the last and the next."""
        if not self.calibrated or self.calibration is None:
            return 0
        return 2 * 4 * self.calibration.ids.size * self.config.hidden_size

    @property
    def parameters(self) -> int:
        """Number of weights of the model."""
        return sum(math.prod(tensor.shape) for tensor in self.source.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Average over the whole model, scales, router and norms included."""
        return 8 * self.output_bytes / self.parameters

    @property
    def narrowed(self) -> bool:
        """Whether matrices come in float32 and become 16 bits wide."""
        matrices = [t for t in self.source.tensors.values() if len(t.shape) > 1]
        return all(t.dtype == mx.float32 for t in matrices)

    @property
    def half(self) -> mx.Dtype:
        """The type of the model's 16-bit tensors."""
        return _half(self.source.tensors)

    @property
    def calibrated(self) -> bool:
        """Whether a text has to be followed through the model."""
        return any(job.effort == "best" for job in self.jobs)

    @cached_property
    def jobs(self) -> tuple["Job", ...]:
        """The work, part by part."""
        return tuple(
            Job(part, self.kept(name), self.spec(name), self.effort_for(name), self.dtypes[name],
                group, i, len(parts))
            for name, group in self.slots.items()
            for parts in [self.source.tensors[name].parts]
            for i, part in enumerate(parts)
        )  # fmt: skip


def plan(
    source: Source,
    recipe: Quantization | None,
    effort: Effort = "fast",
    calibration: Calibration | None = None,
) -> Plan:
    """Lay out the conversion of ``source``; no weights are read.

    Without a ``calibration`` the best effort takes the text that comes along.

    Raises:
        UsageError: the recipe does not fit the source's shapes, or the best effort finds no
            tokenizer.model to read a text with.
    """
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
    check_shapes(recipe, shapes)
    half = _half(source.tensors)
    unkept = Plan(source, replace(source.config, quantization=recipe), {}, {}, effort, calibration)
    dtypes = {
        name: half if tensor.dtype == mx.float32 and not unkept.kept(name) else tensor.dtype
        for name, tensor in source.tensors.items()
    }
    groups = {
        name: tuple(slots(name, shapes[name], dtypes[name], unkept.spec(name))) for name in shapes
    }
    made = replace(unkept, slots=groups, dtypes=dtypes)
    if made.calibrated and calibration is None:
        return replace(made, calibration=Calibration.of(source))
    return made


def own_recipe(source: Source) -> Quantization | None:
    """The recipe that loses least: codes stay as they are where MLX's formats can hold them."""
    return as_it_is({
        name: None if "gate.weight" in name and not tensor.exact else tensor.spec
        for name, tensor in source.tensors.items()
    })  # fmt: skip


def _half(tensors: Mapping[str, Tensor]) -> mx.Dtype:
    """What float32 tensors are stored in: float16 beside float16 matrices, else bfloat16.

    bfloat16 keeps float32's range; float16 would lose what is above 65504 or below 6e-8.
    """
    matrices = [tensor for tensor in tensors.values() if len(tensor.shape) > 1]
    return mx.float16 if any(t.dtype == mx.float16 for t in matrices) else mx.bfloat16
