"""One request on its way through a simulated fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1_cluster.routing.admission import Ticket

if TYPE_CHECKING:
    from r1_cluster.simulator.gang import Gang


class Job:
    """Its rank's gang counts the steps; ``base`` is the count at which its generated tokens would be 0.

    ``thinking`` is within the budget it started with, ``wanted`` without one. Times are the simulation's seconds, -1
    before they are known. It is its own ``Progress`` for the router's forecast.
    """

    __slots__ = (
        "answer",
        "answer_at",
        "at",
        "base",
        "cached",
        "delivered",
        "first_at",
        "gang",
        "generated",
        "kind",
        "number",
        "preemptions",
        "prefix",
        "prompt",
        "rank",
        "thinking_tokens",
        "ticket",
        "to_prefill",
        "total",
        "wanted",
    )

    def __init__(
        self, number: int, at: float, kind: int, prompt: int, wanted: int, answer: int, prefix: tuple[int, int]
    ) -> None:
        """``prefix``: the group its beginning belongs to, and how many tokens that is."""
        self.number, self.at, self.kind = number, at, kind
        self.prompt, self.wanted, self.answer, self.prefix = prompt, wanted, answer, prefix
        self.thinking_tokens = wanted
        self.total = wanted + answer
        self.generated = self.base = self.to_prefill = self.cached = self.preemptions = 0
        self.first_at = self.answer_at = -1.0
        self.gang: Gang | None = None
        self.rank = -1
        self.delivered = False  # its KV came from elsewhere
        self.ticket: Ticket

    def bound(self, budget: int, max_tokens: int) -> None:
        """Within what it may think and say."""
        self.thinking_tokens = min(self.wanted, budget)
        self.total = max(1, min(self.thinking_tokens + self.answer, max_tokens))

    @property
    def completion_tokens(self) -> int:
        """Tokens so far, those of the step under way left out."""
        gang = self.gang
        return self.generated if gang is None else min(self.total, gang.steps_now() - self.base)

    def standing(self) -> tuple[int, int, bool]:
        # Asked of all that runs whenever the router renews its forecasts: no call that can be left out.
        gang, generated = self.gang, self.generated
        if gang is not None:
            generated = gang.steps_now() - self.base
            if generated > self.total:
                generated = self.total
        answered = generated - self.thinking_tokens
        return (generated, answered, False) if answered >= 0 else (generated, 0, True)
