"""Which rank takes a request: pure policies over an immutable view of the fleet.

The live router and the simulator call the same code. Read ``fleet.py`` (what a policy sees), then ``policy.py``
(filter, score, pick, with an explanation), then a policy: ``least_load.py``.
"""

from __future__ import annotations

from r1_cluster.routing.fleet import Demand, RankView
from r1_cluster.routing.least_load import least_load
from r1_cluster.routing.policy import Choice, Filter, Policy, Scorer

POLICIES = {policy.name: policy for policy in (least_load(),)}


def policy(name: str) -> Policy:
    """The policy of that name. Raises ValueError listing the known ones."""
    try:
        return POLICIES[name]
    except KeyError:
        raise ValueError(f"no routing policy {name!r}: choose one of {', '.join(sorted(POLICIES))}") from None


__all__ = ["POLICIES", "Choice", "Demand", "Filter", "Policy", "RankView", "Scorer", "least_load", "policy"]
