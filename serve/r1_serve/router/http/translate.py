"""Other APIs' bodies as the one that :mod:`r1_serve.router.validate` checks, and its complaints in their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from r1_serve.errors import InvalidRequest
from r1_serve.router.request import ChatRequest
from r1_serve.router.validate import check


def known(body: Any, names: Collection[str], where: str = "") -> dict[str, Any]:
    """The fields that say something. Raises InvalidRequest for a body or a field that is not known."""
    if not isinstance(body, dict):
        raise InvalidRequest(f"{where or 'the body'} must be a JSON object", field=where or None)
    for name in body:
        if name not in names:
            field = f"{where}.{name}" if where else name
            raise InvalidRequest(f"{field[:100]}: is not a known field: leave it out", field=field[:100])
    return {name: value for name, value in body.items() if value is not None}


def unsupported(body: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises InvalidRequest for a field of ``neutral`` with a value that asks for something."""
    for name, values in neutral.items():
        if body.get(name) is not None and body[name] not in values:
            raise InvalidRequest(f"{name} is not supported: leave it out", field=name)


def checked(body: Mapping[str, Any], names: Mapping[str, str], *, shift: int = 0) -> ChatRequest:
    """The request of a translated ``body``. ``names``: this API's names of our fields; ``shift``: messages that were
    put before its own. Raises InvalidRequest in its terms."""
    try:
        return check(dict(body)).request()
    except InvalidRequest as e:
        ours = e.field or ""
        top, dot, rest = ours.partition(".")
        if top == "messages" and shift:
            rest = re.sub(r"^\d+", lambda number: str(int(number[0]) - shift), rest)
        theirs = names.get(top, top) + dot + rest
        if rest.startswith("-"):  # of the system prompt
            theirs = "system"
        message = e.message.replace(ours, theirs, 1) if ours else e.message
        raise InvalidRequest(message, field=theirs or None) from None
