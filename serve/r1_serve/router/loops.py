"""The loop guard: does a thought end in the same tokens over and over?

R1-Zero's fault, and now and then a distill's: a phrase, a line or a paragraph repeated until ``max_tokens``. A thought
that is exactly periodic over hundreds of tokens does not recover. Tables, code and lists repeat their *form*: the
numbers and names in them change, so they are not periodic for long.

Every ``EVERY`` tokens the last ``NEEDLE`` are looked for in the window before them, by the C library's search on bytes;
a find is a candidate period, verified by comparing two slices. That is constant work a token (a look costs
microseconds), needs no memory beside the ids kept anyway, and depends on the ids alone, not on how they came.
"""

from __future__ import annotations

from array import array

EVERY = 64
NEEDLE = 32
MAX_PERIOD = 2048
REPEATS = 4
MIN_RUN = 384  # for short periods: a line of dashes, a row of zeros or a small table may repeat a little

_CANDIDATES = 8
_SIZE = array("I").itemsize


def loops(token_ids: array[int], thought: int) -> bool:
    """Whether the last ``thought`` of ``token_ids`` end in at least REPEATS and MIN_RUN tokens of one period."""
    if thought < MIN_RUN:
        return False
    window = min(len(token_ids), thought, REPEATS * MAX_PERIOD)
    recent = token_ids[len(token_ids) - window :].tobytes()
    needle = recent[-NEEDLE * _SIZE :]
    end = len(recent) - _SIZE  # the needle itself must not be found
    lowest = max(0, len(recent) - (MAX_PERIOD + NEEDLE) * _SIZE)
    for _ in range(_CANDIDATES):
        at = recent.rfind(needle, lowest, end)
        while at >= 0 and at % _SIZE:
            at = recent.rfind(needle, lowest, at + len(needle) - 1)
        if at < 0:
            return False
        end = at + len(needle) - _SIZE
        period = len(recent) - len(needle) - at
        run = max(MIN_RUN * _SIZE, REPEATS * period)
        if run <= len(recent) and recent[-run + period :] == recent[-run:-period]:
            return True
    return False
