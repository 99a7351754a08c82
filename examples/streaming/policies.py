"""Which experts should stay in memory? Policies compared on what a model's router chose.

    python examples/streaming/policies.py [MODEL [CHATS.jsonl]]

Each line of CHATS is {"messages": [...]}; by default the demo model's held-out questions, skill by
skill, and mixed. Shares are of the choices that find their expert in memory, of all layers.
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path

from mlx_mixtral import load
from mlx_mixtral.lab.routing import POLICIES, foresight, hit_rates, record

EACH = 8
HELD_OUT = Path(__file__).parent.parent / "demo_model" / "heldout.jsonl"

lm = load(sys.argv[1] if len(sys.argv) > 1 else "demo")
skills: dict[str, list[list[int]]] = defaultdict(list)
for line in Path(sys.argv[2] if len(sys.argv) > 2 else HELD_OUT).read_text().splitlines():
    row = json.loads(line)
    messages = row.get("messages") or [
        {"role": role, "content": text}
        for turn in row["turns"]
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    if len(skills[row.get("skill", "chats")]) < EACH or len(sys.argv) > 2:
        ids = lm.template.encode(messages, add_generation_prompt=False)
        skills[row.get("skill", "chats")].append(ids[:2048])
texts = [text for skill in skills.values() for text in skill]
traces = {name: record(lm.model, some) for name, some in skills.items()}
traces["all, mixed"] = mixed = record(lm.model, random.Random(0).sample(texts, len(texts)))
half = mixed.experts // 2

print(f"{half} of {mixed.experts} experts in memory    tokens", *(f"{n:>12}" for n in POLICIES))
for name, trace in traces.items():
    rates = hit_rates(trace, half)
    print(f"{name:<24}{len(trace.chosen):>10}", *(f"{rate:>12.1%}" for rate in rates.values()))

print("\nall, mixed; slots a layer", " " * 8, *(f"{n:>12}" for n in POLICIES), "  gap closed")
for count in range(2, mixed.experts):
    lru, _, ours, best = rates = list(hit_rates(mixed, count).values())
    gap = f"{(ours - lru) / (best - lru):>11.0%}" if best > lru else ""
    print(f"{count:<34}", *(f"{rate:>12.1%}" for rate in rates), gap)

print("\nforetold a layer before   first is right   best is among 2   of both")
for told in foresight(mixed):
    print(f"layer {told.layer:<20}{told.first:>14.1%}{told.best:>18.1%}{told.both:>10.1%}")
