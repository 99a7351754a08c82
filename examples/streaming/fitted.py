"""How much of the way from LRU to clairvoyance could the past show? A linear fit, as a bound.

    python examples/streaming/fitted.py

For every expert: its uses and its odds of the last tokens, at four rates of fading each, and the
logarithms of the odds at five. Weights are fitted by least squares to how soon it is used again, on
the first half of the demo model's traces (see policies.py), and judged on the second half.
"""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlx_mixtral import load
from mlx_mixtral.lab.routing import POLICIES, Trace, hit_rates, record

EACH, SLOTS = 8, 4
lm, skills = load("demo"), defaultdict(list)
held_out = Path(__file__).parent.parent / "demo_model" / "heldout.jsonl"
for row in map(json.loads, held_out.read_text().splitlines()):
    if len(skills[row["skill"]]) < EACH:
        said = [
            pair for turn in row["turns"] for pair in zip(("user", "assistant"), turn, strict=True)
        ]
        messages = [{"role": role, "content": text} for role, text in said]
        skills[row["skill"]].append(lm.template.encode(messages, add_generation_prompt=False))
texts = [text[:2048] for some in skills.values() for text in some]
trace = record(lm.model, random.Random(0).sample(texts, len(texts)))


def faded(values: np.ndarray, rate: float) -> np.ndarray:
    """What is left of each token and those before it."""
    found, now = np.empty_like(values), np.zeros_like(values[0])
    for n, value in enumerate(values):
        now = found[n] = rate * now + (1 - rate) * value
    return found


uses = np.zeros_like(trace.odds)
np.put_along_axis(uses, trace.chosen, 1, -1)
rates = (0.5, 0.8, 0.95, 0.99)
past = [faded(values, rate) for values in (uses, trace.odds) for rate in rates]
past += [faded(np.log(trace.odds), rate) for rate in (0, *rates)]
features = np.stack([*past, np.ones_like(uses)], axis=-1)
soon = np.concatenate([faded(uses[::-1], 0.5)[::-1][1:], uses[:1] * 0])
half = len(uses) // 2
flat = features[:half].reshape(-1, features.shape[-1])
weights = np.linalg.lstsq(flat, soon[:half].reshape(-1), rcond=None)[0]
worth = (features @ weights)[half:]


class Fitted:
    """The weighted sum; told apart by layer in the order in which ``hit_rates`` asks."""

    layer = -1

    def __init__(self, chosen: Sequence[Sequence[int]], experts: int) -> None:
        Fitted.layer += 1
        self._worth, self._token = worth[:, Fitted.layer].tolist(), -1

    def used(self, experts: Sequence[int], odds: Sequence[float]) -> None:
        self._token += 1

    def worth(self, expert: int) -> float:
        return self._worth[self._token][expert]


second = Trace(trace.chosen[half:], trace.odds[half:], trace.foretold[half:])
found = hit_rates(second, SLOTS, {**POLICIES, "fitted": Fitted})
lru, best = found["LRU"], found["clairvoyant"]
for name, rate in found.items():
    print(f"{name:<12}{rate:>7.1%}{(rate - lru) / (best - lru):>6.0%} of the way")
