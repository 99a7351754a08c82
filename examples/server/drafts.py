"""What drafts give in the server's engine: tokens a second with and without them, in turns.

    python examples/server/drafts.py [MODEL] [--requests 1 8] [--repeat 7]

Answers that quote the question, that edit it, that repeat nothing, and that are JSON of a fixed
form. The same tokens come either way.
"""

import argparse
import asyncio
import time
from statistics import median

from mlx_mixtral import load
from mlx_mixtral.generation.sampling import Sampling
from mlx_mixtral.server.engine import Engine
from mlx_mixtral.server.grammar import Grammars, json_grammar, keeper
from mlx_mixtral.server.jobs import Done, Job, Piece

STORY = (
    "Lily was a girl who lived near the school. She had a dog called Dot and a green lamp. One "
    "day, Lily and Dot went to the school to play with the lamp. Then the lamp was lost."
)
QUESTIONS = {
    "quoting": f"Repeat this: {STORY}",
    "editing": f"Replace dog by cat in: {STORY}",
    "a new story": "Tell me a story about a dragon.",
    "JSON": "Describe someone.",
}
TOKENS = 120
FORM = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 20},
        "family_name": {"type": "string", "maxLength": 20},
        "age_in_years": {"type": "integer", "minimum": 0, "maximum": 150},
        "is_married": {"type": "boolean"},
        "occupation": {"type": "string", "maxLength": 40},
    },
    "required": ["first_name", "family_name", "age_in_years", "is_married", "occupation"],
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("model", nargs="?", default="demo")
    options.add_argument("--requests", type=int, nargs="+", default=(1, 8), help="at once")
    options.add_argument("--repeat", type=int, default=7)
    given = options.parse_args()
    lm = load(given.model)
    grammar = Grammars(lm.tokenizer, lm.config.vocab_size).compiled(json_grammar(FORM))
    engine = Engine(lm, running=max(given.requests))
    engine.start()

    async def one(kind: str, number: int, drafted: bool) -> tuple[list[int], Done]:
        # Each another one, or what is known of it would not be computed again.
        text = QUESTIONS[kind] + " " * number
        job = Job(
            tuple(lm.template.encode([{"role": "user", "content": text}])),
            Sampling(max_tokens=TOKENS, speculate=drafted),
            grammar=keeper(grammar) if kind == "JSON" else None,
        )
        tokens: list[int] = []
        async for event in engine.submit(job):
            if isinstance(event, Piece):
                tokens += [token.id for token in event.tokens]
            else:
                return tokens, event
        raise RuntimeError("an answer without an end")

    async def lap(kind: str, requests: int, drafted: bool) -> tuple[float, list[list[int]], float]:
        begun = time.perf_counter()
        done = await asyncio.gather(*(one(kind, n, drafted) for n in range(requests)))
        seconds = time.perf_counter() - begun
        said = [tokens for tokens, _ in done]
        count = sum(map(len, said))
        return count / seconds, said, sum(end.accepted_tokens for _, end in done) / count

    print(
        f"{'':12} {'requests':>8} {'with':>6} {'without':>8}  tok/s {'ratio':>7} {'came true':>10}"
    )
    try:
        for requests in given.requests:
            for kind in QUESTIONS:
                pairs = [
                    tuple(asyncio.run(lap(kind, requests, drafted)) for drafted in (True, False))
                    for _ in range(given.repeat)
                ]
                if any(ours[1] != plain[1] for ours, plain in pairs):
                    print(f"{kind}: not the same tokens, which rounding may bring about")
                with_, without = (median(pair[n][0] for pair in pairs) for n in (0, 1))
                print(
                    f"{kind:12} {requests:8} {with_:6.0f} {without:8.0f} {'':6} "
                    f"{with_ / without:7.2f} {pairs[0][0][2]:10.0%}",
                    flush=True,
                )
    finally:
        engine.stop(drain=False)


if __name__ == "__main__":
    main()
