"""Divisibility by long division, primality by trial division."""

from __future__ import annotations

import random

from r1_serve.nano.tasks.arithmetic import div_lines, number
from r1_serve.nano.tasks.problem import Problem

TRIAL_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23)
PRIME_LIMIT = 23 * 23  # above it, trial division would need more primes
PRIMES = tuple(n for n in range(2, PRIME_LIMIT) if all(n % p for p in range(2, int(n**0.5) + 1)))


def divisibility(rng: random.Random) -> Problem:
    a, d = number(rng, rng.choices((2, 3, 4, 5), (3, 4, 3, 1))[0]), rng.randint(2, 12)
    if rng.random() < 0.45:
        a -= a % d
    divides = a % d == 0
    question = rng.choice(
        (
            "Is {a} divisible by {d}?",
            "Does {d} divide {a}?",
            "Is {a} a multiple of {d}?",
            "Can {a} be divided evenly by {d}?",
        )
    ).format(a=a, d=d)
    answer = f"Yes, {a} is divisible by {d}." if divides else f"No, {a} is not divisible by {d}."
    return Problem("divisibility", f"{a}%{d}", question, "\n".join(div_lines(a, d)), answer, "yes" if divides else "no")


def prime_lines(n: int) -> list[str]:
    """Trial division by each prime whose square is at most n; only the remainders are kept."""
    lines = [f"{n}"]
    for p in TRIAL_PRIMES:
        square = p * p
        if square > n:
            return [*lines, f"{p} × {p} = {square} > {n}, so prime"]
        steps, rest = [], 0
        for digit in str(n):
            chunk = rest * 10 + int(digit)
            rest = chunk % p
            steps.append(f"{chunk} remainder {rest}")
        lines.append(f"{p} × {p} = {square} {'<' if square < n else '='} {n}")
        lines.append(f"÷ {p}: {', '.join(steps)}")
        if rest == 0:
            return [*lines, "so not prime"]
    raise AssertionError(n)


def primality(rng: random.Random) -> Problem:
    n = rng.choice(PRIMES) if rng.random() < 0.5 else rng.randrange(2, PRIME_LIMIT)
    prime = n in PRIMES
    question = rng.choice(
        ("Is {n} prime?", "Is {n} a prime number?", "Is the number {n} prime?", "Check whether {n} is prime.")
    ).format(n=n)
    answer = f"Yes, {n} is prime." if prime else f"No, {n} is not prime."
    return Problem("primality", str(n), question, "\n".join(prime_lines(n)), answer, "yes" if prime else "no")
