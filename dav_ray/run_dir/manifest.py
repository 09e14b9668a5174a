"""The round's state in storage, and who may change it.

`manifest.json` holds the open round only: its phase, the policy version, the shards committed so far, those that were
committed ahead for the next round, and the epoch of the driver that owns the run. A closed round is written once to
`manifests/round-NNNN.json` and never changed, so the cost of a commit does not grow with the rounds before.

Every write is a compare-and-swap from the state that this driver saw last, and each start of a driver raises
the epoch, so at most one driver can write: the next write of an older one fails, and it stops.
A chunk is accepted when the manifest names its shard; a file that no manifest names does not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from dav_ray.errors import RunError, StaleEpoch, UserError
from dav_ray.run_dir.manifest_record import Manifest, Phase, Shard, buffer_folder, round_manifest_path, to_json
from dav_ray.run_dir.storage.interface import AlreadyExists, Conflict, Storage, Version
from dav_ray.strict import parse_object

MANIFEST = "manifest.json"
MAX_ATTEMPTS = 20  # a conflict means that someone else got through, so only a crowd of drivers needs more


class ShardLost(RunError):
    """A committed shard was removed or changed."""


class ManifestStore:
    """One driver's hold on the manifest. For one thread; `open` comes first.

    A method that writes raises StaleEpoch once a newer driver has taken over, ValueError after `finish`.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._current: Manifest | None = None
        self._version = Version(None)

    @property
    def current(self) -> Manifest:
        """The manifest as this driver last wrote or read it. Raises RuntimeError before `open`."""
        if self._current is None:
            raise RuntimeError("ManifestStore.open comes first")
        return self._current

    def load(self) -> Manifest | None:
        """The stored manifest, without taking the run over; None if there is none. For readers."""
        return self._read()[0] if self._storage.exists(MANIFEST) else None

    def open(
        self,
        config_sha256: str,
        versions: Mapping[str, str],
        *,
        former: Collection[str] = (),
        go_on: bool = False,
    ) -> Manifest:
        """Start a run, or take over the stored one with the next epoch; a finished run is left as it is, or with go_on
        opened again where it ended.

        former: checksums that an earlier release took of the same configuration; they become `config_sha256`. Raises
        UserError if the stored run has another configuration, RunError if others keep taking it over, or if
        the manifest of a run that is there is not.
        """
        self._check_whole()
        # Epoch 0 belongs to nobody: drivers that race to create it write the same bytes, then race for 1.
        unowned = Manifest(0, 1, "search", 0, (), 0, {}, config_sha256)
        try:
            self._storage.create(MANIFEST, unowned.to_json())
        except AlreadyExists:
            pass  # a run to continue
        for _ in range(MAX_ATTEMPTS):
            stored, version = self._read()
            if stored.config_sha256 not in (config_sha256, *former):
                raise UserError(
                    f"run directory {self._storage.uri}: holds a run with another configuration (sha256 "
                    f"{stored.config_sha256[:12]}, not {config_sha256[:12]}); use its config.yaml"
                )
            taken = stored
            if stored.phase != "done" or go_on:
                # what a run that was ended early has accepted is searched no second time, whatever its phase was
                phase = "search" if stored.phase == "done" else stored.phase
                taken = replace(
                    stored,
                    epoch=stored.epoch + 1,
                    phase=phase,
                    versions=dict(versions),
                    config_sha256=config_sha256,
                )
                try:
                    version = self._storage.replace(MANIFEST, taken.to_json(), version)
                except Conflict:
                    # Try again even if our own write is what landed: two drivers may have wanted the same
                    # epoch and bytes, so only a swap that succeeded proves ownership.
                    continue
            self._current, self._version = taken, version
            return taken
        raise RunError("driver", f"other drivers took {self._storage.uri} over {MAX_ATTEMPTS} times")

    def refresh(self) -> Manifest:
        """The manifest as it is stored. Raises StaleEpoch, RunError as the methods that write do."""
        return self._refreshed()

    def commit(
        self, shards: Sequence[Shard], *, ahead: bool = False, lost: Collection[Shard] = ()
    ) -> tuple[Shard, ...]:
        """Accept chunks of the open round, or of the next one (`ahead`); returns all committed ones, in chunk order.

        The first shard of a chunk stays: a later one of the same chunk is dropped, whatever its content. Only one of
        `lost`, which can't be read any more, is replaced. Raises ValueError for a shard of another round or of another
        policy version than the round's first.
        """

        def change(manifest: Manifest) -> Manifest:
            round = manifest.round + ahead
            committed = {shard.chunk: shard for shard in manifest.shards_of(round)}
            for shard in shards:
                _check_belongs(shard, round, committed)
                if committed.setdefault(shard.chunk, shard) in lost:
                    committed[shard.chunk] = shard
            ordered = tuple(committed[chunk] for chunk in sorted(committed))
            return replace(manifest, ahead=ordered) if ahead else replace(manifest, shards=ordered)

        changed = self._update(change)
        return changed.ahead if ahead else changed.shards

    def advance(self, *, phase: Phase | None = None, policy_version: int | None = None) -> Manifest:
        """Move the open round to a phase, a policy version or both. `finish` is what ends a run."""
        changes: dict[str, Any] = {"phase": phase, "policy_version": policy_version}
        changes = {name: value for name, value in changes.items() if value is not None}
        return self._update(lambda manifest: replace(manifest, **changes))

    def settle_alpha(self, alpha: float) -> float:
        """The number that the run searches with: this one, unless a driver has settled one before."""
        settled = self._update(lambda m: m if m.alpha is not None else replace(m, alpha=alpha)).alpha
        return alpha if settled is None else settled

    def close_round(self, summary: Mapping[str, Any]) -> Manifest:
        """Write the open round's immutable manifest with this summary of its metrics; open the next round, whose shards
        are those that were committed ahead.

        If an interrupted driver had written it already, that one stands, with its summary. Raises RunError if
        it names other shards than this round's.
        """
        closing = self._refreshed()
        _check_unfinished(closing)
        record = {
            "round": closing.round,
            # not closing.policy_version: the fit has moved on
            "policy_version": closing.shards[0].policy_version if closing.shards else closing.policy_version,
            "shards": [asdict(shard) for shard in closing.shards],
        }
        try:
            self._storage.create(round_manifest_path(closing.round), to_json({**record, "summary": summary}))
        except AlreadyExists:
            stored = self.round_manifest(closing.round)
            if {name: stored.get(name) for name in record} != record:
                path = f"{self._storage.uri}/{round_manifest_path(closing.round)}"
                raise RunError("driver", f"{path} names other shards than {MANIFEST}") from None
        opened = replace(
            closing, round=closing.round + 1, phase="search", shards=closing.ahead, ahead=(), closed=closing.round
        )
        return self._update(lambda _: opened)

    def finish(self, *, early: bool = False) -> Manifest:
        """End the run. early: what the open round has accepted stays named, for when the run goes on; otherwise
        ValueError if it has shards that `close_round` has not recorded."""
        if not early and (self.current.shards or self.current.ahead):
            raise ValueError(f"round {self.current.round} is not closed")
        return self._update(lambda manifest: replace(manifest, phase="done"))

    def round_manifest(self, round: int) -> dict[str, Any]:
        """What `close_round` recorded: round, policy_version (that searched), shards, summary.

        Raises FileNotFoundError if that round is not closed, RunError if the file can't be read.
        """
        path = round_manifest_path(round)
        try:
            record = parse_object(self._storage.read(path))
            for shard in record.get("shards", [{}]):
                Shard.from_fields(shard)
        except (ValueError, TypeError) as error:
            raise RunError("storage", f"{self._storage.uri}/{path} can't be read: it {error}") from error
        return record

    def sweep_orphans(self, keep_open: Collection[str] = ()) -> list[str]:
        """Delete the shards of the open round and of the next one that no manifest names; returns their paths.

        Those in `keep_open` stay: paths of shards that are written and about to be committed.
        """
        # Listed before the manifest is read: a shard that was written after the listing is not in it.
        rounds = (self.current.round, self.current.round + 1)
        listed = [path for round in rounds for path in self._storage.list(buffer_folder(round))]
        refreshed = self._refreshed()
        kept = {shard.path for shard in (*refreshed.shards, *refreshed.ahead)} | set(keep_open)
        orphans = [path for path in listed if path.endswith(".parquet") and path not in kept]
        for path in orphans:
            self._storage.delete(path)
        return orphans

    def verify(self, shard: Shard) -> bytes:
        """The shard's bytes. Raises ShardLost naming it if it is absent or not what was committed."""
        try:
            data = self._storage.read(shard.path)
        except FileNotFoundError:
            raise ShardLost("storage", f"shard {shard.path} of chunk {shard.chunk} is absent") from None
        found = hashlib.sha256(data).hexdigest()
        if found != shard.sha256:
            raise ShardLost(
                "storage", f"shard {shard.path} of chunk {shard.chunk} has sha256 {found}, not {shard.sha256}"
            )
        return data

    def _check_whole(self) -> None:
        """A run that was started anew would take what a removed manifest named for orphans."""
        if self._storage.exists(MANIFEST):
            return
        if left := [*self._storage.list("manifests"), *self._storage.list("buffer"), *self._storage.list("policy")]:
            raise RunError(
                "storage",
                f"{self._storage.uri}/{MANIFEST} is absent, though there is a run ({left[0]}): it was removed; "
                "put it back, or use another --run-dir",
            )

    def _update(self, change: Callable[[Manifest], Manifest]) -> Manifest:
        """Apply a change that is the identity where it has been made already.

        After a conflict the stored manifest decides: a newer epoch ends this driver; otherwise it was a write
        of our own whose answer was lost, and the change is made upon what is there.
        """
        for _ in range(MAX_ATTEMPTS):
            wanted = change(self.current)
            if wanted == self.current:
                return wanted
            _check_unfinished(self.current)
            try:
                version = self._storage.replace(MANIFEST, wanted.to_json(), self._version)
            except Conflict:
                self._refreshed()
                continue
            self._current, self._version = wanted, version
            return wanted
        raise RunError("driver", f"{self._storage.uri}/{MANIFEST} changes under this driver, which owns it")

    def _refreshed(self) -> Manifest:
        """Read the manifest again. Raises StaleEpoch if a newer driver owns it, RunError if an older does."""
        stored, version = self._read()
        if stored.epoch > self.current.epoch:
            raise StaleEpoch(self.current.epoch, stored.epoch)
        if stored.epoch < self.current.epoch:
            raise RunError("driver", f"{MANIFEST} fell from epoch {self.current.epoch} to {stored.epoch}")
        self._current, self._version = stored, version
        return stored

    def _read(self) -> tuple[Manifest, Version]:
        try:
            data, version = self._storage.read_versioned(MANIFEST)
            return Manifest.from_json(data), version
        except FileNotFoundError:
            raise RunError("storage", f"{self._storage.uri}/{MANIFEST} can't be read: it is absent") from None
        except ValueError as error:
            raise RunError("storage", f"{self._storage.uri}/{MANIFEST} can't be read: it {error}") from error


def _check_unfinished(manifest: Manifest) -> None:
    if manifest.phase == "done":
        raise ValueError("the run is finished")


def _check_belongs(shard: Shard, round: int, committed: Mapping[int, Shard]) -> None:
    folder = buffer_folder(round)
    if not shard.path.startswith(f"{folder}/"):
        raise ValueError(f"shard {shard.path} is not in {folder}, round {round}'s folder")
    searched = {other.policy_version for other in committed.values()} | {shard.policy_version}
    if len(searched) > 1:
        raise ValueError(f"shard {shard.path}: policy versions {sorted(searched)} in a round, which has one")
