"""Who runs next, where, with which thinking budget: pure policy over an immutable view of the fleet.

The live router and the simulator call the same code. Start at ``dispatcher.py``, which puts all of it in one place.
``fleet.py`` is what a policy sees, ``policy.py`` filters, scores, picks and explains, ``parts.py`` and ``spec.py`` have
the parts and the shipped policies. What they see ahead comes from ``survival.py``, ``lengths.py`` and ``kv.py``;
``prefix.py`` knows the ranks' prefix caches, ``table.py`` keeps the ranks as columns. ``budget.py``, ``tenants.py``,
``fairness.py``, ``quota.py``, ``shares.py`` (limits shared between routers) and ``admission.py`` decide who is let in,
when, and to think how long; ``scaling.py`` how many gangs there should be.
"""

from __future__ import annotations

from r1_cluster.routing.fleet import Demand, Fleet, RankView
from r1_cluster.routing.policy import Choice, Filter, Policy, Scorer
from r1_cluster.routing.spec import SHIPPED, PolicyError, PolicySpec, policy

__all__ = [
    "SHIPPED",
    "Choice",
    "Demand",
    "Filter",
    "Fleet",
    "Policy",
    "PolicyError",
    "PolicySpec",
    "RankView",
    "Scorer",
    "policy",
]
