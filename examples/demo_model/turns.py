"""What every skill makes: turns of a chat, and which of them training never sees.

A turn is ``(question, answer, key)``; the question is None in plain text. A key names what
the turn teaches. 5 % of the keys (by CRC-32, the same on every machine) are held out:
training draws again when it meets one, the evaluation asks nothing else. An empty key is
never held out.
"""

import re
import zlib
from random import Random

Turn = tuple[str | None, str, str]

HELD_OUT_PERCENT = 5


def held_out(key: str) -> bool:
    return zlib.crc32(key.encode()) % 100 < HELD_OUT_PERCENT


def words(table: str) -> list[str]:
    """The words of a table written as text."""
    return table.split()


def with_article(noun: str) -> str:
    """The noun with "a" or "an", by its sound where the letter misleads (a uniform, an hour)."""
    vowel = noun[0].lower() in "aeiou" and not re.match(r"uni|use|eu|one|ukulele", noun)
    silent_h = noun.startswith(("hour", "heir", "honest"))
    return ("an " if vowel or silent_h else "a ") + noun


def capitalized(text: str) -> str:
    """The text with a capital first letter, the rest as it is."""
    return text[0].upper() + text[1:]


def carelessly(rng: Random, question: str) -> str:
    """The question as people type it: without the mark at the end, without capitals, or both."""
    style = rng.random()
    if style < 0.35:
        return question.rstrip("?.! ")
    if style < 0.5:
        return question[0].lower() + question[1:]
    return question.lower() if style < 0.7 else question.lower().rstrip("?.! ")


def render(turns: list[tuple[str | None, str]]) -> str:
    """The chat as text, for reading; ``train.encode`` makes the token ids."""
    return " ".join(
        answer if question is None else f"[INST] {question} [/INST] {answer}</s>"
        for question, answer in turns
    )
