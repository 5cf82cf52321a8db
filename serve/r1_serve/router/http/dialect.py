"""What differs between the APIs that one path serves: how a call's events are written, whole and streamed, and its
refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response

from r1_serve.errors import R1Error
from r1_serve.router.call import Call, Event
from r1_serve.router.choice import Kind


class Format(Protocol):
    """Writes one call as a stream: ``opening``, then texts and events in any cut, then ``closing`` or ``error``."""

    media_type: bytes
    keep_alive: bytes

    def opening(self) -> bytes: ...
    def event(self, event: Event) -> bytes: ...
    def text(self, index: int, kind: Kind, text: str) -> bytes:
        """On the token path: called for each frame, straight before the connection."""

    def closing(self) -> bytes: ...
    def error(self, error: R1Error) -> bytes: ...


@dataclass(frozen=True)
class Dialect:
    stream: Callable[[Call], Format]
    whole: Callable[[Call, Sequence[Event]], Any]
    refusal: Callable[[R1Error], Response]
