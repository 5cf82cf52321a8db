from __future__ import annotations

import queue
import threading

from r1_serve.workers.progress import told


def test_each_new_message_is_said_once_and_again_after_it_was_gone() -> None:
    script: list[list[str]] = [["no GPU"], ["no GPU"], ["no GPU", "slow"], [], ["no GPU"]]
    said: queue.Queue[str] = queue.Queue()
    through = threading.Event()

    def messages() -> list[str]:
        if not script:
            through.set()
            return []
        return script.pop(0)

    with told(messages, said.put, every_s=0.001):
        assert through.wait(10)
    assert [said.get_nowait() for _ in range(said.qsize())] == ["no GPU", "slow", "no GPU"]


def test_nothing_is_said_of_what_starts_at_once() -> None:
    def messages() -> list[str]:
        raise AssertionError("not asked")

    with told(messages, every_s=60):
        pass
