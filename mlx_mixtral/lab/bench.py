"""Tokens a second, ours against mlx-lm's, on the same weights and in one run.

    python -m mlx_mixtral.lab.bench [MODEL] [--prompt 128] [--generate 64] [--repeat 7]

The two alternate, so that a machine whose speed drifts treats both alike; the medians of
the pairs' ratios are what to quote.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampling
from mlx_mixtral.generation.text import answer, collect
from mlx_mixtral.loading import LanguageModel, load


class Speed(NamedTuple):
    """Tokens a second of the prompt, and of the answer after its first token."""

    prefill: float
    decode: float


def measure(lm: LanguageModel, prompt: list[int], count: int) -> Speed:
    """The speed of this program."""
    settings = Sampling(max_tokens=count, logit_bias=dict.fromkeys(lm.tokenizer.stop_ids, -10000.0))
    stats = collect(lm, answer(lm, prompt, settings, PromptCache(lm.config))).stats
    return Speed(stats.prompt_tps, stats.generation_tps)


def mlx_lm_runner(folder: Path) -> Callable[[list[int], int], Speed]:
    """mlx-lm on the same folder, with its defaults."""
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)

    def run(prompt: list[int], count: int) -> Speed:
        start = time.perf_counter()
        times = []
        for _ in generate_step(mx.array(prompt), model, max_tokens=count):
            times.append(time.perf_counter())
        return Speed(len(prompt) / (times[0] - start), (count - 1) / (times[-1] - times[0]))

    return run


def compare(model: str, prompt_tokens: int, count: int, repeat: int) -> str:
    """A table of the medians of both, and of their ratios."""
    lm = load(model)
    theirs = mlx_lm_runner(lm.path)
    prompt = [3 + (7 * n) % (lm.config.vocab_size - 3) for n in range(prompt_tokens)]
    measure(lm, prompt, 4)
    theirs(prompt, 4)
    pairs = [(measure(lm, prompt, count), theirs(prompt, count)) for _ in range(repeat)]
    lines = [
        f"{lm.name}: {prompt_tokens} tokens in, {count} out, {repeat} pairs, {mx.default_device()}",
        f"{'tok/s':10}{'ours':>10}{'mlx-lm':>10}{'ratio':>8}",
    ]
    for kind in Speed._fields:
        ours = [getattr(a, kind) for a, _ in pairs]
        other = [getattr(b, kind) for _, b in pairs]
        ratio = statistics.median(a / b for a, b in zip(ours, other, strict=True))
        medians = statistics.median(ours), statistics.median(other)
        lines.append(f"{kind:10}{medians[0]:10.1f}{medians[1]:10.1f}{ratio:7.2f}x")
    return "\n".join(lines)


def main() -> None:
    """``python -m mlx_mixtral.lab.bench``"""
    parser = argparse.ArgumentParser(description="ours against mlx-lm, in one run")
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    print(compare(options.model, options.prompt, options.generate, options.repeat))


if __name__ == "__main__":
    main()
