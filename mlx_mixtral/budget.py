"""How much memory a model may take, and how many of its experts then lie there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_mixtral.errors import ModelError, UsageError

PROGRAM = 180_000_000
"""Bytes that this program takes beside MLX's arrays: measured 130 to 170 MB."""
USUAL_CONTEXTS = (4096, 2048, 1024, 512)
"""Tokens of context to leave room for where nobody says how many: as many of these as there is
room for. What keys and values take, experts lack."""
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


@dataclass(frozen=True)
class Budget:
    """What a model may take; one of the two is None.

    Attributes:
        bytes: the program, weights, keys and values, and room to work, all together.
        share: of the experts, 0 to 1, that are in memory at a time; the rest comes on top.
    """

    bytes: int | None = None
    share: float | None = None

    @classmethod
    def of(cls, given: str | int) -> Budget:
        """Bytes, or a text such as "12GB", "800MB" or "50%". Raises UsageError."""
        text = str(given).strip()
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Za-z]*|%)", text)
        number, unit = (float(match[1]), match[2].upper()) if match else (0.0, "")
        if unit in ("K", "M", "G", "T"):
            unit += "B"
        if not number or unit not in (*UNITS, "%") or (unit == "%" and number > 100):
            raise UsageError(f"a memory of {text!r} is none; say 12GB, 800MB or 50%")
        if unit == "%":
            return cls(share=number / 100)
        return cls(bytes=round(number * UNITS[unit]))


@dataclass(frozen=True)
class Demand:
    """What a model takes, in bytes.

    Attributes:
        shared: weights that every token needs.
        expert: for each layer, one of its experts.
        experts: how many there are a layer.
        rest: keys and values, and room to work.
    """

    shared: int
    expert: Sequence[int]
    experts: int
    rest: int

    @property
    def least(self) -> int:
        """The smallest budget: one expert a layer."""
        return PROGRAM + self.shared + self.rest + sum(self.expert)

    @property
    def most(self) -> int:
        """What it takes with all experts in memory."""
        return PROGRAM + self.rest + self.held([self.experts] * len(self.expert))

    def held(self, slots: Sequence[int]) -> int:
        """Of weights, with so many experts a layer."""
        return self.shared + sum(n * size for n, size in zip(slots, self.expert, strict=True))


def slots_within(budget: Budget, demand: Demand) -> tuple[int, ...]:
    """For each layer, how many of its experts are in memory at a time, from one to all.

    Raises:
        ModelError: there is not even room for one a layer; it says what the minimum is.
    """
    layers = len(demand.expert)
    if budget.share is not None:
        total = max(layers, round(budget.share * layers * demand.experts))
        return tuple(total // layers + (n < total % layers) for n in range(layers))
    slots, left = [1] * layers, (budget.bytes or 0) - demand.least
    if left < 0:
        raise ModelError(_too_little(budget.bytes or 0, demand))
    given = True
    while given:
        given = False
        for n, size in enumerate(demand.expert):
            if slots[n] < demand.experts and size <= left:
                slots[n], left, given = slots[n] + 1, left - size, True
    return tuple(slots)


def _too_little(budget: int, demand: Demand) -> str:
    return (
        f"{_gb(budget)} are not enough; the minimum is {_gb(demand.least)}: {_gb(demand.shared)} "
        f"of weights that every token needs, {_gb(sum(demand.expert))} for one expert a layer, "
        f"{_gb(demand.rest)} for context and work, {_gb(PROGRAM)} for the program (a shorter "
        "--context, --kv-bits and fewer bits a weight lower it)"
    )


def _gb(amount: int) -> str:
    return f"{amount / 1e9:.2f} GB"
