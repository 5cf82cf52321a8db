"""A plan in another tool's words: Helm values, and command lines for vLLM and SGLang, one a node.

vLLM's flags are those of 0.32 (a test parses the lines with vLLM's own parser); SGLang's are from its documentation
(docs.sglang.io, server arguments).
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator

import yaml
from r1_cluster.plan import Plan, Pool
from r1_cluster.planner import FleetSpec, PlanningError

RPC_PORT = 13345
HTTP_PORT = 8000
Flags = list[str]


def emit(kind: str, plan: Plan, fleet: FleetSpec) -> str:
    """``helm-values``, ``vllm-command`` or ``sglang-command``. Raises PlanningError for what that tool does not run."""
    if kind == "helm-values":
        return helm_values(plan, fleet)
    if plan.fleet.accelerator == "cpu":
        raise PlanningError(f"--emit {kind}: a CPU plan is for `r1 rehearse`: give --gpus with GPUs")
    return _script(plan, vllm if kind == "vllm-command" else sglang)


def helm_values(plan: Plan, fleet: FleetSpec) -> str:
    """Values for the chart: the Plan's own fields under ``plan``, and what to ask Kubernetes for under ``gpu``."""
    if plan.separate:
        raise PlanningError("--emit helm-values: the chart runs unified pools: plan with --pools unified")
    values = {
        "plan": plan.model_dump(mode="json"),
        "gpu": {"type": plan.fleet.accelerator, "perNode": plan.fleet.accelerators_per_node, "nodes": fleet.nodes},
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def _script(plan: Plan, command: Callable[[Plan, Pool, int, int], Flags]) -> str:
    """One line a node of each gang, with a comment that says where it runs."""
    lines = [f"# {plan.name}, hash {plan.hash}", "# set HEAD to the address of a gang's first node"]
    for pool in plan.pools:
        nodes = nodes_of(plan, pool)
        for gang in range(pool.gangs):
            for node in range(nodes):
                where = f"{pool.name} gang {gang}" + (f", node {node} of {nodes}" if nodes > 1 else "")
                lines.append(f"# {where}, {min(pool.layout.accelerators, plan.fleet.accelerators_per_node)} GPUs")
                lines.append(" ".join(_quote(word) for word in command(plan, pool, node, nodes)))
    if plan.separate:
        lines.append("# requests go to a prefill engine, then to a decode engine: put the tool's own proxy in front")
    if plan.limits.thinking.ceiling is not None:
        lines.append(
            f"# the thinking budget of {plan.limits.thinking.ceiling} tokens is kept by the router; without it every "
            "request has to ask for it"
        )
    return "\n".join(lines) + "\n"


def nodes_of(plan: Plan, pool: Pool) -> int:
    """Nodes one gang spans."""
    return math.ceil(pool.layout.accelerators / plan.fleet.accelerators_per_node)


def vllm(plan: Plan, pool: Pool, node: int, nodes: int) -> Flags:
    """``vllm serve`` of one node of a gang. Data-parallel ranks after the first node are headless."""
    layout, engine = pool.layout, plan.engine
    words = ["vllm", "serve", plan.model.checkpoint, "--served-model-name", plan.model.name, *plan.model.aliases]
    words += ["--tensor-parallel-size", str(layout.tensor_parallel_size)]
    if layout.pipeline_parallel_size > 1:
        words += ["--pipeline-parallel-size", str(layout.pipeline_parallel_size)]
    if layout.expert_parallel_size > 1:
        words.append("--enable-expert-parallel")
    if layout.data_parallel_size > 1:
        words += list(_vllm_data_parallel(plan, pool, node, nodes))
    elif nodes > 1:
        words += ["--nnodes", str(nodes), "--node-rank", str(node), "--master-addr", "$HEAD"]
    words += ["--max-model-len", str(engine.max_model_len), "--max-num-seqs", str(engine.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(engine.max_num_batched_tokens)]
    words += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
    if engine.kv_cache_dtype:
        words += ["--kv-cache-dtype", engine.kv_cache_dtype]
    if engine.num_speculative_tokens:
        drafts = {"method": "mtp", "num_speculative_tokens": engine.num_speculative_tokens}
        words += ["--speculative-config", json.dumps(drafts)]
    if pool.role != "unified":
        words += ["--kv-transfer-config", json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_both"})]
    if node and (nodes > 1):
        return [*words, "--headless"]
    return [*words, "--reasoning-parser", "deepseek_r1", "--port", str(HTTP_PORT)]


def _vllm_data_parallel(plan: Plan, pool: Pool, node: int, nodes: int) -> Iterator[str]:
    data = pool.layout.data_parallel_size
    yield from ("--data-parallel-size", str(data))
    if nodes == 1:
        return
    local = data // nodes
    if local == 0:
        raise PlanningError(
            f"--emit vllm-command: a rank of {pool.layout} spans nodes, and vLLM's data parallelism starts whole ranks "
            "on a node: deploy this plan with `r1 serve` or the chart"
        )
    yield from ("--data-parallel-size-local", str(local), "--data-parallel-address", "$HEAD")
    yield from ("--data-parallel-rpc-port", str(RPC_PORT))
    # What the performance model assumes between nodes; vLLM's default gathers every token on every rank.
    assumed = f"deepep_{'high_throughput' if pool.role == 'prefill' else 'low_latency'}"
    yield from ("--all2all-backend", plan.engine.all2all_backend or assumed)
    if node:
        yield from ("--data-parallel-start-rank", str(node * local))


def sglang(plan: Plan, pool: Pool, node: int, nodes: int) -> Flags:
    """``sglang.launch_server`` of one node of a gang: --tp-size counts all attention ranks, --dp-size those apart."""
    layout, engine = pool.layout, plan.engine
    ranks = layout.tensor_parallel_size * layout.data_parallel_size
    words = ["python", "-m", "sglang.launch_server", "--model-path", plan.model.checkpoint]
    words += ["--served-model-name", plan.model.name, "--tp-size", str(ranks)]
    if layout.pipeline_parallel_size > 1:
        words += ["--pp-size", str(layout.pipeline_parallel_size)]
    if layout.data_parallel_size > 1:
        words += ["--dp-size", str(layout.data_parallel_size), "--enable-dp-attention"]
    if layout.expert_parallel_size > 1:
        words += ["--ep-size", str(ranks)]
        if layout.data_parallel_size > 1:
            words += ["--moe-a2a-backend", "deepep"]
    if nodes > 1:
        words += ["--nnodes", str(nodes), "--node-rank", str(node), "--dist-init-addr", "$HEAD:20000"]
    words += ["--context-length", str(engine.max_model_len)]
    words += ["--max-running-requests", str(engine.max_num_seqs * layout.data_parallel_size)]
    words += ["--chunked-prefill-size", str(engine.max_num_batched_tokens * layout.data_parallel_size)]
    words += ["--mem-fraction-static", str(engine.gpu_memory_utilization)]
    if engine.kv_cache_dtype:
        words += ["--kv-cache-dtype", "fp8_e4m3"]
    if engine.num_speculative_tokens:
        words += ["--speculative-algorithm", "EAGLE", "--speculative-eagle-topk", "1"]
        words += ["--speculative-num-steps", str(engine.num_speculative_tokens)]
        words += ["--speculative-num-draft-tokens", str(engine.tokens_per_step)]
    if pool.role != "unified":
        words += ["--disaggregation-mode", pool.role, "--disaggregation-transfer-backend", "nixl"]
    return [*words, "--reasoning-parser", "deepseek-r1", "--host", "0.0.0.0", "--port", str(HTTP_PORT)]  # noqa: S104


def _quote(word: str) -> str:
    """As a shell reads it; $HEAD stays a variable."""
    return word if "$HEAD" in word else shlex.quote(word)
