"""Short stories, questions about them, and facts about several people to keep apart.

A cast is what the patterns are filled with: ``gender``, ``name``, ``animal``, ``pet`` (its
name), ``thing``, ``look`` (of the thing), ``place``, ``they`` (he or she) and ``They``.
"""

import re
from random import Random

from arithmetic import NAMES
from turns import Turn, words
from wordnet import DICTIONARY

Cast = dict[str, str]

PRONOUN = {"girl": "she", "boy": "he"}
ANIMALS = words("cat dog rabbit duck mouse bear fox frog bird pony")
PETS = words("Bo Fluffy Dot Coco Spot Momo")
THINGS = words("ball kite key hat book cake boat drum lamp box")
LOOKS = words("red blue green yellow big small old shiny")
PLACES = words("park garden forest beach school farm river market")
COLORS = words("red blue green yellow orange purple pink brown black white grey")
MORE_NAMES = words("John Mary Peter Paul Laura Alex David Maria Nina Oscar Clara Hugo Eva Tim")
PEOPLE_NAMES = [*NAMES["girl"], *NAMES["boy"], *MORE_NAMES]

OPENINGS = [
    "Once upon a time, there was a {gender} named {name}. {They} had a {look} {thing} and a "
    "{animal} called {pet}.",
    "{name} was a {gender} who lived near the {place}. {They} had a {animal} called {pet} and a "
    "{look} {thing}.",
]
# Each plot is a list of steps, each step a list of ways to tell it.
PLOTS = [
    [
        [
            "One day, {name} and {pet} went to the {place} to play with the {thing}.",
            "One sunny morning, {name} took the {thing} to the {place}, and {pet} came too.",
        ],
        [
            "Then the {thing} was lost. {name} looked and looked, but {they} could not find it.",
            "But the {thing} fell into the water, and {name} could not reach it.",
        ],
        ['"Do not worry," said {pet}. "I can help you."', "{pet} wanted to help."],
        [
            "Soon {pet} found the {thing} and gave it back to {name}.",
            "{pet} used a long stick and got the {thing} back.",
        ],
        [
            '"Thank you, {pet}!" said {name}. They went home and were very happy.',
            "{name} gave {pet} a big hug, and they played until the sun went down.",
        ],
    ],
    [
        [
            "One day, it rained and {name} could not go to the {place}.",
            "One cold morning, {name} wanted to go to the {place}, but it was raining.",
        ],
        ["{They} felt sad and sat by the window.", "{name} looked at the rain and felt sad."],
        [
            "{pet} had a good idea and brought the {look} {thing}.",
            "Then {pet} came in with the {look} {thing}.",
        ],
        [
            "They played together all day and laughed a lot.",
            "They played with the {thing} and forgot the rain.",
        ],
        [
            "At last the sun came out, and {name} and {pet} ran to the {place}.",
            "In the evening the rain stopped, and {name} was happy again.",
        ],
    ],
    [
        [
            "One day, {name} met a little bird at the {place}. The bird was crying.",
            "At the {place}, {name} and {pet} saw a little bird that could not fly.",
        ],
        ['"I cannot find my nest," said the bird.', '"My wing hurts," said the bird.'],
        [
            "{name} put the bird in the {thing} and took it home.",
            "{name} gave the bird some water, and {pet} kept it warm.",
        ],
        [
            "After a few days, the bird was well and flew away.",
            "The next day, they found the nest in a tall tree.",
        ],
        [
            '"You are very kind," said the bird. {name} and {pet} smiled.',
            "{name} was proud, and {pet} was proud too.",
        ],
    ],
]
ASK_STORY = [
    "Tell me a story.",
    "Tell me a short story.",
    "Can you tell me a story?",
    "Tell me a story about a {gender} and a {animal}.",
    "Tell me a story about a {gender} named {name}.",
    "Write a short story about a {animal}.",
    "Tell me a story about a {look} {thing}.",
    "Tell me a story about a {animal} called {pet}.",
    "Write a story about {name} and a {animal}.",
    "Tell me a story about a {gender} with a {thing}.",
]
ABOUT_STORY = [
    ("What was the name of the {gender}?", "The {gender} was named {name}."),
    ("What was the name of the {animal}?", "The {animal} was called {pet}."),
    ("Who was {pet}?", "{pet} was the {animal} of {name}."),
    ("What kind of animal was {pet}?", "{pet} was a {animal}."),
    ("What did the {thing} look like?", "The {thing} was {look}."),
    ("Who was {name}?", "{name} was a {gender} who had a {animal} called {pet}."),
]
FACTS = [
    "{name} has a {look} {thing}.",
    "{name} has a {animal} called {pet}.",
    "{name} is at the {place}.",
]
# A question, its answer and the index of the fact that gives it.
ABOUT_FACTS = [
    ("What does {name} have?", "{name} has a {look} {thing}.", 0),
    ("What is the name of {name}'s {animal}?", "The {animal} is called {pet}.", 1),
    ("Where is {name}?", "{name} is at the {place}.", 2),
    ("What animal does {name} have?", "{name} has a {animal}.", 1),
    ("Who has a {thing}?", "{name} has a {thing}.", 0),
    ("Who is at the {place}?", "{name} is at the {place}.", 2),
    ("Who has a {animal}?", "{name} has a {animal}.", 1),
]


def cast(rng: Random) -> Cast:
    gender = rng.choice(["girl", "boy"])
    drawn = {"gender": gender, "name": rng.choice(NAMES[gender])}
    for role, names in [
        ("animal", ANIMALS),
        ("pet", PETS),
        ("thing", THINGS),
        ("look", LOOKS),
        ("place", PLACES),
    ]:
        drawn[role] = rng.choice(names)
    they = PRONOUN[gender]
    return drawn | {"they": they, "They": they.capitalize()}


def fill(pattern: str, people: Cast) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", pattern.format(**people))


def story_text(rng: Random, people: Cast) -> str:
    opening = rng.choice(OPENINGS)
    steps = [rng.choice(step) for step in rng.choice(PLOTS)]
    return fill(" ".join([opening, *steps]), people)


def story_key(people: Cast) -> str:
    roles = ("name", "animal", "pet", "thing", "look")
    return "story:" + ":".join(people[role] for role in roles)


def story(rng: Random) -> Turn:
    """A story about whom and what the question names. Held out is the drawn cast."""
    return told_story(rng, cast(rng))


def told_story(rng: Random, people: Cast) -> Turn:
    question = fill(rng.choice(ASK_STORY), people)
    return question, story_text(rng, people), story_key(people)


def story_question(rng: Random) -> list[Turn]:
    """A story, then a question about it."""
    people = cast(rng)
    question, answer = rng.choice(ABOUT_STORY)
    return [told_story(rng, people), (fill(question, people), fill(answer, people), "")]


def reading(rng: Random) -> Turn:
    """Facts about two people with different things; the answer binds the right one."""
    while True:
        one, other = cast(rng), cast(rng)
        if all(one[role] != other[role] for role in ("name", "animal", "pet", "thing", "place")):
            break
    kinds = rng.sample(range(len(FACTS)), rng.randint(1, 2))
    facts = [
        fill(FACTS[kind], person)
        for kind in kinds
        for person in ((one, other) if rng.random() < 0.5 else (other, one))
    ]
    key = "read:" + ":".join(one[role] + other[role] for role in ("name", "thing"))
    return ask_about(rng, facts, kinds, one, key)


def ask_about(rng: Random, facts: list[str], kinds: list[int], person: Cast, key: str) -> Turn:
    question, answer, _ = rng.choice([about for about in ABOUT_FACTS if about[2] in kinds])
    text = " ".join(facts) + " " + fill(question, person)
    return text, fill(answer, person), key


def countable(*categories: str) -> list[str]:
    return sorted(
        {
            entry.word
            for entry in DICTIONARY
            if entry.category in categories and entry.subject.startswith("a")
        }
    )


WIDE_THINGS, WIDE_ANIMALS = countable("object", "food", "plant"), countable("animal")


def reading_more(rng: Random) -> Turn:
    """Like ``reading``, about two or three people, with the things of the whole dictionary."""
    number = rng.choice([2, 2, 3])
    people = [cast(rng) for _ in range(number)]
    for role, names in [
        ("name", PEOPLE_NAMES),
        ("animal", WIDE_ANIMALS),
        ("pet", PETS + NAMES["girl"]),
        ("thing", WIDE_THINGS),
        ("place", PLACES),
        ("look", COLORS + LOOKS),
    ]:
        for person, name in zip(people, rng.sample(names, number), strict=True):
            person[role] = name
    kinds = rng.sample(range(len(FACTS)), rng.randint(1, 3) if number == 2 else 1)
    facts = []
    for kind in kinds:
        rng.shuffle(people)
        facts += [fill(FACTS[kind], person) for person in people]
    if rng.random() < 0.3:
        rng.shuffle(facts)
    asked = rng.choice(people)
    key = "read:" + ":".join(person["name"] + person["thing"] for person in people)
    return ask_about(rng, facts, kinds, asked, key)
