#!/usr/bin/env python3
"""Writes hf/MODEL_CARD.md from the log, the scores and the chats of a trained model.

  python card.py --score "this model=build/eval.json" --score "step 2310=build/before.json"

Each score becomes a column; ``evaluate.py --json`` or ``train.py --check N --json`` wrote it.
``build/chats.txt`` is what ``evaluate.py build/hf --chat`` printed.
"""

import argparse
import json
import re
from pathlib import Path

from network import (
    EXPERT_WIDTH,
    EXPERTS,
    HEAD_WIDTH,
    HEADS,
    KEY_HEADS,
    LAYERS,
    SHAPE,
    WIDTH,
)

HERE = Path(__file__).resolve().parent
Score = dict[str, list[int]]

EARLIER_TOKENS = 10.9  # M, up to step 2720

SKILLS = {
    "dictionary": "definitions of 916 words, in an unseen phrasing",
    "category": "is X a Y / what kind of thing",
    "sums": "sums up to 100, unseen operands",
    "numbers": "counting, comparing, next, even or odd",
    "translation": "word translation",
    "story": "stories with the asked names",
    "reading": "who has or is what, two people",
    "python": "one-line functions, unseen phrasing or number",
    "talk": "greetings and small talk",
    "outside": "out of domain: says so",
    "unknown": "unknown rare words and too large numbers: says so",
    "conversation": "last turn of 2 to 4 turns",
    "facts": "small general facts, unseen phrasing",
    "division": "exact division, unseen operands",
    "unknown_common": "unknown frequent words: says so",
    "late": "definitions of 19 words added after step 2000",
    "copying": "repeating, editing and quoting a text of the prompt, unseen texts",
    "long_chat": "last turn of a chat of 5 to 35 turns, up to 1,024 tokens",
    "typed": "eight of these skills, typed without capitals and final mark",
    "copying_loose": "the same as copying, of random words and sentences",
    "very_long_chat": "last turn of a chat of up to 2,048 tokens",
    "short_chat": "last turn of a chat of 2 to 8 turns",
    "big_sums": "sums and differences up to 999, unseen operands",
    "reading_more": "who has or is what, two or three people, 488 things",
}
HEAD = """# Demo model: a tiny mixture of experts

A Mixtral with {total:.2f} M parameters, {active:.2f} M of them active for a token: {layers} layers,
width {width}, {heads} heads of {head_width} with {key_heads} key/value heads, {experts} experts of
{expert_width} with 2 active, {vocabulary} SentencePiece BPE pieces, context {context} tokens, rope
theta 1e6. Trained weights come in bfloat16 under the Hugging Face names; the package ships them as
an MLX folder in 6 bits, groups of 64, the smallest that kept the accuracy (5 and 4 bits lost half a
point and more). Prompt form `<s>[INST] question [/INST] answer</s>[INST] ...`. It answers simple
questions in a small world, so that a runner has something to run offline. It is not a general
assistant.

## Training

{steps} steps, {tokens:.1f} M tokens, on 2 CPU cores, by `train.py` (Muon and AdamW, cosine
schedules, load-balancing loss 0.01, loss on questions weighted 0.1). `corpus.py` generates the
text: first the core skills, then all of them, then with carelessly typed questions, a few more
words, small sums once more, copying and long chats, and at last everything weighted by tokens:
about 28 % copying, 16 % long chats, the rest the other skills, of which the weak ones count more
in the end (`PHASES` in train.py has the steps and the rates).
At step 2720 the weights were rounded to bfloat16 and the optimizers began anew. The tokens of the
log below are counted from there. Sources and licences: LICENSE-NOTICE.md.

`tokenizer.model` was made from an earlier weighting of the skills, so that training from the start
with `tokenizer.py` gives an equivalent model, not the same bytes.
"""
LOSSES = """
Held-out questions while training, 25 a skill: the mean loss of the answer tokens (nats), and the
percentage of answers that greedy decoding gives exactly (stories have no single right answer):
"""
ACCURACY = """
## Held-out accuracy

Greedy decoding in float32, exact match of the whole answer (evaluate.py says how stories and
conversations are judged; `train.py --check` asks more of the same questions faster). With 50
questions a percentage is good to about 4 points, with 150 to 2; less where only a few different
questions are held out (8 quotients, 9 products, 5 numbers to say what comes after or before). Sums
of numbers up to 10 are not held out, because 1 + 1 had been held out and was wrong.
"""
LIMITS = """
"Unseen" is per skill: see `turns.py` and the skills' modules for what is held out.

## Limits

- It knows 916 nouns, 289 words in five languages, about 870 small facts, sums and stories from a
  few patterns. Nothing else.
- Outside that it should say so, but it often takes an unknown question for a known one and then
  answers wrongly with confidence.
- It follows the phrasings it was taught; other phrasings of the same question may fail. It cannot
  reason.
- It was trained on at most {context} tokens, and seldom on more than half of that; a runner should
  drop the oldest turns so that prompt and answer stay below.
- Numbers are learned, not computed. Sums and differences up to 100 are mostly right, products and
  quotients that it has not seen about half of the time, and sums above 100 seldom: it answers them
  all the same, up to 999, and with confidence.
- It copies lists and sentences of its own world reliably, random words less so, and of several
  places where a word should be replaced it often replaces only the first.
- Definitions are one WordNet sense each, shortened; some are quaint or partial.
- No safety training was done; the small world is the only safeguard.

## Sample chats (greedy)

```
{chats}
```
"""


def parameters(experts: int) -> int:
    """How many there are with so many experts in a layer."""
    attention = WIDTH * HEAD_WIDTH * (2 * HEADS + 2 * KEY_HEADS)
    layer = attention + experts * 3 * WIDTH * EXPERT_WIDTH + EXPERTS * WIDTH + 2 * WIDTH
    return 2 * SHAPE["vocab_size"] * WIDTH + LAYERS * layer + WIDTH


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(log: list[dict], context: int) -> str:
    return HEAD.format(
        total=parameters(EXPERTS) / 1e6,
        active=parameters(SHAPE["num_experts_per_tok"]) / 1e6,
        layers=LAYERS,
        width=WIDTH,
        heads=HEADS,
        head_width=HEAD_WIDTH,
        key_heads=KEY_HEADS,
        experts=EXPERTS,
        expert_width=EXPERT_WIDTH,
        vocabulary=SHAPE["vocab_size"],
        context=context,
        steps=log[-1]["step"],
        tokens=EARLIER_TOKENS + log[-1]["tokens"] / 1e6,
    )


def loss_table(log: list[dict]) -> list[str]:
    """A row a skill, a column a validation."""
    validated = [record for record in log if "validation" in record]
    lines = [row("skill", *(f"step {record['step']}" for record in validated))]
    lines.append("|" + "---|" * (1 + len(validated)))
    for skill in validated[-1]["validation"]:
        scores = [record["validation"][skill] for record in validated]
        exact = "" if skill == "story" else ", {:.0f} %"
        lines.append(row(skill, *(f"{loss:.3f}" + exact.format(p) for loss, p in scores)))
    return lines


def order(key: str) -> tuple[int, bool, int, str]:
    """Skills in the order of ``SKILLS``, each before its parts, lengths by their number."""
    skill, slash, part = key.partition("/")
    number = re.search(r"\d+", part)
    return list(SKILLS).index(skill), bool(slash), int(number[0]) if number else 9999, part


def accuracy_table(scores: dict[str, Score]) -> list[str]:
    lines = [row("skill", *scores), "|" + "---|" * (1 + len(scores))]
    for key in sorted({key for score in scores.values() for key in score}, key=order):
        name = "- " + key.partition("/")[2] if "/" in key else SKILLS[key]
        cells = [share(score.get(key)) for score in scores.values()]
        lines.append(row(name, *cells))
    return lines


def share(count: list[int] | None) -> str:
    if not count:
        return ""
    right, number = count
    return f"{100 * right / number:.0f} % of {number}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE / "build")
    parser.add_argument("--score", action="append", default=[], metavar="NAME=FILE")
    options = parser.parse_args()
    folder = options.folder
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    context = json.loads((folder / "hf" / "config.json").read_text())["max_position_embeddings"]
    files = dict(score.split("=", 1) for score in options.score)
    scores = {name: json.loads(Path(file).read_text())["score"] for name, file in files.items()}
    chats = (folder / "chats.txt").read_text().strip()
    lines = [head(log, context), LOSSES, *loss_table(log), ACCURACY, *accuracy_table(scores)]
    lines.append(LIMITS.format(context=context, chats=chats))
    (folder / "hf" / "MODEL_CARD.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
