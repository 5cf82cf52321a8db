"""What each tenant has used and reserved, and how fast the fleet frees tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from r1_cluster.routing.tenants import Quota

MINUTE_S = 60.0


@dataclass(slots=True)
class _Account:
    """``level``: tokens the tenant may still reserve now; None until a limit is known."""

    level: float | None = None
    at: float = 0.0
    running: int = 0
    queued: int = 0


class Accounts:
    """By tenant name, over all models. Quotas are given with each call: a reloaded file counts from the next one."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def of(self, tenant: str) -> _Account:
        return self._accounts.setdefault(tenant, _Account())

    def wait_for(self, tenant: str, tokens: float, quota: Quota, now: float) -> float:
        """Seconds until ``tokens`` may be reserved; 0 for now. What exceeds a minute's quota waits for a full one."""
        if quota.tokens_per_minute is None:
            return 0.0
        missing = min(tokens, quota.tokens_per_minute) - self._level(tenant, quota.tokens_per_minute, now)
        return max(0.0, missing) * MINUTE_S / quota.tokens_per_minute

    def reserve(self, tenant: str, tokens: float, quota: Quota, now: float) -> None:
        """Take ``tokens``; negative gives back."""
        if quota.tokens_per_minute is not None:
            level = self._level(tenant, quota.tokens_per_minute, now)
            self.of(tenant).level = min(float(quota.tokens_per_minute), level - tokens)

    def _level(self, tenant: str, limit: int, now: float) -> float:
        account = self.of(tenant)
        if account.level is None:
            account.level, account.at = float(limit), now
        account.level = min(float(limit), account.level + (now - account.at) * limit / MINUTE_S)
        account.at = now
        return account.level


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
