"""Stop strings over a stream of text: what could be the start of one is held back until it is clear."""

from __future__ import annotations


class StopStrings:
    """Finds the earliest of ``stops`` across any cut of the text."""

    __slots__ = ("_held", "_longest", "_stops", "met")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.met: str | None = None

    def __bool__(self) -> bool:
        return bool(self._stops)

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was met: then it and what follows are dropped."""
        if not self._stops:
            return text, False
        text = self._held + text
        met = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if met:
            self._held = ""
            at, self.met = min(met, key=lambda found: found[0])
            return text[:at], True
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """At the end nothing more can complete a stop string."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest tail of ``text`` that starts a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
