"""What experts from disk cost in speed, and what bounds it.

    python examples/streaming/widen.py wide
    python examples/streaming/speed.py wide questions
    python examples/streaming/speed.py wide copy

Answers to a few questions, or one that repeats a text (with and without looking up what repeats),
with all experts in memory, and with some, in turns. Medians of the rounds.
"""

import statistics
import sys
import time
from collections import defaultdict

from mlx_mixtral import load
from mlx_mixtral.experts.policy import Streamed
from mlx_mixtral.generation.loop import generate_tokens
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.generation.speculative import Speculator
from mlx_mixtral.loading import LanguageModel

ROUNDS, TOKENS = 2, 24
QUESTIONS = ["Tell me a story about a dog.", "Write a short story about a frog."]
COPY = "Copy this text: Once upon a time, there was a girl named Anna. She had a blue boat. "
COPY += "One day she went to the sea. The boat was small but the sea was calm."
SIDES = [("100%", 0), ("50%", 0), ("50%", 1), ("25%", 0)]


def run(lm: LanguageModel, questions: list[str], speculate: bool) -> tuple[float, Streamed | None]:
    """Tokens a second, and how streaming went."""
    tokens = seconds = 0.0
    counters = lm.streaming.stream.counters if lm.streaming else None
    before = counters.copy() if counters else None
    for question in questions:
        ids = lm.template.encode([{"role": "user", "content": question}])
        speculator = Speculator(ids) if speculate else None
        sampler = Sampler(Sampling(max_tokens=TOKENS), ids)
        cache, times = PromptCache(lm.config), []
        for _ in generate_tokens(lm.model, cache, ids, sampler, TOKENS, speculator=speculator):
            times.append(time.perf_counter())
        tokens += len(times) - 1
        seconds += times[-1] - times[0]
    layers = lm.config.num_hidden_layers
    return tokens / seconds, counters.since(before).told(layers) if counters else None


models = {
    side: load(sys.argv[1], context=512, memory=side[0], read_ahead=side[1]) for side in SIDES
}
copy = sys.argv[2] == "copy"
questions, found = [COPY] if copy else QUESTIONS, defaultdict(list)
for _ in range(ROUNDS):
    for side, lm in models.items():
        for speculate in (False, True) if copy else (False,):
            found[side, speculate].append(run(lm, questions, speculate))
whole = statistics.median(speed for speed, _ in found[SIDES[0], False])
for (side, speculate), runs in found.items():
    speed = statistics.median(speed for speed, _ in runs)
    line = f"{side[0]:>5} in memory, {side[1]} ahead, speculation {speculate!s:<6}"
    line += f"{speed:5.1f} tok/s, {speed / whole:4.0%}, {1000 / speed:4.0f} ms a token"
    if told := runs[-1][1]:
        line += f", {1000 * told.waiting_s:3.0f} of them waiting; {told.hit_rate:.0%} hits, "
        line += f"{told.bytes_a_token / 1e6:.1f} MB a token, {told.wasted:.0%} wasted"
        line += f", {told.disk_rate / 1e6:.0f} MB/s"
    print(line, flush=True)
