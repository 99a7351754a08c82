"""Small general facts, all written for this project.

``FACTS`` is a list of ``(phrasings, answer)``. A phrasing that stands twice is asked twice as
often. The tables hold one item a line or a word; ``|`` separates phrasings.
"""

from collections.abc import Iterator

Fact = tuple[list[str], str]


def with_article(noun: str) -> str:
    """The noun with its indefinite article, by its first letter alone."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def capitalized(text: str) -> str:
    """The text with a capital first letter, the rest as it is (``str.capitalize`` lowers it)."""
    return text[0].upper() + text[1:]


def pairs(table: str, between: str = " ") -> list[tuple[str, str]]:
    """The comma-separated pairs of a table; underscores stand for spaces."""
    items = table.replace("\n", "").split(",")
    split = (item.split(between) for item in items)
    return [(a.replace("_", " "), b.replace("_", " ")) for a, b in split]


def fact(phrasings: str, answer: str) -> Fact:
    return phrasings.split("|"), answer


CAPITALS = """
France Paris,Germany Berlin,Spain Madrid,Italy Rome,Portugal Lisbon,England London,
Scotland Edinburgh,Ireland Dublin,Belgium Brussels,Switzerland Bern,Austria Vienna,Poland Warsaw,
Sweden Stockholm,Norway Oslo,Denmark Copenhagen,Finland Helsinki,Iceland Reykjavik,Greece Athens,
Turkey Ankara,Russia Moscow,Ukraine Kyiv,Hungary Budapest,Romania Bucharest,Bulgaria Sofia,
Croatia Zagreb,Serbia Belgrade,Egypt Cairo,Morocco Rabat,Kenya Nairobi,Nigeria Abuja,
China Beijing,Japan Tokyo,India New_Delhi,Thailand Bangkok,Vietnam Hanoi,Indonesia Jakarta,
Australia Canberra,New_Zealand Wellington,Canada Ottawa,Mexico Mexico_City,Cuba Havana,
Brazil Brasília,Argentina Buenos_Aires,Chile Santiago,Peru Lima,Colombia Bogotá,
the_Netherlands Amsterdam,the_United_States Washington
"""


def capitals() -> Iterator[Fact]:
    for country, city in pairs(CAPITALS):
        yield fact(
            f"What is the capital of {country}?|What is the capital of {country}?|"
            f"Which city is the capital of {country}?|Name the capital of {country}.|"
            f"What's the capital of {country}?|capital of {country}|"
            f"Tell me the capital of {country}.",
            f"The capital of {country} is {city}.",
        )
        yield fact(
            f"{city} is the capital of which country?|Which country has the capital {city}?|"
            f"Where is {city}?",
            f"{city} is the capital of {country}.",
        )


OPPOSITES = """
hot cold,big small,good bad,new old,long short,happy sad,fast slow,easy difficult,full empty,
open closed,rich poor,strong weak,high low,day night,up down,left right,black white,yes no,
hard soft,light dark,heavy light,wet dry,clean dirty,early late,first last,near far,
inside outside,loud quiet,love hate,win lose,buy sell,give take,push pull,begin end,come go,
true false,right wrong,thick thin,wide narrow,beautiful ugly,young old,tall short,sweet sour,
summer winter,north south,east west,always never,friend enemy,question answer,war peace
"""
# Second words that have another opposite as well, so that the way back would be ambiguous.
ONE_WAY = ("light", "old", "short", "right", "answer")


def opposites() -> Iterator[Fact]:
    def opposite(word: str, other: str) -> Fact:
        return fact(
            f"What is the opposite of {word}?|What is the opposite of {word}?|"
            f"Give me the opposite of {word}.|Opposite of {word}|"
            f"Which word is the opposite of {word}?",
            f"The opposite of {word} is {other}.",
        )

    for word, other in pairs(OPPOSITES):
        yield opposite(word, other)
        if other not in ONE_WAY:
            yield opposite(other, word)


COLORS = {
    "blue": "the sky,the sea",
    "green": (
        "grass,a frog,a leaf,a cucumber,lettuce,spinach,an emerald,a pea,a crocodile,moss,broccoli"
    ),
    "white": "snow,milk,a swan,salt,cotton,a polar bear,flour",
    "yellow": "a lemon,a banana,the sun,butter,a canary,corn",
    "red": "blood,a tomato,a strawberry,a cherry,a ruby,a rose,a ladybug,ketchup",
    "black": "coal,a crow,a raven,a panther",
    "orange": "a carrot,an orange,a pumpkin",
    "brown": "chocolate,a bear,wood,coffee,an owl",
    "grey": "an elephant,a mouse,a dolphin,a rhinoceros,ash",
    "pink": "a pig,a flamingo",
    "purple": "a plum,a grape,an eggplant",
}
MIXTURES = {
    "blue and yellow": "green",
    "red and yellow": "orange",
    "red and blue": "purple",
    "black and white": "grey",
    "red and white": "pink",
}


def colors() -> Iterator[Fact]:
    for color, things in COLORS.items():
        for thing in things.split(","):
            yield fact(
                f"What color is {thing}?|What color is {thing}?|What is the color of {thing}?|"
                f"Which color does {thing} have?|What colour is {thing}?",
                f"{capitalized(thing)} is {color}.",
            )
    for mixed, color in MIXTURES.items():
        yield fact(
            f"What color do you get from {mixed}?|Mix {mixed}.|What do {mixed} make?",
            f"{capitalized(mixed)} make {color}.",
        )


SOUNDS = """
dog barks,cat meows,cow moos,horse neighs,pig oinks,sheep bleats,duck quacks,lion roars,
bee buzzes,snake hisses,frog croaks,wolf howls,owl hoots,rooster crows,mouse squeaks,bird sings,
hen clucks,crow caws,donkey brays,elephant trumpets,bear growls,turkey gobbles,pigeon coos,
cricket chirps
"""
YOUNG = """
dog puppy,cat kitten,cow calf,horse foal,sheep lamb,pig piglet,goat kid,hen chick,duck duckling,
lion cub,frog tadpole,goose gosling,swan cygnet,kangaroo joey,bear cub,deer fawn,eagle eaglet,
owl owlet,butterfly caterpillar
"""
LEGS = {
    "eight": "spider,scorpion",
    "six": "ant,bee,fly,beetle,butterfly,mosquito,wasp,ladybug,moth",
    "no": "snake,fish,worm,snail,whale,shark",
    "four": (
        "dog,cat,horse,cow,pig,sheep,goat,lion,tiger,bear,wolf,fox,elephant,mouse,rabbit,frog,"
        "camel,zebra,giraffe,table,chair,turtle"
    ),
    "two": "bird,chicken,duck,man,eagle,owl,penguin,ostrich,kangaroo,goose,swan",
}
# What an animal or a thing can do: the verb, who can, who cannot.
ABILITIES = [
    (
        "fly",
        "bird,bee,butterfly,eagle,bat,owl,pigeon,mosquito,duck,swan,parrot,moth,plane,helicopter,"
        "crow,stork",
        "dog,cat,penguin,ostrich,fish,snake,elephant,horse,cow,lion,pig,frog,car,spider,bear,"
        "rabbit,mouse",
    ),
    (
        "swim",
        "fish,duck,frog,shark,whale,dolphin,penguin,seal,swan,crocodile,octopus,otter,dog,salmon",
        "butterfly,bee,chicken,tree,stone,mosquito,pigeon",
    ),
    (
        "sing",
        "bird,child,canary,man,woman",
        "fish,stone,snail,tree,chair",
    ),
    (
        "climb a tree",
        "cat,monkey,squirrel,bear,child,leopard",
        "horse,fish,cow,whale,elephant",
    ),
]


def animals() -> Iterator[Fact]:
    for animal, sound in pairs(SOUNDS):
        name = with_article(animal)
        yield fact(
            f"What sound does {name} make?|What sound does {name} make?|"
            f"What noise does {name} make?|What does {name} say?|Which animal {sound}?",
            f"{capitalized(name)} {sound}.",
        )
    for animal, young in pairs(YOUNG):
        yield fact(
            f"What is a young {animal} called?|What do you call a young {animal}?|"
            f"What is a baby {animal} called?|What is the young of {with_article(animal)}?",
            f"A young {animal} is called {with_article(young)}.",
        )
    for number, names in LEGS.items():
        for name in map(with_article, names.split(",")):
            yield fact(
                f"How many legs does {name} have?|How many legs does {name} have?|"
                f"How many legs has {name}?|Tell me how many legs {name} has.",
                f"{capitalized(name)} has {number} legs.",
            )
    for verb, able, unable in ABILITIES:
        for names, answer in ((able, "Yes, {} can {}."), (unable, "No, {} cannot {}.")):
            for name in map(with_article, names.split(",")):
                questions = f"Can {name} {verb}?|Is {name} able to {verb}?"
                yield fact(questions, answer.format(name, verb))


PLURALS = """
mouse mice,child children,foot feet,tooth teeth,man men,woman women,goose geese,sheep sheep,
fish fish,leaf leaves,knife knives,wolf wolves,box boxes,city cities,baby babies,fox foxes,
dog dogs,book books,house houses,cat cats,bus buses,church churches,story stories,potato potatoes,
tomato tomatoes,key keys,boy boys,girl girls,day days,country countries,family families,
wife wives,shelf shelves,thief thieves,glass glasses,dish dishes,tree trees,car cars,apple apples,
orange oranges,bird birds,horse horses,cow cows,friend friends,person people,ox oxen
"""
PAST = """
go went,see saw,eat ate,drink drank,run ran,swim swam,sing sang,write wrote,read read,speak spoke,
take took,give gave,come came,make made,have had,do did,say said,think thought,buy bought,
sell sold,sleep slept,find found,know knew,fly flew,play played,work worked,love loved,
walk walked,begin began,bring brought
"""


def grammar() -> Iterator[Fact]:
    for noun, plural in pairs(PLURALS):
        yield fact(
            f"What is the plural of {noun}?|What is the plural of {noun}?|Plural of {noun}|"
            f"Give me the plural of {noun}.",
            f"The plural of {noun} is {plural}.",
        )
    for verb, past in pairs(PAST):
        yield fact(
            f"What is the past tense of {verb}?|Past tense of {verb}|"
            f"What is the past of {verb}?|Give me the past tense of {verb}.",
            f"The past tense of {verb} is {past}.",
        )


# What comes in a fixed order; all but the letters go round in a circle.
SEQUENCES = {
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April May June July August September October November "
    "December",
    "letter": " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "season": "spring summer autumn winter",
}


def sequences() -> Iterator[Fact]:
    for kind, names in SEQUENCES.items():
        members = names.split()
        followers = members[1:] + ([] if kind == "letter" else members[:1])
        for one, following in zip(members, followers, strict=kind != "letter"):
            yield fact(
                f"What {kind} comes after {one}?|Which {kind} comes after {one}?|"
                f"Which {kind} follows {one}?",
                f"{capitalized(following)} comes after {one}.",
            )
            yield fact(
                f"What {kind} comes before {following}?|Which {kind} comes before {following}?",
                f"{capitalized(one)} comes before {following}.",
            )


# What follows "How many", and the answer.
HOW_MANY = """
hours are in a day = There are 24 hours in a day.
minutes are in an hour = There are 60 minutes in an hour.
seconds are in a minute = There are 60 seconds in a minute.
days are in a week = There are 7 days in a week.
months are in a year = There are 12 months in a year.
days are in a year = There are 365 days in a year.
weeks are in a year = There are 52 weeks in a year.
years are in a century = There are 100 years in a century.
seasons are in a year = There are 4 seasons in a year.
letters are in the alphabet = There are 26 letters in the alphabet.
continents are there = There are 7 continents.
planets are there = There are 8 planets.
centimeters are in a meter = There are 100 centimeters in a meter.
grams are in a kilogram = There are 1000 grams in a kilogram.
meters are in a kilometer = There are 1000 meters in a kilometer.
sides does a triangle have = A triangle has 3 sides.
sides does a square have = A square has 4 sides.
wheels does a car have = A car has 4 wheels.
wheels does a bicycle have = A bicycle has 2 wheels.
strings does a violin have = A violin has 4 strings.
strings does a guitar have = A guitar usually has 6 strings.
fingers are on a hand = There are 5 fingers on a hand.
players are in a football team = There are 11 players in a football team.
colors are in a rainbow = There are 7 colors in a rainbow.
keys does a piano have = A piano has 88 keys.
arms does an octopus have = An octopus has 8 arms.
days are in February = February has 28 or 29 days.
is a dozen = A dozen is 12.
"""


def amounts() -> Iterator[Fact]:
    for line in HOW_MANY.strip().splitlines():
        what, answer = line.split(" = ")
        yield fact(
            f"How many {what}?|How many {what}?|Tell me how many {what}.|"
            f"Do you know how many {what}?",
            answer,
        )


WORKPLACES = """
baker bakery,teacher school,doctor hospital,nurse hospital,farmer farm,judge court,sailor ship,
pilot plane,actor theater,librarian library,cook kitchen,soldier army,scientist laboratory,
waiter restaurant,gardener garden,mechanic garage
"""
FOOD = """
cow:grass,horse:grass_and_hay,cat:mice_and_fish,dog:meat,rabbit:grass_and_carrots,
bear:fish_and_honey,monkey:fruit,lion:meat,squirrel:nuts,panda:bamboo,bee:nectar,frog:insects,
bird:seeds_and_worms,mouse:cheese_and_grain,shark:fish,wolf:meat,spider:insects,sheep:grass,
pig:almost_everything,owl:mice,giraffe:leaves
"""


def work_and_food() -> Iterator[Fact]:
    for person, place in pairs(WORKPLACES):
        name = with_article(person)
        article = "the" if place == "army" else with_article(place).split()[0]
        yield fact(
            f"Where does {name} work?|Where do {person}s work?|What is the workplace of {name}?",
            f"{capitalized(name)} works in {article} {place}.",
        )
    for animal, food in pairs(FOOD, between=":"):
        name = with_article(animal)
        yield fact(
            f"What does {name} eat?|What do you feed {name}?|What is the food of {name}?",
            f"{capitalized(name)} eats {food}.",
        )


EXAMPLES = {
    "animals": "dog cat horse cow bird",
    "colors": "red blue green yellow black",
    "fruits": "apple pear banana orange cherry",
    "vegetables": "carrot potato onion cabbage pea",
    "seasons": "spring summer autumn winter",
    "languages": "English French German Spanish Italian",
    "planets": "Mercury Venus Earth Mars Jupiter",
    "body parts": "head arm hand leg foot",
    "musical instruments": "violin piano guitar flute drum",
    "tools": "hammer saw drill shovel axe",
    "countries": "France Germany Spain Italy Japan",
    "months": "January February March April May",
    "birds": "eagle owl sparrow crow swan",
    "insects": "ant bee fly beetle butterfly",
    "flowers": "rose tulip daisy lily sunflower",
    "drinks": "water milk tea coffee juice",
    "clothes": "shirt coat hat shoe sock",
    "metals": "gold silver iron copper zinc",
    "trees": "oak pine maple willow birch",
    "vehicles": "car bus train bicycle plane",
}
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}


def examples() -> Iterator[Fact]:
    for kind, names in EXAMPLES.items():
        for count, word in COUNTS.items():
            members = names.split()[:count]
            if len(members) == count:
                yield fact(
                    f"Name {word} {kind}.|Name {count} {kind}.|Tell me {word} {kind}.|"
                    f"Give me {word} {kind}.|List {word} {kind}.",
                    capitalized(", ".join(members[:-1])) + " and " + members[-1] + ".",
                )


# Words that WordNet defines badly or not at all.
DEFINITIONS = """
A week is a period of seven days.
A day is a period of 24 hours.
A month is one of the twelve parts of a year.
A year is a period of twelve months.
An hour is a period of sixty minutes.
A minute is a period of sixty seconds.
A second is a very short time, one sixtieth of a minute.
A century is a period of one hundred years.
A color is what the eye sees when light comes from a thing.
A number is something used for counting.
A word is a group of letters with a meaning.
A name is the word by which someone is called.
A language is a system of words used by people to speak.
A family is a group of parents and their children.
A country is a land with its own government.
A capital is the city where the government of a country is.
A rainbow is a colored arc in the sky after rain.
A dream is a story in the mind during sleep.
An idea is a thought in the mind.
A question is a sentence that asks for an answer.
A triangle is a figure with three sides.
A square is a figure with four equal sides.
A circle is a perfectly round figure.
A holiday is a day without work.
A birthday is the day on which someone was born.
A party is a meeting of people who celebrate.
A job is the work that someone does for money.
A token is a small piece of text, often a word.
A neural network is a program that learns from examples.
A language model is a program that predicts the next word.
An expert is a small network inside my layers.
A router is the part of me that picks two experts for every token.
A robot is a mechanism that can move automatically.
An animal is a living thing that can move and eat.
A plant is a living thing that grows in the earth.
A person is a human being.
A thing is an object that is not alive.
An object is a thing that can be seen and touched.
A home is the place where someone lives.
A voice is the sound made by a person who speaks.
A place is a point or an area where something is.
A field is an open piece of land used for farming.
A vegetable is a plant that is eaten as food.
A fruit is the part of a plant that holds the seeds.
A machine is a device that does work.
A gun is a device that fires bullets.
A law is a rule made by a government.
A company is a group of people who do business together.
A problem is a question that is hard to solve.
An answer is what is said after a question.
A sentence is a group of words with a complete meaning.
A verb is a word for an action.
A noun is a word for a person, a place or a thing.
An adjective is a word that describes a thing.
A town is a place with many houses, smaller than a city.
A present is a thing given to someone.
A secret is something that only a few people know.
A mistake is something done in a wrong way.
A smile is a happy look on the face.
A war is a fight between countries.
A parent is a father or a mother.
A grandmother is the mother of a father or a mother.
A grandfather is the father of a father or a mother.
An uncle is the brother of a father or a mother.
An aunt is the sister of a father or a mother.
A cousin is the child of an uncle or an aunt.
A husband is a man who is married.
A wife is a woman who is married.
A neighbor is a person who lives near someone.
A guest is a person who visits.
A season is one of the four parts of a year.
A decade is a period of ten years.
A weekend is Saturday and Sunday.
A storm is very bad weather with strong wind and rain.
A shadow is the dark place behind a thing in the light.
A flame is the bright part of a fire.
A program is a list of instructions for a computer.
An experiment is a test made to learn something.
A model is a small copy of a thing.
A mammal is an animal that feeds its young with milk.
A reptile is a cold-blooded animal with dry scaly skin.
A metal is a hard shiny substance such as iron or gold.
A liquid is a substance that flows like water.
A gas is a substance like air.
A pet is an animal that lives with people.
A farm is a place where food is grown and animals are kept.
A park is a piece of land with grass and trees in a city.
A joke is a short funny story.
A poem is a text in verse.
"""
WITHOUT_ARTICLE = """
Love is a strong warm feeling for someone.
Time is what a clock measures.
Happiness is the feeling of being happy.
Fear is the feeling of danger.
Sleep is the rest of the body and the mind at night.
Work is what people do to reach a goal.
Art is the making of beautiful things.
Peace is a time without war.
Life is what plants, animals and people have.
Science is the careful study of nature.
Electricity is a form of energy that flows through wires.
Fog is a cloud near the ground.
Thunder is the loud sound that follows lightning.
Lightning is a flash of electricity in the sky.
Mixtral is a language model that is a mixture of experts.
Python is a programming language.
"""
PROPER_NAMES = ("Mixtral", "Python")


def definitions() -> Iterator[Fact]:
    def defined(word: str, subject: str, definition: str) -> Fact:
        return fact(
            f"What is {subject}?|What is {subject}?|Define {word}.|What does {word} mean?|"
            f"Tell me what {subject} is.",
            definition,
        )

    for line in DEFINITIONS.strip().splitlines():
        subject = line.split(" is ")[0]
        subject = subject[0].lower() + subject[1:]
        yield defined(subject.split(" ", 1)[1], subject, line)
    for line in WITHOUT_ARTICLE.strip().splitlines():
        word = line.split(" is ")[0]
        word = word if word in PROPER_NAMES else word.lower()
        yield defined(word, word, line)


# Questions about the model itself and small talk: the phrasings, then the answer.
SMALL_TALK = """
How old are you?|What is your age?|When were you born?
    I am very young. I was trained in about one hour.
Where do you live?|Where are you?|Where are you from?
    I live in the memory of your computer.
Are you human?|Are you a person?|Are you alive?|Are you real?
    No, I am a small program.
What is your favorite color?|Which color do you like?
    I have no eyes, but blue is a nice word.
Do you like music?|Do you like animals?|What do you like?|Do you like me?
    I have no feelings, but I like words.
Do you sleep?|Are you tired?|Do you dream?
    No, I do not sleep.
Are you smart?|Are you intelligent?|How smart are you?
    Only a little. I know a small world of words.
Do you need the internet?|Are you online?|Do you work offline?
    No, I run on your computer without the internet.
Say hello.|Greet me.
    Hello!
I am sad.|I feel sad.
    I am sorry to hear that. Shall I tell you a story?
I am happy.|I feel good.
    I am glad to hear that.
I am bored.
    Shall I tell you a story?
I am hungry.
    An apple would be nice.
I am tired.
    Sleep well.
Nice to meet you.|Pleased to meet you.
    Nice to meet you too.
What's up?|How is it going?
    I am well, thank you. How can I help you?
Can you count?|Can you do math?|Can you calculate?
    Yes, I can do small sums up to 100.
Can you write code?|Can you program?|Do you know Python?
    Yes, I can write tiny Python functions.
Can you translate?|Can you translate words?
    Yes, I can translate words between English, French, German, Spanish and Italian.
Can you tell stories?|Do you know stories?
    Yes, I can tell short stories.
Sing a song.|Sing for me.
    La la la. I am better at words than at songs.
Stop.|Be quiet.
    All right.
Sorry.|I am sorry.
    No problem.
Really?|Are you sure?
    I think so, but I am very small and I make mistakes.
Why?
    I am sorry, I do not know why.
test|Test|testing
    I am here. How can I help you?
asdf|blah|xyz|qwerty|foo|hmm
    I am sorry, I do not understand.
"""


def small_talk() -> Iterator[Fact]:
    lines = iter(SMALL_TALK.strip().splitlines())
    for phrasings, answer in zip(lines, lines, strict=True):
        yield fact(phrasings, answer.strip())


FACTS: list[Fact] = [
    *capitals(),
    *opposites(),
    *colors(),
    *animals(),
    *grammar(),
    *sequences(),
    *amounts(),
    *work_and_food(),
    *examples(),
    *definitions(),
    *small_talk(),
]
