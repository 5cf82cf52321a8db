"""What r1-nano reasons about: pure generators of problems with honest worked thoughts. Imports no torch.

>>> problem = held_out(1, seed=0)[0]
>>> check(problem, problem.completion)
True
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from r1_serve.nano.tasks.arithmetic import addition, division, multiplication, subtraction
from r1_serve.nano.tasks.factors import divisibility, primality
from r1_serve.nano.tasks.letters import letters
from r1_serve.nano.tasks.ordering import comparison, sorting
from r1_serve.nano.tasks.problem import Problem, check
from r1_serve.nano.tasks.stories import one_step, quick, two_step

__all__ = ["TASKS", "WEIGHTS", "Problem", "check", "held_out", "training_problem"]

Generator = Callable[[random.Random], Problem]

TASKS: Mapping[str, Generator] = MappingProxyType(
    {
        "addition": addition,
        "subtraction": subtraction,
        "multiplication": multiplication,
        "division": division,
        "comparison": comparison,
        "sorting": sorting,
        "divisibility": divisibility,
        "primality": primality,
        "letters": letters,
        "story_one_step": one_step,
        "story_two_step": two_step,
        "quick": quick,
    }
)

# Share of training samples, by how much practice each needs.
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "addition": 1.5,
        "subtraction": 1.5,
        "multiplication": 2.0,
        "division": 1.5,
        "comparison": 1.0,
        "sorting": 1.3,
        "divisibility": 1.0,
        "primality": 1.2,
        "letters": 1.5,
        "story_one_step": 0.8,
        "story_two_step": 1.0,
        "quick": 0.7,
    }
)


def training_problem(rng: random.Random, task: str | None = None) -> Problem:
    """A problem that is not held out, of `task` or of one drawn by WEIGHTS."""
    name = task or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    while (problem := TASKS[name](rng)).is_held_out:
        pass
    return problem


def held_out(n: int, seed: int, tasks: tuple[str, ...] = tuple(TASKS)) -> list[Problem]:
    """`n` distinct held-out problems, the tasks in turn, the same for the same arguments.

    Small talk has no held-out wording; "quick" gives held-out wordings of one-digit sums.
    """
    rng = random.Random(seed)
    problems: list[Problem] = []
    seen: set[str] = set()
    while len(problems) < n:
        generate = TASKS[tasks[len(problems) % len(tasks)]]
        while not (problem := generate(rng)).is_held_out or (problem.question in seen and rng.random() < 0.99):
            pass
        seen.add(problem.question)
        problems.append(problem)
    return problems
