"""How long answers stand still while somebody else's long prompt is read.

    python examples/server/stall.py [MODEL] [--prompt 1500] [--answers 4]

Some answers are given all the time; after a while a long prompt comes. Printed are the times
between two tokens of the answers before it and while it is read, and when its first token came.
"""

import argparse
import asyncio
import time

import numpy as np

from mlx_mixtral import load
from mlx_mixtral.generation.sampling import Sampling
from mlx_mixtral.server.engine import Engine
from mlx_mixtral.server.jobs import Done, Job

QUIET_S = 3.0


class Answers:
    """Answers that go on until ``over``, and the times of their tokens."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.over = engine, False
        self.times: list[list[float]] = []

    async def one(self, prompt: tuple[int, ...]) -> None:
        ticket = self.engine.submit(Job(prompt, Sampling(max_tokens=4000, speculate=False)))
        self.times.append([])
        mine = self.times[-1]
        async for event in ticket:
            if not isinstance(event, Done):
                mine.append(time.perf_counter())
            if self.over:
                ticket.cancel()

    def gaps(self, begin: float, end: float) -> np.ndarray:
        """Milliseconds between two tokens."""
        inside = [[t for t in mine if begin <= t <= end] for mine in self.times]
        return 1000 * np.concatenate([np.diff(mine) for mine in inside])


async def watch(engine: Engine, length: int, count: int, vocab: int) -> None:
    rng = np.random.default_rng(0)

    def random(n: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, vocab, n).tolist())

    answers = Answers(engine)
    tasks = [asyncio.create_task(answers.one(random(8))) for _ in range(count)]
    await asyncio.sleep(QUIET_S / 2)
    start = time.perf_counter()
    await asyncio.sleep(QUIET_S)
    asked = time.perf_counter()
    first = None
    async for _ in engine.submit(Job(random(length), Sampling(max_tokens=1))):
        first = first or time.perf_counter()
    answers.over = True
    await asyncio.gather(*tasks)
    show("nothing else", answers.gaps(start, asked))
    show(f"{length} tokens of a prompt", answers.gaps(asked, first or asked))
    print(f"first token of that prompt after {(first or asked) - asked:.2f} s")


def show(when: str, gaps: np.ndarray) -> None:
    median, most = np.median(gaps), gaps.max()
    print(
        f"{when}: {median:.0f} ms between tokens, {np.quantile(gaps, 0.95):.0f} ms for one in "
        f"20, {most:.0f} ms at most"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("model", nargs="?", default="demo")
    options.add_argument("--prompt", type=int, default=1500)
    options.add_argument("--answers", type=int, default=4)
    given = options.parse_args()
    lm = load(given.model)
    lm.tokenizer.stop_ids = frozenset()
    engine = Engine(lm, running=given.answers + 1, kv_bytes=1 << 31)
    engine.start()
    asyncio.run(watch(engine, given.prompt, given.answers, lm.config.vocab_size))
    engine.stop(drain=False)


if __name__ == "__main__":
    main()
