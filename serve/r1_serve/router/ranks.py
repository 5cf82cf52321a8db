"""The attached ranks, what each is doing and who waits for one. One event loop; nothing here blocks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Protocol

from r1_cluster.plan import Plan
from r1_cluster.routing import RankView

from r1_serve.errors import AlreadyAttached, AttachRefused, InternalError, R1Error, WorkerLost
from r1_serve.protos import fleet_pb2 as pb

logger = logging.getLogger(__name__)


class Work(Protocol):
    """A generation as a rank sees it."""

    def submission(self, request_id: int) -> pb.Submit: ...

    def on_token(self, token_id: int) -> bool:
        """As ``on_delta``, of one token in the middle."""

    def on_delta(self, delta: pb.Delta) -> bool:
        """Take what a step brought; return whether it was the last."""

    def fail(self, error: R1Error) -> None: ...

    def lost(self, error: WorkerLost, *, blamed: bool) -> None:
        """The rank is gone; ``blamed``: it did not go of its own will, so this work may be what killed it."""


class Rank:
    """One attached stream: commands go into ``outbox``, frames come to :meth:`on_frame`."""

    def __init__(self, hello: pb.Hello, plan: Plan, slot: int) -> None:
        self.hello = hello
        self.plan = plan
        self.slot = slot  # of the gang among those of its plan: a small number that is used again, for metrics
        self.load = pb.Load()
        self.draining = False
        self.others = 0  # requests of other routers, by its last frame
        self.routers = 1  # attached to it
        self.last_pick = 0
        self.outbox: asyncio.Queue[pb.RouterMessage] = asyncio.Queue()
        self._work: dict[int, Work] = {}
        self._next_id = 1
        self._view: RankView | None = None
        self._viewed: tuple[object, ...] = ()

    @property
    def in_flight(self) -> int:
        return len(self._work)

    @property
    def has_seat(self) -> bool:
        """Whether one more request would run at once instead of waiting in the engine."""
        return len(self._work) + self.others < self.hello.capacity.max_num_seqs

    def view(self) -> RankView:
        """The same object as long as nothing has changed: a router of many ranks then looks at what did."""
        kv_tokens = self.hello.capacity.kv_tokens
        state = (len(self._work), self.others, self.load, self.draining, self.last_pick, kv_tokens)
        if self._view is not None and self._viewed == state:
            return self._view
        self._viewed = state
        # Its load is of all routers but lags behind what this one has just sent: that waits there, or will.
        seen = self.load.running + self.load.waiting
        under_way = max(0, len(self._work) + self.others - seen)
        self._view = RankView(
            worker_id=self.hello.worker_id,
            max_num_seqs=max(1, self.hello.capacity.max_num_seqs),
            max_waiting_requests=self.plan.limits.max_waiting_requests,
            in_flight=len(self._work),
            others=self.others,
            running=self.load.running,
            waiting=self.load.waiting + under_way,
            kv_usage=self.load.kv_usage,
            kv_tokens=kv_tokens,
            block_tokens=max(1, self.hello.capacity.block_tokens),
            # As if all drafts were taken: by it is refused what cannot be done in time.
            step_time_s=self.load.step_time_us / 1e6 / self.plan.engine.tokens_per_step,
            draining=self.draining,
            last_pick=self.last_pick,
            gang_id=self.hello.gang_id,
        )
        return self._view

    def submit(self, work: Work) -> int:
        request_id, self._next_id = self._next_id, self._next_id + 1
        self._work[request_id] = work
        self.outbox.put_nowait(pb.RouterMessage(submit=work.submission(request_id)))
        return request_id

    def abort(self, request_id: int) -> None:
        """Stop a request. One that has just finished is unknown here and to the worker, which is no fault."""
        if self._work.pop(request_id, None) is not None:
            self.outbox.put_nowait(pb.RouterMessage(abort=pb.Abort(request_id=request_id)))

    def on_frame(self, frame: pb.Frame) -> int:
        """The token path: all of a step's tokens in one pass. Returns how many deltas were for no known request."""
        # First: work that a leaving rank gives back must not be sent to it again.
        self.draining = frame.draining
        self.others, self.routers = frame.others, max(1, frame.routers)
        if frame.HasField("load"):
            self.load = frame.load
        strays = 0
        steady = zip(frame.steady_request_ids[:], frame.steady_token_ids[:], strict=True)
        parts: Iterator[tuple[int, int | pb.Delta]] = chain(steady, ((d.request_id, d) for d in frame.deltas))
        for request_id, part in parts:
            work = self._work.get(request_id)
            if work is None:
                strays += 1  # it crossed our Abort on the way
                continue
            try:
                last = work.on_token(part) if isinstance(part, int) else work.on_delta(part)
            except Exception:
                logger.exception("a delta of request %d broke its generation", request_id)
                self.abort(request_id)
                work.fail(InternalError("internal error while reading the model's tokens; the log has more"))
                continue
            if last:
                self._work.pop(request_id, None)
        return strays

    def lose(self, error: WorkerLost) -> None:
        """The stream is gone: so is everything on it."""
        work, self._work = self._work, {}
        for item in work.values():
            item.lost(error, blamed=not self.draining)


class Ranks:
    """All attached ranks by worker id. ``on_change`` is called after every attach, detach and change of draining."""

    def __init__(
        self, on_change: Callable[[], None] = lambda: None, on_leave: Callable[[Rank], None] = lambda _: None
    ) -> None:
        self._ranks: dict[str, Rank] = {}
        self._usable: dict[str, list[Rank]] = {}  # by model, until a rank comes, goes or drains: every request asks
        self._arrivals: dict[str, asyncio.Event] = {}
        self._picks = 0
        self.on_change = on_change
        self.on_leave = on_leave  # called before what was on the rank is lost
        self.on_routers: Callable[[], None] = lambda: None  # a rank has gained or lost a router
        self.on_kv: Callable[[Rank, pb.KvChange], None] = lambda *_: None

    def __iter__(self) -> Iterator[Rank]:
        return iter(self._ranks.values())

    def attach(self, hello: pb.Hello, plan: Plan) -> Rank:
        """Of two streams with one worker id the first stays: a dead one ends by keepalive. Raises AlreadyAttached,
        AttachRefused."""
        if hello.worker_id in self._ranks:
            raise AlreadyAttached(
                f"worker {hello.worker_id!r} has a stream here: end that one, or if it is dead retry within seconds"
            )
        gang = [rank for rank in self if hello.gang_id and rank.hello.gang_id == hello.gang_id]
        if any(rank.hello.rank == hello.rank for rank in gang):
            raise AlreadyAttached(f"rank {hello.rank} of gang {hello.gang_id!r} has a stream here: end that one first")
        if any((rank.hello.plan_hash, rank.hello.pool) != (hello.plan_hash, hello.pool) for rank in gang):
            raise AttachRefused(f"gang {hello.gang_id!r} is here with another plan or pool: a gang has one")
        rank = Rank(hello, plan, self._slot(hello))
        self._ranks[hello.worker_id] = rank
        self._usable.clear()
        self._changed(hello.model)
        return rank

    def detach(self, rank: Rank, why: str) -> None:
        self._ranks.pop(rank.hello.worker_id, None)
        self._usable.clear()
        self.on_leave(rank)
        rank.lose(WorkerLost(f"the worker that held this request is gone ({why}); send it again", retry_after=1.0))
        self._changed(rank.hello.model)

    def on_frame(self, rank: Rank, frame: pb.Frame) -> int:
        was_draining, routers = rank.draining, rank.routers
        if frame.draining != was_draining:
            self._usable.clear()  # what it gives back in this frame must not go to it again
        strays = rank.on_frame(frame)
        if rank.routers != routers:
            self.on_routers()
        if frame.HasField("kv"):
            self.on_kv(rank, frame.kv)
        if rank.draining != was_draining:
            self._changed(rank.hello.model)
        return strays

    def of(self, model: str) -> list[Rank]:
        return [rank for rank in self if rank.hello.model == model]

    def __getitem__(self, worker_id: str) -> Rank:
        return self._ranks[worker_id]

    def usable(self, model: str) -> Sequence[Rank]:
        """The ranks of whole gangs that stay: a gang steps together or not at all, so without one rank the others hang
        until it is restarted."""
        known = self._usable.get(model)
        if known is None:
            known = self._usable[model] = self._whole(model)
        return known

    def _whole(self, model: str) -> list[Rank]:
        gangs: dict[str, list[Rank]] = {}
        for rank in self.of(model):
            gangs.setdefault(rank.hello.gang_id, []).append(rank)
        return [
            rank
            for gang in gangs.values()
            if len({r.hello.rank for r in gang}) == gang[0].hello.gang_size and not any(r.draining for r in gang)
            for rank in gang
        ]

    @property
    def routers(self) -> int:
        """How many share the fleet, by the rank that knows of most."""
        return max((rank.routers for rank in self), default=1)

    def picked(self, rank: Rank) -> None:
        self._picks += 1
        rank.last_pick = self._picks

    def ready(self, model: str) -> bool:
        """Whether at least one whole gang is attached and not draining."""
        return bool(self.usable(model))

    async def wait_for(self, model: str, timeout_s: float) -> None:
        """Return when a gang of ``model`` is whole, at the latest after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrival(model).wait()
        except TimeoutError:
            return

    def _changed(self, model: str) -> None:
        if self.ready(model):
            self._arrival(model).set()
        else:
            self._arrival(model).clear()
        self.on_change()

    def _arrival(self, model: str) -> asyncio.Event:
        return self._arrivals.setdefault(model, asyncio.Event())

    def _slot(self, hello: pb.Hello) -> int:
        gangs = {rank.hello.gang_id: rank.slot for rank in self if rank.hello.plan_hash == hello.plan_hash}
        if hello.gang_id in gangs:
            return gangs[hello.gang_id]
        return next(slot for slot in range(len(gangs) + 1) if slot not in gangs.values())
