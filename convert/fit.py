"""The best recipe of a given size: bits and group sizes for every kind of matrix in every layer.

Each unit (see ``convert.sensitivity``) takes one of 19 forms: 2, 3, 4, 5, 6 or 8 bits in groups of
32, 64 or 128, or 16 bits. A form has bytes, known exactly, and a loss, measured. Of all ways to
choose one form for each unit whose bytes fit the budget, the one with the least loss in all is
found by dynamic programming over the bytes spent (the multiple-choice knapsack of Dudzinski and
Walukiewicz 1987): unit by unit, the least loss for every amount. Amounts are counted in steps
of a 20,000th of what there is to spend, always rounded up; within that it is exact, and what
rounding leaves is spent greedily.
"""

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from convert.quantize import Effort, slots
from convert.readers import Source
from convert.recipe import BITS, GROUP_SIZES, as_it_is
from convert.sensitivity import Unit, losses, units
from mlx_mixtral.config import Quantization, QuantSpec
from mlx_mixtral.errors import UsageError

STEPS = 20_000
HEADER = 256
"""Bytes of a file's header that a tensor takes at most."""
KINDS = {
    "embed_tokens": "embedding",
    "qkv": "q, k, v",
    "o": "o",
    "gate_up": "gate, up",
    "down": "down",
    "lm_head": "head",
}
SPECS = tuple(QuantSpec(bits, group) for bits in BITS for group in GROUP_SIZES)

Advance = Callable[[int, int], None]
Form = QuantSpec | None
"""None: 16 bits."""


@dataclass(frozen=True)
class Choice:
    """A form that a unit can take."""

    form: Form
    nbytes: int
    loss: float


@dataclass(frozen=True)
class Fitted:
    """What was chosen, and why not more.

    Attributes:
        recipe: for ``convert.plan``.
        forms: of each unit.
        nbytes: of the files of weights, at most.
        budget: what was given.
    """

    recipe: Quantization | None
    forms: tuple[tuple[Unit, Form], ...]
    nbytes: int
    budget: int


def parse_size(text: str) -> int:
    """Bytes of ``20GB``, ``21.4 GB``, ``900MB`` or ``18GiB``.

    Raises:
        UsageError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmg])(i?)b", text.strip().lower())
    if not match:
        raise UsageError(f"--fit {text!r} is not a size such as 20GB, 21.5GB or 900MB")
    power = "kmg".index(match[2]) + 1
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def fit(
    source: Source, budget: int, effort: Effort = "fast", progress: Advance | None = None
) -> Fitted:
    """The recipe for ``source`` whose files of weights take at most ``budget`` bytes.

    Reads a sample of the weights. ``progress(done, total)`` counts the bytes of what was sampled.

    Raises:
        UsageError: not even the smallest form is so small; it says what that takes.
        ModelError: the weights cannot be read.
    """
    every, least = units(source.config), smallest(source)
    if least > budget:
        raise UsageError(
            f"--fit: {budget / 1e9:.3f} GB cannot be met; the smallest that can is "
            f"{_up(least)} (2 bits in groups of 128 throughout)"
        )
    measured: Effort = "fast" if effort == "fast" else "better"  # the best has no text yet
    options, done = [], 0
    total = sum(tensor.nbytes for tensor in source.tensors.values())
    for unit in every:
        found = losses(source, unit, SPECS, measured)
        options.append(
            [Choice(s, _bytes(source, unit, s), loss) for s, loss in found.items()]
            + [Choice(None, _bytes(source, unit, None), 0.0)]
        )
        mx.clear_cache()
        if progress:
            done += sum(source.tensors[name].nbytes for name in unit.names)
            progress(done, total)
    fixed = _fixed(source, every)
    chosen = choose(options, budget - fixed)
    forms = tuple((unit, choice.form) for unit, choice in zip(every, chosen, strict=True))
    specs = {name: form for unit, form in forms for name in unit.names}
    recipe = as_it_is({name: specs.get(name) for name in source.tensors})
    nbytes = fixed + sum(choice.nbytes for choice in chosen)
    return Fitted(recipe, forms, nbytes, budget)


def smallest(source: Source) -> int:
    """Bytes of the files of weights that no choice goes below."""
    every = units(source.config)
    least = 0
    for unit in every:
        width = source.tensors[unit.names[0]].shape[-1]
        fitting = [s for s in SPECS if width % s.group_size == 0]
        least += min(_bytes(source, unit, form) for form in [*fitting, None])
    return _fixed(source, every) + least


def choose(options: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """One of each, with the least loss that their bytes allow; the cheapest ones have to fit."""
    cheapest = [min(choices, key=lambda choice: choice.nbytes).nbytes for choices in options]
    spare = budget - sum(cheapest)
    step = max(1, -(-spare // STEPS))
    places = spare // step + 1
    best, taken = np.zeros(places), []
    for choices, least in zip(options, cheapest, strict=True):
        losing = np.full((len(choices), places), np.inf)
        for row, choice in zip(losing, choices, strict=True):
            cost = -(-(choice.nbytes - least) // step)
            if cost < places:
                row[cost:] = best[: places - cost] + choice.loss
        taken.append(losing.argmin(axis=0))
        best = losing.min(axis=0)
    place, chosen = places - 1, []
    for choices, least, which in zip(*map(reversed, (options, cheapest, taken)), strict=True):
        choice = choices[which[place]]
        chosen.append(choice)
        place -= -(-(choice.nbytes - least) // step)
    return _with_the_rest(chosen[::-1], options, budget)


def _with_the_rest(
    chosen: list[Choice], options: Sequence[Sequence[Choice]], budget: int
) -> list[Choice]:
    """What rounding up left unspent, spent on one unit after the other, where it gains most."""
    chosen = list(chosen)
    while True:
        spare = budget - sum(choice.nbytes for choice in chosen)
        gains = [
            (has.loss - other.loss, number, other)
            for number, (has, choices) in enumerate(zip(chosen, options, strict=True))
            for other in choices
            if other.nbytes - has.nbytes <= spare and other.loss < has.loss
        ]
        if not gains:
            return chosen
        _, number, better = max(gains, key=lambda gain: gain[0])
        chosen[number] = better


def _bytes(source: Source, unit: Unit, form: Form) -> int:
    return sum(_tensor_bytes(source, name, form) for name in unit.names)


def _fixed(source: Source, every: Sequence[Unit]) -> int:
    """Norms and routers."""
    chosen = {name for unit in every for name in unit.names}
    return sum(_tensor_bytes(source, n, None) for n in source.tensors if n not in chosen)


def _tensor_bytes(source: Source, name: str, form: Form) -> int:
    made = slots(name, source.tensors[name].shape, mx.bfloat16, form)
    return sum(slot.nbytes + HEADER for slot in made)


def _up(nbytes: int) -> str:
    """Rounded up, so that it can be given as it stands."""
    unit, power = ("GB", 9) if nbytes >= 10**9 else ("MB", 6)
    return f"{-(-nbytes // 10 ** (power - 2)) / 100:.2f}{unit}"


# --- telling it


def summary(fitted: Fitted) -> list[str]:
    """A line for each kind, with the layers that each form was chosen for."""
    kinds: dict[str, dict[Form, list[int | None]]] = {}
    for unit, form in fitted.forms:
        kinds.setdefault(unit.kind, {}).setdefault(form, []).append(unit.layer)
    lines = []
    for kind, forms in kinds.items():
        parts = [
            f"{_called(form)}{_where(layers) if len(forms) > 1 else ''}"
            for form, layers in sorted(forms.items(), key=lambda item: -_width(item[0]))
        ]
        line = f"{KINDS[kind]:<11}{'; '.join(parts)}"
        lines += textwrap.wrap(line, 79, subsequent_indent=" " * 11, break_on_hyphens=False)
    return lines


def _called(form: Form) -> str:
    return f"{form.bits} bits/{form.group_size}" if form else "16 bits"


def _width(form: Form) -> float:
    return form.bits + 32 / form.group_size if form else 16


def _where(layers: Sequence[int | None]) -> str:
    """`` in 0-3, 7``"""
    runs: list[list[int]] = []
    for layer in layers:
        if layer is None:
            continue
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = [f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs]
    return f" in {', '.join(texts)}"
