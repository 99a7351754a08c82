"""Skills with numbers: sums, differences, products, quotients, counting and comparing.

Held out are the operands. A product is held out as an ordered pair: b x a may be seen.
"""

import re
from random import Random

from turns import Turn, held_out, words

NUMBER_WORDS = words(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen
fourteen fifteen sixteen seventeen eighteen nineteen twenty"""
)
ADD = [
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} = ?",
    "Add {a} and {b}.",
    "Calculate {a} + {b}.",
    "What is the sum of {a} and {b}?",
    "How much is {a} + {b}?",
]
SUBTRACT = [
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "How much is {a} minus {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} = ?",
    "Subtract {b} from {a}.",
    "Calculate {a} - {b}.",
    "Take {b} away from {a}.",
    "How much is {a} - {b}?",
]
MULTIPLY = [
    "What is {a} x {b}?",
    "What is {a} times {b}?",
    "How much is {a} times {b}?",
    "{a} * {b}",
    "{a}*{b}",
    "{a} x {b} = ?",
    "Multiply {a} by {b}.",
    "Calculate {a} * {b}.",
    "What is {a} multiplied by {b}?",
    "What is {a} * {b}?",
]
DIVIDE = [
    "What is {a} / {b}?",
    "What is {a} divided by {b}?",
    "{a} / {b}",
    "{a}/{b}",
    "Divide {a} by {b}.",
    "How much is {a} divided by {b}?",
    "Calculate {a} / {b}.",
]
THINGS = words("apples books coins eggs cookies balls pencils flowers stones stamps")
NAMES = {
    "girl": words("Lily Mia Anna Sue Rose Emma Zoe Kate"),
    "boy": words("Tom Ben Max Sam Jack Leo Dan Pip"),
}
BIGGEST_SUM, BIGGEST_FACTOR, BIGGEST_OPERAND = 100, 12, 999


def add(rng: Random, a: int, b: int) -> Turn:
    return rng.choice(ADD).format(a=a, b=b), f"{a} + {b} = {a + b}.", f"add:{a}+{b}"


def subtract(rng: Random, a: int, b: int) -> Turn:
    return rng.choice(SUBTRACT).format(a=a, b=b), f"{a} - {b} = {a - b}.", f"sub:{a}-{b}"


def multiply(rng: Random, a: int, b: int) -> Turn:
    return rng.choice(MULTIPLY).format(a=a, b=b), f"{a} x {b} = {a * b}.", f"mul:{a}*{b}"


def somebody(rng: Random) -> str:
    return rng.choice(NAMES[rng.choice(["girl", "boy"])])


def sums(rng: Random) -> Turn:
    """Sums and differences up to 100, some as a little story, and products up to 12 x 12."""
    operation = rng.choice("+++---*")
    if operation == "*":
        return multiply(rng, rng.randint(0, BIGGEST_FACTOR), rng.randint(0, BIGGEST_FACTOR))
    total = rng.randint(0, 20 if rng.random() < 0.3 else BIGGEST_SUM)
    a = rng.randint(0, total)
    b = total - a
    return some_addition(rng, a, b) if operation == "+" else some_subtraction(rng, total, a)


def fits_a_story(a: int, b: int) -> bool:
    return a >= 2 and b >= 2 and a + b <= 50


def some_addition(rng: Random, a: int, b: int) -> Turn:
    total, key, style = a + b, f"add:{a}+{b}", rng.random()
    if style < 0.1 and total <= 20:
        one, other, result = (NUMBER_WORDS[n] for n in (a, b, total))
        answer = f"{one.capitalize()} plus {other} is {result}."
        return f"What is {one} plus {other}?", answer, key + "w"
    if style < 0.2 and fits_a_story(a, b):
        name, things = somebody(rng), rng.choice(THINGS)
        question = f"{name} has {a} {things} and gets {b} more. How many {things} does {name} have?"
        return question, f"{a} + {b} = {total}, so {name} has {total} {things}.", key
    return add(rng, a, b)


def some_subtraction(rng: Random, total: int, a: int) -> Turn:
    rest = total - a
    if rng.random() < 0.15 and fits_a_story(a, rest):
        name, things = somebody(rng), rng.choice(THINGS)
        question = f"{name} has {total} {things} and gives away {a}. How many {things} are left?"
        answer = f"{total} - {a} = {rest}, so {name} has {rest} {things} left."
        return question, answer, f"sub:{total}-{a}"
    return subtract(rng, total, a)


SMALL_HELD_OUT = [
    (a, b)
    for a in range(11)
    for b in range(11)
    if any(map(held_out, (f"add:{a}+{b}", f"sub:{a + b}-{a}", f"mul:{a}*{b}")))
]


def small_sums(rng: Random) -> Turn:
    """Sums with numbers up to 10, the held-out ones too: nobody forgives a wrong 1 + 1."""
    if rng.random() < 0.5:
        a, b = rng.choice(SMALL_HELD_OUT)
    else:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
    operation = rng.choice("++-*")
    if operation == "+":
        turn = add(rng, a, b)
    else:
        turn = subtract(rng, a + b, a) if operation == "-" else multiply(rng, a, b)
    return turn[0], turn[1], ""


def big_sums(rng: Random) -> Turn:
    """Sums and differences of numbers up to 999, every third near 100."""
    near = rng.random() < 0.35
    if rng.random() < 0.55:
        return add(rng, *big_operands(rng, near))
    total = rng.randint(BIGGEST_SUM + 1, 200 if near else BIGGEST_OPERAND)
    return subtract(rng, total, rng.randint(0, total))


def big_operands(rng: Random, near: bool) -> tuple[int, int]:
    """Two numbers in any order with a sum above 100; the smaller one has 1 to 3 digits."""
    while True:
        a = rng.randint(0, 200 if near else BIGGEST_OPERAND)
        b = rng.randint(0, 10 ** rng.randint(1, 3) - 1)
        if rng.random() < 0.5:
            a, b = b, a
        if a + b > BIGGEST_SUM and not (near and a + b > 200):
            return a, b


def division(rng: Random) -> Turn:
    """Exact quotients: divisor up to 12, result up to 12."""
    b, result = rng.randint(1, BIGGEST_FACTOR), rng.randint(0, BIGGEST_FACTOR)
    a = b * result
    return rng.choice(DIVIDE).format(a=a, b=b), f"{a} / {b} = {result}.", f"div:{a}/{b}"


BIGGER = [
    "Which is bigger, {a} or {b}?",
    "Which number is larger, {a} or {b}?",
    "What is greater, {a} or {b}?",
]
SMALLER = ["Which is smaller, {a} or {b}?", "Which number is less, {a} or {b}?"]


def numbers(rng: Random) -> Turn:
    """Counting, comparing, the numbers before and after, even or odd; up to 100."""
    kind = rng.randrange(7)
    a, b = rng.sample(range(101), 2)
    if kind == 0:
        return count(rng)
    if kind <= 3:
        return compare(rng, kind, a, b)
    if kind == 4:
        a = rng.randint(0, 99)
        question = rng.choice(["What comes after {a}?", "Which number comes after {a}?"])
        return question.format(a=a), f"{a + 1} comes after {a}.", f"after:{a}"
    if kind == 5:
        a = rng.randint(1, 100)
        question = rng.choice(["What comes before {a}?", "Which number comes before {a}?"])
        return question.format(a=a), f"{a - 1} comes before {a}.", f"before:{a}"
    return f"Is {a} even or odd?", f"{a} is {'odd' if a % 2 else 'even'}.", f"parity:{a}"


def count(rng: Random) -> Turn:
    length = rng.randint(2, 9)
    start = rng.randint(1, 20) if rng.random() < 0.6 else 1
    upward = list(range(start, start + length))
    top = upward[-1]
    if rng.random() < 0.3:
        downward = ", ".join(map(str, reversed(upward))) + "."
        return f"Count down from {top} to {start}.", downward, f"down:{start}:{length}"
    short = start == 1 and rng.random() < 0.6
    question = f"Count to {top}." if short else f"Count from {start} to {top}."
    return question, ", ".join(map(str, upward)) + ".", f"count:{start}:{length}"


def counting(rng: Random) -> Turn:
    """Only the counting of ``numbers``: its longest answers."""
    while True:
        turn = numbers(rng)
        if turn[0].startswith("Count"):
            return turn


def compare(rng: Random, kind: int, a: int, b: int) -> Turn:
    high, low = max(a, b), min(a, b)
    if kind == 1:
        question = rng.choice(BIGGER).format(a=a, b=b)
        return question, f"{high} is bigger than {low}.", f"big:{a}:{b}"
    if kind == 2:
        question = rng.choice(SMALLER).format(a=a, b=b)
        return question, f"{low} is smaller than {high}.", f"small:{a}:{b}"
    word = rng.choice(["bigger", "smaller"])
    truth = "bigger" if a > b else "smaller"
    answer = f"{'Yes' if truth == word else 'No'}, {a} is {truth} than {b}."
    return f"Is {a} {word} than {b}?", answer, f"is{word}:{a}:{b}"


def is_taught_sum(question: str) -> bool:
    """Whether a sum has operands up to 999 and is no product: one that ``big_sums`` teaches."""
    operands = re.search(r"(\d+)\D+(\d+)", question)
    product = re.search(r"x|\*|times|ultipl", question)
    return (
        operands is not None and not product and max(map(int, operands.groups())) <= BIGGEST_OPERAND
    )
