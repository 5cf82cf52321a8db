"""Gather and reduce rows over gloo groups through vLLM's CPU communicator, as it comes and with the piece."""

import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from r1_serve.rehearsal import collectives, register
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

CASES = {"equal": [3, 3, 3], "uneven": [1, 4, 2], "one_empty": [2, 0, 5], "single_rows": [1, 1, 1]}


def seeded(seed: int, rows: int) -> torch.Tensor:
    return torch.randn(rows, 48, generator=torch.Generator().manual_seed(seed))


def communicator(rank: int, world: int) -> Any:
    self = object.__new__(CpuCommunicator)
    self.world_size, self.rank_in_group, self.device_group = world, rank, dist.group.WORLD
    return self


def work(rank: int, world: int, store: str, answers: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    ours, wrong = communicator(rank, world), []
    for name, rows in CASES.items():
        sizes = rows[:world]
        hidden = [seeded(r, n) for r, n in enumerate(sizes)]
        ids = [(h[:, :8] * 100).to(torch.int32) for h in hidden]
        flat = [h[:, 0].to(torch.float64) for h in hidden]
        many = ours.all_gatherv([hidden[rank], ids[rank], flat[rank]], dim=0, sizes=sizes)
        for got, parts in zip(many, (hidden, ids, flat), strict=True):
            if got.dtype != parts[0].dtype or not torch.equal(got, torch.cat(parts)):
                wrong.append(f"all_gatherv {name}")
        if not torch.equal(ours.all_gatherv(hidden[rank], dim=0, sizes=sizes), torch.cat(hidden)):
            wrong.append(f"all_gatherv of one tensor {name}")

        partial = [seeded(10 + r, sum(sizes)) for r in range(world)]
        total = partial[0]
        for part in partial[1:]:
            total = total + part
        mine = total[sum(sizes[:rank]) : sum(sizes[: rank + 1])]
        if not torch.equal(ours.reduce_scatterv(partial[rank], dim=0, sizes=sizes), mine):
            wrong.append(f"reduce_scatterv {name}")
    everyone = torch.arange(float(world)).repeat_interleave(2).unsqueeze(1)
    if not torch.equal(ours.all_gatherv(torch.full((2, 1), float(rank))), everyone):
        wrong.append("all_gatherv without sizes")
    answers.put(wrong)
    dist.barrier()
    dist.destroy_process_group()


def refusals() -> list[str]:
    """Which of the two the communicator leaves to a base class that only raises."""
    refused, self = [], object.__new__(CpuCommunicator)
    self.world_size, self.rank_in_group, self.device_group = 1, 0, None
    for name in ("all_gatherv", "reduce_scatterv"):
        try:
            getattr(self, name)(torch.ones(1, 1), 0, [1])
        except NotImplementedError:
            refused.append(name)
        except Exception:  # a real implementation wants its real group
            continue
    return refused


facts: dict[str, Any] = {"needed": collectives.needed(), "upstream_refuses": refusals()}
register()
facts["needed_after"] = collectives.needed()
fork = multiprocessing.get_context("fork")  # vLLM is imported once, and no thread has run yet
for world in (2, 3):
    with tempfile.TemporaryDirectory() as folder:
        answers = fork.Queue()
        arguments = [(rank, world, str(Path(folder) / "store"), answers) for rank in range(world)]
        ranks = [fork.Process(target=work, args=each) for each in arguments]
        for process in ranks:
            process.start()
        facts[f"wrong_on_{world}"] = sorted({fault for _ in ranks for fault in answers.get(timeout=60)})
        for process in ranks:
            process.join(timeout=60)
print(json.dumps(facts))
