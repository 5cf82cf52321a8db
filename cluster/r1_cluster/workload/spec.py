"""The Workload: one frozen value that planner and simulator read."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from r1_cluster.workload.arrivals import CHUNK, Arrivals, Closed
from r1_cluster.workload.lengths import Fixed, Integers, Lengths

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class WorkloadError(ValueError):
    """A workload or trace that cannot be used. The message names the file, and the field or line."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RequestClass(_Frozen):
    """One kind of request. Thinking is as the model would without a budget; ``budget`` and ``max_tokens`` cut it.

    ``prefix_share`` of a prompt was seen before: one of ``prefix_groups`` beginnings (1 is a system prompt all share,
    many are conversations). ``priority``: lower is sooner, within the tenant.
    """

    name: Name
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    prompt_tokens: Lengths
    thinking_tokens: Lengths = Fixed(tokens=0)
    answer_tokens: Lengths
    prefix_share: float = Field(default=0.0, ge=0, lt=1)
    prefix_groups: int = Field(default=1, ge=1)
    tenant: Name = "default"
    priority: int = 0
    max_tokens: int = Field(default=32_768, ge=1)
    budget: int | None = Field(default=None, ge=0, description="thinking tokens asked for; none: unlimited")

    def output_mean(self, budget: int | None = None) -> float:
        """Mean tokens out, thought within ``budget`` (besides the class's own) and answer."""
        limit = min((b for b in (budget, self.budget, self.max_tokens) if b is not None), default=None)
        return self.thinking_tokens.censored(limit).mean() + self.answer_tokens.mean()


@dataclass(frozen=True, slots=True)
class Requests:
    """Many requests as columns of equal length: index into ``classes``, tokens, and the number of the prefix group."""

    kind: NDArray[np.int64]
    prompt: Integers
    thinking: Integers
    answer: Integers
    group: Integers


class Workload(_Frozen):
    """Classes by weight, and arrivals. ``notes`` say where it comes from and what is known of budgets' cost."""

    version: Literal["r1.workload/v1"] = "r1.workload/v1"
    name: Name
    classes: tuple[RequestClass, ...] = Field(min_length=1)
    arrivals: Arrivals = Closed()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [each.name for each in self.classes]
        if len(set(names)) != len(names):
            raise ValueError(f"classes: names must differ, got {', '.join(names)}")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """Each class's share of requests."""
        total = sum(each.weight for each in self.classes)
        return tuple(each.weight / total for each in self.classes)

    @property
    def hash(self) -> str:
        """Twelve hex digits over the canonical JSON."""
        value = json.dumps(self.model_dump(mode="json", exclude={"name", "notes"}), sort_keys=True)
        return hashlib.sha256(value.encode()).hexdigest()[:12]

    def prompt_mean(self) -> float:
        return sum(s * c.prompt_tokens.mean() for s, c in zip(self.shares, self.classes, strict=True))

    def output_mean(self, budget: int | None = None) -> float:
        return sum(s * c.output_mean(budget) for s, c in zip(self.shares, self.classes, strict=True))

    def budgeted(self, budget: int | None) -> Workload:
        """With every class asking for at most so much thinking."""
        if budget is None:
            return self
        kept = tuple(
            c.model_copy(update={"budget": budget if c.budget is None else min(budget, c.budget)}) for c in self.classes
        )
        return self.model_copy(update={"classes": kept})

    def at_rate(self, rate: float | None) -> Workload:
        """The same at so many requests/s; None: as it is."""
        return self if rate is None else self.model_copy(update={"arrivals": self.arrivals.at_rate(rate)})

    def draw(self, rng: np.random.Generator, n: int = CHUNK) -> Iterator[Requests]:
        """Chunks of ``n`` requests without end, the same for a seed."""
        shares = np.array(self.shares)
        for _ in itertools.count():
            kind = rng.choice(len(shares), size=n, p=shares).astype(np.int64)
            columns = np.zeros((4, n), dtype=np.int64)
            for index, each in enumerate(self.classes):
                mine = np.flatnonzero(kind == index)
                drawn = (each.prompt_tokens, each.thinking_tokens, each.answer_tokens)
                for row, lengths in enumerate(drawn):
                    columns[row, mine] = lengths.sample(rng, len(mine))
                columns[3, mine] = rng.integers(each.prefix_groups, size=len(mine))
            np.maximum(columns[0], 1, out=columns[0])
            yield Requests(kind, *columns)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
