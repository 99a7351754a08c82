"""Skills about words: what they mean and what kind of thing they name."""

from random import Random

from turns import Turn, capitalized, with_article
from wordnet import CATEGORIES, DICTIONARY, UNTAUGHT, read_table

SORRY = "I am sorry, "

# {s} is the word as a subject, {w} the bare word. These templates are part of the held-out
# keys: a change of one letter would move the hold-out. What stands twice is asked twice as often.
DEFINE = [
    "What is {s}?",
    "What is {s}?",
    "Define {w}.",
    "Define the word {w}.",
    "What does {w} mean?",
    "Tell me what {s} is.",
    "What does the word {w} mean?",
    "Explain the word {w}.",
    "Can you tell me what {s} is?",
    "What's {s}?",
    "Do you know what {s} is?",
]
KINDS = sorted(set(CATEGORIES.values()))
# Common words whose gloss repeats the word, so that the automatic choice left them out.
LATE_WORDS = read_table("late_words.tsv")


def a_kind(category: str) -> str:
    return category if category == "food" else with_article(category)


def define(rng: Random, word: str, subject: str, definition: str) -> Turn:
    template = rng.choice(DEFINE)
    return template.format(s=subject, w=word), definition, f"def:{word}:{template}"


def dictionary(rng: Random) -> Turn:
    entry = rng.choice(DICTIONARY)
    return define(rng, entry.word, entry.subject, entry.definition)


def late(rng: Random) -> Turn:
    return define(rng, *rng.choice(LATE_WORDS))


def category(rng: Random) -> Turn:
    word, kind, subject, _ = rng.choice(DICTIONARY)
    truth = f"{subject} is {a_kind(kind)}."
    if rng.random() < 0.3:
        return f"What kind of thing is {subject}?", capitalized(truth), f"kind:{word}"
    asked = kind if rng.random() < 0.5 else rng.choice([k for k in KINDS if k != kind])
    answer = f"{'Yes' if asked == kind else 'No'}, {truth}"
    return f"Is {subject} {a_kind(asked)}?", answer, f"is:{word}:{asked}"


def refuse_word(question: str, word: str) -> Turn:
    return question, f"{SORRY}I do not know the word {word}.", "unk:" + word


def unknown_common(rng: Random) -> Turn:
    """Frequent words that are not taught: the model should say so."""
    word = rng.choice(UNTAUGHT)
    template = rng.choice(DEFINE)
    subject = with_article(word) if rng.random() < 0.5 else word
    return refuse_word(template.format(s=subject, w=word), word)
