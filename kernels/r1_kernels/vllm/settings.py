"""The one place of this room that reads the environment."""

from __future__ import annotations

import os
from typing import Literal, cast

Mode = Literal["off", "on", "verify"]
MODES = ("off", "on", "verify")


def read() -> Mode:
    """R1_KERNELS, `off` where unset. Raises: ValueError for any other value."""
    value = os.environ.get("R1_KERNELS", "off")
    if value not in MODES:
        raise ValueError(f"R1_KERNELS: expected off, on or verify, got {value!r}")
    return cast(Mode, value)
