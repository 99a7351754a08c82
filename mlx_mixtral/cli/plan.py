"""``mixtral-mlx plan``: what a model takes on a Mac, and how fast it is, before it is fetched."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_mixtral.errors import UsageError

if TYPE_CHECKING:
    from convert.writer import Slot
    from mlx_mixtral.config import ModelConfig
    from mlx_mixtral.lab.chips import Mac
    from mlx_mixtral.lab.planning import Estimate, Tensors, Use


CONTEXT = 4096


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A published name (8x7b, instruct, 8x22b, 7b, ...), demo, an installed name or a "
            "folder, converted or not.",
        ),
    ] = "instruct",
    chip: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Such as 'M3 Max'. Default: this Mac's.", show_default=False
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Such as 64GB. Default: this Mac's.", show_default=False),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Tokens of text to leave room for.", show_default=str(CONTEXT)
        ),
    ] = None,
    kv_bits: Annotated[
        int | None,
        typer.Option(help="8 or 4: keys and values quantized.", show_default="16"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as data.")] = False,
) -> None:
    """Tell which form of a model fits a Mac, what it takes, and how fast it will be.

    Sizes are exact; speeds are a range, taken from what others have measured on Macs.
    """
    from mlx_mixtral.generation.kv import KVSettings
    from mlx_mixtral.lab.planning import Use

    macs = _macs(chip, memory)
    subject = _subject(model)
    most = subject.config.max_position_embeddings
    if context is not None and not 1 <= context <= most:
        raise UsageError(f"--context {context}: {model} takes 1 to {most:,} tokens")
    use = Use(context or min(CONTEXT, most), KVSettings(kv_bits))
    found = [(mac, subject.estimates(use, mac)) for mac in macs]
    if as_json:
        print(json.dumps([_record(subject, *entry) for entry in found], indent=2))
        return
    from mlx_mixtral.cli.plan_report import lines_for_many, lines_for_one

    if len(found) == 1:
        lines = lines_for_one(subject, use, *found[0])
    else:
        lines = lines_for_many(subject, use, found)
    print("\n".join(lines))


# --- which Macs


def _macs(chip: str | None, memory: str | None) -> "tuple[Mac, ...]":
    """The one asked for; all with a chip; or this one, and elsewhere than on a Mac all of them."""
    from mlx_mixtral.lab.chips import CHIPS, mac, macs_called, this_mac

    here = this_mac() if chip is None else None
    if chip is None and here is not None:
        return (here if memory is None else mac(here.chip.name, _gigabytes(memory)),)
    if chip is None and memory is None:
        return tuple(mac(c.name, size) for c in CHIPS for size in c.memories)
    if chip is None:
        raise UsageError("this is no Mac: name the chip too, as in --chip 'M3 Max' --memory 64GB")
    if memory is None:
        return macs_called(chip)
    return (mac(chip, _gigabytes(memory)),)


def _gigabytes(text: str) -> int:
    match = re.fullmatch(r"(\d+) *(?:g|gb|gib)?", text.strip().lower())
    if not match:
        raise UsageError(f"--memory {text!r} is not a size such as 64GB")
    return int(match[1])


# --- which model


@dataclass(frozen=True)
class Subject:
    """What is planned for.

    Attributes:
        name: as it was called.
        source: what `convert` and `chat` take for it.
        download: bytes to fetch, in 16 bits; 0 where it is here.
        forms: every form that it can have, the best first, with its tensors.
    """

    name: str
    source: str
    config: "ModelConfig"
    download: int
    forms: "dict[str, Tensors]"

    def estimates(self, use: "Use", mac: "Mac") -> "list[Estimate]":
        from mlx_mixtral.lab.planning import estimate

        return [estimate(name, form, self.config, use, mac) for name, form in self.forms.items()]


def _subject(name: str) -> Subject:
    from convert.recipe import RECIPES
    from convert.sizes import model_slots
    from mlx_mixtral.cli.shapes import published, published_shape

    if (model := published(name)) is None:
        return _folder(name)
    config = published_shape(model)
    forms = {
        recipe.name: _tensors(model_slots(config, recipe.quantization(config)))
        for recipe in RECIPES.values()
    }
    return Subject(model.name, model.name, config, model.size, forms)


def _folder(name: str) -> Subject:
    """A model that is here: with every recipe if it is in 16 bits, else as it is."""
    from convert.plan import own_recipe
    from convert.plan import plan as lay_out
    from convert.readers.detect import open_source
    from convert.recipe import RECIPES
    from mlx_mixtral.catalog import resolve

    source = open_source(resolve(name))
    if any(tensor.spec for tensor in source.tensors.values()):
        recipes = {"as it is": own_recipe(source)}
    else:
        recipes = {r.name: r.quantization(source.config) for r in RECIPES.values()}
    forms = {
        form: _tensors(slot for group in lay_out(source, recipe).slots.values() for slot in group)
        for form, recipe in recipes.items()
    }
    return Subject(name, name, source.config, 0, forms)


def _tensors(slots: "Iterable[Slot]") -> "Tensors":
    from mlx_mixtral.shards import DTYPES

    return {slot.name: (slot.shape, DTYPES[slot.dtype][0]) for slot in slots}


# --- for a program


def _record(subject: Subject, mac: "Mac", estimates: "Sequence[Estimate]") -> dict[str, Any]:
    from mlx_mixtral.lab.planning import recommended

    best = recommended(estimates)
    return {
        "model": subject.name,
        "download": subject.download,
        "mac": dataclasses.asdict(mac),
        "forms": [
            {**dataclasses.asdict(e), "need": e.need, "fits": e.fits, "possible": e.possible}
            for e in estimates
        ],
        "recommended": best.name if best else None,
    }
