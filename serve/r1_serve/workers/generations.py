"""The requests of one rank: submitted to the engine, gathered after each step into one frame a router.

No task, queue or wake-up a request: the step hook has all that a step brought, and reads it in one pass.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from r1_serve.protos import fleet_pb2 as pb
from r1_serve.tracing import Tracing
from r1_serve.workers.load import RankLoad
from r1_serve.workers.outputs import Output
from r1_serve.workers.translate import engine_request, is_refusal, tell_end, tell_start

logger = logging.getLogger(__name__)

ENGINE_DEAD = "the engine stopped; its gang restarts"
LEAVING = "this rank is leaving; go on elsewhere"


class Engine(Protocol):
    """What is used of ``AsyncLLM``."""

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *, priority: int, trace_headers: Any = None
    ) -> Any: ...

    async def abort(self, request_id: str) -> None: ...


class Outbox(Protocol):
    """Where a router's frames go. ``send`` must not block."""

    def send(self, frame: pb.Frame) -> None: ...


@dataclass(eq=False, slots=True)
class _Live:
    outbox: Outbox
    request_id: int
    engine_id: str
    started: bool = False
    span: Any = None
    tokens: int = 0


class Generations:
    """All requests of one rank, and its load. One event loop; ``clock`` in seconds."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
        hello: pb.Hello | None = None,
    ) -> None:
        self._tracing = tracing
        self.hello = hello  # who this rank is, for traces
        self._live: dict[tuple[Outbox, int], _Live] = {}
        self._by_engine_id: dict[str, _Live] = {}  # the same
        self._held: Counter[Outbox] = Counter()  # live requests
        self._outboxes: list[Outbox] = []
        self._engine: Engine | None = None
        self._sequence = 0
        self._load = RankLoad(clock)
        self._idle = asyncio.Event()
        self.draining = False
        self.kv_snapshot: Callable[[], pb.KvChange] | None = None  # where the engine tells what its cache holds

    def serve(self, engine: Engine) -> None:
        self._engine = engine

    def open(self, outbox: Outbox) -> None:
        self._outboxes.append(outbox)
        if self.kv_snapshot is not None:
            outbox.send(self._frame([], self.kv_snapshot()))

    def kv_changed(self, change: pb.KvChange) -> None:
        """Tell every router what the prefix cache gained and lost."""
        for outbox in self._outboxes:
            outbox.send(self._frame([], change))

    async def close(self, outbox: Outbox) -> None:
        """The router is gone: stop what it asked for."""
        self._outboxes.remove(outbox)
        for key in [key for key in self._live if key[0] is outbox]:
            await self.abort(outbox, key[1])
        self._held.pop(outbox, None)

    def of_others(self, outbox: Outbox) -> int:
        """How many requests other routers have here."""
        return len(self._live) - self._held[outbox]

    async def submit(self, outbox: Outbox, submit: pb.Submit) -> None:
        """Start a request. What the engine refuses comes back as FINISH_REJECTED, to this request alone."""
        key = (outbox, submit.request_id)
        if self._engine is None:
            self._refuse(outbox, submit.request_id, pb.FINISH_ERROR, ENGINE_DEAD)
            return
        if self.draining:  # it was sent before the router knew
            self._refuse(outbox, submit.request_id, pb.FINISH_ABORT, LEAVING)
            return
        if key in self._live:
            self._refuse(outbox, submit.request_id, pb.FINISH_REJECTED, "this request id is already running")
            return
        self._sequence += 1
        live = self._live[key] = _Live(outbox, submit.request_id, str(self._sequence))
        self._by_engine_id[live.engine_id] = live
        self._held[outbox] += 1
        traced: dict[str, Any] = {}
        if self._tracing is not None and submit.traceparent:
            live.span = self._tracing.generate(submit, self.hello)
            traced["trace_headers"] = {"traceparent": self._tracing.traceparent(live.span)}
        try:
            prompt, params = engine_request(submit)
            await self._engine.add_request(live.engine_id, prompt, params, priority=submit.priority, **traced)
        except Exception as e:
            self._forget(key)
            rejected = is_refusal(e)
            self._end_span(live, pb.Delta(finish=pb.FINISH_REJECTED if rejected else pb.FINISH_ERROR))
            # Not its text, which may quote the request.
            logger.log(logging.INFO if rejected else logging.ERROR, "request not started: %s", type(e).__name__)
            text = " ".join(str(e).split())[:500] if rejected else ENGINE_DEAD
            self._refuse(outbox, submit.request_id, pb.FINISH_REJECTED if rejected else pb.FINISH_ERROR, text)

    async def abort(self, outbox: Outbox, request_id: int) -> None:
        """Stop a request; nothing more is sent for it. Unknown ids have just finished and are passed over."""
        live = self._forget((outbox, request_id))
        if live is not None:
            self._end_span(live, pb.Delta(finish=pb.FINISH_ABORT))
        if live is not None and self._engine is not None:
            await self._engine.abort(live.engine_id)

    def step(self, outputs: Sequence[Output], scheduler_stats: Any) -> None:
        """vLLM's step hook: send each router the new tokens of its requests and the load after the step."""
        if scheduler_stats is not None:
            self._load.step(scheduler_stats, [output for _, output in outputs])
        frames = dict[Outbox, pb.Frame]()
        for engine_id, output in outputs:
            live = self._by_engine_id.get(engine_id)
            if live is None:
                continue
            frame = frames.get(live.outbox)
            if frame is None:
                frame = frames[live.outbox] = self._frame([])
            token_ids = output.new_token_ids
            live.tokens += len(token_ids)
            if live.started and output.finish_reason is None and len(token_ids) == 1:
                frame.steady_request_ids.append(live.request_id)
                frame.steady_token_ids.append(token_ids[0])
                continue
            delta = frame.deltas.add(request_id=live.request_id, token_ids=token_ids)
            if not live.started:
                live.started = True
                tell_start(delta, output)
            if output.finish_reason is not None:
                tell_end(delta, output)
                self._forget((live.outbox, live.request_id))
                self._end_span(live, delta)
        for outbox, frame in frames.items():
            outbox.send(frame)

    def fail(self) -> None:
        """The engine died: every request ends with FINISH_ERROR, so that routers go on with it elsewhere, and this rank
        takes no more."""
        self._engine = None
        self.draining = True
        told = {live.outbox for live in self._live.values()}
        self._give_back(pb.FINISH_ERROR, ENGINE_DEAD)
        for outbox in self._outboxes:
            if outbox not in told:
                outbox.send(self._frame([]))

    async def drain(self, grace_s: float) -> None:
        """Take nothing new; what does not finish within ``grace_s`` seconds goes back to its router."""
        self.draining = True
        self.announce()
        if self._live:
            self._idle.clear()
            try:
                async with asyncio.timeout(grace_s):
                    await self._idle.wait()
            except TimeoutError:
                await self._hand_over()

    async def _hand_over(self) -> None:
        engine, running = self._engine, [live.engine_id for live in self._live.values()]
        self._give_back(pb.FINISH_ABORT, LEAVING)
        if engine is None:
            return
        for engine_id in running:
            try:
                await engine.abort(engine_id)
            except Exception as e:  # its engine is about to end anyway, and the requests are already elsewhere
                logger.warning("not aborted while leaving: %s", e)

    def _give_back(self, finish: pb.FinishReason, why: str) -> None:
        live, self._live = list(self._live.values()), {}
        self._by_engine_id.clear()
        self._held.clear()
        for item in live:
            self._end_span(item, pb.Delta(finish=finish))
            self._refuse(item.outbox, item.request_id, finish, why)
        self._idle.set()

    def _forget(self, key: tuple[Outbox, int]) -> _Live | None:
        live = self._live.pop(key, None)
        if live is not None:
            self._held[key[0]] -= 1
            del self._by_engine_id[live.engine_id]
        if not self._live:
            self._idle.set()
        return live

    async def beat(self, interval_s: float = 1.0) -> None:
        """Send every router the load from time to time, so that an idle rank's is fresh."""
        while True:
            await asyncio.sleep(interval_s)
            if not self._live:
                self._load.rest()
            self.announce()

    def announce(self) -> None:
        for outbox in self._outboxes:
            outbox.send(self._frame([]))

    def _end_span(self, live: _Live, last: pb.Delta) -> None:
        if self._tracing is not None and live.span is not None:
            self._tracing.generated(live.span, last, live.tokens)

    def _frame(self, deltas: list[pb.Delta], kv: pb.KvChange | None = None) -> pb.Frame:
        return pb.Frame(deltas=deltas, load=self._load.now, draining=self.draining, kv=kv)

    def _refuse(self, outbox: Outbox, request_id: int, finish: pb.FinishReason, error: str) -> None:
        outbox.send(self._frame([pb.Delta(request_id=request_id, finish=finish, error=error)]))
