"""All ranks of a model as columns, kept up to date by what changes: a pick costs the same in a fleet of ten ranks and
of ten thousand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from r1_cluster.routing.emptiest import Emptiest
from r1_cluster.routing.fleet import (
    DRAINING,
    FEW,
    FREE,
    GANG,
    GANG_RANKS,
    KV_NOW,
    KV_OF_OTHERS,
    KV_ROOM,
    KV_TOKENS,
    LAST_PICK,
    LOAD,
    OTHERS,
    SEATS,
    TAKES,
    Demand,
    Fleet,
    Numbers,
    RankView,
)
from r1_cluster.routing.ledger import KvLedger


class RankTable:
    """Rows are the ledger's. ``sync`` takes a whole snapshot and costs its length; ``put``, ``report``, ``picked`` and
    ``remove`` take one change each. What follows from changes is computed when somebody looks."""

    def __init__(self, ledger: KvLedger) -> None:
        self._ledger = ledger
        self._numbers = np.zeros((len(Numbers._fields), 16))
        self._top = np.zeros((2, 16))  # by gang, KV tokens in use and requests on its fullest ranks
        self.others = 0  # ranks that have requests of other routers
        self._views: dict[int, RankView] = {}
        self._reported: dict[int, int] = {}  # requests on the rank, by its own view
        self._emptiest = Emptiest()  # draining ones left out
        self._gangs: dict[str, set[int]] = {}  # its rows
        self._gang_of: dict[int, str] = {}
        self._shared = False  # whether any gang has several rows
        self._rows: list[int] | None = None
        self._ids: dict[str, int] = {}
        self._step_s: dict[int, float] = {}
        self._usage: dict[int, float] = {}
        self._changed: set[int] = set()  # rows whose numbers are to be looked at
        self.kv_tokens = 0
        self.largest = 0

    def __len__(self) -> int:
        return len(self._views)

    @property
    def pressure(self) -> float:
        """Forecast KV, each rank at its own worst moment, over all KV. O(ranks)"""
        if not self.kv_tokens:
            return 0.0
        self._settle()
        rows = self.every()
        peaks = self._ledger.forecasts[rows, 0].max(axis=1) + self._numbers[KV_OF_OTHERS, rows]
        return float(peaks.sum()) / self.kv_tokens

    def fastest_step_s(self) -> float:
        """O(ranks)"""
        return min(self._step_s.values(), default=0.0)

    def sync(self, ranks: Sequence[RankView]) -> None:
        """Be exactly these ranks."""
        for view in ranks:
            row = self._ids.get(view.worker_id)
            old = None if row is None else self._views[row]
            if old is not view and old != view:
                self.put(view)
        if len(self._views) != len(ranks):
            for worker_id in set(self._ids) - {view.worker_id for view in ranks}:
                self.remove(worker_id)

    def put(self, view: RankView) -> int:
        """A rank, new or as it is now. Returns its row."""
        row = self._ledger.row(view.worker_id)
        old = self._views.get(row)
        if row >= self._numbers.shape[1]:
            self._numbers = np.concatenate([self._numbers, np.zeros((len(self._numbers), row + 1))], axis=1)
            self._top = np.concatenate([self._top, np.zeros((2, row + 1))], axis=1)
        if old is None or old.gang_id != view.gang_id:
            self._leave(row)
            self._join(row, view.gang_id)
        numbers = self._numbers  # the others follow when somebody looks
        numbers[DRAINING, row], numbers[LAST_PICK, row] = view.draining, view.last_pick
        numbers[OTHERS, row], numbers[KV_TOKENS, row] = view.others, view.kv_tokens
        numbers[SEATS, row], numbers[TAKES, row] = view.seats, view.takes
        self._ledger.block_tokens = view.block_tokens
        self.others += (view.others > 0) - (old is not None and old.others > 0)
        self._views[row] = view
        self._reported[row], self._usage[row], self._step_s[row] = view.load, view.kv_usage, view.step_time_s
        if old is None:
            self._ids[view.worker_id] = row
            self._rows = None
        if old is None or old.kv_tokens != view.kv_tokens:
            self.kv_tokens += view.kv_tokens - (old.kv_tokens if old else 0)
            self.largest = max(each.kv_tokens for each in self._views.values())
        self.changed(row)
        return row

    def remove(self, worker_id: str) -> None:
        """A rank is no longer among them. One that never was is no fault."""
        row = self._ids.pop(worker_id, None)
        if row is None:
            return
        gone = self._views.pop(row)
        self._emptiest.discard(row)
        self._numbers[KV_NOW, row] = 0.0
        del self._reported[row], self._usage[row], self._step_s[row]
        self._rows = None
        self.others -= gone.others > 0
        self.kv_tokens -= gone.kv_tokens
        self.largest = max((each.kv_tokens for each in self._views.values()), default=0)
        self._leave(row)

    def report(self, row: int, *, load: int, kv_usage: float, step_time_s: float) -> None:
        """What a frame says of a rank's load."""
        self._reported[row] = load
        self._usage[row] = kv_usage
        self._step_s[row] = step_time_s
        self.changed(row)

    def picked(self, row: int, number: int) -> None:
        """The rank got the request of this ``number``: the higher, the more recent."""
        self._numbers[LAST_PICK, row] = number

    def changed(self, row: int) -> None:
        """The ledger's entries of a row, or its own numbers, are not what they were."""
        self._changed.add(row)

    def every(self) -> list[int]:
        if self._rows is None:
            self._rows = list(self._views)
        return self._rows

    def shortlist(self, most: int, also: Iterable[str] = ()) -> list[int]:
        """The ``most`` emptiest ranks that do not drain, and those named in ``also``."""
        self._settle()
        chosen = self._emptiest.first(most)
        for rank in also:
            row = self._ids.get(rank)
            if row is not None and row not in chosen:
                chosen.append(row)
        return chosen

    def ids(self, rows: Sequence[int]) -> list[str]:
        views = self._views
        return [views[row].worker_id for row in rows]

    def fleet(self, rows: Sequence[int], demand: Demand) -> Fleet:
        self._settle()
        views = tuple(map(self._views.__getitem__, rows))
        where = np.array(rows, dtype=np.intp)
        numbers = self._numbers.take(where, axis=1)
        tops = self._top.take(numbers[GANG].astype(np.intp), axis=1) if self._shared else None
        return Fleet(demand, views, numbers, self._ledger.forecasts.take(where, axis=0), tops)

    def _settle(self) -> None:
        """Bring the numbers of what changed up to date."""
        numbers, ledger = self._numbers, self._ledger
        while self._changed:
            row = self._changed.pop()
            view = self._views.get(row)
            if view is None:
                continue
            load, usage, held = max(self._reported[row], ledger.counts[row]), self._usage[row], ledger.held(row)
            share, kv_tokens = load / view.max_num_seqs, view.kv_tokens
            self._emptiest.put(row, math.inf if view.draining else share)
            now = max(usage * kv_tokens, held)
            numbers[LOAD, row] = load
            numbers[FEW, row] = 1.0 / (1.0 + share)
            numbers[FREE, row] = 1.0 - min(1.0, usage)
            numbers[KV_ROOM, row] = kv_tokens if load and kv_tokens else math.inf
            numbers[KV_OF_OTHERS, row] = now - held
            numbers[KV_NOW, row] = now
            if self._shared:
                self._raise(row)

    def _raise(self, row: int) -> None:
        """The fullest of the row's gang may be another."""
        gang = int(self._numbers[GANG, row])
        rows = self._gangs.get(self._gang_of[row])
        mine = self._numbers[:, list(rows) if rows else [row]]
        self._top[0, gang], self._top[1, gang] = mine[KV_NOW].max(), mine[LOAD].max()

    def _join(self, row: int, gang_id: str) -> None:
        """Rows of one gang carry the number of one of them."""
        self._gang_of[row] = gang_id
        if gang_id:
            self._gangs.setdefault(gang_id, set()).add(row)
        self._number(row, gang_id)

    def _leave(self, row: int) -> None:
        gang_id = self._gang_of.pop(row, "")
        if gang_id:
            self._gangs[gang_id].discard(row)
            self._number(row, gang_id)

    def _number(self, row: int, gang_id: str) -> None:
        rows = self._gangs.get(gang_id, set())
        self._numbers[GANG, row] = row
        self._numbers[GANG, list(rows)] = min(rows, default=row)
        self._numbers[GANG_RANKS, [row, *rows]] = max(1, len(rows))
        self._changed |= rows
        self._shared = self._shared or len(rows) > 1
        if gang_id and not rows:
            del self._gangs[gang_id]
