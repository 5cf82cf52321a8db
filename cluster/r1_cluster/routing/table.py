"""All ranks of a model as columns, kept up to date by what changes: a pick costs the same in a fleet of ten ranks and
of ten thousand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from r1_cluster.routing.emptiest import Emptiest
from r1_cluster.routing.fleet import COLUMNS, Demand, Fleet, RankView, numbers_of
from r1_cluster.routing.ledger import KvLedger, Rows
from r1_cluster.routing.survival import Floats

_NAMES = ("load", "kv_usage", "kv_tokens", "last_pick", "gang", "gang_ranks")
_LOAD, _USAGE, _TOKENS, _PICK, _GANG, _GANG_RANKS = map(COLUMNS.index, _NAMES)


class RankTable:
    """Rows are the ledger's. ``sync`` takes a whole snapshot and costs its length; ``put``, ``report``, ``picked`` and
    ``remove`` take one change each. What follows from changes is computed when somebody looks."""

    def __init__(self, ledger: KvLedger) -> None:
        self._ledger = ledger
        self._numbers = np.zeros((len(COLUMNS), 16))
        self._now = np.zeros(16)  # KV tokens in use, what was just sent included
        self._peaks = np.zeros(16)  # at the forecast worst, with what others hold
        self._views: dict[int, RankView] = {}
        self._reported: dict[int, int] = {}  # requests on the rank, by its own view
        self._emptiest = Emptiest()  # draining ones left out
        self._gangs: dict[str, set[int]] = {}  # its rows
        self._gang_of: dict[int, str] = {}
        self.others = 0  # ranks that have requests of other routers
        self._shared = False  # whether any gang has several rows
        self._rows: Rows | None = None
        self._ids: dict[str, int] = {}
        self._step_s: dict[int, float] = {}
        self._changed: set[int] = set()  # rows whose load may be another
        self._grown: set[int] = set()  # rows whose KV may be
        self.kv_tokens = 0
        self.largest = 0

    def __len__(self) -> int:
        return len(self._views)

    @property
    def pressure(self) -> float:
        """Forecast KV, each rank at its own worst moment, over all KV. O(ranks)"""
        if not self.kv_tokens:
            return 0.0
        self._weigh()
        return float(self._peaks.sum()) / self.kv_tokens

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
            self._numbers = np.concatenate([self._numbers, np.zeros((len(COLUMNS), row + 1))], axis=1)
            self._now, self._peaks = (np.concatenate([a, np.zeros(row + 1)]) for a in (self._now, self._peaks))
        if old is None or old.gang_id != view.gang_id:
            self._leave(row)
            self._join(row, view.gang_id)
        self.others += (view.others > 0) - (old is not None and old.others > 0)
        self._numbers[:_GANG, row] = numbers_of(view)
        self._views[row] = view
        self._reported[row] = view.load
        self._step_s[row] = view.step_time_s
        self._ledger.block_tokens = view.block_tokens
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
        self._now[row] = self._peaks[row] = 0.0
        del self._reported[row], self._step_s[row]
        self._rows = None
        self.others -= gone.others > 0
        self.kv_tokens -= gone.kv_tokens
        self.largest = max((each.kv_tokens for each in self._views.values()), default=0)
        self._leave(row)

    def report(self, row: int, *, load: int, kv_usage: float, step_time_s: float) -> None:
        """What a frame says of a rank's load."""
        self._reported[row] = load
        self._numbers[_USAGE, row] = kv_usage
        self._step_s[row] = step_time_s
        self.changed(row)

    def picked(self, row: int, number: int) -> None:
        """The rank got the request of this ``number``: the higher, the more recent."""
        self._numbers[_PICK, row] = number

    def changed(self, row: int) -> None:
        """The ledger's entries of a row, or its own numbers, are not what they were."""
        self._changed.add(row)
        self._grown.add(row)

    def rows(self, most: int, also: Iterable[str] = ()) -> Rows:
        """All ranks, or of more than ``most`` the emptiest and those named in ``also``."""
        if self._changed:
            self._count()
        if len(self._views) > most:
            chosen = self._emptiest.first(most)
            chosen += {self._ids[rank] for rank in also if rank in self._ids}.difference(chosen)
            return np.array(sorted(chosen), dtype=np.intp)
        if self._rows is None:
            self._rows = np.array(list(self._views), dtype=np.intp)
        return self._rows

    def ids(self, rows: Rows) -> list[str]:
        return [self._views[row].worker_id for row in rows.tolist()]

    def fleet(self, rows: Rows, demand: Demand) -> Fleet:
        """``rows``: as ``rows`` gave them, with nothing changed since but their forecasts."""
        views = tuple(map(self._views.__getitem__, rows.tolist()))
        numbers = self._numbers.take(rows, axis=1)
        tops = self._tops(rows, numbers) if self._shared and len(rows) < len(self._views) else None
        return Fleet(demand, views, numbers, self._ledger.forecasts.take(rows, axis=0), tops)

    def _tops(self, rows: Rows, numbers: Floats) -> Floats:
        """Of whole gangs, where only some of their ranks are looked at."""
        self._weigh()
        both, gangs = np.array((self._now, self._numbers[_LOAD])), numbers[_GANG].tolist()
        top = {g: both[:, list(self._gangs[self._gang_of[int(g)]])].max(axis=1) for g in set(gangs) if g >= 0}
        return np.array([top[g] if g >= 0 else both[:, row] for g, row in zip(gangs, rows.tolist(), strict=True)]).T

    def _count(self) -> None:
        numbers, ledger, emptiest = self._numbers, self._ledger, self._emptiest
        for row in self._changed:
            view = self._views.get(row)
            if view is not None:
                load = max(self._reported[row], ledger.counts[row])
                numbers[_LOAD, row] = load
                emptiest.put(row, math.inf if view.draining else load / view.max_num_seqs)
        self._changed.clear()

    def _weigh(self) -> None:
        """Bring KV in use and the forecast peaks up to date."""
        if self._grown:
            rows = np.array([row for row in self._grown if row in self._views], dtype=np.intp)
            self._grown.clear()
            mean = self._ledger.forecasts[rows, 0]
            now = self._numbers[_USAGE, rows] * self._numbers[_TOKENS, rows]
            self._now[rows] = now = np.maximum(now, mean[:, 0])
            self._peaks[rows] = now - mean[:, 0] + mean.max(axis=1)

    def _join(self, row: int, gang_id: str) -> None:
        """Rows of one gang carry the number of one of them, -1 where it is alone."""
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
        self._numbers[_GANG, row] = -1
        self._numbers[_GANG, list(rows)] = min(rows) if len(rows) > 1 else -1
        self._numbers[_GANG_RANKS, [row, *rows]] = max(1, len(rows))
        self._shared = self._shared or len(rows) > 1
        if gang_id and not rows:
            del self._gangs[gang_id]
