"""Thinking budgets: what was asked, what the tenant may, how full the fleet is, and room for an answer.

Pure, and every step that changed the number is kept: the response says asked, applied and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from r1_cluster.routing.tenants import BudgetPolicy

UNLIMITED = -1


class Effort(StrEnum):
    """OpenAI's ``reasoning_effort``. What goes beyond high (xhigh, max) is high here."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class BudgetRules(BaseModel):
    """The same for all tenants; part of the Plan. ``low``, ``medium`` and ``high`` are efforts in tokens, -1 unlimited;
    ``minimal`` is a quarter of ``low`` where it is not set, and no effort is 0.

    From ``tighten_from`` on, up to a saturation of 1, budgets shrink towards the tenant's floor. ``answer_tokens`` are
    kept free for the answer, or ``answer_share`` of a small ``max_tokens``; ``closing_tokens`` is what closing takes.
    ``ceiling`` is never exceeded, whatever a tenant may: what the fleet was sized for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    low: int = Field(default=1024, ge=UNLIMITED)
    medium: int = Field(default=8192, ge=UNLIMITED)
    high: int = Field(default=UNLIMITED, ge=UNLIMITED)
    # Left out of YAML and hash where it is not set: plans made before it keep their hash.
    minimal: int | None = Field(default=None, ge=UNLIMITED, exclude_if=lambda value: value is None)
    tighten_from: float = Field(default=0.8, ge=0, le=1)
    answer_tokens: int = Field(default=1024, ge=1)
    answer_share: float = Field(default=0.25, gt=0, lt=1)
    closing_tokens: int = Field(default=2, ge=0)
    # Left out of YAML and hash where it is not set: plans made before it keep their hash.
    ceiling: int | None = Field(default=None, ge=0, exclude_if=lambda value: value is None)

    def of_effort(self, effort: Effort) -> int:
        minimal = max(UNLIMITED, self.low // 4) if self.minimal is None else self.minimal
        tokens = {Effort.NONE: 0, Effort.MINIMAL: minimal, Effort.LOW: self.low, Effort.MEDIUM: self.medium}
        return tokens.get(effort, self.high)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of its thinking. ``tokens``: thinking_token_budget, or Anthropic's budget_tokens; -1 is
    unlimited. It goes before ``effort``. Neither: the tenant's default."""

    tokens: int | None = None
    effort: Effort | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < UNLIMITED:
            raise ValueError(f"a thinking budget is {self.tokens}: give tokens from 0, or -1 for no limit")


class Step(NamedTuple):
    """One thing that set or changed the budget, and the tokens after it (None: no limit)."""

    reason: str
    tokens: int | None


class Budget(NamedTuple):
    """``applied`` is always a number: at least the room for an answer bounds it. ``asked`` is None for no limit."""

    asked: int | None
    applied: int
    steps: tuple[Step, ...]

    @property
    def reason(self) -> str:
        """The last thing that changed it."""
        return self.steps[-1].reason

    def explain(self) -> str:
        return ", ".join(f"{s.reason} {'unlimited' if s.tokens is None else s.tokens}" for s in self.steps)


def resolve(asked: Asked, policy: BudgetPolicy, rules: BudgetRules, *, max_tokens: int, saturation: float) -> Budget:
    """The budget to enforce. ``saturation``: 0 an idle fleet, 1 one that is about to refuse requests."""
    reason, tokens = _wanted(asked, policy, rules)
    steps = [Step(reason, tokens)]

    def at_most(limit: int, why: str) -> None:
        if steps[-1].tokens is None or steps[-1].tokens > limit:
            steps.append(Step(why, limit))

    if policy.ceiling is not None:
        at_most(policy.ceiling, "ceiling")
    if rules.ceiling is not None:
        at_most(rules.ceiling, "fleet_ceiling")
    at_most(room_for_thought(max_tokens, rules), "room_for_answer")
    at_most(_tightened(steps[-1].tokens or 0, policy.floor, rules.tighten_from, saturation), "saturation")
    return Budget(asked=tokens, applied=steps[-1].tokens or 0, steps=tuple(steps))


def room_for_thought(max_tokens: int, rules: BudgetRules) -> int:
    """How much of ``max_tokens`` may be thought, so that an answer can follow. 0 where there is no room for both."""
    answer = min(rules.answer_tokens, max(1, int(max_tokens * rules.answer_share)))
    return max(0, max_tokens - answer - rules.closing_tokens)


def _wanted(asked: Asked, policy: BudgetPolicy, rules: BudgetRules) -> tuple[str, int | None]:
    if asked.tokens is not None:
        return "asked", None if asked.tokens == UNLIMITED else asked.tokens
    if asked.effort is not None:
        tokens = rules.of_effort(asked.effort)
        return f"effort_{asked.effort}", None if tokens == UNLIMITED else tokens
    return "default", policy.default


def _tightened(tokens: int, floor: int, tighten_from: float, saturation: float) -> int:
    """From the budget itself at ``tighten_from`` down to the floor at 1, in a straight line; never below the floor."""
    if tokens <= floor or saturation <= tighten_from:
        return tokens
    share = 1.0 if saturation >= 1.0 else (saturation - tighten_from) / (1.0 - tighten_from)
    return floor + int((tokens - floor) * (1.0 - share))
