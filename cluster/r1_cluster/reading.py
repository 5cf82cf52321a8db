"""YAML text into a frozen value."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

Value = TypeVar("Value", bound=BaseModel)


def read_yaml(kind: type[Value], text: str, *, source: str, whole: str, error: type[Exception]) -> Value:
    """Raises ``error`` naming ``source`` and each faulty field; a fault of no field is said of ``whole``."""
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise error(f"{source}: not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(value, dict):
        raise error(f"{source}: expected a mapping at the top, got {type(value).__name__}")
    try:
        # Through JSON mode: YAML lists become tuples while strictness still refuses "8" for 8.
        return kind.model_validate_json(json.dumps(value, default=str))
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or whole}: {f['msg']}" for f in e.errors())
        raise error(f"{source}: {faults}") from e
