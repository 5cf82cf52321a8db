"""The value every generator returns, its answer check and the split between training and held-out problems."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

THINK_END = "</think>"
HELD_OUT_SHARE = 20  # one problem in this many is never trained on


@dataclass(frozen=True)
class Problem:
    """One question with its worked thought and its answer.

    `canonical` names the problem apart from its wording (the operands, not the phrasing), so that a rephrased
    held-out problem is still held out. `final` is the one checkable result inside the sentence `answer`:
    integers separated by spaces, or "yes" / "no", or the word that must appear.
    """

    task: str
    canonical: str
    question: str
    thinking: str
    answer: str
    final: str

    @property
    def completion(self) -> str:
        """What the model writes after the prompt's `<think>\\n`, without the end-of-sentence token."""
        thought = f"{self.thinking}\n" if self.thinking else "\n"
        return f"{thought}{THINK_END}\n\n{self.answer}"

    @property
    def is_held_out(self) -> bool:
        digest = hashlib.sha256(f"{self.task}|{self.canonical}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def check(problem: Problem, text: str) -> bool:
    """Whether `text` (a completion, or an answer alone) gives the problem's final result.

    Text that opened thinking and never closed it counts as wrong: callers pass the whole completion.
    """
    _, closed, tail = text.rpartition(THINK_END)
    answer = tail if closed else text
    if re.fullmatch(r"-?\d+( -?\d+)*", problem.final):
        return re.findall(r"-?\d+", answer) == problem.final.split()
    words = re.findall(r"[a-z]+", answer.lower())
    if problem.final in ("yes", "no"):
        return words[:1] == [problem.final]
    return problem.final in words
