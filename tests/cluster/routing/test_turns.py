"""Several routers on one set of ranks: whose turn it is, and whether weights hold as with a single router."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import pytest
from r1_cluster.routing import RankView, policy
from r1_cluster.routing.admission import Arrival, Ticket
from r1_cluster.routing.dispatcher import Dispatcher, Start
from r1_cluster.routing.lengths import Outcome
from r1_cluster.routing.quota import Accounts
from r1_cluster.routing.tenants import Quota, Tenant
from r1_cluster.routing.turns import HEARD_S, LEFT_S, OLDER_S, Line, SharedQueue

SEATS = 4
RANKS = ("a", "b")
TOKEN_S = 0.02
PROMPT = 50
Router = Callable[[], int]


class World:
    """Dispatchers, ranks of ``SEATS`` that take what comes in order, and clients that ask again when they are answered.
    Frames and reports take a moment, and reports get lost."""

    def __init__(self, routers: int, *, loss: float = 0.0, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.served: Counter[str] = Counter()  # tokens by tenant
        self.waits: dict[tuple[int, str], list[float]] = defaultdict(list)
        self.busy_s = 0.0
        self.routers = [Dispatcher(policy("thinking_aware"), accounts=Accounts(f"r{i}")) for i in range(routers)]
        self.deaf: set[int] = set()  # routers that hear no other and are not heard
        self._loss = loss
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._on: dict[str, list[Ticket]] = {rank: [] for rank in RANKS}  # the first SEATS of them run
        self._known = [dict.fromkeys(RANKS, 0) for _ in self.routers]  # requests on a rank by its last frame
        self._mine = [dict.fromkeys(RANKS, 0) for _ in self.routers]
        self._of: dict[Ticket, tuple[int, int, Callable[[], None]]] = {}  # router, tokens, what follows its answer
        self._due = [0.0] * routers
        for i in range(routers):
            self.after(self.rng.random() / 10, lambda i=i: self._tick(i))  # type: ignore[misc]

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), what))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            at, _, what = heapq.heappop(self._events)
            self.busy_s += (at - self.now) * sum(min(SEATS, len(on)) for on in self._on.values())
            self.now = at
            what()

    def share(self, one: str, other: str, seconds: float, *, after: float = 10.0) -> float:
        """Of the tokens of two tenants, in so many seconds once the first rush is over."""
        self.run(self.now + after)
        begun = self.served.copy()
        self.run(self.now + seconds)
        return (self.served[one] - begun[one]) / (self.served[other] - begun[other])

    def clients(self, number: int, tenant: Tenant, tokens: tuple[int, int], router: Router) -> None:
        for _ in range(number):
            self.after(self.rng.random() / 10, lambda: self.ask(tenant, tokens, router))

    def ask(self, tenant: Tenant, tokens: tuple[int, int], router: Router) -> None:
        i, most = router(), tokens[1] + 1
        got = self.routers[i].offer(Arrival(tenant, "r1", PROMPT, most), self._views(i), self.now)
        assert isinstance(got, Ticket)
        self._of[got] = (
            i,
            self.rng.randint(*tokens),
            lambda: self.after(0.001, lambda: self.ask(tenant, tokens, router)),
        )
        self._start(i)

    def _start(self, i: int) -> None:
        while (got := self.routers[i].start_next(self._views(i), self.now)) is not None:
            assert isinstance(got, Start)
            [view] = got.ranks
            tenant = got.ticket.arrival.tenant.name
            self._mine[i][view.worker_id] += 1
            self.waits[i, tenant].append(self.now - got.ticket.queued_at)
            self.after(0.002, lambda rank=view.worker_id, ticket=got.ticket: self._arrive(rank, ticket))  # type: ignore[misc]

    def _arrive(self, rank: str, ticket: Ticket) -> None:
        self._on[rank].append(ticket)
        if len(self._on[rank]) <= SEATS:
            self._run(rank, ticket)

    def _run(self, rank: str, ticket: Ticket) -> None:
        self.after(self._of[ticket][1] * TOKEN_S, lambda: self._answer(rank, ticket))

    def _answer(self, rank: str, ticket: Ticket) -> None:
        on = self._on[rank]
        on.remove(ticket)
        if len(on) >= SEATS:
            self._run(rank, on[SEATS - 1])
        i, tokens, then = self._of.pop(ticket)
        self._frame(i, rank)

        def ended() -> None:
            self._mine[i][rank] -= 1
            self.routers[i].end(ticket, [Outcome(0, tokens)], self.now)
            self.served[ticket.arrival.tenant.name] += PROMPT + tokens
            self._start(i)
            then()

        self.after(0.002, ended)

    def _frame(self, i: int, rank: str) -> None:
        load = len(self._on[rank])
        self.after(0.002, lambda: self._known[i].update({rank: load}))

    def _views(self, i: int) -> list[RankView]:
        """As a router's ranks have it: what it has just sent is not in their last frame."""
        views = []
        for rank in RANKS:
            mine, load = self._mine[i][rank], self._known[i][rank]
            seen = max(mine, load)
            views.append(
                RankView(rank, SEATS, 8, mine, others=seen - mine, running=min(seen, SEATS), kv_tokens=1 << 20)
            )
        return views

    def _tick(self, i: int) -> None:
        """Ten times a second: ranks' frames, a report where it is due, a look for room."""
        for rank in RANKS:
            self._frame(i, rank)
        admission = self.routers[i].admission
        if admission.contended or self.now >= self._due[i]:
            self._due[i] = self.now + 1.0
            lines = admission.report(self.now)
            for j in range(len(self.routers)):
                if j != i and self.rng.random() >= self._loss:
                    self.after(0.004, lambda j=j: self._hear(j, i, lines))  # type: ignore[misc]
        self._start(i)
        self.after(0.1, lambda: self._tick(i))

    def _hear(self, j: int, i: int, lines: Mapping[str, Line]) -> None:
        if not self.deaf & {i, j}:
            self.routers[j].admission.hear(f"r{i}", lines, self.now)
            self._start(j)


def on(*routers: int) -> Router:
    turns = itertools.cycle(routers)
    return lambda: next(turns)


def tenant(name: str, weight: float = 1.0, quota: Quota | None = None) -> Tenant:
    return Tenant(name=name, weight=weight, quota=quota or Quota())


HEAVY, LIGHT = tenant("heavy", 3), tenant("light", 1)
SHORT = (40, 80)
SPLITS: dict[str, tuple[int, Sequence[int], Sequence[int]]] = {
    "one router": (1, [0], [0]),
    "nine of ten at the first": (2, [0] * 9 + [1], [0] * 9 + [1]),
    "evenly": (2, [0, 1], [0, 1]),
    "a router each": (2, [0], [1]),
    "one at both": (2, [0], [0, 1]),
    "three": (3, [0, 0, 0, 1, 1, 2], [0, 1, 1, 2, 2, 2]),
}


@pytest.mark.parametrize("loss", [0.0, 0.4])
@pytest.mark.parametrize("split", SPLITS)
def test_weights_are_shares_whichever_routers_are_asked(split: str, loss: float) -> None:
    routers, heavy, light = SPLITS[split]
    world = World(routers, loss=loss)
    world.clients(24, HEAVY, SHORT, on(*heavy))
    world.clients(24, LIGHT, SHORT, on(*light))
    assert world.share("heavy", "light", 60.0) == pytest.approx(3, rel=0.10)
    assert world.busy_s > 0.95 * 70 * SEATS * len(RANKS)


def test_nobody_waits_longer_for_having_asked_another_router() -> None:
    world = World(2)
    world.clients(24, HEAVY, SHORT, on(*[0] * 9, 1))
    world.clients(24, LIGHT, SHORT, on(*[0] * 9, 1))
    world.run(90.0)
    for name in ("heavy", "light"):
        first, second = (sum(waits) / len(waits) for waits in (world.waits[0, name], world.waits[1, name]))
        assert second == pytest.approx(first, rel=0.35)


def test_long_thoughts_get_as_much_as_short_calls_at_another_router() -> None:
    world = World(2)
    world.clients(16, tenant("thinker"), (200, 800), on(0))
    world.clients(24, tenant("agent"), (20, 60), on(1))
    assert world.share("thinker", "agent", 120.0) == pytest.approx(1, rel=0.10)


def test_who_asks_for_less_than_its_share_gets_it_soon() -> None:
    world = World(2)
    world.clients(24, HEAVY, SHORT, on(0))
    world.clients(24, LIGHT, SHORT, on(0, 1))
    world.run(20.0)
    world.clients(1, tenant("small"), SHORT, on(1))
    world.run(60.0)
    waits = world.waits[1, "small"]
    assert sum(waits) / len(waits) < 1.5
    assert len(waits) > 10


def test_a_router_alone_has_the_whole_fleet() -> None:
    world = World(3)
    world.clients(40, HEAVY, SHORT, on(1))
    world.run(30.0)
    assert world.busy_s > 0.97 * 30 * SEATS * len(RANKS)


def test_a_router_that_falls_silent_holds_nobody_up() -> None:
    world = World(2)
    world.clients(24, LIGHT, SHORT, on(0))
    world.clients(24, HEAVY, SHORT, on(1))
    world.run(20.0)
    world.deaf.add(1)
    world.run(20.0 + HEARD_S)
    busy_s = world.busy_s
    world.run(40.0)
    assert world.busy_s - busy_s > 0.95 * (20 - HEARD_S) * SEATS * len(RANKS)


def test_routers_that_come_to_hear_of_each_other_late_agree_soon() -> None:
    world = World(2)
    world.deaf.add(1)
    world.clients(24, HEAVY, SHORT, on(0))
    world.clients(24, LIGHT, SHORT, on(0, 1))
    world.run(20.0)
    world.deaf.clear()
    assert world.share("heavy", "light", 60.0) == pytest.approx(3, rel=0.10)


Queue = SharedQueue[str]


def queue(*waiting: str, at: float = 0.0) -> Queue:
    """Items by tenant, each of 100 tokens."""
    made: Queue = SharedQueue(since=lambda _: at, cost=lambda _: 100.0)
    for name in waiting:
        made.put(name, name)
    return made


def says(charged: float, **more: float) -> Line:
    return Line(charged, charged, queued=1, ready=True)._replace(**more)  # type: ignore[arg-type]


def test_who_is_ahead_of_what_waits_elsewhere_gives_way_but_not_for_long() -> None:
    here = queue("t")
    here.take("t", 1000, 1.0)
    here.put("t", "t")
    assert not here.gives_way("t", 0.0)
    here.hear("other", {"u": says(0.0)}, 0.0)
    assert here.gives_way("t", 0.0)
    looks = [here.gives_way("t", tenth / 10) for tenth in range(1, 20)]
    assert looks == [True] * int(LEFT_S * 10 - 1) + [False] * (20 - int(LEFT_S * 10))
    here.hear("other", {"u": says(100.0)}, 2.0)  # it did make use of it
    assert here.gives_way("t", 2.0)


def test_who_is_ahead_by_little_does_not_give_way() -> None:
    here = queue("t")
    here.take("t", 150, 1.0)
    here.put("t", "t")
    here.hear("other", {"u": says(0.0)}, 0.0)
    assert not here.gives_way("t", 0.0)


def test_nobody_gives_way_to_what_itself_gives_way_nor_to_what_was_said_long_ago() -> None:
    here = queue("t")
    here.take("t", 1000, 1.0)
    here.put("t", "t")
    here.hear("other", {"u": says(0.0, ready=False)}, 0.0)
    assert not here.gives_way("t", 0.0)
    here.hear("other", {"u": says(0.0)}, 0.0)
    assert not here.gives_way("t", HEARD_S + 0.1)
    here.hear("other", {"u": says(0.0)}, 10.0)
    assert here.gives_way("t", 10.0)
    here.hear("other", {}, 10.1)  # it waits no longer
    assert not here.gives_way("t", 10.1)


def test_of_one_tenants_requests_the_more_urgent_and_the_much_older_go_first() -> None:
    here = queue("t", at=5.0)
    for waited_s, priority, way in ((0.5, 0, False), (1.5 + OLDER_S, 0, True), (0.0, -1, True), (9.0, 1, False)):
        here.hear("other", {"t": says(0.0, waited_s=waited_s, priority=priority)}, 6.0)
        assert here.gives_way("t", 6.0) is way


def test_what_was_served_elsewhere_counts_once_whatever_is_lost() -> None:
    here = queue("t", "u")
    here.hear("other", {"t": Line(500.0, 0.0)}, 0.0)  # before we were there
    assert here.virtual("t") == 0
    for charged in (600.0, 600.0, 900.0):
        here.hear("other", {"t": Line(charged, 0.0)}, 0.0)
    assert here.virtual("t") == 400
    assert here.heads() == ["u", "t"]


def test_a_report_says_who_waits_and_for_a_while_who_was_charged() -> None:
    here = queue("t", "u", at=1.0)
    assert here.report(4.0, lambda item: item == "u") == {"u": Line(0.0, 0.0, 1, 3.0, 0, True)}
    assert here.said_waiting
    for name in ("t", "u"):
        here.take(name, 100, 2.0)
    assert here.report(5.0, lambda _: True) == {"t": Line(50.0, 50.0), "u": Line(50.0, 50.0)}
    assert not here.said_waiting
    assert here.report(16.0, lambda _: True) == {}


def test_idling_at_one_router_saves_nothing_up_while_others_serve() -> None:
    here = queue()
    here.hear("other", {"busy": Line(0.0, 0.0)}, 0.0)
    for second in range(1, 11):
        here.hear("other", {"busy": says(1000.0 * second)}, float(second))
    here.put("back", "back")
    assert here.virtual("back") >= 8000


def test_two_counts_of_the_same_come_together() -> None:
    a, b = queue("t", "u"), queue("t", "u")
    a.take("t", 5000, 1.0)  # before they heard of each other
    a.put("t", "t")
    for tenth in range(40):
        b.hear("a", a.report(tenth / 10, lambda _: True), tenth / 10)
        a.hear("b", b.report(tenth / 10, lambda _: True), tenth / 10)
    assert a.virtual("t") - a.virtual("u") == pytest.approx(b.virtual("t") - b.virtual("u"), abs=1)
