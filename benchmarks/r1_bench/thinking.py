"""A long-tailed mix of questions: short agent calls, chats of several turns, and mathematics that thinks for long."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from r1_cluster.routing.admission import Arrival
from r1_cluster.routing.prefix import Chain
from r1_cluster.routing.tenants import Tenant

BLOCK_TOKENS = 64
MAX_TOKENS = 32_768


@dataclass(frozen=True, slots=True)
class Kind:
    """Log-normal lengths in tokens: median and log spread. ``shared``: system prompt, the same for all of the kind."""

    share: float
    shared: int
    message: int
    thinking: tuple[float, float]
    answer: tuple[float, float]
    turns: int = 1


MIX: Mapping[str, Kind] = {
    "agent": Kind(0.25, shared=4096, message=600, thinking=(180, 0.7), answer=(120, 0.5)),
    "chat": Kind(0.50, shared=512, message=250, thinking=(600, 0.9), answer=(400, 0.6), turns=5),
    "math": Kind(0.25, shared=128, message=200, thinking=(4500, 1.0), answer=(500, 0.5)),
}


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """``thinking_tokens`` as the model would without a budget."""

    number: int
    at: float
    arrival: Arrival
    thinking_tokens: int
    answer_tokens: int

    @property
    def prompt_tokens(self) -> int:
        return self.arrival.prompt_tokens

    @property
    def chain(self) -> Chain:
        return self.arrival.chain


def questions(n: int, per_second: float, seed: int, *, tenants_apart: bool) -> Iterator[Question]:
    """``n`` questions, Poisson arrivals, the same for a seed. ``tenants_apart``: each kind is a tenant of its own;
    else one tenant asks them all, and nothing tells them apart but how long they have thought."""
    rng = random.Random(seed)
    names = list(MIX)
    tenants = {name: Tenant(name=name if tenants_apart else "everyone") for name in names}
    conversations: list[tuple[str, int, int, int]] = []  # kind, its number, turns so far, tokens so far
    at, fresh = 0.0, 0
    for number in range(n):
        at += rng.expovariate(per_second)
        name = rng.choices(names, [MIX[k].share for k in names])[0]
        kind = MIX[name]
        going = [i for i, c in enumerate(conversations) if c[0] == name]
        if kind.turns > 1 and going and rng.random() < 1 - 1 / kind.turns:
            _, session, turns, history = conversations.pop(rng.choice(going))
        else:
            fresh += 1
            session, turns, history = fresh, 0, kind.shared
        prompt = history + _draw(rng, kind.message, 0.5)
        thinking, answer = _draw(rng, *kind.thinking), _draw(rng, *kind.answer)
        thinking, answer = min(thinking, MAX_TOKENS - 2048), min(answer, 2000)
        if turns + 1 < kind.turns:
            conversations.append((name, session, turns + 1, prompt + answer))
            if len(conversations) > 400:
                conversations.pop(0)
        arrival = Arrival(tenants[name], "r1", prompt, MAX_TOKENS, chain=_chain(name, session, kind.shared, prompt))
        yield Question(number, at, arrival, thinking, answer)


def _draw(rng: random.Random, median: float, sigma: float) -> int:
    return max(1, round(math.exp(rng.gauss(math.log(median), sigma))))


def _chain(name: str, session: int, shared: int, prompt_tokens: int) -> Chain:
    common = shared // BLOCK_TOKENS
    return tuple(
        f"{name}:{i}".encode() if i < common else f"{name}:{session}:{i}".encode()
        for i in range(prompt_tokens // BLOCK_TOKENS)
    )
