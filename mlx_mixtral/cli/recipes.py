"""``mixtral-mlx recipes``: what ``convert --recipe`` knows."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_mixtral.cli.sizes import size

if TYPE_CHECKING:
    from convert.recipe import Recipe
    from mlx_mixtral.config import ModelConfig


def recipes(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A published name, or a folder.")
    ] = "8x7b",
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """List the recipes for converting, with what they come to."""
    from convert.recipe import RECIPES
    from mlx_mixtral.cli.shapes import model_shape

    config = model_shape(model)
    rows = [_row(recipe, config) for recipe in RECIPES.values()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'recipe':<11}{model:>9}  bits  what it is")
    for row in rows:
        print(f"{row['name']:<11}{size(row['bytes']):>9}  {row['bits']:>4.1f}  {row['about']}")
    print("\nThe router stays at 16 bits. To use one: convert SOURCE -o OUT --recipe NAME")


def _row(recipe: "Recipe", config: "ModelConfig") -> dict[str, Any]:
    from convert.sizes import disk_bytes

    nbytes = disk_bytes(config, recipe.quantization(config))
    bits = 16 * nbytes / disk_bytes(config, None)
    return {"name": recipe.name, "bytes": nbytes, "bits": round(bits, 2), "about": recipe.about}
