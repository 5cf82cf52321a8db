"""What an engine step works on."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Batch:
    """What one step works on, over the whole engine.

    ``decode`` sequences take ``width`` tokens each (1, or 1 + drafts to verify) over ``cached`` tokens of context in
    all. ``prefill`` new prompt tokens attend to ``pairs`` (query, key) pairs and to ``past`` tokens already cached;
    they lie on ``prefill_ranks`` of the data-parallel ranks.
    """

    decode: float = 0.0
    cached: float = 0.0
    prefill: float = 0.0
    pairs: float = 0.0
    past: float = 0.0
    prefill_ranks: float = 1.0
    width: float = 1.0

    @property
    def tokens(self) -> float:
        return self.prefill + self.decode * self.width

    @classmethod
    def prompts(cls, tokens: float, *, past: float = 0.0, count: float = 1.0, ranks: float = 1.0) -> Batch:
        """``count`` prompts of ``tokens`` new tokens, each after ``past`` cached ones."""
        pairs = count * (tokens * past + tokens * tokens / 2)
        return cls(prefill=count * tokens, pairs=pairs, past=count * past, prefill_ranks=ranks)

    @classmethod
    def decodes(cls, sequences: float, context: float, width: float = 1.0) -> Batch:
        """``sequences`` running with ``context`` cached tokens each."""
        return cls(decode=sequences, cached=sequences * context, width=width)

    def beside(self, other: Batch) -> Batch:
        """This decode batch with the prompts of ``other`` in the same step."""
        return replace(
            self, prefill=other.prefill, pairs=other.pairs, past=other.past, prefill_ranks=other.prefill_ranks
        )


@dataclass(frozen=True)
class Speculation:
    """``drafts`` tokens proposed a step, each accepted with probability ``acceptance`` if those before it were."""

    drafts: int
    acceptance: float

    @property
    def tokens_per_step(self) -> float:
        """1 + a + ... + a^drafts (Leviathan et al. 2023, eq. 1)."""
        return float(sum(self.acceptance**i for i in range(self.drafts + 1)))
