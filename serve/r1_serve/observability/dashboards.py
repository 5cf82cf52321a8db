"""The dashboards there are. What each metric means is in docs/metrics.md."""

from __future__ import annotations

from r1_serve.observability.capacity import CAPACITY
from r1_serve.observability.fleet import FLEET
from r1_serve.observability.tenants import TENANTS
from r1_serve.observability.thinking import THINKING

DASHBOARDS = (FLEET, THINKING, TENANTS, CAPACITY)
