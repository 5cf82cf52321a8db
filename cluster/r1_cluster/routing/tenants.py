"""Tenants: who a key belongs to, and what they may use. Frozen values; watching the file is the router's part."""

from __future__ import annotations

import hashlib
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from r1_cluster.reading import read_yaml

DEFAULT = "default"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
KeyHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hex")]
Positive = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=0)]


class TenantsError(ValueError):
    """A tenants file that cannot be used. The message names the file and the field."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BudgetPolicy(_Frozen):
    """A tenant's thinking budgets, in tokens.

    ``default`` holds where a request asks for none. ``ceiling`` is never exceeded. ``floor`` is how far saturation may
    tighten a budget; a request that itself asks for less gets less.
    """

    default: Tokens | None = Field(default=None, description="none: the ceiling, or unlimited without one")
    floor: Tokens = 1024
    ceiling: Tokens | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.ceiling is not None and self.floor > self.ceiling:
            raise ValueError(f"floor {self.floor} is above ceiling {self.ceiling}")
        if self.default is not None and self.ceiling is not None and self.default > self.ceiling:
            raise ValueError(f"default {self.default} is above ceiling {self.ceiling}")
        return self


class Quota(_Frozen):
    """What a tenant may use; none means no limit of its own."""

    tokens_per_minute: Positive | None = Field(default=None, description="prompt and generated, burst of one minute")
    max_running: Positive | None = Field(default=None, description="requests; more wait")
    max_queued: Positive | None = Field(default=None, description="requests; more are refused")


class Tenant(_Frozen):
    """``weight``: the share of the fleet's tokens under contention, against other tenants' weights."""

    name: Name
    keys: tuple[KeyHash, ...] = ()
    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    quota: Quota = Quota()
    budget: BudgetPolicy = BudgetPolicy()

    @property
    def cache_salt(self) -> str:
        """Keeps tenants' prompts apart in prefix caches; empty for the single tenant of a router without tenants."""
        return "" if self.name == DEFAULT else self.name


class Tenants(_Frozen):
    """All of them. ``anonymous`` names the tenant of requests without a key; without it they are refused."""

    tenants: tuple[Tenant, ...] = Field(min_length=1)
    anonymous: Name | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        names = [tenant.name for tenant in self.tenants]
        keys = [key for tenant in self.tenants for key in tenant.keys]
        for kind, values in (("names", names), ("keys", keys)):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(f"{kind} must differ, twice there: {', '.join(sorted(v[:12] for v in twice))}")
        if self.anonymous is not None and self.anonymous not in names:
            raise ValueError(f"anonymous is {self.anonymous!r}, which is none of {', '.join(names)}")
        return self

    @property
    def open(self) -> bool:
        """Whether keys mean nothing here: one tenant, without keys, for everyone."""
        return len(self.tenants) == 1 and not self.tenants[0].keys and self.anonymous is not None

    def of_key(self, key: str | None) -> Tenant | None:
        """The tenant of an API key; None where nobody has it."""
        if self.open or not key:
            return next((tenant for tenant in self.tenants if tenant.name == self.anonymous), None)
        digest = hash_key(key)
        return next((tenant for tenant in self.tenants if digest in tenant.keys), None)

    @classmethod
    def single(cls) -> Tenants:
        """Without a file: everyone is ``default``."""
        return cls(tenants=(Tenant(name=DEFAULT),), anonymous=DEFAULT)

    @classmethod
    def from_yaml(cls, text: str, source: str = "tenants") -> Tenants:
        """Raises TenantsError naming ``source`` and each faulty field, and no key."""
        return read_yaml(cls, text, source=source, whole="tenants", error=TenantsError, secret=True)


def hash_key(key: str) -> str:
    """How a key is written in the file: ``printf %s KEY | sha256sum``."""
    return hashlib.sha256(key.encode()).hexdigest()
