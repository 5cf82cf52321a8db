"""The Plan: the one frozen value everything downstream reads (workers, router, simulator, Helm values).

A Plan says which checkpoint runs in which layout with which limits, and why. It is written as YAML, refuses unknown
keys, and names the field in every complaint. ``Plan.hash`` identifies it: two workers with the same hash are
interchangeable.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from r1_cluster.reading import read_text, read_yaml
from r1_cluster.routing.budget import BudgetRules

PLANS = Path(__file__).parent / "plans"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Positive = Annotated[int, Field(ge=1)]

MOST_DRAFTS = 8  # tokens a step


class PlanError(ValueError):
    """A plan that cannot be used. The message names the file and the field."""


def _unset(value: object) -> bool:
    """Left out of the YAML and of the hash: a field that came later does not rename the plans made before it."""
    return value is None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Model(_Frozen):
    """The checkpoint and the names it is served under."""

    name: Name
    checkpoint: str = Field(min_length=1, description="builtin:r1-nano, a directory, or a hub id")
    aliases: tuple[Name, ...] = ()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    reasoning: bool = Field(default=True, description="the chat template opens <think> in the prompt")


class Layout(_Frozen):
    """How one gang is split. The gang's ranks step together; a rank holds tensor x pipeline accelerators."""

    tensor_parallel_size: Positive = 1
    pipeline_parallel_size: Positive = 1
    data_parallel_size: Positive = 1
    expert_parallel_size: Positive = 1

    @model_validator(mode="after")
    def _experts_span_the_gang(self) -> Self:
        span = self.tensor_parallel_size * self.data_parallel_size
        if self.expert_parallel_size not in (1, span):
            raise ValueError(
                f"expert_parallel_size is {self.expert_parallel_size}; vLLM splits experts over all "
                f"tensor x data ranks or none: use 1 or {span}"
            )
        return self

    @property
    def accelerators_per_rank(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def accelerators(self) -> int:
        return self.accelerators_per_rank * self.data_parallel_size

    def __str__(self) -> str:
        parts = [f"TP{self.tensor_parallel_size}"]
        if self.pipeline_parallel_size > 1:
            parts.append(f"PP{self.pipeline_parallel_size}")
        if self.data_parallel_size > 1:
            parts.append(f"DP{self.data_parallel_size}")
        if self.expert_parallel_size > 1:
            parts.append(f"EP{self.expert_parallel_size}")
        return "x".join(parts)


class Pool(_Frozen):
    """Equal gangs. A unified pool prefills and decodes on the same ranks; a prefill pool hands KV to a decode pool."""

    name: Name = "main"
    role: Literal["unified", "prefill", "decode"] = "unified"
    gangs: Positive = 1
    layout: Layout = Layout()


class Engine(_Frozen):
    """vLLM's limits on one rank."""

    version: str = "0.32.0"
    max_model_len: Positive
    max_num_seqs: Positive = 256
    max_num_batched_tokens: Positive = 8192
    enforce_eager: bool = False
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    enable_prefix_caching: bool = True
    kv_cache_dtype: Literal["fp8"] | None = Field(default=None, exclude_if=_unset, description="none: the model's own")
    num_speculative_tokens: int | None = Field(
        default=None, ge=1, le=MOST_DRAFTS, exclude_if=_unset, description="drafted a step by the MTP layer; none: off"
    )
    all2all_backend: Literal["deepep_high_throughput", "deepep_low_latency"] | None = Field(
        default=None, exclude_if=_unset, description="how tokens reach experts on other nodes; none: vLLM's default"
    )

    @property
    def tokens_per_step(self) -> int:
        """The most that a request gets in one step: all drafts taken, and the token after them."""
        return 1 + (self.num_speculative_tokens or 0)

    @model_validator(mode="after")
    def _a_step_holds_a_token_of_each(self) -> Self:
        needed = self.max_num_seqs * self.tokens_per_step
        if self.max_num_batched_tokens < needed:
            drafts = f" x {self.tokens_per_step} with their drafts" if self.num_speculative_tokens else ""
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs {self.max_num_seqs}"
                f"{drafts}: a step could not give every running request a token"
            )
        return self


class Fleet(_Frozen):
    """What the ranks run on. ``cpu`` rehearses the same placement on Ray nodes that only claim to have GPUs."""

    accelerator: str = Field(min_length=1, description="cpu, or a GPU name such as H200")
    accelerators_per_node: Positive = 8
    nvlink_domain: Positive | None = Field(
        default=None, exclude_if=_unset, description="GPUs one NVLink switch joins, where that is more than a node"
    )
    kv_cache_gib_per_rank: float | None = Field(default=None, gt=0, description="cpu only; on GPUs vLLM measures")

    @property
    def domain(self) -> int:
        """Accelerators among which tensor parallelism is fast."""
        return max(self.accelerators_per_node, self.nvlink_domain or 0)

    @model_validator(mode="after")
    def _kv_is_given_on_cpu_only(self) -> Self:
        if (self.accelerator == "cpu") != (self.kv_cache_gib_per_rank is not None):
            raise ValueError("kv_cache_gib_per_rank is needed with accelerator cpu and measured by vLLM on any other")
        return self


class Limits(_Frozen):
    """What the router admits."""

    default_max_tokens: Positive = 32768
    max_waiting_requests: Positive = Field(default=1024, description="in each rank's engine")
    max_queued_requests: Positive = Field(default=1024, description="in the router, waiting for room in the fleet")
    max_queue_seconds: float = Field(default=300.0, gt=0, description="nothing is queued that would wait longer")
    thinking: BudgetRules = BudgetRules()


class RankMemory(_Frozen):
    """Bytes of one GPU of a pool; the parts sum to the GPU's memory. ``kv_tokens``: of one data-parallel rank."""

    pool: Name
    weights: int = Field(ge=0)
    workspace: int = Field(ge=0, description="activations of the largest step, CUDA graphs, libraries")
    kv_cache: int = Field(ge=0)
    reserve: int = Field(ge=0, description="left to the driver: 1 - gpu_memory_utilization")
    kv_tokens: int = Field(ge=0)

    @property
    def total(self) -> int:
        return self.weights + self.workspace + self.kv_cache + self.reserve


class Predicted(_Frozen):
    """What the performance model expects at ``requests_per_second`` over the whole plan. Times in seconds.

    TTFA is the time to the first token of the *answer*, after the thought. ``cost_per_million_tokens`` is in the
    currency of the price that was given, None without one.
    """

    requests_per_second: float
    max_requests_per_second: float = Field(description="the most at which every SLO holds")
    output_tokens_per_second: float
    output_tokens_per_second_per_gpu: float
    running_requests: float
    ttft_mean: float
    ttft_p95: float
    tpot_mean: float
    tpot_p95: float
    ttfa_mean: float
    ttfa_p95: float
    kv_used: float = Field(description="share of the KV cache in use on average")
    thoughts_cut: float = Field(ge=0, le=1, description="share of thoughts that reach the budget")
    gpu_hours_per_million_tokens: float
    cost_per_million_tokens: float | None = None
    cost_per_answer: float | None = None


class Plan(_Frozen):
    """One deployment, whole. Equal plans have equal hashes whatever their YAML looked like."""

    version: Literal["r1.plan/v1"] = "r1.plan/v1"
    name: Name
    model: Model
    engine: Engine
    fleet: Fleet
    pools: tuple[Pool, ...] = Field(default=(Pool(),), min_length=1)
    limits: Limits = Limits()
    reasons: tuple[str, ...] = Field(default=(), description="why this layout, in words an operator can check")
    memory: tuple[RankMemory, ...] = Field(default=(), description="what the planner counted, one entry a pool")
    predicted: Predicted | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError(f"pools: names must differ, got {', '.join(names)}")
        for pool in self.pools:
            rank = pool.layout.tensor_parallel_size
            if rank > self.fleet.domain:
                where = "an NVLink domain" if self.fleet.nvlink_domain else "a node"
                raise ValueError(
                    f"pools.{pool.name}.layout.tensor_parallel_size is {rank}, more than the "
                    f"{self.fleet.domain} accelerators of {where}: tensor parallelism stays in {where}"
                )
        if self.engine.all2all_backend and self.fleet.accelerator == "cpu":
            raise ValueError(f"engine.all2all_backend {self.engine.all2all_backend} needs GPUs: leave it out on cpu")
        roles = sorted({pool.role for pool in self.pools})
        if roles not in (["unified"], ["decode", "prefill"]):
            raise ValueError(f"pools: roles are {', '.join(roles)}: either all unified, or prefill and decode")
        return self

    @property
    def separate(self) -> bool:
        """Whether prefill and decode have pools of their own."""
        return self.pools[0].role != "unified"

    @property
    def accelerators(self) -> int:
        return sum(pool.gangs * pool.layout.accelerators for pool in self.pools)

    @property
    def hash(self) -> str:
        """Twelve hex digits over the canonical JSON. Left out is what changes nothing for a rank: the name, the
        planner's notes, and the aliases, which routers move from one model to another while both fleets serve."""
        notes = {"name": True, "reasons": True, "memory": True, "predicted": True}
        value = self.model_dump(mode="json", exclude={**notes, "model": {"aliases"}})
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)

    @classmethod
    def from_yaml(cls, text: str, source: str = "plan") -> Plan:
        """Parse and validate. Raises PlanError whose message names ``source`` and each faulty field."""
        return read_yaml(cls, text, source=source, whole="plan", error=PlanError)

    @classmethod
    def load(cls, name_or_path: str) -> Plan:
        """Load a YAML file, or by name one of the shipped plans (``r1 plans`` lists them)."""
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            path = PLANS / f"{name_or_path}.yaml"
        if not path.is_file():
            raise PlanError(f"no plan {name_or_path!r}: shipped plans are {', '.join(shipped())}, or give a .yaml file")
        source = str(name_or_path)
        return cls.from_yaml(read_text(path, source=source, error=PlanError), source)


def shipped() -> tuple[str, ...]:
    """Names of the plans in the package."""
    return tuple(sorted(path.stem for path in PLANS.glob("*.yaml")))
