"""What ends a thought from outside: a spent budget, or a loop. Both are closed the same way, see ``Generation``."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from r1_cluster.routing import budget as routing

from r1_serve.router.choice import Thought
from r1_serve.router.loops import EVERY, loops


@dataclass(frozen=True, slots=True)
class Budget:
    """Of a thought, in tokens between the tags. ``asked`` as the client did, an effort by its tokens: -1 unlimited,
    None nothing. ``applied`` is what is enforced, None: nothing. ``effort``: the word for it, where that was asked."""

    asked: int | None = None
    applied: int | None = None
    effort: str | None = None


UNLIMITED = Budget()


def enforced(
    asked: int | None, resolved: routing.Budget, max_tokens: int, closing: int, effort: str | None = None
) -> Budget:
    """The ``resolved`` budget, which leaves room for an answer. Nothing where the model does not think, or where
    ``max_tokens`` cannot hold the ``closing`` ids and one token of an answer."""
    if not closing:
        return Budget(asked, None, effort)
    return Budget(asked, resolved.applied if max_tokens > closing else None, effort)


class ThoughtLimit:
    """When one choice's thought has to be closed. ``next_check`` is the number of its tokens at which :meth:`check`
    has something to look at; None: never."""

    __slots__ = ("_budget", "_guard", "closing_ids", "next_check")

    def __init__(self, budget: int | None, *, guard: bool, closing_ids: tuple[int, ...]) -> None:
        """``closing_ids``: what to write at the end of a thought; empty where the model does not think."""
        self.closing_ids = closing_ids
        self._budget = budget if closing_ids else None
        self._guard = guard and bool(closing_ids)
        self.next_check: int | None = self._after(0)
        if self._budget == 0:
            self.next_check = 0

    def check(self, reasoning_tokens: int, token_ids: array[int]) -> Thought | None:
        """Why the thought must end at these ``token_ids``, or None."""
        self.next_check = self._after(reasoning_tokens)
        if self._budget is not None and reasoning_tokens >= self._budget:
            self.next_check = None
            return Thought.BUDGET
        if self._guard and loops(token_ids, reasoning_tokens):
            self.next_check = None
            return Thought.LOOP
        return None

    def _after(self, reasoning_tokens: int) -> int | None:
        checks = [] if self._budget is None else [self._budget]
        if self._guard:
            checks.append(reasoning_tokens + EVERY - reasoning_tokens % EVERY)
        return min(checks, default=None)
