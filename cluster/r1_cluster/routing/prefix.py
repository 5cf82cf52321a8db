"""Which rank has which prompts in its prefix cache, as far as can be told.

Only *prompt* blocks are kept: a thought never returns in a conversation's history, so the blocks it wrote are of no
further use; the answer returns as part of the next prompt and is counted then. Block hashes are chained and keyed by
the tenant's salt: one tenant's prompts match nothing of another's.
"""

from __future__ import annotations

import itertools
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

Chain = tuple[bytes, ...]

BLOCK_TOKENS = 64  # routers and workers must agree on it


def salt_key(salt: str) -> bytes:
    """What keys a tenant's hashes."""
    return blake2b(salt.encode(), digest_size=16).digest()


def block_hash(previous: bytes, token_bytes: bytes, key: bytes) -> bytes:
    """8 bytes for a block whose ids, 4 bytes each, are ``token_bytes``, after one of hash ``previous``."""
    return blake2b(previous + token_bytes, digest_size=8, key=key).digest()


def chain_of(token_ids: Sequence[int], block_tokens: int, salt: str = "") -> Chain:
    """A hash a full block, each covering all before it. The last, partial block is left out."""
    key = salt_key(salt)
    whole = len(token_ids) // block_tokens * block_tokens
    data = array("I", token_ids[:whole]).tobytes()
    size = 4 * block_tokens
    hashes: list[bytes] = []
    previous = b""
    for at in range(0, len(data), size):
        previous = block_hash(previous, data[at : at + size], key)
        hashes.append(previous)
    return tuple(hashes)


class PrefixIndex:
    """For each rank the block hashes it is believed to hold, the least recently used forgotten first.

    Approximate by default: what was sent to a rank is there until ``max_blocks`` others were. For a rank whose engine
    publishes KV events (:meth:`stored`, :meth:`removed`, :meth:`cleared`) these alone count.
    """

    def __init__(self, block_tokens: int = BLOCK_TOKENS, max_blocks: int = 1 << 16) -> None:
        """``max_blocks``: for each rank. About 200 bytes a block."""
        if block_tokens < 1 or max_blocks < 1:
            raise ValueError(f"block_tokens {block_tokens} and max_blocks {max_blocks} must be at least 1")
        self.block_tokens = block_tokens
        self._max_blocks = max_blocks
        self._held: dict[str, OrderedDict[bytes, None]] = {}
        self._holders: dict[bytes, dict[str, None]] = {}
        self._exact: set[str] = set()

    def chain(self, token_ids: Sequence[int], salt: str = "") -> Chain:
        return chain_of(token_ids, self.block_tokens, salt)

    def sent(self, rank: str, chain: Chain) -> None:
        """A prompt goes to ``rank``: its blocks will be there."""
        if rank not in self._exact:
            self._add(rank, chain)

    def stored(self, rank: str, hashes: Iterable[bytes]) -> None:
        """KV event: the rank's engine has these blocks now."""
        self._become_exact(rank)
        self._add(rank, tuple(hashes))

    def removed(self, rank: str, hashes: Iterable[bytes]) -> None:
        """KV event: the engine evicted these blocks."""
        self._become_exact(rank)
        held = self._held.get(rank, OrderedDict())
        for block in hashes:
            if block in held:
                del held[block]
                self._lost(rank, block)

    def cleared(self, rank: str) -> None:
        """KV event: the engine dropped its whole cache."""
        self._become_exact(rank)
        self._drop(rank)

    def forget(self, rank: str) -> None:
        """The rank is gone."""
        self._drop(rank)
        self._exact.discard(rank)

    def cached(self, chain: Chain, ranks: Iterable[str]) -> Mapping[str, int]:
        """For each rank that has any, how many tokens of the prompt's start it holds."""
        if not chain or chain[0] not in self._holders:
            return {}
        first, last, whole, exact = chain[0], chain[-1], len(chain) * self.block_tokens, self._exact
        found = {}
        for rank in ranks:
            held = self._held.get(rank)
            if held and first in held:
                if rank in exact:
                    found[rank] = _first_missing(chain, held) * self.block_tokens
                else:
                    found[rank] = whole if last in held else _bisected(chain, held) * self.block_tokens
        return found

    def longest(self, chain: Chain, most: int) -> list[str]:
        """Up to about ``most`` ranks, those that hold the most of the prompt's start first. Not every rank is asked."""
        if not chain or chain[0] not in self._holders:
            return []
        found: dict[str, None] = {}
        for at in range(_bisected(chain, self._holders) - 1, -1, -1):
            holders = self._holders.get(chain[at], {})
            if len(holders) > len(found):
                found.update(dict.fromkeys(itertools.islice(reversed(holders), most)))
            if len(found) >= most:
                break
        return list(found)

    def _become_exact(self, rank: str) -> None:
        if rank not in self._exact:
            self._exact.add(rank)
            self._drop(rank)

    def _drop(self, rank: str) -> None:
        for block in self._held.pop(rank, ()):
            self._lost(rank, block)

    def _add(self, rank: str, chain: Chain) -> None:
        held = self._held.setdefault(rank, OrderedDict())
        # The end of a prompt first: a block is then never forgotten before those that need it.
        for block in reversed(chain):
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = None
                self._holders.setdefault(block, {})[rank] = None
        while len(held) > self._max_blocks:
            self._lost(rank, held.popitem(last=False)[0])

    def _lost(self, rank: str, block: bytes) -> None:
        holders = self._holders[block]
        del holders[rank]
        if not holders:
            del self._holders[block]


def _first_missing(chain: Chain, held: Mapping[bytes, None]) -> int:
    return next((at for at, block in enumerate(chain) if block not in held), len(chain))


def _bisected(chain: Chain, held: Mapping[bytes, object]) -> int:
    """As ``_first_missing``, where a held block implies all before it."""
    low, high = 1, len(chain)
    while low < high:
        middle = (low + high + 1) // 2
        if chain[middle - 1] in held:
            low = middle
        else:
            high = middle - 1
    return low
