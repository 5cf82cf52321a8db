"""What a Scenario brings to a running simulation: gangs fail, come back, drain, are added and taken away."""

from __future__ import annotations

from r1_cluster.plan import PlanError
from r1_cluster.routing.scaling import FleetDemand, ScalingState, decide
from r1_cluster.simulator.agenda import Agenda, Kind
from r1_cluster.simulator.desk import Desk
from r1_cluster.simulator.events import Autoscaling, Scenario
from r1_cluster.simulator.units import Units


class Happenings:
    """Raises PlanError where the scenario names a gang that the fleet does not have."""

    def __init__(self, scenario: Scenario, units: Units, desk: Desk, agenda: Agenda) -> None:
        named = [f.gang for f in scenario.failures] + [d.gang for d in scenario.drains]
        if named and max(named) >= len(units.all):
            raise PlanError(f"gang {max(named)} cannot fail or drain: the fleet has {len(units.all)}, from 0")
        self._scenario, self._units, self._desk, self._agenda = scenario, units, desk, agenda
        self._coming: set[int] = set()  # gangs that are starting
        self._scaling = ScalingState()

    def begin(self) -> None:
        for unit in self._units.all:
            if unit.begins:
                self._units.attach(unit)
        for number, failure in enumerate(self._scenario.failures):
            self._agenda.push(failure.at, Kind.FAIL, number)
        for number, drain in enumerate(self._scenario.drains):
            self._agenda.push(drain.at, Kind.DRAIN, number)
        if self._scenario.scaling is not None:
            self._agenda.push(self._scenario.scaling.every_s, Kind.SCALE, 0)

    def handle(self, kind: int, which: int) -> None:
        """Any event but a gang's steps."""
        now = self._agenda.now
        if kind == Kind.LOOK:
            self._desk.look(hopeful=bool(self._coming) or self._units.any_up)
        elif kind == Kind.FAIL:
            failure = self._scenario.failures[which]
            if self._lose(failure.gang):
                self._coming.add(failure.gang)
                self._agenda.push(now + failure.restart_s, Kind.UP, failure.gang)
        elif kind == Kind.DRAIN:
            drain = self._scenario.drains[which]
            self._units.drain(drain.gang, drain.grace_s)
        elif kind == Kind.STOP:
            if self._units.all[which].draining:
                self._lose(which)
        elif kind == Kind.UP:
            self._coming.discard(which)
            self._units.attach(self._units.all[which])
            self._desk.pump()
        elif self._scenario.scaling is not None:
            self._scale(self._scenario.scaling)

    def _lose(self, which: int) -> bool:
        """What a gang had goes on elsewhere after the tokens so far. False: it was not there."""
        lost = self._units.lose(which)
        if lost is None:
            return False
        self._desk.orphans.extend(lost)
        self._desk.pump()
        return True

    def _scale(self, by: Autoscaling) -> None:
        """As the fleet's own policy decides; service level burn is left out of what it sees."""
        now, coming, dispatcher = self._agenda.now, self._coming, self._desk.dispatcher
        admission = dispatcher.admission
        up = [unit.number for unit in self._units.all if unit.up and not unit.draining]
        demand = FleetDemand(len(up), len(coming), admission.queued, admission.wait_s(now), dispatcher.table.pressure)
        decision, self._scaling = decide(demand, by.rules, self._scaling, now)
        more = decision.gangs - len(up) - len(coming)
        down = [unit.number for unit in self._units.all if not unit.up and unit.number not in coming]
        for which in down[: max(0, more)]:
            coming.add(which)
            self._agenda.push(now + by.start_s, Kind.UP, which)
        for which in up[len(up) - max(0, -more) :]:
            self._units.drain(which, by.grace_s)
        self._desk.metrics.scaled.append((now, decision.gangs))
        self._agenda.push(now + by.every_s, Kind.SCALE, 0)
