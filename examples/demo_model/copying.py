"""Repeating, editing and quoting a text of the prompt. Held out is the text."""

import re
from collections.abc import Callable
from random import Random

import facts as general
from stories import (
    ANIMALS,
    FACTS,
    LOOKS,
    PEOPLE_NAMES,
    PETS,
    PLACES,
    THINGS,
    cast,
    fill,
    story_text,
)
from translation import ROWS
from turns import Turn, capitalized
from wordnet import DICTIONARY, UNKNOWN

WORDS = sorted({entry.word for entry in DICTIONARY})
FOREIGN_WORDS = sorted({word for row in ROWS for word in row[1:]})
# A word is replaced by another of its group. "old" is left out: it also describes people.
EXCHANGEABLE = [PEOPLE_NAMES, ANIMALS, PETS, THINGS, [x for x in LOOKS if x != "old"], PLACES]

REPEAT = [
    "Repeat this: {x}",
    "Repeat after me: {x}",
    "Say this again: {x}",
    "Copy this text: {x}",
    "Repeat the following text: {x}",
]
REPLACE = [
    "Replace {a} by {b} in: {x}",
    "Replace every {a} by {b} in: {x}",
    "Change {a} to {b} in: {x}",
    "Write {b} for {a} in: {x}",
]
QUOTE_LAST = [
    "Quote the last sentence of: {x}",
    "What is the last sentence of this text? {x}",
    "Repeat the last sentence: {x}",
]
QUOTE_FIRST = [
    "Quote the first sentence of: {x}",
    "What is the first sentence of this text? {x}",
    "Repeat the first sentence: {x}",
]


def numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def with_commas(words: list[str]) -> str:
    return ", ".join(words) + "."


WRITE_WORDS: list[tuple[str, Callable[[list[str]], str]]] = [
    ("Make a list of these words: {x}", numbered),
    ("Write these words with commas: {x}", with_commas),
    ("Repeat these words: {x}", " ".join),
]


def repeat(rng: Random, text: str) -> Turn:
    return rng.choice(REPEAT).format(x=text), text, "copy:" + text


def replace(question: str, text: str, old: str, new: str) -> tuple[str, str]:
    """The filled-in question and the text with every whole word ``old`` replaced."""
    return question.format(a=old, b=new, x=text), re.sub(rf"\b{old}\b", new, text)


def quote(rng: Random, sentences: list[str]) -> Turn:
    text, last = " ".join(sentences), rng.random() < 0.6
    question = rng.choice(QUOTE_LAST if last else QUOTE_FIRST).format(x=text)
    return question, sentences[-1 if last else 0], "copy:" + text


def write_words(rng: Random, words: list[str], separator: str) -> Turn:
    question, write = rng.choice(WRITE_WORDS)
    return question.format(x=separator.join(words)), write(words), "copy:" + " ".join(words)


# ------------------------------------------------- texts of the model's own world


def split_sentences(text: str) -> list[str]:
    return re.split(r'(?<=[.!?]) |(?<=[.!?]") ', text)


def some_text(rng: Random) -> list[str]:
    """A few sentences: part of a story, definitions, or facts about people."""
    kind = rng.random()
    if kind < 0.65:
        sentences = split_sentences(story_text(rng, cast(rng)))
        number = rng.randint(1, len(sentences))
        start = rng.randint(0, len(sentences) - number)
        return sentences[start : start + number]
    if kind < 0.85:
        return [rng.choice(DICTIONARY).definition for _ in range(rng.randint(1, 5))]
    return [fill(rng.choice(FACTS), cast(rng)) for _ in range(rng.randint(1, 6))]


def some_word(rng: Random) -> str:
    return rng.choice(UNKNOWN) if rng.random() < 0.25 else rng.choice(WORDS)


def has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", text) is not None


def copying(rng: Random) -> Turn:
    """Lists of words, a word replaced, the first or last sentence, or all again."""
    kind, sentences = rng.random(), some_text(rng)
    text = " ".join(sentences)
    if kind < 0.25:
        words = [some_word(rng) for _ in range(rng.randint(3, 16))]
        question, write = rng.choice(WRITE_WORDS)
        separator = " " if rng.random() < 0.5 else ", "
        return question.format(x=separator.join(words)), write(words), "copy:" + " ".join(words)
    if kind < 0.45:
        present = [(w, group) for group in EXCHANGEABLE for w in group if has_word(text, w)]
        if present:
            old, group = rng.choice(present)
            new = rng.choice([w for w in group if not has_word(text, w)] or [old])
            return *replace(rng.choice(REPLACE), text, old, new), "copy:" + text
    if kind < 0.6 and len(sentences) > 1:
        return quote(rng, sentences)
    return repeat(rng, text)


# ------------------------------------------------------ texts that cannot be guessed


def loose_word(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(WORDS)
    if kind < 0.75:
        return rng.choice(UNKNOWN)
    if kind < 0.85:
        return rng.choice(PEOPLE_NAMES)
    return rng.choice(FOREIGN_WORDS) if kind < 0.93 else str(rng.randint(0, 999))


def loose_sentence(rng: Random) -> str:
    """A sentence of random words, or a known one with every fourth word exchanged."""
    kind = rng.random()
    if kind < 0.3:
        words = [loose_word(rng) for _ in range(rng.randint(2, 9))]
        return capitalized(" ".join(words)) + "."
    sentence = rng.choice(general.FACTS)[1] if kind < 0.45 else rng.choice(some_text(rng))

    def perhaps_exchanged(word: str) -> str:
        if rng.random() < 0.25:
            return re.sub(r"\w+", lambda _: loose_word(rng), word, count=1)
        return word

    return " ".join(map(perhaps_exchanged, sentence.split(" ")))


def copying_loose(rng: Random) -> Turn:
    """Like ``copying``, of texts in which only the prompt tells what comes next.

    A model learns sooner to look back at the prompt where nothing else helps.
    """
    kind = rng.random()
    return copying_words(rng, kind) if kind < 0.45 else copying_sentences(rng, kind)


def copying_words(rng: Random, kind: float) -> Turn:
    few = rng.random() < 0.6
    number = rng.randint(2, 10) if few else rng.randint(8, 28)
    words = [loose_word(rng) for _ in range(number)]
    separator = " " if rng.random() < 0.4 else ", "
    if kind < 0.3:
        return write_words(rng, words, separator)
    text, key = separator.join(words), "copy:" + " ".join(words)
    if kind < 0.37:
        return rng.choice(REPEAT).format(x=text), text, key
    old, new = rng.choice(words), loose_word(rng)
    return *replace(rng.choice(REPLACE), text, old, new), key


def copying_sentences(rng: Random, kind: float) -> Turn:
    few = rng.random() < 0.7
    number = rng.randint(1, 4) if few else rng.randint(4, 10)
    sentences = [loose_sentence(rng) for _ in range(number)]
    text = " ".join(sentences)
    if kind < 0.65:
        old = rng.choice(sorted(set(re.findall(r"\w+", text))))
        new = loose_word(rng)
        return *replace(rng.choice(REPLACE), text, old, new), "copy:" + text
    if kind < 0.8 and len(sentences) > 1:
        return quote(rng, sentences)
    return repeat(rng, text)
