"""What a fleet is asked to do: classes of requests with length *distributions*, and when they arrive.

Start at ``spec.py``. ``lengths.py`` and ``arrivals.py`` are its parts, ``traces.py`` reads recorded traffic,
``fit.py`` turns it into a Workload, ``mixes/`` holds the shipped ones.
"""

from __future__ import annotations

from r1_cluster.workload.arrivals import Bursty, Closed, Diurnal, Poisson, Switching, Trace
from r1_cluster.workload.lengths import Empirical, Fixed, LogNormal
from r1_cluster.workload.load import load, shipped
from r1_cluster.workload.spec import RequestClass, Requests, Workload, WorkloadError

__all__ = [
    "Bursty",
    "Closed",
    "Diurnal",
    "Empirical",
    "Fixed",
    "LogNormal",
    "Poisson",
    "RequestClass",
    "Requests",
    "Switching",
    "Trace",
    "Workload",
    "WorkloadError",
    "load",
    "shipped",
]
