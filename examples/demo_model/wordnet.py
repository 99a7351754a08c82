"""The dictionary of the demo model: nouns with one short definition each.

Source: WordNet 3.0 (``wordnet-base`` of Debian; the environment variable ``WORDNET`` names
its folder), our own ``definitions.tsv`` where a gloss does not read well, and the words of
``common_words.txt`` and of the first column of ``translations.tsv`` as the choice of words.
"""

import os
import re
from pathlib import Path
from random import Random
from typing import NamedTuple

from facts import FACTS
from turns import capitalized, with_article, words

HERE = Path(__file__).resolve().parent
WORDNET = Path(os.environ.get("WORDNET", "/usr/share/wordnet"))

# WordNet's lexicographer files of nouns that are easy to picture.
PERSON = 18
CATEGORIES = {
    5: "animal",
    6: "object",
    8: "body part",
    13: "food",
    17: "natural object",
    PERSON: "person",
    20: "plant",
    27: "substance",
}
SENSES_TO_TRY = 5
UNKNOWN_WORDS = 6000  # rare nouns that serve as examples of words the model does not know
LONGEST_DEFINITION, CUT_DEFINITION_AT = 95, 78  # characters

PEOPLE = set(
    words("""
    man woman child boy girl mother father brother sister son daughter friend king queen doctor
    farmer teacher student baker butcher carpenter dentist nurse pilot sailor soldier tailor
    painter poet lawyer judge baby
    """)
)
# Words of translations.tsv that are no nouns, or better known as something else.
NOT_NOUNS = set(
    words("""
    one two three four five six seven eight nine ten red blue green yellow black white brown grey
    small good bad young short sweet empty no to big new old long hot cold open closed full rich
    poor light orange-colored
    """)
)
# WordNet's most frequent sense of these is another one than the one they are known for.
KNOWN_AS = {
    5: words("""
        chicken duck lobster salmon fish goat lamb turkey crab octopus goose snail whale seal bear
        lion tiger mouse fox wolf worm horse cow pig sheep rabbit bat frog toad owl crow rat
    """),
    13: words("""
        cake cheese butter bread egg meat apple pear orange lemon cherry strawberry grape potato
        tomato onion carrot rice soup chocolate banana peach plum apricot pineapple mango coconut
        pepper beer wine juice coffee tea corn pea bean pie jam ham
    """),
    20: words("""
        rose tulip daisy lily tree flower leaf oak pine maple willow cactus fern palm grass
    """),
    6: words("""
        letter picture window bridge church key glass plate cup lamp mirror door
    """),
    8: words("""
        head face eye ear nose mouth tongue tooth hair hand arm finger leg foot knee heart blood
        bone skin neck lip chin brain
    """),
    17: words("""
        star sun moon sky earth sea river lake mountain island beach planet ocean hill stone
    """),
    27: words("""
        gold silver iron steel copper sand oil silk wool cotton leather plastic cement paper water
        milk
    """),
}
BEST_KNOWN_AS = {word: number for number, nouns in KNOWN_AS.items() for word in nouns}
# Nouns that take no article.
MASS_NOUNS = set(
    words("""
    air bread water milk cheese butter meat salt sugar pepper coffee tea wine beer juice rice
    chocolate honey jam ham bacon spaghetti garlic corn lettuce spinach soap silver gold iron wood
    snow rain ice hair skin blood grass paper money music moss bamboo food beef pork flesh silk
    wool cotton leather flour fur hay fruit cream whiskey gin rum vodka brandy champagne wheat
    barley linen cloth ivory lace velvet hardware furniture clothing jewelry ammunition bile
    saliva sweat toast mustard oatmeal candy broccoli celery cauliflower asparagus popcorn vinegar
    mayonnaise cinnamon vanilla mint basil oregano parsley parsnip livestock dough lemonade armor
    clothing yogurt transport ivy fruit ash
    """)
)
SEASONS = ("summer", "autumn", "winter", "spring")
COUNTABLE_SUBSTANCES = ("fiber", "poison", "drink")
THE_ONLY_ONE = ("sun", "moon", "sky", "sea", "earth", "world", "universe", "equator")
PLURAL_WORDS = ("scissors",)
RUDE = re.compile(
    r"sex|genital|breast|excre|urin|feces|anus|penis|vagina|nude|naked|prostitut|slave|negro|nazi|"
    r"kill|execut|drug|opium|alcohol|offensive|slang|inhabitant|derogat|obscene|intercourse|copulat|"
    r"toilet|buttock|rectum|menstru|scrot|crotch|weapon|racial|caucas|slur|disparag|vulva|concubine|"
    r"harem"
)
# A gloss that starts with one of these needs no article of its own.
DETERMINERS = set(
    words("""
    a an the any one something someone either each all what that informal
    """)
)
UNCOUNTED_START = re.compile(
    r"a (footwear|clothing|bedding|jewelry|cutlery|flesh|equipment)|"
    r"an (equipment|everything|usually)"
)


class Entry(NamedTuple):
    """A word, its category, the word as a subject ("a dog", "the sun") and its definition."""

    word: str
    category: str
    subject: str
    definition: str


class WordNet(NamedTuple):
    """What is read of WordNet's noun files: by offset the gloss and the lexicographer file,
    by lemma the offsets of its senses and how often it was tagged in a text."""

    glosses: dict[str, str]
    files: dict[str, int]
    senses: dict[str, list[str]]
    counts: dict[str, int]


def read_table(name: str) -> list[list[str]]:
    """The rows of one of our tab-separated tables; lines with # are comments."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def read_wordnet(folder: Path) -> WordNet:
    glosses, files, senses, counts = {}, {}, {}, {}
    for line in data_lines(folder / "data.noun"):
        head, gloss = line.split(" | ", 1)
        offset, number = head.split(" ", 2)[:2]
        glosses[offset], files[offset] = gloss.strip(), int(number)
    for line in data_lines(folder / "cntlist.rev"):
        key, _, count = line.split()
        lemma, sense = key.split("%")
        if sense[0] == "1":  # a noun
            counts[lemma] = counts.get(lemma, 0) + int(count)
    for line in data_lines(folder / "index.noun"):
        fields = line.split()
        senses[fields[0]] = fields[-int(fields[2]) :]
    return WordNet(glosses, files, senses, counts)


def data_lines(path: Path) -> list[str]:
    """The lines of a WordNet file without its licence, which is indented."""
    lines = path.read_text(encoding="latin1").split("\n")
    return [line for line in lines if line and line[0] != " "]


def short_gloss(gloss: str) -> str | None:
    """The first clause of a gloss, without brackets; None when it does not read well."""
    text = re.sub(r"\s*\([^)]*\)", "", gloss.split("; ")[0].split(' "')[0])
    text = text.strip(" ;:.").replace("`", "").replace("''", "")
    if len(text) > CUT_DEFINITION_AT:
        joints = re.finditer(r", | that | with | which | used | and ", text)
        cuts = [joint.start() for joint in joints if 20 < joint.start() <= CUT_DEFINITION_AT]
        text = text[: cuts[-1]] if cuts else text
    plain = re.fullmatch(r"[a-zA-Z ,'-]+", text)
    if not 12 <= len(text) <= LONGEST_DEFINITION or not plain or RUDE.search(gloss.lower()):
        return None
    return text


def is_plural(noun: str) -> bool:
    return noun.endswith("s") and not noun.endswith(("ss", "us", "is"))


def own_entry(word: str, category: str, definition: str) -> Entry:
    """An entry of definitions.tsv."""
    plural = word in PLURAL_WORDS
    mass = plural or word in MASS_NOUNS or word in SEASONS or category == "substance"
    subject = as_subject(word, mass)
    verb = "are" if plural else "is"
    return Entry(word, category, subject, f"{capitalized(subject)} {verb} {definition}.")


def as_subject(word: str, mass: bool) -> str:
    if word in THE_ONLY_ONE:
        return "the " + word
    return word if mass else with_article(word)


def wordnet_entry(word: str, wordnet: WordNet) -> Entry | None:
    """The entry of the first sense that is easy to picture and reads well, if there is one."""
    senses = [
        offset
        for offset in wordnet.senses[word][:SENSES_TO_TRY]
        if wordnet.files[offset] in CATEGORIES
        and (wordnet.files[offset] != PERSON or word in PEOPLE)
    ]
    # An animal is the animal before its meat or its nickname.
    senses.sort(key=lambda offset: wordnet.files[offset] != BEST_KNOWN_AS.get(word))
    glosses = ((offset, short_gloss(wordnet.glosses[offset])) for offset in senses)
    offset, gloss = next((found for found in glosses if found[1]), (None, None))
    if not gloss or RUDE.search(word) or is_plural(word):
        return None
    category = CATEGORIES[wordnet.files[offset]]
    substance = category == "substance" and word not in COUNTABLE_SUBSTANCES
    mass = word in MASS_NOUNS or substance
    gloss = with_determiner(gloss, mass)
    # No definition by the word itself, and none that became "a clothing".
    if not gloss or re.search(rf"\b{word}\b", gloss) or UNCOUNTED_START.match(gloss):
        return None
    subject = as_subject(word, mass)
    return Entry(word, category, subject, f"{capitalized(subject)} is {gloss}.")


def with_determiner(gloss: str, mass: bool) -> str | None:
    """The gloss as it stands after "is"; None where it would be a plural after a singular."""
    if gloss.split()[0] in DETERMINERS:
        return gloss
    lead = re.split(r" of | that | with | or | having | in | for | used | on | to |,", gloss)[0]
    plural = is_plural(lead.split()[-1])
    if plural and not mass:  # "A bird is warm-blooded vertebrates": not English
        return None
    if re.match(r"\w+est |highest |largest |main |central ", gloss):
        return "the " + gloss
    return gloss if mass or plural else with_article(gloss)


def dictionary_entries(wordnet: WordNet) -> list[Entry]:
    own = {word: rest for word, *rest in read_table("definitions.tsv")}
    translated = [row[0] for row in read_table("translations.tsv") if row[0] not in NOT_NOUNS]
    common = (HERE / "common_words.txt").read_text().split()
    nouns = [
        word
        for word in dict.fromkeys([*own, *translated, *common])
        if word in wordnet.senses or word in own
    ]
    found = (own_entry(w, *own[w]) if w in own else wordnet_entry(w, wordnet) for w in nouns)
    return [entry for entry in found if entry]


def unknown_words(wordnet: WordNet, taught: set[str]) -> list[str]:
    """Rare nouns: never tagged in a text, no people, nothing rude."""

    def is_rare(word: str) -> bool:
        first = wordnet.senses[word][0]
        return (
            bool(re.fullmatch(r"[a-z]{5,12}", word))
            and word not in taught
            and wordnet.counts.get(word, 0) == 0
            and not RUDE.search(word)
            and not RUDE.search(wordnet.glosses[first].lower())
            and wordnet.files[first] != PERSON
        )

    rare = [word for word in sorted(wordnet.senses) if is_rare(word)]
    Random(7).shuffle(rare)
    return rare[:UNKNOWN_WORDS]


def untaught_words(wordnet: WordNet, taught: set[str]) -> list[str]:
    """Frequent nouns that neither the dictionary nor the general facts explain."""
    answers = " ".join(answer for _, answer in FACTS)

    def is_untaught(word: str) -> bool:
        return (
            bool(re.fullmatch(r"[a-z]{3,11}", word))
            and word not in taught
            and wordnet.counts.get(word, 0) > 2
            and not RUDE.search(word)
            and not re.search(rf"\b{word}\b", answers, re.IGNORECASE)
        )

    untaught = filter(is_untaught, wordnet.senses)
    return sorted(untaught, key=lambda word: (-wordnet.counts[word], word))


def load() -> tuple[list[Entry], list[str], list[str]]:
    """The dictionary, the rare words and the frequent words that are not taught."""
    wordnet = read_wordnet(WORDNET)
    entries = dictionary_entries(wordnet)
    taught = {entry.word for entry in entries}
    return entries, unknown_words(wordnet, taught), untaught_words(wordnet, taught)


DICTIONARY, UNKNOWN, UNTAUGHT = load()
