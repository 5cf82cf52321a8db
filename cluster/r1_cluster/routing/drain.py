"""How fast the fleet frees tokens."""

from __future__ import annotations

import math


class Drain:
    """Tokens a second that ended requests freed, over about the last ``window_s`` seconds."""

    def __init__(self, window_s: float = 60.0) -> None:
        self._window_s = window_s
        self._begun_at: float | None = None
        self._at = 0.0
        self._sum = 0.0

    def freed(self, tokens: float, now: float) -> None:
        if self._begun_at is None:
            self._begun_at = self._at = now
            return  # one end tells no rate
        self._sum = self._faded(now) + tokens
        self._at = now

    def rate(self, now: float) -> float | None:
        """None until enough has ended to tell."""
        if self._begun_at is None or now <= self._begun_at or self._sum == 0.0:
            return None
        seen = self._window_s * -math.expm1(-(now - self._begun_at) / self._window_s)
        return self._faded(now) / seen

    def _faded(self, now: float) -> float:
        return self._sum * math.exp(-(now - self._at) / self._window_s)
