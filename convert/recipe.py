"""Which tensor gets how many bits. Pure data: no files, no arrays.

A recipe is a ``Quantization``, as it will stand in the new config.json, or None to keep every
tensor at 16 bits. The norms stay at 16 bits under any recipe, and so does the router, unless
its codes are kept as they came: it is a thousandth of the model, and a wrong expert costs
more than a rough one.
"""

from collections import Counter
from collections.abc import Mapping

from mlx_mixtral.config import Quantization, QuantSpec
from mlx_mixtral.errors import UsageError

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


def uniform(bits: int, group_size: int = 64) -> Quantization | None:
    """The same ``bits`` for every matrix, ``group_size`` weights to a scale; 16 bits: None.

    Raises:
        UsageError: bits or a group size that MLX's affine format does not have.
    """
    if bits not in (*BITS, 16):
        raise UsageError(f"{bits} bits are not possible; choose 2, 3, 4, 5, 6, 8 or 16")
    if group_size not in GROUP_SIZES:
        raise UsageError(f"group size {group_size} is not possible; choose 32, 64 or 128")
    return None if bits == 16 else Quantization(QuantSpec(bits, group_size))


def as_it_is(specs: Mapping[str, QuantSpec | None]) -> Quantization | None:
    """What gives every tensor the spec in ``specs``; the most common one is the default."""
    paths = {name.removesuffix(".weight"): spec for name, spec in specs.items()}
    counts = Counter(spec for spec in paths.values() if spec)
    if not counts:
        return None
    default = counts.most_common(1)[0][0]
    overrides = {
        path: spec
        for path, spec in paths.items()
        if (spec if _delicate(path) else spec != default)  # delicate ones are at 16 bits anyway
    }
    return Quantization(default, overrides)


def spec_of(recipe: Quantization | None, name: str) -> QuantSpec | None:
    """How tensor ``name`` (such as ``model.embed_tokens.weight``) is quantized; None: 16 bits."""
    path = name.removesuffix(".weight")
    if recipe is None or _delicate(path):
        return recipe.overrides.get(path) if recipe else None
    return recipe.of(path)


def _delicate(path: str) -> bool:
    return path.endswith(("norm", "block_sparse_moe.gate"))


def check_shapes(recipe: Quantization | None, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Fail where a row of a matrix cannot be cut into whole groups.

    Raises:
        UsageError: it names the tensor, and a group size that fits all of them.
    """
    specs = {name: spec for name in shapes if (spec := spec_of(recipe, name))}
    widths = {shapes[name][-1] for name in specs}
    fitting = [g for g in GROUP_SIZES if not any(width % g for width in widths)]
    for name, spec in specs.items():
        width = shapes[name][-1]
        if width % spec.group_size:
            advice = f"--group-size {fitting[-1]} fits" if fitting else "keep --bits 16"
            raise UsageError(
                f"{name} has rows of {width} weights, which groups of {spec.group_size} "
                f"do not divide; {advice}"
            )
