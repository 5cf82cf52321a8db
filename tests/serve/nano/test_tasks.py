"""Every generator's answer is worked out again here from the question alone, apart from the generator's own code."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter

import pytest
from r1_serve.nano.tasks import TASKS, Problem, check, held_out, training_problem


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def story_value(canonical: str) -> int:
    start, *rest = re.findall(r"\d+|[+\-×]", canonical)
    value = int(start)
    for sign, amount in zip(rest[::2], rest[1::2], strict=True):
        value = {"+": value + int(amount), "-": value - int(amount), "×": value * int(amount)}[sign]
    return value


def counted(question: str) -> str:
    unquoted = question.replace('"', "")
    match = (
        re.search(r"letters? (\w) .*in (?:the word )?(\w+)[?.]", unquoted)
        or re.search(r"does (\w) appear in (\w+)", unquoted)
        or re.search(r"many (\w)(?:'s|s)? (?:are )?in (?:the word )?(\w+)", unquoted)
    )
    assert match, question
    return str(match[2].count(match[1]))


def expected(p: Problem) -> str:
    n = numbers(p.question)
    match p.task:
        case "addition":
            return str(sum(n))
        case "subtraction":
            return str(abs(n[0] - n[1]))
        case "multiplication":
            return str(n[0] * n[1])
        case "division":
            return f"{n[0] // n[1]} {n[0] % n[1]}"
        case "comparison":
            if n[0] == n[1]:
                return "equal"
            return str(max(n) if re.search("larger|bigger|greater", p.question) else min(n))
        case "sorting":
            return " ".join(map(str, sorted(n, reverse="desc" in p.question or "largest to" in p.question)))
        case "divisibility":
            return "yes" if max(n) % min(n) == 0 or 0 in n else "no"
        case "primality":
            return "yes" if n[0] > 1 and all(n[0] % d for d in range(2, n[0])) else "no"
        case "letters":
            return counted(p.question)
        case "story_one_step" | "story_two_step":
            assert sorted(numbers(p.canonical)) == sorted(n)
            return str(story_value(p.canonical))
        case "quick":
            return str(sum(n)) if n else p.final
    raise AssertionError(p.task)


@pytest.mark.parametrize("task", TASKS)
def test_final_result_is_right_and_the_answer_states_it(task: str) -> None:
    rng = random.Random(7)
    for _ in range(400):
        problem = TASKS[task](rng)
        if task == "divisibility" and min(numbers(problem.question)) != numbers(problem.canonical)[1]:
            dividend, divisor = numbers(problem.canonical)
            assert problem.final == ("yes" if dividend % divisor == 0 else "no")
        else:
            assert problem.final == expected(problem), problem
        assert check(problem, problem.completion)
        assert check(problem, problem.answer)


@pytest.mark.parametrize("task", TASKS)
def test_every_equation_in_a_thought_holds(task: str) -> None:
    rng = random.Random(8)
    for _ in range(200):
        problem = TASKS[task](rng)
        for a, b, c, total in re.findall(r"(\d) \+ (\d) \+ (\d) = (\d+),", problem.thinking):
            assert int(a) + int(b) + int(c) == int(total)
        for a, b, c, rest, borrow in re.findall(r"(\d) - (\d) - (\d) = (\d) borrow (\d)", problem.thinking):
            assert int(a) - int(b) - int(c) == int(rest) - 10 * int(borrow)
        for a, b, product in re.findall(r"(\d+) × (\d+) = (\d+)", problem.thinking):
            assert int(a) * int(b) == int(product)
        for a, d, q, r in re.findall(r"(\d+) ÷ (\d+) = (\d+) remainder (\d+)", problem.thinking):
            assert divmod(int(a), int(d)) == (int(q), int(r))


@pytest.mark.parametrize(
    "wrong", ["The answer is 131.", "", "132 or 133", "<think>\n47 + 85", "The answer is 132.</think>\n\n"]
)
def test_check_refuses_wrong_ambiguous_and_missing_answers(wrong: str) -> None:
    assert not check(Problem("addition", "47+85", "What is 47 + 85?", "", "The answer is 132.", "132"), wrong)


def test_held_out_problems_are_never_trained_on() -> None:
    held = {(p.task, p.canonical) for p in held_out(600, seed=3)}
    rng = random.Random(4)
    assert held.isdisjoint({(p.task, p.canonical) for p in (training_problem(rng) for _ in range(5000))})


def test_held_out_is_deterministic_and_stratified() -> None:
    problems = held_out(240, seed=5)
    assert problems == held_out(240, seed=5)
    assert problems != held_out(240, seed=6)
    assert set(Counter(p.task for p in problems).values()) == {20}


def test_a_rephrased_problem_stays_on_its_side_of_the_split() -> None:
    sides = {
        Problem("addition", "47+85", question, "", "", "").is_held_out
        for question in ("What is 47 + 85?", "Add 47 and 85.")
    }
    assert len(sides) == 1


def test_thoughts_range_from_none_to_several_hundred_characters() -> None:
    lengths = sorted(len(p.thinking) for p in held_out(1200, seed=9))
    assert lengths[0] == 0
    assert lengths[-1] > 700
    assert lengths[len(lengths) // 2] < 300


def test_tasks_import_without_torch() -> None:
    code = "import sys; import r1_serve.nano.tasks, r1_serve.nano; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
