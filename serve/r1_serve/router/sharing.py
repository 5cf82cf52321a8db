"""Quotas and turns shared between routers: each tells the others once a second what it has and wants and what waits for
which model, over the workers' streams.

``r1_cluster.routing`` does the arithmetic. A worker that is attached to several routers passes on what one says to the
others, so that routers need no list of each other, and whoever shares no worker shares nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from r1_cluster.routing.admission import Admission
from r1_cluster.routing.quota import Accounts, Report, Usage
from r1_cluster.routing.shares import Part, Want
from r1_cluster.routing.turns import Line

from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.ranks import Ranks

EVERY_S = 1.0
URGENT_S = 0.1  # between two that cannot wait; more of many routers, each of which hears all
CARRIERS = 2  # workers that pass one on: one of them may hang


class Sharing:
    """One router's side; ``admissions`` by model. ``heard`` is called when another router's report has changed what is
    here."""

    def __init__(
        self,
        accounts: Accounts,
        admissions: Mapping[str, Admission],
        ranks: Ranks,
        clock: Callable[[], float],
        heard: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._admissions = admissions
        self._ranks = ranks
        self._clock = clock
        self._heard = heard
        self._sequence = 0
        self._seen: dict[str, int] = {}
        ranks.on_routers = self.count

    async def run(self) -> None:
        """For ever."""
        due = self._clock()
        while True:
            now = self._clock()
            self.count()  # ranks may have left
            routers = self._accounts.routers(now)
            if routers > 1 and (self._urgent() or now >= due):
                self.send(now)
                due = now + EVERY_S
            await asyncio.sleep(URGENT_S * max(1.0, routers / 8))

    def _urgent(self) -> bool:
        return self._accounts.urgent or any(admission.contended for admission in self._admissions.values())

    def count(self) -> None:
        """Take note of how many routers there are: at once, for until then this one lets in what is another's."""
        self._accounts.attached(self._ranks.routers)

    def send(self, now: float) -> None:
        """Say what is here, after giving what others lack."""
        ranks = [rank for rank in self._ranks if rank.routers > 1]
        if not ranks:
            return
        self._sequence += 1
        lines = {model: admission.report(now) for model, admission in self._admissions.items()}
        digest = digest_of(self._accounts.report(now), lines, self._sequence)
        for number in range(min(CARRIERS, len(ranks))):
            carrier = ranks[(self._sequence + number * (len(ranks) // 2 or 1)) % len(ranks)]
            carrier.outbox.put_nowait(pb.RouterMessage(digest=digest))

    def receive(self, digest: pb.Digest) -> None:
        """What another router said. Old ones and repetitions are passed over."""
        if digest.sequence <= self._seen.get(digest.router_id, 0) or digest.router_id == self._accounts.router_id:
            return
        if len(self._seen) > 1000:  # of routers long gone
            self._seen.clear()
        self._seen[digest.router_id] = digest.sequence
        now, report, lines = self._clock(), report_of(digest), lines_of(digest)
        self._accounts.hear(report, now)
        for model, admission in self._admissions.items():
            admission.hear(digest.router_id, lines.get(model, {}), now)
        if self._accounts.could_give(report, now):
            self._accounts.urgent = True
        self._heard()


def digest_of(report: Report, lines: Mapping[str, Mapping[str, Line]], sequence: int) -> pb.Digest:
    """``lines`` by model and tenant."""
    return pb.Digest(
        router_id=report.router_id,
        sequence=sequence,
        uptime_s=report.uptime_s,
        tenants=[
            pb.TenantUsage(tenant=name, tokens=_written(usage.tokens), slots=_written(usage.slots), queued=usage.queued)
            for name, usage in report.usage.items()
        ],
        lines=[
            pb.Line(model=model, tenant=tenant, **line._asdict())
            for model, by_tenant in lines.items()
            for tenant, line in by_tenant.items()
        ],
    )


def report_of(digest: pb.Digest) -> Report:
    usage = {said.tenant: Usage(_read(said.tokens), _read(said.slots), said.queued) for said in digest.tenants}
    return Report(digest.router_id, digest.uptime_s, usage)


def lines_of(digest: pb.Digest) -> dict[str, dict[str, Line]]:
    """By model and tenant."""
    lines: dict[str, dict[str, Line]] = {}
    for said in digest.lines:
        lines.setdefault(said.model, {})[said.tenant] = Line(
            said.charged, said.virtual, said.queued, said.waited_s, said.priority, said.ready
        )
    return lines


def _written(part: Part) -> pb.Part:
    return pb.Part(
        limit=part.limit,
        owned=part.owned,
        free=part.free,
        first=part.want.first,
        more=part.want.more,
        waited_s=part.want.waited,
        given=part.given,
        taken=part.taken,
    )


def _read(said: pb.Part) -> Part:
    want = Want(said.first, said.more, said.waited_s)
    return Part(said.limit, said.owned, said.free, want, dict(said.given), dict(said.taken))
