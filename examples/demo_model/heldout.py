#!/usr/bin/env python3
"""Writes heldout.jsonl, the questions that evaluate.py asks: they need no WordNet.

  python heldout.py --tokenizer build/tokenizer.model

One JSON object a line: ``skill``, ``parts`` (what evaluate.py counts apart, besides the skill),
``mentions`` (words that a story has to use) and ``turns``, [question, answer] each, of which the
last is asked. The skill ``typed`` asks some of them again, without capitals and final mark.
"""

import argparse
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import corpus
from chats import ASK_AGAIN
from sentencepiece import SentencePieceProcessor
from stories import ANIMALS, NAMES, PETS, THINGS

HERE = Path(__file__).resolve().parent
TYPED = {"dictionary", "category", "sums", "numbers", "translation", "python", "talk", "facts"}
TYPED_SEED = 1234
LONGEST_ANSWER = 200  # characters, of a conversation's last turn: longer ones are stories
RECALL = re.compile(
    r"Your (name|favorite|number|first question|\w+ is called)|You live in|The last sum was|"
    r"The word is"
)
OPERATIONS = {"+": "addition", "-": "subtraction", "x": "multiplication"}
STORY_WORDS = re.compile(
    rf"\b(?:{'|'.join([*chain(*NAMES.values()), *ANIMALS, *THINGS, *PETS])})\b"
)


def span(number: int, edges: list[int], what: str) -> str:
    """The part of a length: "answer of 25 to 49 tokens"."""
    low = max(edge for edge in edges if edge <= number)
    higher = [edge for edge in edges if edge > number]
    upto = f"to {higher[0] - 1} tokens" if higher else "tokens or more"
    return f"{what} {low} {upto}"


def copying_kind(question: str) -> str:
    if re.match("Replace|Change|Write .* for", question):
        return "replacing a word"
    start = question[:28]
    if " sentence" in start:
        return "first or last sentence"
    return "words" if " words" in start else "repeating"


def translation_kind(answer: str) -> str:
    if re.match(r"In (French|German|Spanish|Italian), ", answer):
        return "from English"
    to_english = re.match(r"The \w+ word|En anglais|Auf Englisch|En inglés|In inglese", answer)
    return "to English" if to_english else "between others"


def parts(skill: str, chat: corpus.Chat, pieces: SentencePieceProcessor) -> list[str]:
    question, answer = chat[-1]
    if skill.startswith("copying"):
        length = len(pieces.encode(answer))
        return [span(length, [1, 25, 50, 100], "answer of"), copying_kind(question)]
    if skill.endswith("_chat"):
        length = prompt_length(chat, pieces)
        said = RECALL.match(answer) or question in ASK_AGAIN
        kind = "what was said before" if said else "other skills"
        return [span(length, [1, 256, 512, 768, 1024], "prompt of"), kind]
    if skill.endswith("sums"):
        operation = re.search(r" ([-+x]) ", answer)
        return [OPERATIONS[operation[1] if operation else "+"]]  # "Two plus three is five."
    return [translation_kind(answer)] if skill == "translation" else []


def prompt_length(chat: corpus.Chat, pieces: SentencePieceProcessor) -> int:
    length = 1  # <s>
    for question, answer in chat:
        prompt = len(pieces.encode(f"[INST] {question} [/INST]"))
        length += prompt + len(pieces.encode(answer)) + 1
    return length - len(pieces.encode(chat[-1][1])) - 1


def questions(per_skill: int) -> Iterator[tuple[str, corpus.Chat]]:
    yield from corpus.validation(per_skill)
    for skill, chat in corpus.validation(per_skill // 4, TYPED_SEED):
        if skill in TYPED:
            question, answer = chat[-1]
            yield "typed", [*chat[:-1], (question.lower().rstrip("?.! "), answer)]
    yield from corpus.validation_more(per_skill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-skill", type=int, default=50)
    parser.add_argument("--tokenizer", default=HERE / "build" / "tokenizer.model")
    parser.add_argument("--output", type=Path, default=HERE / "heldout.jsonl")
    options = parser.parse_args()
    pieces = SentencePieceProcessor(model_file=str(options.tokenizer))
    with options.output.open("w", encoding="utf-8") as output:
        for skill, chat in questions(options.per_skill):
            question, answer = chat[-1]
            if skill == "conversation" and len(answer) > LONGEST_ANSWER:
                continue
            row = {"skill": skill, "parts": parts(skill, chat, pieces), "turns": chat}
            if skill == "story":
                row["mentions"] = STORY_WORDS.findall(question)
            output.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
