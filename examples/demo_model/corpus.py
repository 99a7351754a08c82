#!/usr/bin/env python3
"""Training text for the demo model: a seeded generator of short chats.

Every example is a conversation of one skill (see the modules ``vocabulary``, ``arithmetic``,
``translation``, ``stories``, ``coding``, ``talk``, ``limits``, ``chats`` and ``copying``), and
``turns`` says what is held out. Training goes through the stages of ``STAGES`` in turn. The same
seed and stage give the same text on every machine.

  python corpus.py sample     prints examples
  python corpus.py words      prints the dictionary
  python corpus.py stats      the share of each skill in the text of the last stage

Sources: sentence patterns and word tables written for this project, and WordNet 3.0 (see
LICENSE-NOTICE.md). Nothing else is read.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

from arithmetic import (
    big_sums,
    counting,
    division,
    is_taught_sum,
    numbers,
    small_sums,
    sums,
)
from chats import (
    SINGLE,
    as_turns,
    conversation,
    long_chat,
    plain,
    short_chat,
    very_long_chat,
)
from coding import python
from copying import copying, copying_loose
from limits import LIMIT, TOO_BIG, outside, unknown
from stories import reading, reading_more, story
from talk import FACT_QUESTIONS, facts, talk
from translation import ROWS, to_english, translation
from turns import Turn, carelessly, held_out, render
from vocabulary import LATE_WORDS, SORRY, category, dictionary, late, unknown_common
from wordnet import DICTIONARY, UNKNOWN

Skill = Callable[[Random], Turn | list[Turn]]
Chat = list[tuple[str | None, str]]

CORE: list[tuple[Skill, float]] = [*SINGLE, (conversation, 16), (plain, 4)]
ALL_SKILLS: list[tuple[Skill, float]] = [
    *CORE,
    (facts, 26),
    (division, 4),
    (unknown_common, 5),
    (sums, 8),
    (numbers, 6),
    (reading, 5),
]
# A skill, its wanted percentage of the tokens, and the mean tokens of one of its examples
# (`python corpus.py stats`). Rows are filled with whole examples, which favours short ones: the
# long chats therefore get more than the 15 % that they end up with.
BALANCED: list[tuple[Skill, float, float]] = [
    (dictionary, 7, 24),
    (category, 4.5, 17.5),
    (sums, 3, 25.5),
    (numbers, 3, 22),
    (counting, 2, 29),
    (translation, 5, 23),
    (to_english, 5, 24),
    (story, 2, 99),
    (reading, 3.5, 33.5),
    (reading_more, 4, 40.5),
    (python, 1.5, 31),
    (talk, 1, 20),
    (outside, 1.5, 34),
    (unknown, 4.5, 26.5),
    (conversation, 2.5, 60),
    (facts, 3.5, 20),
    (division, 2.5, 24.5),
    (unknown_common, 2.5, 24.5),
    (late, 0.4, 23.5),
    (small_sums, 1, 22.5),
    (big_sums, 2.5, 29.5),
    (short_chat, 3, 105),
    (copying, 20, 86),
    (copying_loose, 15, 90),
    (long_chat, 22, 523),
]


# In the last two stages the skills that were still weak count more, and copying less.
FINISHING: dict[Skill, float] = {
    dictionary: 8,
    category: 5.5,
    numbers: 5,
    translation: 6.5,
    to_english: 8,
    facts: 9,
    reading: 4,
    unknown: 5,
    unknown_common: 5.5,
    division: 3,
    copying: 14,
    copying_loose: 8,
    long_chat: 19,
}
WEAKEST: dict[Skill, float] = {
    dictionary: 7,
    category: 8,
    numbers: 9,
    counting: 3,
    translation: 7,
    to_english: 9,
    facts: 10,
    reading: 6,
    unknown: 6,
    unknown_common: 8,
    division: 5,
    copying: 12,
    copying_loose: 5,
    long_chat: 15,
}


def balanced(changed: dict[Skill, float], long_chats: Skill) -> list[tuple[Skill, float]]:
    """The weights of a stage, from percentages of ``BALANCED`` or their changes."""
    return [
        (long_chats if skill is long_chat else skill, changed.get(skill, percent) / tokens)
        for skill, percent, tokens in BALANCED
    ]


# The skills of each stage and how often each is drawn; train.PHASES says when a stage begins.
STAGES: list[list[tuple[Skill, float]]] = [
    CORE,
    ALL_SKILLS,
    [*ALL_SKILLS, (reading, 7)],  # from here on typed carelessly as well
    [*ALL_SKILLS, (reading, 7), (late, 16)],
    [*ALL_SKILLS, (reading, 7), (late, 4), (small_sums, 40)],
    [*ALL_SKILLS, (reading, 9), (late, 3), (small_sums, 10), (copying, 48), (long_chat, 30)],
    balanced({}, long_chat),
    balanced(FINISHING, very_long_chat),
    balanced(WEAKEST, very_long_chat),
]
CARELESS_STAGE, LATE_STAGE, BALANCED_STAGE = 2, 3, 6
CARELESS_SHARE, EARLY_CARELESS_SHARE = 0.3, 0.12
SLIGHTLY_CARELESS = {
    dictionary,
    category,
    sums,
    numbers,
    translation,
    talk,
    outside,
    unknown,
    python,
    facts,
    division,
}
# Their answers quote the prompt, or they are typed carelessly turn by turn already.
AS_WRITTEN = {copying, copying_loose, long_chat, very_long_chat, short_chat}
VALIDATED = [skill for skill in dict(ALL_SKILLS) if skill is not plain]
VALIDATED += [late, copying, long_chat]
# Skills of the last stages that the first validation set does not have.
VALIDATED_MORE = [copying_loose, very_long_chat, short_chat, big_sums, reading_more]
UNKNOWN_LATE_WORDS = {f"{SORRY}I do not know the word {word}." for word, *_ in LATE_WORDS}


def contradicts(turns: list[Turn], stage: int) -> bool:
    """Whether a turn refuses what this stage teaches."""

    def refuses_taught(question: str | None, answer: str) -> bool:
        if stage > 0 and answer == LIMIT and question in FACT_QUESTIONS:
            return True
        if stage >= LATE_STAGE and answer in UNKNOWN_LATE_WORDS:
            return True
        return stage >= BALANCED_STAGE and answer == TOO_BIG and is_taught_sum(question or "")

    return any(refuses_taught(question, answer) for question, answer, _ in turns)


def draw(rng: Random, skill: Skill, want_held_out: bool, stage: int) -> list[Turn]:
    """Turns of a skill: none of them held out, or at least one (where the skill has keys)."""
    while True:
        turns = as_turns(skill(rng))
        if contradicts(turns, stage):
            continue
        out = [held_out(key) for *_, key in turns if key]
        if (any(out) or not out) if want_held_out else not any(out):
            return turns


def example(rng: Random, skill: Skill, want_held_out: bool = False, stage: int = 5) -> Chat:
    """One conversation of a skill, from the training part or from the held-out part."""
    chat: Chat = []
    for question, answer, _ in draw(rng, skill, want_held_out, stage):
        if question and not want_held_out and skill not in AS_WRITTEN:
            question = perhaps_carelessly(rng, question, skill, stage)
        chat.append((question, answer))
    return chat


def perhaps_carelessly(rng: Random, question: str, skill: Skill, stage: int) -> str:
    if stage >= CARELESS_STAGE:
        return carelessly(rng, question) if rng.random() < CARELESS_SHARE else question
    if skill in SLIGHTLY_CARELESS and rng.random() < EARLY_CARELESS_SHARE:
        if rng.random() < 0.5:
            return question.rstrip("?.! ")
        return question[0].lower() + question[1:]
    return question


def documents(seed: int, stage: int) -> Iterator[tuple[str, Chat]]:
    """Training conversations of a stage without end, as (skill name, turns)."""
    rng = Random(seed)
    skills, weights = zip(*STAGES[stage], strict=True)
    while True:
        skill = rng.choices(skills, weights)[0]
        yield skill.__name__, example(rng, skill, stage=stage)


def validation(per_skill: int = 200, seed: int = 999) -> Iterator[tuple[str, Chat]]:
    """Held-out conversations, as (skill name, turns)."""
    rng = Random(seed)
    for skill in VALIDATED:
        for _ in range(per_skill):
            yield skill.__name__, example(rng, skill, want_held_out=True)


def validation_more(per_skill: int = 200, seed: int = 998) -> Iterator[tuple[str, Chat]]:
    """Held-out conversations of the skills that came with the last stages."""
    rng = Random(seed)
    for skill in VALIDATED_MORE:
        for _ in range(per_skill):
            yield skill.__name__, example(rng, skill, True, len(STAGES) - 1)


def print_sample() -> None:
    print(len(DICTIONARY), "words,", len(ROWS), "translated,", len(UNKNOWN), "unknown words")
    for (name, chat), _ in zip(documents(1, len(STAGES) - 1), range(60), strict=False):
        print(f"{name:14}", render(chat))


def print_words() -> None:
    for entry in DICTIONARY:
        print(f"{entry.category:14} {entry.definition}")


def print_stats() -> None:
    number, characters = Counter(), Counter()
    for (name, chat), _ in zip(documents(2, len(STAGES) - 1), range(20_000), strict=False):
        number[name] += 1
        characters[name] += len(render(chat))
    for name, total in characters.most_common():
        share = 100 * total / characters.total()
        print(f"{name:15} {number[name]:6} examples {share:5.1f} % of the characters, ", end="")
        print(f"{total / number[name]:.0f} each")


if __name__ == "__main__":
    commands = {"sample": print_sample, "words": print_words, "stats": print_stats}
    command = sys.argv[1] if len(sys.argv) > 1 else "sample"
    if command not in commands:
        sys.exit(f"{command}: not a command; there are {', '.join(commands)}")
    commands[command]()
