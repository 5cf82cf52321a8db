"""Kill ranks under running streams: is anything lost, repeated or answered differently?

`python -m r1_bench.failover --streams 64` rehearses a plan, asks held-out problems greedily without a disturbance, then
all again while a rank's replica and its EngineCore (and with tensor parallelism a tensor worker) are killed with
SIGKILL, each once the streams have gone on after the one before: in turn while streams think, while the next token of
one is `</think>`, and while one answers. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import httpx
import psutil
from r1_serve.nano.tasks import held_out

from r1_bench import results
from r1_bench.chat import ChatError, chat
from r1_bench.fleet import Fleet, fleet

MAX_TOKENS = 900
DEADLINE_S = 1200.0

# What each kind of process calls itself, as Ray and vLLM set it.
TITLES = {"replica": "ray::ServeReplica", "engine": "VLLM::EngineCore", "tensor": "ray::RayWorker"}

# Where a stream stands when a rank is killed under it.
MOMENTS = ("thinking", "boundary", "answer")
MARK = "\n=>\n"


@dataclass
class Stream:
    """One request as its client saw it."""

    text: str = ""
    tokens: int = 0
    ends: int = 0
    error: str | None = None
    longest_pause_s: float = 0.0


async def ask(client: httpx.AsyncClient, question: str, stream: Stream) -> None:
    """Thinking and answer go to ``stream.text`` as they come, apart by a mark."""
    last, answering = time.monotonic(), False
    try:
        async for chunk in chat(client, question, max_tokens=MAX_TOKENS, loop_guard=False):
            if chunk.answer and not answering:
                answering, stream.text = True, stream.text + MARK
            stream.text += chunk.answer or chunk.thinking
            stream.ends += chunk.finish_reason is not None
            stream.tokens = chunk.tokens or stream.tokens
            now = time.monotonic()
            stream.longest_pause_s, last = max(stream.longest_pause_s, now - last), now
    except ChatError as e:
        stream.error = str(e)


async def ask_all(where: Fleet, questions: Sequence[str], streams: Sequence[Stream]) -> None:
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=where.url, timeout=DEADLINE_S, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        for question, stream in zip(questions, streams, strict=True):
            group.create_task(ask(client, question, stream))


def moment(stream: Stream, wanted: Stream) -> str | None:
    """Where ``stream`` stands, one of MOMENTS; ``wanted`` is its undisturbed run, which tells when a thought is whole.
    None before the first token and after the last."""
    if not stream.text or stream.ends:
        return None
    if MARK in stream.text:
        return "answer"
    return "boundary" if stream.text == wanted.text.split(MARK)[0] else "thinking"


def victim(where: Fleet, kind: str) -> psutil.Process | None:
    """A process of that kind among the fleet's own descendants; of several the one with the lowest pid."""
    found = []
    for process in psutil.Process(where.pid).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if TITLES[kind] in title and (kind != "replica" or "rank-" in title):
            found.append(process)
    return min(found, key=lambda process: process.pid, default=None)


async def kill_in_turn(
    where: Fleet, kinds: Sequence[str], streams: Sequence[Stream], wanted: Sequence[Stream]
) -> list[dict[str, Any]]:
    """Kill one of each kind when an equal further share of all characters has come, at each of MOMENTS in turn."""
    killed: list[dict[str, Any]] = []
    expected = sum(len(stream.text) for stream in wanted)

    def moments() -> list[str | None]:
        return [moment(stream, undisturbed) for stream, undisturbed in zip(streams, wanted, strict=True)]

    for number, (kind, when) in enumerate(zip(kinds, cycle(MOMENTS), strict=False)):
        due = expected * (number + 1) / (len(kinds) + 1) * 0.8
        while sum(len(stream.text) for stream in streams) < due:  # noqa: ASYNC110  # progress has no event
            await asyncio.sleep(0.01)
        process = victim(where, kind)  # takes longer than a step: before the moment comes
        if process is None:
            raise RuntimeError(f"no {kind} process in {where.plan}: see --kills")
        while when not in moments():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        process.kill()
        standing = Counter(moments())
        at = sum(len(stream.text) for stream in streams) / expected
        killed.append(
            {"kind": kind, "pid": process.pid, "when": when, "at_share": round(at, 2)}
            | {name: standing[name] for name in MOMENTS}
        )
        print(json.dumps(killed[-1]), flush=True)
    return killed


def lost_and_repeated(wanted: str, got: str) -> tuple[int, int]:
    """Characters missing from, or standing twice in, ``got``; (0, 0) also where it went another way altogether."""
    start = _alike(wanted, got)
    end = _alike(wanted[start:][::-1], got[start:][::-1])
    if start + end == len(got) < len(wanted):
        return len(wanted) - len(got), 0
    extra = got[start : len(got) - end]
    twice = got[:start].endswith(extra) or got[start + len(extra) :].startswith(extra)
    return 0, len(extra) if start + end == len(wanted) and twice else 0


def _alike(a: str, b: str) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def compare(wanted: Sequence[Stream], got: Sequence[Stream], kills: Sequence[dict[str, Any]]) -> dict[str, Any]:
    pairs = [(w, g) for w, g in zip(wanted, got, strict=True) if g.error is None]
    changed = [lost_and_repeated(w.text, g.text) for w, g in pairs]
    return {
        "streams": len(got),
        "kills": len(kills),
        "completed": sum(stream.error is None and stream.ends == 1 for stream in got),
        "lost_tokens": sum(lost for lost, _ in changed),
        "repeated_tokens": sum(repeated for _, repeated in changed),
        "mismatched_outputs": sum(w.text != g.text or w.tokens != g.tokens for w, g in pairs),
    }


async def measure(where: Fleet, n: int, seed: int, kinds: Sequence[str]) -> dict[str, Any]:
    questions = [problem.question for problem in held_out(n, seed)]
    wanted, again, got = ([Stream() for _ in questions] for _ in range(3))
    await ask_all(where, questions, wanted)
    await ask_all(where, questions, again)
    noise = sum(w.text != g.text for w, g in zip(wanted, again, strict=True))
    print(json.dumps({"undisturbed": n, "mismatched": noise}), flush=True)
    killing = asyncio.create_task(kill_in_turn(where, kinds, got, wanted))
    started = time.monotonic()
    await ask_all(where, questions, got)
    if not killing.done():
        killing.cancel()
        raise RuntimeError("the streams ended before every kill: give more streams")
    kills = killing.result()
    different = [
        {"question": q, "undisturbed": w.text, "got": g.text, "error": g.error}
        for q, w, g in zip(questions, wanted, got, strict=True)
        if w.text != g.text or g.error
    ]
    return {
        "summary": compare(wanted, got, kills),
        "undisturbed_mismatched": noise,
        "tokens": sum(stream.tokens for stream in got),
        "seconds": round(time.monotonic() - started, 1),
        "longest_pause_s": round(max(stream.longest_pause_s for stream in got), 1),
        "kills": kills,
        "different": different,
    }


def table(result: dict[str, Any]) -> str:
    environment = result["environment"]
    kills = "; ".join(
        f"{k['kind']} at {k['at_share']:.0%} of the text, for one at “{k['when']}” "
        f"({', '.join(f'{k[name]} {name}' for name in MOMENTS)})"
        for k in result["kills"]
    )
    return "\n".join(
        [
            "# Ranks killed under running streams",
            "",
            f"`{environment['command']}` on {environment['date']}, {environment['hardware']}, "
            f"{environment['versions']}.",
            f"Plan {result['plan']}, greedy, {result['tokens']} tokens. Killed with SIGKILL: {kills}.",
            f"Longest pause a client saw: {result['longest_pause_s']} s. Two undisturbed runs differ in "
            f"{result['undisturbed_mismatched']} outputs.",
            "",
            f"`{json.dumps(result['summary'])}`",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plan", default="nano-dp2-ep2")
    parser.add_argument("--kills", nargs="*", choices=TITLES, default=["replica", "engine"])
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/failover_PLAN_cpu_*")
    args = parser.parse_args()
    with fleet(args.plan) as where:
        result = asyncio.run(measure(where, args.streams, args.seed, args.kills))
    result = {"environment": results.environment(), "plan": args.plan, **result}
    if args.write:
        print(results.write(f"failover_{args.plan}_cpu", result, table(result)))
    print(json.dumps(result["summary"]))


if __name__ == "__main__":
    main()
