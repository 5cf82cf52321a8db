"""A discrete-event simulator of a whole fleet under the router's own code: what a Plan does with a Workload.

Start at ``simulation.py``, the event loop. ``desk.py`` is the router's side, ``units.py`` the gangs as the router sees
them, ``gang.py`` and ``rank.py`` vLLM's scheduler over a data-parallel gang, ``costs.py`` what its steps take,
``events.py`` and ``happenings.py`` what else happens to a fleet, ``metrics.py`` and ``report.py`` what comes of it.
"""

from __future__ import annotations

from r1_cluster.simulator.costs import Linear
from r1_cluster.simulator.events import Autoscaling, Drain, Failure, Scenario
from r1_cluster.simulator.metrics import Slo
from r1_cluster.simulator.options import SimulationError
from r1_cluster.simulator.report import Report
from r1_cluster.simulator.simulation import Simulation

__all__ = [
    "Autoscaling",
    "Drain",
    "Failure",
    "Linear",
    "Report",
    "Scenario",
    "Simulation",
    "SimulationError",
    "Slo",
]
