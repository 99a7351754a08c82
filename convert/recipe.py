"""Which tensor gets how many bits. Pure data: no files, no arrays.

A recipe is a ``Quantization``, as it will stand in the new config.json, or None to keep every
tensor at 16 bits. The norms stay at 16 bits under any recipe, and so does the router, unless
its codes are kept as they came: it is a thousandth of the model, and a wrong expert costs
more than a rough one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_mixtral.config import ModelConfig, Quantization, QuantSpec
from mlx_mixtral.errors import UsageError
from mlx_mixtral.weights import expected_shapes

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Recipe:
    """A named one.

    Nearly all of a Mixtral is experts, of which a token meets a quarter, and each of them only
    some tokens. What every token goes through (attention, embedding, head) is 3 % of 8x7B, so
    8 bits there cost little, and less is lost than the same bytes would save in the experts.

    Attributes:
        experts: the spec of the experts, or of a dense model's feed-forward layers.
        shared: of the other matrices. One spec for all of a layer's q, k and v, and one for
            gate and up, lets them be multiplied together.
        about: what it is good for, in a line.
    """

    name: str
    experts: QuantSpec | None
    shared: QuantSpec | None
    about: str

    def quantization(self, config: ModelConfig) -> Quantization | None:
        """For a model of these shapes; None where all of it stays at 16 bits."""
        if self.experts is None:
            return None
        shapes = expected_shapes(config) if self.shared != self.experts else {}
        matrices = (path for path, shape in shapes.items() if len(shape) > 1)
        shared = [p for p in matrices if not _delicate(p) and not _feed_forward(p)]
        return Quantization(self.experts, dict.fromkeys(shared, self.shared))


_EIGHT = QuantSpec(8, 64)
_ALL = (
    Recipe("16bit", None, None, "nothing is lost: the weights as they were trained"),
    Recipe("8bit", _EIGHT, _EIGHT, "next to nothing is lost, at half the size"),
    Recipe("6bit", QuantSpec(6, 64), _EIGHT, "very close to 16 bit"),
    Recipe("5bit", QuantSpec(5, 64), _EIGHT, "between 6bit and 4bit"),
    Recipe("4bit", QuantSpec(4, 64), _EIGHT, "experts in 4 bits, all else in 8"),
    Recipe("4bit-fast", QuantSpec(4, 64), QuantSpec(4, 64), "4 bits throughout: fewer bytes read"),
    Recipe("3bit", QuantSpec(3, 64), _EIGHT, "experts in 3 bits: a loss that can be felt"),
    Recipe("2bit", QuantSpec(2, 32), _EIGHT, "experts in 2 bits, small groups: a heavy loss"),
    Recipe("2bit-small", QuantSpec(2, 64), _EIGHT, "the smallest: for trying what runs at all"),
)
RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def named(name: str) -> Recipe:
    """Raises UsageError for a name that is none."""
    if (recipe := RECIPES.get(name)) is None:
        raise UsageError(f"recipe {name!r} is unknown; choose one of {', '.join(RECIPES)}")
    return recipe


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


def _feed_forward(path: str) -> bool:
    return path.endswith(("gate_proj", "up_proj", "down_proj"))


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
            advice = f"--bits N --group-size {fitting[-1]} fits" if fitting else "keep --bits 16"
            raise UsageError(
                f"{name} has rows of {width} weights, which groups of {spec.group_size} "
                f"do not divide; {advice}"
            )
