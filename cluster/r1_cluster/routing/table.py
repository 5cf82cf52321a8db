"""All ranks of a model as columns, kept up to date by what changes: a pick costs the same in a fleet of ten ranks and
of ten thousand."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

import numpy as np

from r1_cluster.routing.fleet import COLUMNS, Demand, Fleet, RankView, numbers_of
from r1_cluster.routing.kv import KvLedger

_LOAD, _USAGE, _PICK, _GANG = (COLUMNS.index(c) for c in ("load", "kv_usage", "last_pick", "gang"))
_SUM_AFTER = 1 << 14  # changes, after which the running sum of forecasts is summed anew: rounding does not add up

Rows = np.ndarray[tuple[int], np.dtype[np.intp]]


class RankTable:
    """Rows are the ledger's. ``sync`` takes a whole snapshot and costs its length; ``put``, ``report``, ``picked`` and
    ``remove`` take one change each."""

    def __init__(self, ledger: KvLedger) -> None:
        self._ledger = ledger
        self._numbers = np.zeros((len(COLUMNS), 16))
        self._views: dict[int, RankView] = {}
        self._reported: dict[int, int] = {}  # requests on the rank, by its own view
        self._emptiest: list[tuple[float, int, int]] = []  # load a seat, last pick, row; draining ones left out
        self._entries: dict[int, tuple[float, int, int]] = {}
        self._gangs: dict[str, set[int]] = {}  # its rows
        self._gang_of: dict[int, str] = {}
        self._rows: Rows | None = None
        self._ids: dict[str, int] = {}
        self._step_s: dict[int, float] = {}
        self._usage: dict[int, float] = {}
        self._last_pick: dict[int, int] = {}
        self._ahead: dict[int, float] = {}
        self._ahead_sum, self._changes = 0.0, 0
        self.kv_tokens = 0
        self.largest = 0

    def __len__(self) -> int:
        return len(self._views)

    @property
    def pressure(self) -> float:
        """Forecast KV, each rank at its own worst moment, over all KV."""
        return self._ahead_sum / self.kv_tokens if self.kv_tokens else 0.0

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
        if old is None or old.gang_id != view.gang_id:
            self._leave(row)
            self._join(row, view.gang_id)
        self._numbers[:_GANG, row] = numbers_of(view)
        self._views[row] = view
        self._reported[row] = view.load
        self._step_s[row], self._usage[row], self._last_pick[row] = view.step_time_s, view.kv_usage, view.last_pick
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
        self._place(row, None)
        self._ahead_sum -= self._ahead.pop(row)
        del self._reported[row], self._step_s[row], self._usage[row], self._last_pick[row]
        self._rows = None
        self.kv_tokens -= gone.kv_tokens
        self.largest = max((each.kv_tokens for each in self._views.values()), default=0)
        self._leave(row)
        if not self._views:
            self._ahead_sum = 0.0

    def report(self, row: int, *, load: int, kv_usage: float, step_time_s: float) -> None:
        """What a frame says of a rank's load."""
        self._reported[row] = load
        self._numbers[_USAGE, row] = self._usage[row] = kv_usage
        self._step_s[row] = step_time_s
        self.changed(row)

    def picked(self, row: int, number: int) -> None:
        """The rank got the request of this ``number``: the higher, the more recent."""
        self._numbers[_PICK, row] = self._last_pick[row] = number
        self.changed(row)

    def changed(self, row: int) -> None:
        """The ledger's entries of a row, or its own numbers, are not what they were."""
        view = self._views.get(row)
        if view is None:
            return
        numbers, ledger = self._numbers, self._ledger
        load = max(self._reported[row], ledger.counts[row])
        numbers[_LOAD, row] = load
        self._place(row, None if view.draining else (load / view.max_num_seqs, self._last_pick[row], row))
        # With what others hold: what is reported beyond what is known of here.
        ahead = ledger.peaks[row] + max(0.0, self._usage[row] * view.kv_tokens - ledger.mean.item(row, 0))
        self._ahead_sum += ahead - self._ahead.get(row, 0.0)
        self._ahead[row] = ahead
        self._changes += 1
        if self._changes >= _SUM_AFTER:
            self._ahead_sum, self._changes = sum(self._ahead.values()), 0

    def rows(self, most: int, also: Iterable[str] = ()) -> Rows:
        """All ranks, or of more than ``most`` the emptiest and those named in ``also``."""
        if len(self._views) > most:
            chosen = [entry[2] for entry in self._emptiest[:most]]
            chosen += {self._ids[rank] for rank in also if rank in self._ids}.difference(chosen)
            return np.array(sorted(chosen), dtype=np.intp)
        if self._rows is None:
            self._rows = np.array(list(self._views), dtype=np.intp)
        return self._rows

    def ids(self, rows: Rows) -> list[str]:
        return [self._views[row].worker_id for row in rows.tolist()]

    def fleet(self, rows: Rows, demand: Demand) -> Fleet:
        views = tuple(map(self._views.__getitem__, rows.tolist()))
        ledger = self._ledger
        return Fleet(demand, views, self._numbers.take(rows, axis=1), ledger.mean[rows], ledger.variance[rows])

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
        if gang_id and not rows:
            del self._gangs[gang_id]

    def _place(self, row: int, entry: tuple[float, int, int] | None) -> None:
        old = self._entries.get(row)
        if old == entry:
            return
        if old is not None:
            del self._emptiest[bisect_left(self._emptiest, old)]
        if entry is None:
            self._entries.pop(row, None)
        else:
            insort(self._emptiest, entry)
            self._entries[row] = entry
