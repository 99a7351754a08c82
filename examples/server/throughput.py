"""Tokens a second for 1 to 16 requests at once: the engine, and mlx-lm's batch generator.

    python examples/server/throughput.py [MODEL] [--tokens 64] [--prompt 32] [--requests 8 ...]

Prompts are random, and answers go on to their last token whatever they say, so that both
compute the same number of tokens. mlx-lm gets its weights in the type that the engine uses.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_mixtral import load
from mlx_mixtral.generation.sampling import Sampling
from mlx_mixtral.lab.opponents import load_theirs
from mlx_mixtral.server.engine import Engine
from mlx_mixtral.server.jobs import Done, Job

REQUESTS = (1, 2, 4, 8, 16)


async def ours(engine: Engine, prompts: Sequence[list[int]], tokens: int) -> int:
    """Answer all prompts; how many tokens that gave."""

    async def one(prompt: list[int]) -> int:
        job = Job(tuple(prompt), Sampling(max_tokens=tokens, temperature=0))
        async for event in engine.submit(job):
            if isinstance(event, Done):
                return event.completion_tokens
        return 0

    return sum(await asyncio.gather(*map(one, prompts)))


def theirs(model: Any, prompts: Sequence[list[int]], tokens: int) -> int:
    """The same by mlx-lm."""
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(model, max_tokens=tokens, completion_batch_size=16)
    generator.insert([list(prompt) for prompt in prompts])
    count = 0
    while answered := generator.next_generated():
        count += len(answered)
    generator.close()
    return count


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("model", nargs="?", default="demo")
    options.add_argument("--tokens", type=int, default=64, help="of each answer")
    options.add_argument("--prompt", type=int, default=32, help="tokens of the longest prompt")
    options.add_argument("--requests", type=int, nargs="+", default=REQUESTS)
    given = options.parse_args()

    lm = load(given.model)
    lm.tokenizer.stop_ids = frozenset()
    opponent = load_theirs("mlx-lm-f32", lm.path)
    rng = np.random.default_rng(0)
    lengths = rng.integers(given.prompt // 2, given.prompt + 1, max(given.requests))
    prompts = [rng.integers(3, lm.config.vocab_size, n).tolist() for n in lengths]
    engine = Engine(lm, running=max(given.requests), kv_bytes=1 << 30)
    engine.start()
    theirs(opponent, prompts[:1], 2)  # what is compiled once, for ours on start
    print("requests     ours   mlx-lm   ratio   (tokens a second)")
    for count in given.requests:
        begin = time.perf_counter()
        mine = asyncio.run(ours(engine, prompts[:count], given.tokens))
        middle = time.perf_counter()
        other = theirs(opponent, prompts[:count], given.tokens)
        mine_s, other_s = middle - begin, time.perf_counter() - middle
        rates = mine / mine_s, other / other_s
        print(f"{count:8} {rates[0]:8.1f} {rates[1]:8.1f} {rates[0] / rates[1]:7.2f}", flush=True)
    engine.stop(drain=True)


if __name__ == "__main__":
    main()
