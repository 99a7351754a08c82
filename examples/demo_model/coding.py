"""Python one-liners. Held out are the function and how it is asked for, or its number."""

from random import Random

from turns import Turn

# What a function does, and the function; what it does is part of the held-out keys.
FUNCTIONS = [
    ("adds two numbers", "def add(a, b): return a + b"),
    ("subtracts two numbers", "def subtract(a, b): return a - b"),
    ("multiplies two numbers", "def multiply(a, b): return a * b"),
    ("divides two numbers", "def divide(a, b): return a / b"),
    ("squares a number", "def square(x): return x * x"),
    ("doubles a number", "def double(x): return 2 * x"),
    ("checks if a number is even", "def is_even(x): return x % 2 == 0"),
    ("checks if a number is odd", "def is_odd(x): return x % 2 == 1"),
    ("returns the larger of two numbers", "def larger(a, b): return max(a, b)"),
    ("returns the smaller of two numbers", "def smaller(a, b): return min(a, b)"),
    ("reverses a string", "def reverse(s): return s[::-1]"),
    ("counts the words in a string", "def count_words(s): return len(s.split())"),
    ("returns the length of a list", "def length(items): return len(items)"),
    ("sums a list", "def total(items): return sum(items)"),
    ("sorts a list", "def sort_list(items): return sorted(items)"),
    ("returns the largest number in a list", "def largest(items): return max(items)"),
    ("returns the smallest number in a list", "def smallest(items): return min(items)"),
    ("checks if a string is a palindrome", "def is_palindrome(s): return s == s[::-1]"),
    ("makes a string uppercase", "def upper(s): return s.upper()"),
    ("makes a string lowercase", "def lower(s): return s.lower()"),
    ("joins two strings", "def join(a, b): return a + b"),
    ("returns the average of a list", "def average(items): return sum(items) / len(items)"),
    ("removes spaces from a string", 'def strip_spaces(s): return s.replace(" ", "")'),
    ("returns the absolute value of a number", "def absolute(x): return abs(x)"),
    ("says hello", 'def hello(): print("Hello!")'),
    ("reverses a list", "def reverse_list(items): return items[::-1]"),
    (
        "computes the factorial of a number",
        "def factorial(n): return 1 if n < 2 else n * factorial(n - 1)",
    ),
    ("returns the last item of a list", "def last(items): return items[-1]"),
    ("returns the first item of a list", "def first(items): return items[0]"),
]
WITH_A_NUMBER = [
    ("adds {n} to a number", "def add_{n}(x): return x + {n}"),
    ("subtracts {n} from a number", "def subtract_{n}(x): return x - {n}"),
    ("multiplies a number by {n}", "def times_{n}(x): return x * {n}"),
    ("returns the first {n} letters of a string", "def first_{n}(s): return s[:{n}]"),
    ("checks if a number is bigger than {n}", "def bigger_than_{n}(x): return x > {n}"),
]
ASK_FUNCTION = [
    "Write a Python function that {d}.",
    "Write a function that {d}.",
    "Write Python code that {d}.",
    "Can you write a Python function that {d}?",
    "How do I write a Python function that {d}?",
    "Give me a Python function that {d}.",
]
ASK_LOOP = [
    "Write a Python loop that prints the numbers from {a} to {b}.",
    "Print the numbers from {a} to {b} in Python.",
]


def python(rng: Random) -> Turn:
    template, kind, number = rng.choice(ASK_FUNCTION), rng.random(), rng.randint(2, 20)
    if kind < 0.5:
        does, code = rng.choice(FUNCTIONS)
        return template.format(d=does), code, f"py:{does}:{template}"
    if kind < 0.6:
        last = number + rng.randint(2, 20)
        question = rng.choice(ASK_LOOP).format(a=number, b=last)
        code = f"for i in range({number}, {last + 1}): print(i)"
        return question, code, f"py:loop:{number}:{last}"
    does, code = rng.choice(WITH_A_NUMBER)
    question = template.format(d=does.format(n=number))
    return question, code.format(n=number), f"py:{does}:{number}"
