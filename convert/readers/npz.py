"""MLX's own Mixtral and Mistral of December 2023: ``weights.npz``, or ``weights.0.npz`` and on.

Mistral's own names and interleaved RoPE, in float16 or in MLX's affine codes, and a config.json
with the entries of params.json. Whether a matrix is quantized is told by its ``.scales``.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from convert import names
from convert.readers import Named, Source, assemble
from convert.readers.extent import Extent, Joined
from convert.readers.plain import Packed, Plain
from convert.readers.stored_zip import read_directory, stored
from mlx_mixtral.config import ModelConfig, QuantSpec
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.jsonfile import read_json
from mlx_mixtral.weights import packed_kinds, packed_shapes

_FILE = re.compile(r"weights\.(?:(\d{1,4})\.)?npz", re.ASCII)
# As numpy and MLX write it: sorted, and padded with spaces to 16 or 64 bytes.
_HEADER = re.compile(
    r"\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\)[, ]*\}\s*",
    re.ASCII,
)
_LONGEST_HEADER = 512
_KINDS = ("weight", "scales", "biases")

_DTYPES = {
    "<f2": mx.float16,
    "<f4": mx.float32,
    "<u4": mx.uint32,
    "<V2": mx.bfloat16,  # which numpy has not: two bytes of anything
}


def read_npz(folder: Path) -> Source:
    """The model in ``folder``; headers are read, and no weights.

    Raises:
        UsageError: there are no such files.
        ModelError: a file is missing or damaged, a tensor is missing, unknown or of a wrong
            shape, or the configuration is missing or another architecture's.
    """
    folder = folder.expanduser()
    config, spec = _config(folder)
    arrays: dict[str, Plain] = {}
    for file in _files(folder):
        for name, array in _arrays(file).items():
            if name in arrays:
                raise ModelError(
                    f"{name[:100]!a} is in {arrays[name].files[0].name} and {file.name}"
                )
            arrays[name] = array
    found = [_named(group, config, spec) for group in _groups(arrays)]
    form = "MLX arrays of December 2023 (npz)"
    if spec and any(isinstance(named.part, Packed) for named in found):
        form += f", {spec.bits} bits in groups of {spec.group_size}"
    return Source(folder, config, assemble(found, config), form)


def _config(folder: Path) -> tuple[ModelConfig, QuantSpec | None]:
    path = folder / "config.json"
    if not path.is_file():  # the very first ones left params.json as it was
        path = folder / "params.json"
    raw = read_json(path)
    try:
        if (kind := raw.get("model_type", "mixtral")) not in ("mixtral", "mistral"):
            raise ModelError(f"the architecture is {kind!r}; this program runs Mistral's only")
        settings = raw.get("quantization")
        spec = QuantSpec.from_dict(settings) if isinstance(settings, Mapping) else None
        if spec and spec.mode != "affine":
            raise ModelError(f"MLX had no {spec.mode} quantization when it wrote such files")
        return ModelConfig.from_params(raw), spec
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _files(folder: Path) -> list[Path]:
    """weights.npz alone, or weights.0.npz and on, none left out."""
    found = {match[1]: file for file in folder.iterdir() if (match := _FILE.fullmatch(file.name))}
    if not found:
        raise UsageError(f"{folder} holds no weights.npz; give the folder of an MLX model")
    if None in found:
        return [found[None]]
    numbered = {int(number): file for number, file in found.items()}
    for number in range(max(numbered) + 1):
        if number not in numbered:
            raise ModelError(f"{folder} lacks weights.{number}.npz; fetch it")
    return [numbered[number] for number in sorted(numbered)]


# --- arrays


def _arrays(file: Path) -> dict[str, Plain]:
    """The arrays of one archive, by name."""
    joined = Joined((file,))
    arrays = {}
    for entry, info in read_directory(joined).items():
        if not entry.endswith(".npy"):
            raise ModelError(f"{file.name} holds {entry[:100]!a}, which is not an array")
        name = entry.removesuffix(".npy")
        arrays[name] = _array(f"{file.name}: {entry[:100]!a}", stored(joined, info))
    return arrays


def _array(name: str, data: Extent) -> Plain:
    """Where an array's values lie behind its header."""
    begin, header = _header(data)
    if not (match := _HEADER.fullmatch(header)):
        raise ModelError(f"{name} is not an array that numpy or MLX wrote; fetch it again")
    descr, upright, numbers = match.groups()
    if (dtype := _DTYPES.get(descr)) is None:
        raise ModelError(f"{name} holds {descr!a}; weights are 16- or 32-bit floats, or codes")
    shape = tuple(int(number) for number in numbers.replace(",", " ").split())
    if math.prod(shape) * dtype.size != data.nbytes - begin:
        raise ModelError(f"{name} has not the length that its shape {list(shape)} asks for")
    values = Extent(data.file, data.offset + begin, shape, dtype)
    if upright == "False" or len(shape) < 2:
        return Plain(values)
    if len(shape) > 2:
        raise ModelError(f"{name} is in Fortran's order; save it again in C's")
    return Plain(replace(values, shape=shape[::-1]), transposed=True)


def _header(data: Extent) -> tuple[int, str]:
    """Where an array's values begin, and what stands before them; empty: it is no array."""
    start = data.part(0, (min(data.nbytes, _LONGEST_HEADER),)).raw().tobytes()
    width = {b"\x93NUMPY\1\0": 2, b"\x93NUMPY\2\0": 4}.get(start[:8], 0)
    begin = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    return begin, start[8 + width : begin].decode("latin-1") if begin <= len(start) else ""


# --- places


@dataclass(frozen=True)
class _Group:
    """The arrays of one matrix, by kind, and its place."""

    place: names.Place
    origin: str
    arrays: Mapping[str, Plain]


def _groups(arrays: Mapping[str, Plain]) -> Iterator[_Group]:
    for name, array in arrays.items():
        place = names.native(name)
        if place is None:
            yield _Group(names.Place(f"unknown {name}"), ascii(name[:100]), {"weight": array})
        elif place.kind == "weight":
            stem = name.removesuffix(".weight")
            kinds = {kind: arrays[key] for kind in _KINDS if (key := f"{stem}.{kind}") in arrays}
            yield _Group(place, name, {"weight": array} | kinds)
        elif f"{name.rpartition('.')[0]}.weight" not in arrays:
            raise ModelError(f"{array.files[0].name}: {name} has no weight beside it")


def _named(group: _Group, config: ModelConfig, spec: QuantSpec | None) -> Named:
    place, arrays = group.place, group.arrays
    heads = names.rope_heads(place.path, config)
    if len(arrays) == 1:
        plain = replace(arrays["weight"], heads=heads)
        return Named(place.path, place.expert, plain, group.origin)
    where = f"{arrays['weight'].files[0].name}: {group.origin}"
    if spec is None:
        raise ModelError(f"{where} is quantized, but the configuration does not say how")
    if missing := [kind for kind in _KINDS if kind not in arrays]:
        raise ModelError(f"{where} has no {missing[0]}; fetch it again")
    if not _are_codes(arrays, spec):
        raise ModelError(f"{where} is not {spec.bits} bits in groups of {spec.group_size}")
    extents = tuple(arrays[kind].extent for kind in _KINDS)
    packed = Packed(extents, spec, arrays["scales"].dtype, heads)
    return Named(place.path, place.expert, packed, group.origin)


def _are_codes(arrays: Mapping[str, Plain], spec: QuantSpec) -> bool:
    """Whether these are the arrays of one matrix in ``spec``."""
    if len(codes := arrays["weight"].shape) != 2:
        return False
    rows, width = codes[0], codes[1] * 32 // spec.bits
    kinds, shapes = packed_kinds(spec), packed_shapes((rows, width), spec)
    return width % spec.group_size == 0 and all(
        (array := arrays[kind]).shape == shape
        and array.dtype in kinds[kind]
        and not array.transposed
        for kind, shape in shapes.items()
    )
