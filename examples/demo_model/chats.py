"""Conversations: follow-up questions, and long chats that come back to what was said before."""

import re
from random import Random

from arithmetic import ADD, division, numbers, sums
from coding import python
from copying import copying
from limits import COUNTRIES, outside, unknown
from stories import (
    ANIMALS,
    COLORS,
    MORE_NAMES,
    NAMES,
    PEOPLE_NAMES,
    PETS,
    cast,
    reading,
    story,
    story_question,
    story_text,
)
from talk import facts, talk
from translation import FIRST_ROW, FROM_ENGLISH, LANGUAGES, ROWS, translation
from turns import Turn, capitalized, carelessly, held_out
from vocabulary import DEFINE, a_kind, category, dictionary
from wordnet import DICTIONARY, UNKNOWN

# The single-turn skills of a conversation and how often each is drawn.
SINGLE = [
    (dictionary, 25),
    (category, 6),
    (sums, 30),
    (numbers, 8),
    (translation, 42),
    (story, 2.5),
    (reading, 8),
    (python, 5),
    (talk, 5),
    (outside, 4),
    (unknown, 8),
]


def single(rng: Random) -> Turn:
    skills, weights = zip(*SINGLE, strict=True)
    return rng.choices(skills, weights)[0](rng)


def as_turns(made: Turn | list[Turn]) -> list[Turn]:
    return [made] if isinstance(made, tuple) else made


# --------------------------------------------------------------- short conversations


def follow_up(rng: Random) -> list[Turn]:
    """Two turns of which the second needs the first."""
    kinds = [another_language, another_sum, what_kind, word_in_language, story_question]
    return kinds[rng.randrange(len(kinds))](rng)


def another_language(rng: Random) -> list[Turn]:
    row = rng.choice(ROWS)
    first, second = rng.sample(range(1, 5), 2)
    word, template = row[0], rng.choice(FROM_ENGLISH)
    again = rng.choice(
        ["And in {L}?", "And what is it in {L}?", "How about {L}?", "Now in {L}."]
    ).format(L=LANGUAGES[second])
    return [
        (
            template.format(w=word, L=LANGUAGES[first]),
            f'In {LANGUAGES[first]}, {word} is "{row[first]}".',
            f"tr:{word}:0{first}:{template}",
        ),
        (
            again,
            f'In {LANGUAGES[second]}, {word} is "{row[second]}".',
            f"tr2:{word}:{first}{second}",
        ),
    ]


def another_sum(rng: Random) -> list[Turn]:
    a, b, c = rng.randint(0, 40), rng.randint(0, 30), rng.randint(0, 30)
    question = rng.choice(ADD).format(a=a, b=b)
    again = rng.choice(["And plus {c}?", "Now add {c}.", "Add {c}."]).format(c=c)
    return [
        (question, f"{a} + {b} = {a + b}.", f"add:{a}+{b}"),
        (again, f"{a + b} + {c} = {a + b + c}.", f"add:{a + b}+{c}"),
    ]


def what_kind(rng: Random) -> list[Turn]:
    word, kind, subject, definition = rng.choice(DICTIONARY)
    template = rng.choice(DEFINE[:6])
    return [
        (template.format(s=subject, w=word), definition, f"def:{word}:{template}"),
        (
            "What kind of thing is it?",
            f"{capitalized(subject)} is {a_kind(kind)}.",
            f"kind2:{word}",
        ),
    ]


def word_in_language(rng: Random) -> list[Turn]:
    translated = [entry for entry in DICTIONARY if entry.word in FIRST_ROW[0]]
    word, _, subject, definition = rng.choice(translated)
    target = rng.randint(1, 4)
    again = rng.choice(["How do you say it in {L}?", "And what is it in {L}?", "And in {L}?"])
    language, answer = LANGUAGES[target], FIRST_ROW[0][word][target]
    return [
        (f"What is {subject}?", definition, f"def:{word}:{DEFINE[0]}"),
        (again.format(L=language), f'In {language}, {word} is "{answer}".', f"tr3:{word}:{target}"),
    ]


def name_talk(rng: Random) -> list[Turn]:
    """Somebody says a name and asks for it, perhaps after another question."""
    gender = rng.choice(["girl", "boy"])
    name = rng.choice(NAMES[gender] + MORE_NAMES)
    said = rng.choice(["My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Hi, my name is {n}."])
    turns = [(said.format(n=name), f"Hello, {name}! How can I help you?", "")]
    if rng.random() < 0.5:
        turns.append(single(rng))
    asked = rng.choice(["What is my name?", "Do you know my name?", "Who am I?"])
    return [*turns, (asked, f"Your name is {name}.", "")]


def conversation(rng: Random) -> list[Turn]:
    kind = rng.random()
    if kind < 0.45:
        return follow_up(rng)
    if kind < 0.6:
        return name_talk(rng)
    turns = [single(rng) for _ in range(rng.randint(2, 3))]
    if rng.random() < 0.3:
        turns.insert(0, talk(rng))
    return turns


def plain(rng: Random) -> list[Turn]:
    """A definition or a story without a question."""
    if rng.random() < 0.6:
        return [(None, rng.choice(DICTIONARY).definition, "")]
    return [(None, story_text(rng, cast(rng)), "")]


# ---------------------------------------------------------------------- long chats

# What is said, the reply, the questions much later, their answer.
REMEMBER = [
    (
        ["My name is {name}.", "I am {name}.", "Hello, I am {name}.", "Hi, my name is {name}."],
        "Hello, {name}! How can I help you?",
        ["What is my name?", "Do you know my name?", "Who am I?", "Do you remember my name?"],
        "Your name is {name}.",
    ),
    (
        ["My favorite color is {color}.", "I like the color {color} best."],
        "Okay, your favorite color is {color}.",
        [
            "What is my favorite color?",
            "Which color do I like best?",
            "Do you remember my favorite color?",
        ],
        "Your favorite color is {color}.",
    ),
    (
        ["My favorite animal is the {favorite}.", "I like the {favorite} best of all animals."],
        "Okay, your favorite animal is the {favorite}.",
        ["What is my favorite animal?", "Which animal do I like best?"],
        "Your favorite animal is the {favorite}.",
    ),
    (
        ["I have a {animal} called {pet}.", "My {animal} is called {pet}."],
        "Okay, your {animal} is called {pet}.",
        [
            "What is my {animal} called?",
            "What is the name of my {animal}?",
            "What is my pet called?",
            "Which pet do I have?",
        ],
        "Your {animal} is called {pet}.",
    ),
    (
        ["I live in {country}.", "My home is in {country}."],
        "Okay, you live in {country}.",
        ["Where do I live?", "Do you remember where I live?"],
        "You live in {country}.",
    ),
    (
        ["My lucky number is {number}.", "Remember the number {number}."],
        "Okay, your number is {number}.",
        ["What is my lucky number?", "Which number did I tell you?"],
        "Your number is {number}.",
    ),
    (
        ["The secret word is {secret}.", "Remember the word {secret}."],
        "Okay, the word is {secret}.",
        ["What is the secret word?", "Which word did I tell you?"],
        "The word is {secret}.",
    ),
]
ASK_LAST_SUM = ["What was the last sum?", "Which sum did I ask last?"]
ASK_FIRST_QUESTION = ["What was my first question?", "What did I ask first?"]
ASK_AGAIN = ["Repeat your last answer.", "Say that again.", "Please repeat that."]
SUM_ANSWER = re.compile(r"\d+ [-+x/] \d+ = \d+\.")
FAVORITES = [entry.word for entry in DICTIONARY if entry.category == "animal"]
# The other turns of a long chat and how often each is drawn.
BETWEEN = [(single, 50), (follow_up, 8), (facts, 22), (division, 4), (copying, 10)]
ROOM_FOR_COPYING = 600  # characters that must be left
CHAT_MARKS = 14  # characters of "[INST]  [/INST] " around a question
LONGEST_CARELESS = 200  # characters


class LongChat:
    """Draws a chat turn by turn until it has the wanted length.

    Only the last turn decides what is held out: of the turns before it, training sees none
    that is held out, and a held-out chat asks its last question about something said in it,
    where it was said and how it is asked being new.
    """

    def __init__(self, rng: Random, recall: float, characters: tuple[int, int]) -> None:
        self.rng = rng
        self.recall = recall  # how often the last question is about what was said
        self.details = {
            "name": rng.choice(PEOPLE_NAMES),
            "color": rng.choice(COLORS),
            "animal": rng.choice(ANIMALS),
            "pet": rng.choice(PETS),
            "country": rng.choice(COUNTRIES),
            "number": rng.randint(1, 100),
            "secret": rng.choice(UNKNOWN),
            "favorite": rng.choice(FAVORITES),
        }
        self.untold = rng.sample(REMEMBER, len(REMEMBER))
        self.told: list[tuple[str, list[str]]] = []  # answers and their questions
        self.goal = rng.uniform(*characters)
        self.size = 0  # characters so far
        self.turns: list[Turn] = []

    def draw(self) -> list[Turn]:
        last = False
        while not last:
            last = self.size > self.goal
            self.add(*self.next_turns(last), last)
        return self.turns

    def next_turns(self, last: bool) -> tuple[list[Turn], bool]:
        """The next turns, and whether they may be typed carelessly."""
        rng = self.rng
        kind = rng.random()
        if self.turns and (rng.random() < self.recall if last else kind < 0.18):
            return [self.ask_back()], True
        if self.untold and not last and (not self.turns or kind < 0.35):
            return [self.tell()], True
        return self.other_skill(last)

    def tell(self) -> Turn:
        said, reply, questions, answer = self.untold.pop()
        filled = [question.format(**self.details) for question in questions]
        self.told.append((answer.format(**self.details), filled))
        return self.rng.choice(said).format(**self.details), reply.format(**self.details), ""

    def ask_back(self) -> Turn:
        answers = [answer for _, answer, _ in self.turns]
        back = self.told * 2
        if sums_so_far := list(filter(SUM_ANSWER.fullmatch, answers)):
            back.append(("The last sum was " + sums_so_far[-1], ASK_LAST_SUM))
        back.append((f"Your first question was: {self.turns[0][0]}", ASK_FIRST_QUESTION))
        back.append((answers[-1], ASK_AGAIN))
        answer, questions = self.rng.choice(back)
        question = self.rng.choice(questions)
        return question, answer, f"recall:{answer}:{question}:{len(self.turns)}"

    def other_skill(self, last: bool) -> tuple[list[Turn], bool]:
        skills, weights = zip(*BETWEEN, strict=True)
        if self.size + ROOM_FOR_COPYING >= self.goal:
            weights = (*weights[:-1], 0)
        skill = self.rng.choices(skills, weights)[0]
        while True:
            turns = as_turns(skill(self.rng))
            keys = [key for *_, key in turns if key]
            if keys if last else not any(map(held_out, keys)):
                # A carelessly typed text would not be the one that the answer quotes.
                return turns, skill is not copying

    def add(self, turns: list[Turn], careless: bool, last: bool) -> None:
        rng = self.rng
        for question, answer, key in turns:
            may_slip = careless and not last and len(question) < LONGEST_CARELESS
            if may_slip and rng.random() < 0.25:
                question = carelessly(rng, question)
            self.turns.append((question, answer, key if last else ""))
            self.size += len(question) + len(answer) + CHAT_MARKS


def long_chat(rng: Random) -> list[Turn]:
    """10 to 30 turns: things to remember, questions about what was said, other skills."""
    return LongChat(rng, recall=0.5, characters=(400, 2700)).draw()


def very_long_chat(rng: Random) -> list[Turn]:
    """Up to about 2048 tokens."""
    return LongChat(rng, recall=0.5, characters=(400, 5200)).draw()


def short_chat(rng: Random) -> list[Turn]:
    """2 to 8 turns with something to remember."""
    return LongChat(rng, recall=0.7, characters=(30, 400)).draw()
