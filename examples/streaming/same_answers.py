"""Are the answers the same with few experts in memory? Token for token, and bit for bit.

    python examples/streaming/same_answers.py MODEL [TOKENS ...]

For budgets from one expert a layer to all of them, prompts of so many tokens (default 20 and
4000), greedy and seeded; the log-probabilities are compared for equality too.
"""

import gc
import random
import sys
import time

from mlx_mixtral import load
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampling
from mlx_mixtral.generation.text import answer, collect

model, *lengths = sys.argv[1:]
wanted: dict[tuple[int, str], list[tuple[int | None, float]]] = {}
for memory in ("100%", "50%", "1%", "75%"):
    lm = load(model, context=4096, memory=memory)
    for length in [int(n) for n in lengths] or [20, 4000]:
        words = random.Random(length)
        prompt = [1, *(words.randrange(3, lm.config.vocab_size) for _ in range(length - 1))]
        cache, start = PromptCache(lm.config), time.perf_counter()
        for name, how in (("greedy", {}), ("seeded", {"temperature": 1.0, "seed": 7})):
            pieces = list(answer(lm, prompt, Sampling.of(max_tokens=16, **how), cache))
            said = [(piece.token, piece.logprob) for piece in pieces]
            same = said == wanted.setdefault((length, name), said)
            stats = collect(lm, iter(pieces)).stats.streamed
            read = f"{stats.bytes_a_token / 1e6:.0f} MB read a token" if stats else "all in memory"
            verdict = "same" if same else "DIFFERENT"
            print(f"{memory:>5}, {length} tokens in, {name}: {verdict}, {read}")
        print(f"       ({time.perf_counter() - start:.0f} s)", flush=True)
    del lm, cache
    gc.collect()
