"""How many GPUs, and which layout: from a model, a fleet, a workload and service levels to a Plan, with reasons."""

from r1_cluster.planner.planner import Outcome, Request, plan
from r1_cluster.planner.request import FleetSpec, Objective, PlanningError, Slo, parse_budget, parse_fleet, parse_slo

__all__ = [
    "FleetSpec",
    "Objective",
    "Outcome",
    "PlanningError",
    "Request",
    "Slo",
    "parse_budget",
    "parse_fleet",
    "parse_slo",
    "plan",
]
