"""Comparing two numbers digit by digit, and sorting a list by insertion."""

from __future__ import annotations

import random

from r1_serve.nano.tasks.arithmetic import number
from r1_serve.nano.tasks.problem import Problem


def comparison(rng: random.Random) -> Problem:
    digits = rng.choices((1, 2, 3, 4, 5, 6), (1, 3, 4, 4, 2, 1))[0]
    a = number(rng, digits)
    kind = rng.random()
    if kind < 0.4:
        b = number(rng, digits)
    elif kind < 0.7:  # a shared prefix makes the thought long
        keep = rng.randrange(digits)
        b = int(str(a)[:keep] + str(rng.randrange(10 ** (digits - keep))).zfill(digits - keep))
    elif kind < 0.73:
        b = a
    else:
        b = number(rng, rng.randint(1, 6))
    larger = rng.random() < 0.6
    word = rng.choice(("larger", "bigger", "greater") if larger else ("smaller", "less"))
    question = rng.choice(
        (
            "Which is {w}, {a} or {b}?",
            "Which number is {w}: {a} or {b}?",
            "{a} or {b}, which is {w}?",
            "Compare {a} and {b}. Which one is {w}?",
        )
    ).format(w=word, a=a, b=b)
    width = max(len(str(a)), len(str(b)))
    x, y = str(a).zfill(width), str(b).zfill(width)
    lines = [f"{x} and {y}"]
    for p, q in zip(x, y, strict=True):
        lines.append(f"{p} {'=' if p == q else '<' if p < q else '>'} {q}")
        if p != q:
            break
    side = "larger" if larger else "smaller"
    if a == b:
        answer, final = "They are equal.", "equal"
    else:
        value = max(a, b) if larger else min(a, b)
        lines.append(f"so the {'first' if value == a else 'second'} is {side}")
        answer, final = f"{value} is {side}.", str(value)
    return Problem("comparison", f"{min(a, b)}?{max(a, b)}", question, "\n".join(lines), answer, final)


def sorting(rng: random.Random) -> Problem:
    count = rng.choices((3, 4, 5, 6, 7, 8, 10, 12, 14), (5, 6, 6, 4, 3, 2, 1, 1, 1))[0]
    values = rng.sample(range(1, 100), count)
    descending = rng.random() < 0.25
    forms = (
        ("Sort {v} in descending order.", "Sort from largest to smallest: {v}")
        if descending
        else (
            "Sort {v}.",
            "Sort these numbers: {v}",
            "Put {v} in ascending order.",
            "Sort from smallest to largest: {v}",
        )
    )
    listed = ", ".join(map(str, values))
    question = rng.choice(forms).format(v=listed)
    lines = ["descending" if descending else "ascending"]
    done: list[int] = []
    for value in values:
        done = sorted([*done, value], reverse=descending)
        lines.append(f"insert {value}: {', '.join(map(str, done))}")
    canonical = " ".join(map(str, values))
    final = " ".join(map(str, done))
    return Problem("sorting", canonical, question, "\n".join(lines), f"{', '.join(map(str, done))}.", final)
