"""Translation of single words between English, French, German, Spanish and Italian.

Held out are word, pair and phrasing; between two languages that are not English, word and
pair: such a translation was never seen and has to be composed.
"""

import re
from random import Random

from turns import Turn
from wordnet import read_table

LANGUAGES = ["English", "French", "German", "Spanish", "Italian"]
ROWS = read_table("translations.tsv")

# {w} is an English word, {x} a foreign one, {y} its translation, {L} a language. The
# templates are part of the held-out keys.
FROM_ENGLISH = [
    "How do you say {w} in {L}?",
    'How do you say "{w}" in {L}?',
    "What is {w} in {L}?",
    "What is the {L} word for {w}?",
    "Translate {w} to {L}.",
    'Translate "{w}" into {L}.',
    "{w} in {L}",
    "How do I say {w} in {L}?",
]
TO_ENGLISH = [
    "What does the {L} word {x} mean?",
    "What does {x} mean in {L}?",
    "Translate {x} from {L} to English.",
    "What is the {L} word {x} in English?",
]
TO_ENGLISH_BARE = [
    'What does "{x}" mean in English?',
    "What is {x} in English?",
    "Translate {x} to English.",
    "How do you say {x} in English?",
]
# Asked in a foreign language: the questions, the answer, that language's names of LANGUAGES.
NATIVE = {
    1: (
        ["Comment dit-on {x} en {L} ?", "Traduis {x} en {L}.", "Que veut dire {x} en {L} ?"],
        'En {L}, {x} se dit "{y}".',
        ["anglais", "français", "allemand", "espagnol", "italien"],
    ),
    2: (
        ["Wie sagt man {x} auf {L}?", "Was heißt {x} auf {L}?", "Was bedeutet {x} auf {L}?"],
        'Auf {L} heißt {x} "{y}".',
        ["Englisch", "Französisch", "Deutsch", "Spanisch", "Italienisch"],
    ),
    3: (
        ["¿Cómo se dice {x} en {L}?", "Traduce {x} al {L}.", "¿Qué significa {x} en {L}?"],
        'En {L}, {x} se dice "{y}".',
        ["inglés", "francés", "alemán", "español", "italiano"],
    ),
    4: (
        ["Come si dice {x} in {L}?", "Traduci {x} in {L}.", "Che cosa significa {x} in {L}?"],
        'In {L}, {x} si dice "{y}".',
        ["inglese", "francese", "tedesco", "spagnolo", "italiano"],
    ),
}


def spellings() -> tuple[dict[str, set[int]], list[dict[str, list[str]]]]:
    """By spelling the languages that use it, and by language and spelling its first row.

    A question about a spelling with several meanings always takes the first, so that its
    answer is unique.
    """
    users: dict[str, set[int]] = {}
    first: list[dict[str, list[str]]] = [{} for _ in LANGUAGES]
    for row in ROWS:
        for language, word in enumerate(row):
            users.setdefault(word.lower(), set()).add(language)
            first[language].setdefault(word, row)
    return users, first


USERS, FIRST_ROW = spellings()


def translation(rng: Random) -> Turn:
    """Half from English, a quarter to English, a quarter asked in another language."""
    row, source, kind = rng.choice(ROWS), rng.randint(1, 4), rng.random()
    word = row[source]
    if kind < 0.5:
        return from_english(rng, row, source)
    row = FIRST_ROW[source][word]
    if kind < 0.75:
        bare = len(USERS[word.lower()]) == 1 and rng.random() < 0.5
        template = rng.choice(TO_ENGLISH_BARE if bare else TO_ENGLISH)
        language = LANGUAGES[source]
        answer = f'The {language} word {word} means "{row[0]}".'
        return template.format(x=word, L=language), answer, f"tr:{word}:{source}0:{template}"
    return natively(rng, row, source)


def from_english(rng: Random, row: list[str], target: int) -> Turn:
    template, language = rng.choice(FROM_ENGLISH), LANGUAGES[target]
    question = template.format(w=row[0], L=language)
    answer = f'In {language}, {row[0]} is "{row[target]}".'
    return question, answer, f"tr:{row[0]}:0{target}:{template}"


def natively(rng: Random, row: list[str], source: int) -> Turn:
    templates, answer, names = NATIVE[source]
    word = row[source]
    target = rng.choice([t for t in (0, 0, 1, 2, 3, 4) if t != source])
    template = rng.choice(templates)
    key = f"tr:{word}:{source}0:{template}" if target == 0 else f"trx:{word}:{source}{target}"
    question = template.format(x=word, L=names[target])
    return question, answer.format(x=word, L=names[target], y=row[target]), key


def to_english(rng: Random) -> Turn:
    """Translations that do not start from English: the harder half."""
    while True:
        turn = translation(rng)
        if not re.search(r":0\d:", turn[2]):
            return turn
