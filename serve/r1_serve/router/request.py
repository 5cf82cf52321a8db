"""A chat request, the same whichever door it came through: frozen and already checked."""

from __future__ import annotations

from dataclasses import dataclass

from r1_cluster.routing.budget import Effort

MAX_CHOICES = 16
MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 512


@dataclass(frozen=True, slots=True)
class Message:
    """``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """None means: the checkpoint's default. ``max_tokens`` holds thinking and answer together, as does ``min_tokens``,
    before which neither ends (with ``ignore_eos`` neither does before the last); ``thinking_token_budget`` holds the
    thinking (-1: unlimited), and ``reasoning_effort`` is a word for that.
    ``loop_guard``: whether a thought in a loop is closed.

    ``model`` is empty where the client named none. ``stop`` strings are matched in the answer only.
    """

    model: str
    messages: tuple[Message, ...]
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    thinking_token_budget: int | None = None
    reasoning_effort: Effort | None = None
    loop_guard: bool = True
    min_tokens: int = 0
    ignore_eos: bool = False
