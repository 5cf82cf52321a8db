"""Says what Serve waits for while ranks start: a gang that will not form would otherwise be silence."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_S = 10.0

Messages = Callable[[], list[str]]


@contextmanager
def told(messages: Messages, say: Callable[[str], None] | None = None, every_s: float = EVERY_S) -> Iterator[None]:
    """While the block runs, say each new message once, from a thread of its own. By default to stderr."""
    say = say or _to_stderr
    done = threading.Event()

    def watch() -> None:
        last: list[str] = []
        while not done.wait(every_s):
            now = messages()
            for text in now:
                if text not in last:
                    say(text)
            last = now

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def serves_messages(app: str) -> list[str]:
    """What Serve says of the deployments of ``app`` that are not healthy yet, a line each."""
    from ray import serve

    status = serve.status().applications.get(app)
    deployments = status.deployments.items() if status else ()
    return [f"{name}: {' '.join(deployment.message.split())}" for name, deployment in deployments if deployment.message]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
