"""Which experts a text asks for, and how well they could be kept or foretold.

A trace is recorded in one pass over each text, as if it had been written token by token: what a
token's router chooses does not depend on the tokens after it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_mixtral.experts.policy import Fading, Policy, Slots
from mlx_mixtral.model.transformer import Transformer

Chosen = Sequence[Sequence[int]]
"""The experts of each token, of one layer."""


@dataclass(frozen=True)
class Trace:
    """Of some texts, one after the other.

    Attributes:
        chosen: experts [tokens, layers, K], best first.
        odds: what the router thought of all of them [tokens, layers, E].
        foretold: what the next layer's router makes of a layer's input, all experts by rank
            [tokens, layers - 1, E].
    """

    chosen: np.ndarray
    odds: np.ndarray
    foretold: np.ndarray

    @property
    def experts(self) -> int:
        """How many there are a layer."""
        return int(self.odds.shape[-1])


class _Watched:
    """Experts of a layer that keep what came to them."""

    def __init__(self, experts: Callable[[mx.array, mx.array], mx.array]) -> None:
        self.experts = experts
        self.x = self.indices = mx.array(0)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        self.x, self.indices = x, indices
        return self.experts(x, indices)


def record(model: Transformer, texts: Iterable[Sequence[int]]) -> Trace:
    """The trace of texts, given as token ids."""
    blocks = [layer.block_sparse_moe for layer in model.model.layers]
    watched = [_Watched(block.switch_mlp) for block in blocks]
    chosen, odds, foretold = [], [], []
    for block, watch in zip(blocks, watched, strict=True):
        block.switch_mlp = watch
    try:
        for ids in texts:
            mx.eval(model.hidden(mx.array([list(ids)])))
            chosen.append(np.stack([np.array(watch.indices) for watch in watched], axis=1))
            inputs = [watch.x.astype(mx.float32) for watch in watched]
            thought = [
                np.array(mx.softmax(block.gate(x), axis=-1))
                for x, block in zip(inputs, blocks, strict=True)
            ]
            odds.append(np.stack(thought, axis=1))
            ranked = [
                np.array(mx.argsort(-block.gate(x), axis=-1))
                for x, block in zip(inputs, blocks[1:], strict=False)
            ]
            foretold.append(np.stack(ranked, axis=1))
    finally:
        for block, watch in zip(blocks, watched, strict=True):
            block.switch_mlp = watch.experts
    return Trace(*(np.concatenate(parts) for parts in (chosen, odds, foretold)))


# --- what to keep


class Recent:
    """LRU: what was used last is worth most; of one token's experts, the one it weighs most."""

    def __init__(self, chosen: Chosen, experts: int) -> None:
        self._last, self._clock = [0] * experts, 0

    def used(self, experts: Sequence[int], odds: Sequence[float]) -> None:
        for expert in reversed(experts):
            self._clock += 1
            self._last[expert] = self._clock

    def worth(self, expert: int) -> float:
        return self._last[expert]


class Clairvoyant:
    """What is used again last goes first (Belady 1966): no policy can miss less."""

    def __init__(self, chosen: Chosen, experts: int) -> None:
        self._uses: list[list[int]] = [[] for _ in range(experts)]
        for token, chose in enumerate(chosen):
            for expert in chose:
                self._uses[expert].append(token)
        self._token = -1

    def used(self, experts: Sequence[int], odds: Sequence[float]) -> None:
        self._token += 1

    def worth(self, expert: int) -> float:
        uses = self._uses[expert]
        at = bisect.bisect_right(uses, self._token)
        return -uses[at] if at < len(uses) else -np.inf


class Frequent:
    """LFU: what was used most often."""

    def __init__(self, chosen: Chosen, experts: int) -> None:
        self._uses = [0] * experts

    def used(self, experts: Sequence[int], odds: Sequence[float]) -> None:
        for expert in experts:
            self._uses[expert] += 1

    def worth(self, expert: int) -> float:
        return self._uses[expert]


POLICIES: dict[str, Callable[[Chosen, int], Policy]] = {
    "LRU": Recent,
    "LFU": Frequent,
    "ours": lambda chosen, experts: Fading(experts),
    "clairvoyant": Clairvoyant,
}


def hits(chosen: Chosen, odds: Sequence[Sequence[float]], policy: Policy, count: int) -> float:
    """Share of a layer's choices, 0 to 1, that lie in one of ``count`` slots when they are made."""
    slots, found = Slots(count), 0
    for experts, thought in zip(chosen, odds, strict=True):
        policy.used(experts, thought)
        found += sum(expert in slots.slot_of for expert in experts)
        for expert in experts:
            if expert in slots.slot_of:
                continue
            if (victim := slots.victim(policy, experts)) is not None:
                slots.drop(victim)
            slots.place(expert)
    return found / sum(len(experts) for experts in chosen)


def hit_rates(
    trace: Trace,
    count: int,
    policies: Mapping[str, Callable[[Chosen, int], Policy]] = POLICIES,
) -> dict[str, float]:
    """Of each policy, over all layers, with ``count`` slots a layer."""
    found: dict[str, list[float]] = {name: [] for name in policies}
    for layer in range(trace.chosen.shape[1]):
        chosen, odds = trace.chosen[:, layer].tolist(), trace.odds[:, layer].tolist()
        for name, make in policies.items():
            found[name].append(hits(chosen, odds, make(chosen, trace.experts), count))
    return {name: float(np.mean(rates)) for name, rates in found.items()}


# --- what to foretell


@dataclass(frozen=True)
class Foresight:
    """How well a layer's choices are known a layer before, as shares of 0 to 1.

    Attributes:
        first: the expert foretold first is among those chosen.
        best: the expert weighed most is among the K foretold.
        both: of the chosen, how many are among the K foretold.
    """

    layer: int
    first: float
    best: float
    both: float


def foresight(trace: Trace) -> list[Foresight]:
    """For every layer but the first."""
    found, k = [], trace.chosen.shape[-1]
    for layer in range(1, trace.chosen.shape[1]):
        chosen, foretold = trace.chosen[:, layer], trace.foretold[:, layer - 1]
        likely = foretold[:, :k]
        among = (chosen[:, :, None] == likely[:, None]).any(axis=-1)
        first = (chosen == foretold[:, :1]).any(axis=-1)
        found.append(Foresight(layer, *(float(x.mean()) for x in (first, among[:, 0], among))))
    return found
