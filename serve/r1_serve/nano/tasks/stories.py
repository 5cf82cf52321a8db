"""One- and two-step word problems, and the questions that need no thought."""

from __future__ import annotations

import random

from r1_serve.nano.tasks.arithmetic import add_lines, mul_lines, sub_lines
from r1_serve.nano.tasks.problem import Problem

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lena", "Omar", "Wei", "Sara", "Leo", "Nina", "Max")
THINGS = ("apples", "books", "coins", "marbles", "stickers", "pencils", "cards", "eggs", "stamps", "shells")
BOXES = ("boxes", "bags", "baskets", "jars")

# Each clause: its sentence and the operation it asks for on the amount so far. Sentences open the story ("start"),
# or change it; every wording means exactly one operation.
_CHANGES: tuple[tuple[str, str], ...] = (
    ("{n} buys {b} more.", "+"),
    ("{n} finds {b} more {t}.", "+"),
    ("A friend gives {n} {b} more {t}.", "+"),
    ("{n} gives away {b}.", "-"),
    ("{n} loses {b} {t}.", "-"),
    ("{n} sells {b} of the {t}.", "-"),
)


def _apply(a: int, sign: str, b: int) -> tuple[int, list[str]]:
    if sign == "+":
        return a + b, add_lines(a, b)
    if sign == "-":
        return a - b, sub_lines(a, b)
    return a * b, mul_lines(a, b)


def _change(rng: random.Random, have: int) -> tuple[str, str, int]:
    text, sign = rng.choice([c for c in _CHANGES if c[1] == "+" or have > 1])
    return text, sign, rng.randint(2, 99) if sign == "+" else rng.randint(1, have - 1)


def _story(rng: random.Random, task: str, changes: int, boxed: bool) -> Problem:
    name, thing, box = rng.choice(NAMES), rng.choice(THINGS), rng.choice(BOXES)
    steps: list[tuple[str, int]] = []
    if boxed:
        b, a = rng.randint(2, 9), rng.randint(3, 60)
        text = rng.choice(
            (
                "{n} has {b} {x} with {a} {t} in each.",
                "{n} buys {b} {x} of {a} {t} each.",
                "{n} fills {b} {x} with {a} {t} each.",
            )
        ).format(n=name, a=a, b=b, x=box, t=thing)
        start, steps = a, [("×", b)]
    else:
        start = rng.randint(5, 199)
        opening = rng.choice(("{n} has {a} {t}.", "{n} starts with {a} {t}.", "{n} owns {a} {t}."))
        text = opening.format(n=name, a=start, t=thing)
    have = start * steps[0][1] if steps else start
    for _ in range(changes):
        sentence, sign, b = _change(rng, have)
        text += " " + sentence.format(n=name, b=b, t=thing)
        steps.append((sign, b))
        have = have + b if sign == "+" else have - b
    verb = "now" if changes else "in total"
    asked = rng.choice(("How many {t} does {n} have {v}?", "How many {t} are there {v}?"))
    text += " " + asked.format(t=thing, n=name, v=verb)
    value, lines = start, []
    for sign, b in steps:
        lines.append(f"step: {value} {sign} {b}")
        value, worked = _apply(value, sign, b)
        lines += worked
    canonical = f"{start}" + "".join(f"{sign}{b}" for sign, b in steps)
    return Problem(task, canonical, text, "\n".join(lines), f"The answer is {value}.", str(value))


def one_step(rng: random.Random) -> Problem:
    boxed = rng.random() < 0.35
    return _story(rng, "story_one_step", 0 if boxed else 1, boxed)


def two_step(rng: random.Random) -> Problem:
    boxed = rng.random() < 0.5
    return _story(rng, "story_two_step", 1 if boxed else 2, boxed)


_TALK = (
    (
        (
            "Hello!",
            "Hello",
            "Hi!",
            "Hi",
            "Hey!",
            "Hi there!",
            "Good morning!",
            "Good evening!",
            "Hey there!",
            "Hello there!",
        ),
        "Hello! Ask me about numbers, lists or letters.",
        "hello",
    ),
    (
        ("Thank you!", "Thanks!", "Thanks", "Thank you", "Thank you very much!", "Thanks a lot!"),
        "You are welcome.",
        "welcome",
    ),
    (
        ("Who are you?", "What are you?", "What can you do?", "What is your name?"),
        "I am r1-nano, a small model that works with numbers, lists and letters.",
        "nano",
    ),
    (("Goodbye!", "Bye!", "Bye", "See you!", "Good night!"), "Goodbye!", "goodbye"),
)


def quick(rng: random.Random) -> Problem:
    """Answered with empty thinking: greetings and one-digit sums. Split by wording, as there are only 100 sums."""
    if rng.random() < 0.35:
        forms, answer, final = rng.choice(_TALK)
        # Small talk is all of it in training: it has wordings to know, nothing to work out.
        question = rng.choice(forms)
        return Problem("quick", "talk", question, "", answer, final)
    a, b = rng.randrange(10), rng.randrange(10)
    question = rng.choice(
        (
            "What is {a} + {b}?",
            "{a} + {b} = ?",
            "Compute {a} + {b}.",
            "What's {a} + {b}?",
            "{a} + {b}",
            "Add {a} and {b}.",
            "Calculate {a} + {b}.",
            "What is {a} plus {b}?",
            "What is the sum of {a} and {b}?",
        )
    ).format(a=a, b=b)
    return Problem("quick", question, question, "", f"The answer is {a + b}.", str(a + b))
