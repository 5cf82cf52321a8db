from __future__ import annotations

import itertools

import pytest
from r1_serve.router.stop import StopStrings

TEXT = "one END two ENDING three"


def read(stops: tuple[str, ...], parts: list[str]) -> tuple[str, bool]:
    found, shown = StopStrings(stops), ""
    for part in parts:
        text, met = found.feed(part)
        shown += text
        if met:
            return shown + found.flush(), True
    return shown + found.flush(), False


@pytest.mark.parametrize(
    ("stops", "shown", "met"),
    [
        ((), TEXT, False),
        (("END",), "one ", True),
        (("ENDING", "two"), "one END ", True),
        (("ENDING", "END"), "one ", True),
        (("three?",), TEXT, False),
        (("o",), "", True),
        (("threeX", "hree"), "one END two ENDING t", True),
    ],
)
def test_the_earliest_stop_string_ends_the_text_however_it_is_cut(
    stops: tuple[str, ...], shown: str, met: bool
) -> None:
    for a, b in itertools.combinations(range(len(TEXT) + 1), 2):
        assert read(stops, [TEXT[:a], TEXT[a:b], TEXT[b:]]) == (shown, met)
    assert read(stops, list(TEXT)) == (shown, met)


def test_no_more_is_held_back_than_could_become_a_stop_string() -> None:
    found = StopStrings(("abab!",))
    assert found.feed("xaba") == ("x", False)
    assert found.feed("c") == ("abac", False)
    assert found.feed("ab") == ("", False)
    assert found.feed("ab") == ("", False)
    assert found.feed("ab") == ("ab", False)
    assert found.flush() == "abab"
    assert found.flush() == ""
