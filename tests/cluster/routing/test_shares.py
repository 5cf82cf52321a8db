"""Several routers, one limit: what they let through together, against one router that sees everything."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from r1_cluster.routing.quota import FRESH_S, Accounts, Report
from r1_cluster.routing.shares import Escrow, Part, Want, base, fair, gifts
from r1_cluster.routing.tenants import Quota

QUOTA = Quota(tokens_per_minute=60_000)


def test_whole_requests_come_first_and_who_waited_longest_before_others() -> None:
    wants = [Want(first=6, waited=1), Want(first=6, waited=5), Want(more=10)]
    assert fair(10, wants) == [0, 6, 4]


def test_the_rest_goes_to_whoever_has_least() -> None:
    assert fair(100, [Want(more=10), Want(more=1000), Want(more=1000)]) == [10, 45, 45]


@pytest.mark.parametrize("seed", range(50))
def test_nobody_gets_more_than_it_wants_and_all_together_no_more_than_there_is(seed: int) -> None:
    rng = random.Random(seed)
    wants = [Want(rng.choice([0, rng.random() * 9]), rng.random() * 30, rng.random()) for _ in range(rng.randint(1, 9))]
    total = rng.random() * 100
    got = fair(total, wants)
    assert sum(got) <= total + 1e-9
    assert all(0 <= share <= want.first + want.more + 1e-9 for share, want in zip(got, wants, strict=True))
    whole = fair(int(total), [Want(int(w.first), int(w.more), w.waited) for w in wants], whole=True)
    assert all(share == int(share) for share in whole)


@pytest.mark.parametrize("seed", range(50))
def test_gifts_worked_out_apart_fit_together(seed: int) -> None:
    rng = random.Random(seed)
    parts = {}
    for router in "abcde"[: rng.randint(2, 5)]:
        owned = rng.random() * 50
        parts[router] = Part(owned=owned, free=owned * rng.random(), want=Want(rng.random() * 9, rng.random() * 40))
    total = sum(part.owned for part in parts.values())
    due = dict(zip(sorted(parts), fair(total, [parts[name].want for name in sorted(parts)]), strict=True))
    held = {name: part.owned for name, part in parts.items()}
    for name in parts:
        made = gifts(name, parts, total)
        assert sum(made.values()) <= parts[name].free + 1e-9
        for to, amount in made.items():
            held[name] -= amount
            held[to] += amount
            assert held[to] <= due[to] + 1e-9
    assert sum(held.values()) == pytest.approx(total)


def test_a_lost_or_repeated_report_neither_loses_nor_repeats_a_gift() -> None:
    escrow = Escrow()
    assert escrow.take("a", 5) == 5
    assert escrow.take("a", 5) == 0
    assert escrow.take("a", 12) == 7
    escrow.give("a", 4)
    assert escrow.under_way("a", Part(taken={"me": 1}), "me") == 3
    assert escrow.net(["a"]) == 8


@pytest.mark.parametrize(("limit", "routers"), [(10, 3), (2, 5), (7, 1), (9, 3)])
def test_first_parts_add_up_to_the_limit(limit: int, routers: int) -> None:
    ids = [f"r{i}" for i in range(routers)]
    assert sum(base(limit, ids, me, routers) for me in ids) == limit


@dataclass
class Network:
    """Routers whose reports take their time and get lost."""

    routers: int
    seed: int = 0
    loss: float = 0.1
    delay_s: tuple[float, float] = (0.001, 0.05)
    accounts: list[Accounts] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.accounts = [Accounts(f"r{i}") for i in range(self.routers)]
        for account in self.accounts:
            account.attached(self.routers)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._due = [0.0] * self.routers
        for i in range(self.routers):
            self.at(self.rng.random(), lambda now, i=i: self._tick(i, now))  # type: ignore[misc]

    def at(self, when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            when, _, what = heapq.heappop(self._events)
            what(when)

    def _tick(self, i: int, now: float) -> None:
        """Every tenth of a second where it is urgent, else every second."""
        if self.accounts[i].urgent or now >= self._due[i]:
            self._due[i] = now + 1.0
            self._send(i, self.accounts[i].report(now), now)
        self.at(now + 0.1, lambda later: self._tick(i, later))

    def _send(self, i: int, report: Report, now: float) -> None:
        for j in range(self.routers):
            if j != i and self.rng.random() >= self.loss:
                self.at(now + self.rng.uniform(*self.delay_s), lambda then, j=j: self._hear(j, report, then))  # type: ignore[misc]

    def _hear(self, j: int, report: Report, now: float) -> None:
        self.accounts[j].hear(report, now)
        self.accounts[j].urgent |= self.accounts[j].could_give(report, now)


def admitted(
    network: Network, skew: Callable[[float], Sequence[float]], *, per_s: float, minutes: int, tokens: tuple[int, int]
) -> tuple[list[float], list[float], list[float]]:
    """Tokens let through in each minute by the routers together and by one alone, and of all by each router."""
    rng = random.Random(network.seed + 1)
    alone = Accounts()
    ours, exact, by_router = [0.0] * minutes, [0.0] * minutes, [0.0] * network.routers
    now = 0.0
    while (now := now + rng.expovariate(per_s)) < 60 * minutes:
        network.run(now)
        [i] = rng.choices(range(network.routers), skew(now))
        size = rng.randint(*tokens)
        if alone.wait_for("t", size, QUOTA, now) == 0:
            alone.reserve("t", size, QUOTA, now)
            exact[int(now / 60)] += size
        if network.accounts[i].wait_for("t", size, QUOTA, now) == 0:
            network.accounts[i].reserve("t", size, QUOTA, now)
            ours[int(now / 60)] += size
            by_router[i] += size
    return ours, exact, by_router


SKEWS: dict[str, Callable[[float], Sequence[float]]] = {
    "even": lambda _: (1, 1, 1),
    "skewed": lambda _: (80, 15, 5),
    "one router only": lambda _: (1, 0, 0),
    "changing": lambda now: ((90, 5, 5), (5, 90, 5), (0, 0, 1))[int(now / 40) % 3],
}


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("load", [0.5, 0.95, 3.0])
def test_three_routers_let_through_what_one_would_within_a_tenth_each_minute(skew: str, load: float) -> None:
    per_s = load * 1000 / 550
    ours, exact, _ = admitted(Network(3), SKEWS[skew], per_s=per_s, minutes=4, tokens=(100, 1000))
    assert ours == pytest.approx(exact, rel=0.10)
    assert sum(ours) == pytest.approx(sum(exact), rel=0.03)


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("load", [0.95, 3.0])
def test_so_they_do_with_requests_of_a_tenth_of_a_minute_each(skew: str, load: float) -> None:
    """Of which a few make a minute: over a longer time."""
    ours, exact, _ = admitted(Network(3), SKEWS[skew], per_s=load / 5, minutes=12, tokens=(2000, 8000))
    assert sum(ours) == pytest.approx(sum(exact), rel=0.10)


def test_a_router_with_few_requests_gets_its_turn_under_overload() -> None:
    *_, by_router = admitted(Network(3), SKEWS["skewed"], per_s=6, minutes=4, tokens=(100, 1000))
    assert by_router[2] > 0.03 * sum(by_router)


@pytest.mark.parametrize("loss", [0.5, 1.0])
def test_without_reports_each_keeps_its_equal_part_and_no_more(loss: float) -> None:
    ours, exact, by_router = admitted(Network(3, loss=loss), SKEWS["even"], per_s=10, minutes=3, tokens=(100, 1000))
    assert sum(ours) <= 1.02 * sum(exact)
    assert sum(ours) >= 0.9 * sum(exact)
    assert max(by_router) <= 0.4 * sum(by_router)


def test_requests_larger_than_any_part_are_served_in_turns() -> None:
    ours, exact, by_router = admitted(Network(3), SKEWS["even"], per_s=1, minutes=8, tokens=(40_000, 50_000))
    assert sum(ours) == pytest.approx(sum(exact), rel=0.10)
    assert min(by_router) > 0


def test_a_router_that_joins_later_brings_no_tokens_with_it() -> None:
    first, joiner = Accounts("a", begun_at=0.0), Accounts("b", begun_at=100.0)
    first.reserve("t", 60_000, QUOTA, 100.0)
    joiner.hear(first.report(100.0), 100.0)
    assert joiner.wait_for("t", 1000, QUOTA, 100.0) > 0
    assert joiner.wait_for("t", 1000, QUOTA, 102.1) == 0  # half of the rate is its own


def test_a_router_that_learns_of_others_only_after_its_first_requests_gives_up_what_is_theirs() -> None:
    together, late = Accounts("a", begun_at=0.0), Accounts("b", begun_at=100.0)
    together.reserve("t", 100, QUOTA, 1.0)
    together.attached(3)
    assert together.wait_for("t", 19_900, QUOTA, 1.0) == 0
    assert together.wait_for("t", 19_901, QUOTA, 1.0) > 0
    late.reserve("t", 100, QUOTA, 100.0)
    late.hear(together.report(100.0), 100.0)
    assert late.wait_for("t", 1, QUOTA, 100.0) > 0


def test_a_router_that_is_gone_leaves_the_whole_rate_to_the_others() -> None:
    stays, goes = Accounts("a"), Accounts("b")
    goes.reserve("t", 1, QUOTA, 0.0)
    stays.hear(goes.report(0.0), 0.0)
    assert stays.routers(FRESH_S - 1) == 2
    assert stays.routers(FRESH_S) == 1


def test_tenants_at_rest_are_left_out_of_reports_and_nothing_is_forgotten() -> None:
    a, b = Accounts("a"), Accounts("b")
    for account in (a, b):
        account.attached(2)
    b.reserve("t", 25_000, QUOTA, 0.0)
    b.wait_for("t", 20_000, QUOTA, 0.0)
    a.hear(b.report(0.0), 0.0)
    b.hear(a.report(0.1), 0.1)
    for second in range(1, 80):
        a.hear(b.report(float(second)), float(second))
        b.hear(a.report(float(second)), float(second))
    assert a.report(80.0).usage == b.report(80.0).usage == {}
    assert b.of("t").tokens.taken["a"] == a.of("t").tokens.given["b"] > 0
    b.wait_for("t", 59_000, QUOTA, 80.0)
    a.hear(b.report(80.0), 80.0)
    b.hear(a.report(80.1), 80.1)
    assert b.wait_for("t", 59_000, QUOTA, 80.2) == 0


RUNNING = Quota(max_running=30)


@pytest.mark.parametrize("skew", SKEWS)
def test_running_requests_of_three_routers_stay_within_the_limit_and_fill_it(skew: str) -> None:
    network, rng = Network(3), random.Random(0)
    waiting = [0, 0, 0]
    counts: list[int] = []

    def start(now: float) -> None:
        for i, account in enumerate(network.accounts):
            of = account.of("t")
            while waiting[i] and account.may_run("t", RUNNING, now):
                waiting[i] -= 1
                of.queued, of.running = of.queued - 1, of.running + 1
                network.at(now + rng.expovariate(1 / 5), lambda then, i=i: end(i, then))  # type: ignore[misc]

    def end(i: int, now: float) -> None:
        network.accounts[i].of("t").running -= 1
        start(now)

    now = 0.0
    for step in range(1200):
        now = step / 10
        network.run(now)
        [i] = rng.choices(range(3), SKEWS[skew](now))
        if sum(waiting) < 60:
            waiting[i] += 1
            network.accounts[i].of("t").queued += 1
        start(now)
        counts.append(sum(account.of("t").running for account in network.accounts))
    assert max(counts) <= 33
    assert sum(counts[300:]) / len(counts[300:]) >= 27


def test_a_slot_comes_back_when_the_router_that_has_it_dies() -> None:
    a, b = Accounts("a"), Accounts("b")
    for account in (a, b):
        account.attached(2)
    a.of("t").queued = 9
    for _ in range(3):
        a.may_run("t", Quota(max_running=4), 0.0)
        b.may_run("t", Quota(max_running=4), 0.0)
        b.hear(a.report(0.0), 0.0)
        a.hear(b.report(0.0), 0.0)
    a.of("t").running = 4
    assert not a.may_run("t", Quota(max_running=4), 1.0)
    assert not b.may_run("t", Quota(max_running=4), 1.0)
    b.attached(1)
    assert b.may_run("t", Quota(max_running=4), FRESH_S + 1)
