"""The shape of a model that a person names, whether or not it is here."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convert.sources.published import Published
    from mlx_mixtral.config import ModelConfig

ALIASES = {"instruct": "8x7b-instruct"}


def published(name: str) -> "Published | None":
    """The model that Mistral published under this name, if it is one."""
    from convert.sources.published import PUBLISHED

    return PUBLISHED.get(ALIASES.get(name, name))


def published_shape(model: "Published") -> "ModelConfig":
    """Its vocabulary follows from its parameters: the versions differ in nothing else."""
    from mlx_mixtral.lab.shapes import SHAPES

    config = SHAPES[model.name.removesuffix("-instruct").removesuffix("-magnet")]
    rows = _parameters(config) - model.parameters
    vocabulary = config.vocab_size - rows // (2 * config.hidden_size)
    return replace(config, vocab_size=vocabulary)


def model_shape(name: str) -> "ModelConfig":
    """Of a published model by its name, or of what ``resolve`` finds.

    Raises:
        ModelError: there is no such model; the message lists the names.
    """
    from mlx_mixtral.catalog import resolve
    from mlx_mixtral.config import read_config

    model = published(name)
    return published_shape(model) if model else read_config(resolve(name))


def _parameters(config: "ModelConfig") -> int:
    from mlx_mixtral.weights import expected_shapes

    return sum(math.prod(shape) for shape in expected_shapes(config).values())
