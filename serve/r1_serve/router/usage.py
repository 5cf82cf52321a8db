"""What a call used, summed over its choices. Counts are of token ids, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1_serve.router.limits import UNLIMITED, Budget

if TYPE_CHECKING:
    from r1_serve.router.call import Call


@dataclass(frozen=True, slots=True)
class Usage:
    """The prompt counts once whatever ``n``. ``completion_tokens`` exceeds reasoning + answer by the control tokens.

    Times count from the request's arrival, but ``queue_seconds`` is the longest wait in an engine and
    ``thinking_seconds`` the longest thought; first tokens are the first choice's to have one. 0 where there was none.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    queue_seconds: float = 0.0
    time_to_first_token_seconds: float = 0.0
    time_to_first_answer_token_seconds: float = 0.0
    thinking_seconds: float = 0.0
    total_seconds: float = 0.0
    longest_thought_tokens: int = 0  # of the choices: what is held against the budget
    thinking_budget: Budget = UNLIMITED  # of each choice

    @classmethod
    def of(cls, call: Call) -> Usage:
        generations, start = call.generations, call.started_at
        first = min((g.first_token_at for g in generations if g.first_token_at is not None), default=start)
        first_answer = min((g.first_answer_at for g in generations if g.first_answer_at is not None), default=start)
        return cls(
            prompt_tokens=call.prompt_tokens,
            cached_tokens=max((g.cached_tokens for g in generations), default=0),
            completion_tokens=sum(g.choice.completion_tokens for g in generations),
            reasoning_tokens=sum(g.choice.reasoning_tokens for g in generations),
            answer_tokens=sum(g.choice.answer_tokens for g in generations),
            queue_seconds=max((g.queue_seconds for g in generations), default=0.0),
            time_to_first_token_seconds=first - start,
            time_to_first_answer_token_seconds=first_answer - start,
            thinking_seconds=max((g.thinking_seconds for g in generations), default=0.0),
            longest_thought_tokens=max((g.choice.reasoning_tokens for g in generations), default=0),
            thinking_budget=call.budget,
            total_seconds=(call.ended_at if call.ended_at is not None else call.clock()) - start,
        )
