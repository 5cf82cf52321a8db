"""The prefix index: whose prompts lie where."""

from __future__ import annotations

import pytest
from r1_cluster.routing.prefix import PrefixIndex, chain_of

PROMPT = list(range(40))


@pytest.fixture
def index() -> PrefixIndex:
    return PrefixIndex(block_tokens=8, max_blocks=10)


def test_only_whole_blocks_have_a_hash() -> None:
    assert [len(chain_of(PROMPT[:n], 8)) for n in (0, 7, 8, 15, 16, 40)] == [0, 0, 1, 1, 2, 5]


def test_a_hash_covers_all_before_it() -> None:
    changed = [99, *PROMPT[1:]]
    assert not set(chain_of(PROMPT, 8)) & set(chain_of(changed, 8))
    assert chain_of(PROMPT, 8)[:3] == chain_of(PROMPT[:24], 8)


def test_tenants_match_nothing_of_each_other() -> None:
    assert not set(chain_of(PROMPT, 8, "acme")) & set(chain_of(PROMPT, 8, "other"))


def test_the_longest_common_start_is_found_on_each_rank(index: PrefixIndex) -> None:
    index.sent("a", index.chain(PROMPT))
    index.sent("b", index.chain(PROMPT[:16]))
    asked = index.chain(PROMPT[:24] + [7] * 16)
    assert index.cached(asked, ["a", "b", "c"]) == {"a": 24, "b": 16}
    assert index.cached((), ["a"]) == {}


def test_the_least_recently_used_blocks_go_first_and_from_their_end(index: PrefixIndex) -> None:
    old, new = index.chain(PROMPT), index.chain(range(100, 164))
    index.sent("a", old)
    index.sent("a", new)
    assert index.cached(new, ["a"]) == {"a": 64}
    assert index.cached(old, ["a"]) == {"a": 16}


def test_use_keeps_blocks(index: PrefixIndex) -> None:
    kept, other = index.chain(PROMPT[:16]), index.chain(range(100, 164))
    index.sent("a", kept)
    index.sent("a", other)
    index.sent("a", kept)
    index.sent("a", index.chain(range(200, 240)))
    assert index.cached(kept, ["a"]) == {"a": 16}


def test_a_rank_that_publishes_events_is_known_exactly(index: PrefixIndex) -> None:
    chain = index.chain(PROMPT)
    index.sent("a", chain)
    index.stored("a", chain[:2])
    assert index.cached(chain, ["a"]) == {"a": 16}
    index.sent("a", chain)
    assert index.cached(chain, ["a"]) == {"a": 16}, "what was sent is a guess, and no longer needed"
    index.stored("a", chain[2:])
    index.removed("a", [chain[1]])
    assert index.cached(chain, ["a"]) == {"a": 8}, "blocks after a missing one are of no use"
    index.cleared("a")
    assert index.cached(chain, ["a"]) == {}


def test_a_rank_that_is_gone_is_forgotten(index: PrefixIndex) -> None:
    index.stored("a", index.chain(PROMPT))
    index.forget("a")
    index.sent("a", index.chain(PROMPT[:8]))
    assert index.cached(index.chain(PROMPT), ["a"]) == {"a": 8}


def test_sizes_must_make_sense() -> None:
    with pytest.raises(ValueError, match="block_tokens 0"):
        PrefixIndex(0)


def test_of_many_ranks_those_with_most_of_the_prompt_come_first() -> None:
    index = PrefixIndex(block_tokens=4)
    whole = index.chain(range(40))
    for number in range(50):
        index.sent(f"shallow{number}", whole[:2])
    index.sent("deep", whole)
    index.sent("middle", whole[:5])
    assert index.longest(whole, 2) == ["deep", "middle"]
    assert index.longest(whole, 8)[:2] == ["deep", "middle"]
    assert len(index.longest(whole, 8)) >= 8
    index.forget("deep")
    assert index.longest(whole, 1) == ["middle"]
    assert index.longest((), 4) == index.longest(index.chain(range(100, 140)), 4) == []
