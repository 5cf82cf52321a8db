"""How one engine is split: the ranks that step together, as the performance model sees them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """One engine of ``gpus`` GPUs.

    ``tensor`` ranks share a sequence's attention; ``data`` attention ranks hold different sequences; experts are cut
    ``expert_tensor`` ways across their width and spread over ``expert`` ranks; ``pipeline`` stages hold the layers.
    """

    tensor: int = 1
    data: int = 1
    expert_tensor: int = 1
    expert: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}: a split has at least one rank")
        if self.tensor * self.data != self.expert_tensor * self.expert:
            raise ValueError(
                f"attention spans {self.tensor} x {self.data} ranks and experts {self.expert_tensor} x {self.expert}: "
                "both must span the same ranks"
            )

    @property
    def ranks(self) -> int:
        """Ranks of one pipeline stage."""
        return self.tensor * self.data

    @property
    def gpus(self) -> int:
        return self.ranks * self.pipeline

    def stages(self, layers: int) -> tuple[int, ...]:
        """Layers of each pipeline stage as vLLM cuts them: a remainder goes to the stages before the last one."""
        each, rest = divmod(layers, self.pipeline)
        return tuple(each + (1 <= self.pipeline - 1 - stage <= rest) for stage in range(self.pipeline))

    def __str__(self) -> str:
        parts = [f"TP{self.tensor}"]
        if self.data > 1:
            parts.append(f"DP{self.data}")
        if self.expert > 1:
            parts.append(f"EP{self.expert}")
        if self.pipeline > 1:
            parts.append(f"PP{self.pipeline}")
        return "x".join(parts)
