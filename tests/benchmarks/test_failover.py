"""What the failover benchmark calls lost, repeated and different."""

from __future__ import annotations

import pytest
from r1_bench.failover import MARK, Stream, compare, lost_and_repeated, moment

WANTED = "1 2 3 4 5"


@pytest.mark.parametrize(
    ("got", "lost", "repeated"),
    [
        (WANTED, 0, 0),
        ("1 2 4 5", 2, 0),
        ("1 2 3", 4, 0),
        ("", 9, 0),
        ("1 2 3 3 4 5", 0, 2),
        ("1 2 3 2 3 4 5", 0, 4),
        ("1 2 3 4 5 5", 0, 2),
        ("1 2 9 9 9", 0, 0),
        ("1 2 3 8 4 5", 0, 0),
    ],
)
def test_a_gap_is_loss_a_piece_twice_is_repetition_and_another_text_is_neither(
    got: str, lost: int, repeated: int
) -> None:
    assert lost_and_repeated(WANTED, got) == (lost, repeated)


def test_the_summary_has_what_a_machine_reads() -> None:
    wanted = [Stream(WANTED, 9, 1), Stream(WANTED, 9, 1), Stream(WANTED, 9, 1)]
    got = [Stream(WANTED, 9, 1), Stream("1 2 4 5", 7, 1), Stream("1", 0, 0, error="gone")]
    assert compare(wanted, got, [{"kind": "engine"}]) == {
        "streams": 3,
        "kills": 1,
        "completed": 2,
        "lost_tokens": 2,
        "repeated_tokens": 0,
        "mismatched_outputs": 1,
    }


@pytest.mark.parametrize(
    ("text", "ends", "where"),
    [
        ("", 0, None),
        ("1 2", 0, "thinking"),
        ("1 2 3", 0, "boundary"),
        (f"1 2 3{MARK}4", 0, "answer"),
        (f"1 2 3{MARK}4 5", 1, None),
    ],
)
def test_a_stream_stands_on_the_boundary_when_its_thought_is_whole_and_its_answer_not_begun(
    text: str, ends: int, where: str | None
) -> None:
    assert moment(Stream(text, ends=ends), Stream(f"1 2 3{MARK}4 5")) == where
