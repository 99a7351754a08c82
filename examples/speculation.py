"""What guessing ahead by looking back at the text gives, with the same tokens in the end.

    python examples/speculation.py [MODEL] [--repeat 5]

Each question is answered with and without it in turns; the ratio is the median of the pairs.
"""

import argparse
from statistics import median

from mlx_mixtral import Chat, load
from mlx_mixtral.loading import LanguageModel

STORY = (
    "Once upon a time, there was a boy named Pip. He had a green lamp and a cat called Coco. "
    "One day, Pip and Coco went to the school to play with the lamp. Then the lamp was lost."
)
QUESTIONS = {
    "quoting": f"Repeat this: {STORY}",
    "editing": f"Replace lamp by book in: {STORY}",
    "a story": "Tell me a story.",
    "a definition": "What is a violin?",
    "a fact": "What is the capital of France?",
}


def answered(lm: LanguageModel, question: str, speculate: bool) -> tuple[str, float, int]:
    """The answer, its tokens a second, and how many of its tokens were guessed rightly."""
    said = Chat(lm, temperature=0, max_tokens=120, speculate=speculate).send(question)
    return said.text, said.stats.generation_tps, said.stats.accepted_tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    lm = load(args.model)
    print(f"{'':14}  with  without  ratio  (tokens a second)  guessed")
    for kind, question in QUESTIONS.items():
        answered(lm, question, True)
        pairs = []
        for turn in range(args.repeat):
            # Each goes first as often as the other.
            order = (True, False) if turn % 2 else (False, True)
            tried = {speculate: answered(lm, question, speculate) for speculate in order}
            if tried[True][0] != tried[False][0]:
                raise SystemExit(f"{kind}: the answers differ")
            pairs.append((tried[True][1], tried[False][1]))
        ratio = median(a / b for a, b in pairs)
        a, b = (median(side) for side in zip(*pairs, strict=True))
        print(f"{kind:14}  {a:4.0f}  {b:7.0f}  {ratio:4.2f}x  {tried[True][2]:24} tokens")


if __name__ == "__main__":
    main()
