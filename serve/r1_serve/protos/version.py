"""Of the fleet protocol: routers and workers that differ in it refuse each other by name."""

from __future__ import annotations

PROTOCOL_VERSION = 2
