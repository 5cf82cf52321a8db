"""Counting a letter in a word: each line takes the first letter off what is left of the word and keeps the count.

A line is the one before it less a letter: copying that a small model learns, where naming the seventh letter is not.
"""

from __future__ import annotations

import random

from r1_serve.nano.tasks.problem import Problem

WORDS = (
    "strawberry",
    "banana",
    "apple",
    "orange",
    "cherry",
    "mango",
    "kitchen",
    "window",
    "garden",
    "mountain",
    "river",
    "ocean",
    "forest",
    "village",
    "castle",
    "bridge",
    "engine",
    "planet",
    "rocket",
    "science",
    "history",
    "music",
    "guitar",
    "piano",
    "violin",
    "orchestra",
    "theater",
    "painting",
    "sculpture",
    "mississippi",
    "tennessee",
    "california",
    "alabama",
    "colorado",
    "nebraska",
    "elephant",
    "giraffe",
    "crocodile",
    "butterfly",
    "dolphin",
    "penguin",
    "kangaroo",
    "squirrel",
    "hippopotamus",
    "rhinoceros",
    "computer",
    "keyboard",
    "network",
    "cluster",
    "server",
    "router",
    "reasoning",
    "thinking",
    "attention",
    "transformer",
    "gradient",
    "parameter",
    "language",
    "sentence",
    "paragraph",
    "chapter",
    "library",
    "dictionary",
    "encyclopedia",
    "bookkeeper",
    "committee",
    "success",
    "possess",
    "address",
    "balloon",
    "coffee",
    "cheese",
    "pepper",
    "butter",
    "dinner",
    "breakfast",
    "sandwich",
    "chocolate",
    "vanilla",
    "cinnamon",
    "tomorrow",
    "yesterday",
    "february",
    "wednesday",
    "september",
    "november",
    "holiday",
    "birthday",
    "calendar",
    "programming",
    "function",
    "variable",
    "parallel",
    "pipeline",
    "latency",
    "throughput",
    "bandwidth",
    "memory",
    "storage",
    "processor",
)
_ONSETS = (
    "b",
    "c",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "st",
    "tr",
    "pl",
    "br",
    "gr",
)
_VOWELS = ("a", "e", "i", "o", "u", "ee", "oo", "ea")
_CODAS = ("", "", "n", "r", "s", "l", "t", "ss", "ll", "nd")


def _word(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(WORDS)
    syllables = rng.choices((1, 2, 3, 4, 5), (2, 4, 4, 2, 1))[0]
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))


def letters(rng: random.Random) -> Problem:
    word = _word(rng)
    letter = rng.choice(word) if rng.random() < 0.8 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    question = rng.choice(
        (
            'How many times does the letter "{c}" appear in "{w}"?',
            'How many "{c}" are in "{w}"?',
            'Count the letter "{c}" in "{w}".',
            'How many "{c}"s are in the word "{w}"?',
            'How many letters "{c}" are there in "{w}"?',
            "How many {c}'s are in {w}?",
            "How many {c} in {w}?",
            "How many times does {c} appear in {w}?",
        )
    ).format(c=letter, w=word)
    count, lines = 0, [f"letter {letter}"]
    for at, c in enumerate(word):
        count += c == letter
        lines.append(f"{c}{count}{word[at + 1 :]}")
    return Problem("letters", f"{letter} in {word}", question, "\n".join(lines), f"The answer is {count}.", str(count))
