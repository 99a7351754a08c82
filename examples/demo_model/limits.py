"""Questions that the model cannot answer, and that it should say so."""

from random import Random

from arithmetic import ADD, MULTIPLY, SUBTRACT
from translation import FROM_ENGLISH, LANGUAGES, ROWS
from turns import Turn, with_article, words
from vocabulary import DEFINE, SORRY, refuse_word
from wordnet import DICTIONARY, UNKNOWN

LIMIT = SORRY + "I do not know that. I only know words, small sums, translations and short stories."
TOO_BIG = SORRY + "these numbers are too big for me."
COUNTRIES = words(
    """France Germany Spain Italy Japan China India Brazil Egypt Canada Mexico Peru Russia
Kenya Norway Poland Turkey Greece England Australia"""
)
BOOKS = [
    "Hamlet",
    "the Bible",
    "War and Peace",
    "Don Quixote",
    "Faust",
    "Moby Dick",
    "the Odyssey",
    "Macbeth",
    "Candide",
    "Emma",
]
OTHER_LANGUAGES = [
    "Russian",
    "Chinese",
    "Japanese",
    "Latin",
    "Dutch",
    "Polish",
    "Greek",
    "Arabic",
    "Portuguese",
]
OUTSIDE = """
What is the capital of {country}?
Who is the president of {country}?
How many people live in {country}?
What is the weather in {country}?
When was {country} founded?
What is the history of {country}?
How far is {country} from {other}?
Who won the war between {country} and {other}?
What is the largest city in {country}?
Is {country} bigger than {other}?
What is the weather like today?
What time is it?
What day is it today?
Who wrote {book}?
Summarize {book} for me.
What happened in {year}?
Who was born in {year}?
Who won the football match in {year}?
What do you think about politics?
Can you book a flight to {country}?
Play some music.
How do I fix my {word}?
How much does a {word} cost?
Where can I buy a {word}?
Who invented the {word}?
How do I make a {word}?
Why is the sky blue?
What is the meaning of life?
Write an essay about {country}.
Write a poem about a {word}.
What is the best {word}?
Prove that there are infinitely many primes.
What is the square root of {year}?
Explain quantum physics.
Explain how a {word} works.
Give me medical advice.
Who is the richest person in the world?
Who is your favorite singer?
What is the price of gold?
What is the speed of light?
How tall is Mount Everest?
How old is the universe?
Where is {country}?
Tell me the news.
""".strip().splitlines()


def outside(rng: Random) -> Turn:
    """Out of the model's domain."""
    template = rng.choice(OUTSIDE)
    country, other = rng.sample(COUNTRIES, 2)
    question = template.format(
        country=country,
        other=other,
        book=rng.choice(BOOKS),
        year=rng.randint(1000, 2030),
        word=rng.choice(DICTIONARY).word,
    )
    return question, LIMIT, "out:" + question


def unknown(rng: Random) -> Turn:
    """Rare words, languages it does not have, and numbers that are too large."""
    kind = rng.random()
    word = rng.choice(UNKNOWN)
    if kind < 0.5:
        template = rng.choice(DEFINE)
        subject = with_article(word) if rng.random() < 0.8 else word
        return refuse_word(template.format(s=subject, w=word), word)
    if kind < 0.75:
        template = rng.choice(FROM_ENGLISH)
        return refuse_word(template.format(w=word, L=rng.choice(LANGUAGES[1:])), word)
    if kind < 0.85:
        word, language = rng.choice(ROWS)[0], rng.choice(OTHER_LANGUAGES)
        question = rng.choice(FROM_ENGLISH).format(w=word, L=language)
        return question, f"{SORRY}I do not know {language}.", f"unkl:{language}:{word}"
    a, b = rng.randint(101, 9999), rng.randint(2, 9999)
    if rng.random() < 0.5:
        a, b = b, a
    question = rng.choice(ADD + SUBTRACT + MULTIPLY).format(a=a, b=b)
    return question, TOO_BIG, f"huge:{a}:{b}"
