"""Addition, subtraction, multiplication and division, worked column by column as on paper.

Every step's tokens follow from a few nearby ones: operands are padded to one length, columns are named by their
place, and the result so far is repeated with one digit more. That is what lets a small model be right nearly always,
also when sampled.
"""

from __future__ import annotations

import random

from r1_serve.nano.tasks.problem import Problem

PLACES = ("ones", "tens", "hundreds", "thousands", "ten-thousands", "hundred-thousands", "millions")


def add_lines(a: int, b: int) -> list[str]:
    """Column addition; the last line ends in the sum."""
    width = max(len(str(a)), len(str(b)))
    x, y = str(a).zfill(width), str(b).zfill(width)
    lines, carry, result = [f"{x} + {y}"], 0, ""
    for place, p, q in zip(PLACES, reversed(x), reversed(y), strict=False):
        column = int(p) + int(q) + carry
        result = f"{column % 10}{result}"
        lines.append(f"{place}: {p} + {q} + {carry} = {column}, {result}")
        carry = column // 10
    return [*lines, f"carry {carry}: {a + b}"]


def sub_lines(a: int, b: int) -> list[str]:
    """Column subtraction of b <= a; the last line ends in the difference."""
    width = len(str(a))
    x, y = str(a), str(b).zfill(width)
    lines, borrow, result = [f"{x} - {y}"], 0, ""
    for place, p, q in zip(PLACES, reversed(x), reversed(y), strict=False):
        column = int(p) - int(q) - borrow
        step = f"{place}: {p} - {q} - {borrow} = {column % 10}"
        borrow = int(column < 0)
        result = f"{column % 10}{result}"
        lines.append(f"{step} borrow {borrow}, {result}")
    return [*lines, f"so {a - b}"]


def mul_digit_lines(a: int, digit: int, zeros: int) -> list[str]:
    """a times one digit, then shifted by `zeros` places."""
    lines, carry, result = [f"{a} × {digit}"], 0, ""
    for place, p in zip(PLACES, reversed(str(a)), strict=False):
        product = int(p) * digit
        column = product + carry
        result = f"{column % 10}{result}"
        lines.append(f"{place}: {p} × {digit} = {product}, + {carry} = {column}, {result}")
        carry = column // 10
    lines.append(f"carry {carry}: {a * digit}")
    if zeros:
        lines.append(f"shift {zeros}: {a * digit * 10**zeros}")
    return lines


def mul_lines(a: int, b: int) -> list[str]:
    """Long multiplication: a partial product for each digit of b, added as it comes."""
    lines: list[str] = [f"{a} × {b}"] if b > 9 else []
    total = 0
    for zeros, digit in enumerate(reversed(str(b))):
        lines += mul_digit_lines(a, int(digit), zeros)
        partial = a * int(digit) * 10**zeros
        if zeros:
            lines += add_lines(total, partial)
        total += partial
    return lines


def div_lines(a: int, d: int) -> list[str]:
    """Long division; the last line gives quotient and remainder."""
    lines, rest, quotient = [f"{a} ÷ {d}"], 0, ""
    for digit in str(a):
        chunk = rest * 10 + int(digit)
        quotient += str(chunk // d)
        rest = chunk % d
        lines.append(f"{chunk} ÷ {d} = {chunk // d} remainder {rest}, {quotient}")
    return [*lines, f"so {a // d} remainder {rest}"]


def number(rng: random.Random, digits: int) -> int:
    """A number of exactly `digits` digits (one digit includes 0)."""
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _ask(rng: random.Random, a: int, b: int, signs: tuple[str, ...], forms: tuple[str, ...]) -> str:
    sign = rng.choice(signs)
    return rng.choice((*COMMON, *forms)).format(a=a, b=b, s=sign)


COMMON = (
    "What is {a} {s} {b}?",
    "{a} {s} {b} = ?",
    "Compute {a} {s} {b}.",
    "Calculate {a} {s} {b}.",
    "{a} {s} {b}",
    "What's {a} {s} {b}?",
    "Please work out {a} {s} {b}.",
)


def addition(rng: random.Random) -> Problem:
    a, b = (number(rng, rng.choices((1, 2, 3, 4, 5), (1, 4, 4, 3, 1))[0]) for _ in range(2))
    if a < 10 and b < 10:
        a = number(rng, 2)
    question = _ask(rng, a, b, ("+", "+", "plus"), ("What is the sum of {a} and {b}?", "Add {a} and {b}."))
    return Problem("addition", f"{a}+{b}", question, "\n".join(add_lines(a, b)), f"The answer is {a + b}.", str(a + b))


def subtraction(rng: random.Random) -> Problem:
    a, b = sorted((number(rng, rng.choices((1, 2, 3, 4, 5), (1, 4, 4, 3, 1))[0]) for _ in range(2)), reverse=True)
    if a < 10:
        a = number(rng, 2)
    question = _ask(
        rng, a, b, ("-", "-", "−", "minus"), ("What is the difference between {a} and {b}?", "Subtract {b} from {a}.")
    )
    thinking = "\n".join(sub_lines(a, b))
    return Problem("subtraction", f"{a}-{b}", question, thinking, f"The answer is {a - b}.", str(a - b))


def multiplication(rng: random.Random) -> Problem:
    m, n = rng.choices(((1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (3, 3)), (1, 5, 4, 5, 2, 1))[0]
    a, b = number(rng, m), number(rng, n)
    question = _ask(
        rng, a, b, ("×", "×", "*", "x", "times"), ("What is the product of {a} and {b}?", "Multiply {a} by {b}.")
    )
    thinking = "\n".join(mul_lines(a, b))
    return Problem("multiplication", f"{a}*{b}", question, thinking, f"The answer is {a * b}.", str(a * b))


def division(rng: random.Random) -> Problem:
    a, d = number(rng, rng.choices((2, 3, 4, 5), (3, 4, 3, 1))[0]), rng.randint(2, 12)
    q, r = divmod(a, d)
    question = _ask(
        rng,
        a,
        d,
        ("÷", "÷", "/", "divided by"),
        ("Divide {a} by {b} with remainder.", "What are the quotient and remainder of {a} divided by {b}?"),
    )
    answer = f"The answer is {q} remainder {r}."
    return Problem("division", f"{a}/{d}", question, "\n".join(div_lines(a, d)), answer, f"{q} {r}")
