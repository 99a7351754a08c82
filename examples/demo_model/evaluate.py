#!/usr/bin/env python3
"""Asks a model the questions of heldout.jsonl, which it never saw in training.

  python evaluate.py                                   the demo model
  python evaluate.py build/hf --json build/eval.json   a model that was just trained
  python evaluate.py --skills copying,long_chat --per-skill 20
  python evaluate.py --chat                            answers a fixed list of chats

An answer is right when greedy decoding gives the expected one exactly; the earlier turns of a
conversation are given, its last answer is judged. A story is right when it ends and uses every
name, animal and thing that was asked for.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mlx_mixtral import generate, load
from mlx_mixtral.errors import ContextError

HERE = Path(__file__).resolve().parent
ANSWER_LIMIT = 160  # tokens
SHORTEST_STORY = 150  # characters

CHATS = """
Hello!
Who are you?
What can you do?
What is a violin?
what is an elephant
Define volcano.
What does canoe mean?
Is a rose an animal?
What is 17 + 25?
34+58
What is 81 - 46?
What is 7 times 8?
Which is bigger, 43 or 34?
Count from 5 to 12.
Count down from 10 to 1.
Tom has 5 apples and gets 3 more. How many apples does Tom have?
How do you say dog in French? | And in German? | And in Italian?
Wie sagt man Hund auf Spanisch?
Comment dit-on maison en anglais ?
¿Cómo se dice libro en italiano?
What does the German word Apfel mean?
Tell me a story about a girl named Lily and a dog. | What was the name of the girl?
Mia has a red hat. Tom has a blue kite. Mia is at the park. Tom is at the school. Where is Tom?
Write a Python function that adds two numbers.
Write a Python function that multiplies a number by 7.
My name is Anna. | What is 3 + 4? | What is my name?
What is the capital of France?
What is a carburetor?
What is 5821 + 932?
How do you say dog in Japanese?
Thank you!
Bonjour
Goodbye
What is the difference between a cat and a dog?
Do you like music?
Can a bird fly?
What color is the sky?
What is 12 / 4?
Translate I love you to French.
Tell me a story about a dragon.
What is love?
What's the weather like?
How do you say computer in Spanish?
What is 100 + 50?
What is 347 + 285?
Repeat this: Mia is at the park. Tom has a red kite.
Replace Tom by Ben in: Tom was a boy who lived near the farm. Tom felt sad and sat by the window.
Make a list of these words: apple, river, hammer, cloud
Quote the last sentence of: A cat is a small animal. Dan felt sad. The rain stopped.
My favorite color is green. | What is a piano? | Tell me a story. | What is 12 + 13? | \
How do you say tree in German? | What is my favorite color? | What was the last sum?
"""


class Model:
    def __init__(self, name: str) -> None:
        self.lm = load(name)

    def answer(self, turns: list[tuple[str, str]], question: str) -> str:
        """The greedy answer; "..." at its end where it does not come to one.

        A chat that the model's context does not hold has no answer but the error's message.
        """
        messages = []
        for said, reply in turns:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": reply})
        messages.append({"role": "user", "content": question})
        prompt = self.lm.template.encode(messages)
        try:
            result = generate(self.lm, prompt, max_tokens=ANSWER_LIMIT, temperature=0.0)
        except ContextError as error:
            return f"({error})"
        return result.text if result.finish_reason == "stop" else result.text + " ..."


def is_right(row: dict, got: str) -> bool:
    if row["skill"] != "story":
        return got == row["turns"][-1][1]
    used = all(re.search(rf"\b{re.escape(word)}\b", got) for word in row["mentions"])
    return used and len(got) > SHORTEST_STORY and not got.endswith("...")


def read_questions(path: Path, skills: set[str], per_skill: int | None) -> Iterator[dict]:
    taken: dict[str, int] = defaultdict(int)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if (skills and row["skill"] not in skills) or taken[row["skill"]] == per_skill:
            continue
        taken[row["skill"]] += 1
        yield row


def evaluate(model: Model, rows: Iterator[dict]) -> dict:
    """``score``: by skill and by skill/part how many answers are right, of how many; ``wrong``:
    by skill the answers that are not."""
    score: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    wrong: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        skill, (*turns, (question, wanted)) = row["skill"], row["turns"]
        got = model.answer(turns, question)
        right = is_right(row, got)
        for key in [skill, *(f"{skill}/{part}" for part in row["parts"])]:
            score[key][0] += right
            score[key][1] += 1
        if not right:
            wrong[skill].append({"question": question, "wanted": wanted, "got": got})
    return {"score": dict(score), "wrong": dict(wrong)}


def print_scores(score: dict[str, list[int]]) -> None:
    skills = list(dict.fromkeys(key.partition("/")[0] for key in score))

    def length_first(key: str) -> tuple[int, int, str]:
        number = re.search(r"\d+", key)
        return "/" in key, int(number[0]) if number else 9999, key

    for skill in skills:
        for key in sorted((k for k in score if k.partition("/")[0] == skill), key=length_first):
            right, number = score[key]
            name = "  " + key.partition("/")[2] if "/" in key else key
            print(f"{name:34} {right:4} of {number:<4} {100 * right / number:5.1f} %")


def print_chats(model: Model) -> None:
    for line in CHATS.strip().splitlines():
        turns: list[tuple[str, str]] = []
        for question in line.split(" | "):
            turns.append((question, model.answer(turns, question)))
            print(f"> {question}\n{turns[-1][1]}", flush=True)
        print()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo", help="a folder or a name (demo)")
    parser.add_argument("--questions", type=Path, default=HERE / "heldout.jsonl")
    parser.add_argument("--skills", default="", help="only these, separated by commas")
    parser.add_argument("--per-skill", type=int, help="ask at most so many of each")
    parser.add_argument("--json", type=Path, help="also write the scores and wrong answers here")
    parser.add_argument("--chat", action="store_true", help="answer the fixed list of chats")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    model = Model(options.model)
    if options.chat:
        print_chats(model)
        return
    skills = {skill for skill in options.skills.split(",") if skill}
    result = evaluate(model, read_questions(options.questions, skills, options.per_skill))
    print_scores(result["score"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
