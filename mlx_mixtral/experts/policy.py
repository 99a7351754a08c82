"""Which experts of a layer stay in memory: bookkeeping alone, without any tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

FADING = 0.95
"""What a use is worth after each further token. Of the values tried on recorded traces the best
(`make routing`): 1 is LFU, and the smaller, the nearer to LRU."""


class Policy(Protocol):
    """Says what it is worth to keep an expert."""

    def used(self, experts: Sequence[int]) -> None:
        """One more token has chosen these experts."""
        ...

    def worth(self, expert: int) -> float:
        """The lowest goes first."""
        ...


class Fading:
    """Every use of an expert counts, and counts less with every token that follows.

    Between recency and frequency (LRFU, Lee et al. 2001, IEEE Transactions on Computers 50).
    """

    def __init__(self, experts: int, fading: float = FADING) -> None:
        self._worth = [0.0] * experts
        self._fading = fading
        # Growing what a use adds, instead of making all earlier ones less, changes no order.
        self._use = 1.0

    def used(self, experts: Sequence[int]) -> None:
        self._use /= self._fading
        for expert in experts:
            self._worth[expert] += self._use
        if self._use > 1e100:
            self._worth = [worth / self._use for worth in self._worth]
            self._use = 1.0

    def worth(self, expert: int) -> float:
        return self._worth[expert]


class Slots:
    """Which expert lies in which of a layer's slots.

    Attributes:
        slot_of: the slot of each expert that has one.
    """

    def __init__(self, count: int) -> None:
        self.slot_of: dict[int, int] = {}
        self._free = list(range(count))[::-1]
        self.count = count

    def victim(self, policy: Policy, keep: Collection[int]) -> int | None:
        """The expert that has to go for another one; None: there is a free slot."""
        if self._free:
            return None
        return min((e for e in self.slot_of if e not in keep), key=policy.worth)

    def drop(self, expert: int) -> None:
        """Its slot is free again."""
        self._free.append(self.slot_of.pop(expert))

    def place(self, expert: int) -> int:
        """A free slot for an expert, taken by it."""
        slot = self.slot_of[expert] = self._free.pop()
        return slot


@dataclass
class Counters:
    """What streaming came to.

    Attributes:
        passes: of tokens through the whole model.
        tokens: in all passes together.
        asked: experts that were needed, each once a layer and pass; ``hits`` of them were in
            memory, ``ahead`` of the hits because they had been read before they were asked for.
        reads: experts read; ``wasted`` of them ahead, and dropped without having been asked for.
        bytes: read from disk.
        reading: seconds in which something was being read; ``waiting`` of them, nothing else
            could be done.
    """

    passes: int = 0
    tokens: int = 0
    asked: int = 0
    hits: int = 0
    ahead: int = 0
    reads: int = 0
    wasted: int = 0
    bytes: int = 0
    reading: float = 0.0
    waiting: float = 0.0

    def since(self, before: Counters) -> Counters:
        """What has been added."""
        old = asdict(before)
        return Counters(**{name: value - old[name] for name, value in asdict(self).items()})

    def copy(self) -> Counters:
        return Counters(**asdict(self))

    @property
    def hit_rate(self) -> float:
        """Share of the experts asked for that were in memory, 0 to 1."""
        return self.hits / self.asked if self.asked else 0.0

    @property
    def disk_rate(self) -> float:
        """Bytes a second while something was being read."""
        return self.bytes / self.reading if self.reading else 0.0

    @property
    def bytes_a_token(self) -> float:
        return self.bytes / self.tokens if self.tokens else 0.0

    @property
    def bound(self) -> float:
        """Tokens a second that the disk allows at this rate; 0 where nothing was read."""
        return self.disk_rate / self.bytes_a_token if self.bytes else 0.0
