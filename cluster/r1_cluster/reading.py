"""Files of YAML into frozen values, each fault one error of the caller's kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

Value = TypeVar("Value", bound=BaseModel)


def read_text(path: Path, *, source: str, error: type[Exception]) -> str:
    """Raises ``error`` where the file cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise error(f"{source}: {getattr(e, 'strerror', None) or 'not UTF-8 text'}") from e


def read_yaml(
    kind: type[Value], text: str, *, source: str, whole: str, error: type[Exception], secret: bool = False
) -> Value:
    """Raises ``error`` naming ``source`` and each faulty field; a fault of no field is said of ``whole``.

    ``secret``: the text holds what no log may, so an error says where the fault is and quotes no value.
    """
    value = read_mapping(text, source=source, error=error, secret=secret)
    try:
        # Through JSON mode: YAML lists become tuples while strictness still refuses "8" for 8.
        return kind.model_validate_json(json.dumps(value, default=str))
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or whole}: {f['msg']}" for f in e.errors())
        raise error(f"{source}: {faults}") from (None if secret else e)
    except (TypeError, ValueError, RecursionError):
        # A date for a name, an alias within itself: YAML has them, JSON does not.
        raise error(f"{source}: not plain mappings, lists, texts and numbers") from None


def read_mapping(text: str, *, source: str, error: type[Exception], secret: bool = False) -> dict[Any, Any]:
    """Raises ``error`` where ``text`` is not YAML or not a mapping."""
    try:
        value: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        if secret:
            mark = getattr(e, "problem_mark", None)
            raise error(f"{source}: not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
        raise error(f"{source}: not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(value, dict):
        raise error(f"{source}: expected a mapping at the top, got {type(value).__name__}")
    return value
