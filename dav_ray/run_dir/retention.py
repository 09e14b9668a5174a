"""What is kept of past rounds: all, or with `retain.last` the first one, the best one and the last ones.

Of the others `policy/vNNNN`, `buffer/round=NNNN` and `evaluate/round-NNNN.parquet` go; manifests and metrics stay,
and so does the pretrained model's evaluation, which is round 0. Only closed rounds go, after the manifest has closed
them, and what the run itself still reads is among the last: the policy that training goes on from, the one that
searches, the shards that `refine` starts from. A deletion that was interrupted is made good by the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from dav_ray.errors import RunError
from dav_ray.run_dir.manifest import ManifestStore
from dav_ray.run_dir.storage.interface import PARALLEL_READS, Storage

if TYPE_CHECKING:
    from dav_ray.run_dir.records import RunLog

MEASURE = "evaluate/reward_mean"  # of samples without search, as the round's summary has it
LEFTOVER_S = 3600.0  # what a writer left beside its object for so long is no live writer's
_FOLDERS = ("policy", "buffer", "evaluate")
_OWNED = re.compile(r"(policy/v(\d+))/.*|(buffer/round=(\d+))/.*|(evaluate/round-(\d+)\.parquet)")


def kept(closed: int, best: int | None, last: int) -> set[int]:
    """Of the closed rounds 1..closed: the first, the best, the last ones."""
    newest = range(max(1, closed - last + 1), closed + 1)
    return {1, *newest} | ({best} if best is not None else set())


class Retention:
    """One driver's deletions; `store` is its hold on the manifest, which is open."""

    def __init__(self, last: int | None, storage: Storage, store: ManifestStore, log: RunLog) -> None:
        """last: how many of the newest rounds are kept; None keeps all."""
        self._last = last
        self._storage, self._store, self._log = storage, store, log
        self._known = 0  # rounds whose manifests have been read
        self._best: tuple[float, int] | None = None  # reward, minus the round: of equals the earlier one
        self._unknown: set[int] = set()  # rounds of whose rewards nothing is known

    def sweep(self) -> None:
        """Delete what need not be kept. StaleEpoch if another driver has taken the run over."""
        if self._last is None:
            return
        closed = self._store.refresh().closed
        self._learn(closed)
        keep = kept(closed, None if self._best is None else -self._best[1], self._last) | self._unknown
        listed = [path for folder in _FOLDERS for path in self._storage.list(folder)]
        gone = {place: round for place, round in _owned(listed) if 1 < round <= closed and round not in keep}
        for place in gone:
            self._storage.delete_folder(place)
            self._storage.delete(place)
        if gone:
            self._log.event("retained", round=closed, kept=sorted(keep), deleted=sorted(set(gone.values())))

    def _learn(self, closed: int) -> None:
        """The rewards of rounds that were closed since this was asked last."""
        new = range(self._known + 1, closed + 1)
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            rewards = list(pool.map(self._reward, new))
        for round, reward in zip(new, rewards, strict=True):
            if reward is not None and (self._best is None or (reward, -round) > self._best):
                self._best = reward, -round
        self._known = closed

    def _reward(self, round: int) -> float | None:
        """None where no sample had a finite one. A round whose manifest can't be read is kept."""
        try:
            return self._store.round_manifest(round)["summary"].get(MEASURE)
        except (FileNotFoundError, RunError, KeyError):
            self._unknown.add(round)
            return None


def sweep_leftovers(storage: Storage, store: ManifestStore, log: RunLog) -> None:
    """For a run's start: what drivers and workers that died have left behind."""
    orphans, leftovers = store.sweep_orphans(), storage.sweep_leftovers(LEFTOVER_S)
    if orphans or leftovers:
        log.event("swept", orphans=len(orphans), leftovers=leftovers)


def _owned(paths: Iterable[str]) -> Iterable[tuple[str, int]]:
    """(folder or file, round) of everything that belongs to one round."""
    for path in paths:
        if match := _OWNED.fullmatch(path):
            place, number = (group for group in match.groups() if group is not None)
            yield place, int(number)
