"""What one EM round does on the cluster: search and commit, fit, evaluate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray
from ray import exceptions

from dav_ray import buffer, evaluate
from dav_ray.accepted import Accepted, fit_weights, load_shard, search_metrics
from dav_ray.config import Config
from dav_ray.dispatch import Dispatcher
from dav_ray.errors import DavRayError, RunError
from dav_ray.interrupt import check
from dav_ray.manifest import ManifestStore, Shard
from dav_ray.mstep.mailbox import Job, ask
from dav_ray.progress import Progress
from dav_ray.run_files import RunLog
from dav_ray.samples.base import sample_kind
from dav_ray.schedule import round_prompts, spans, training_groups
from dav_ray.search.actor import ChunkMeta
from dav_ray.session import Session
from dav_ray.storage import Storage
from dav_ray.types import Chunk, Cost, EvaluationChunk

POLL_S = 0.2
BUSY_TIMEOUT_S = 5.0
TRAIN_RESTARTS = 3  # per round, after an error of a rank; the peers of a rank that was killed raise one too


class Rounds:
    """The steps of the open round. Everything it needs to know after a restart is in the manifest."""

    def __init__(
        self,
        config: Config,
        storage: Storage,
        store: ManifestStore,
        actors: Session,
        log: RunLog,
        progress: Progress,
    ) -> None:
        self._config, self._storage, self._store = config, storage, store
        self._actors, self._log, self._progress = actors, log, progress
        role = config.roles.search
        self._dispatcher = Dispatcher(actors.workers, storage.uri, log, role.call_timeout_s, role.start_timeout_s)
        self._dispatcher.expect(actors.away)
        self._prompts, self._kind = config.prompts, sample_kind(config)

    # -- E-step ---------------------------------------------------------------------------------------------------

    def search(self) -> list[Accepted]:
        """Search what the manifest does not name yet, committing chunk by chunk; in chunk order."""
        state, start, busy = self._store.current, time.monotonic(), self._busy()
        accepted = {found.index: found for found in self.reload()}
        chunks = self._chunks()
        total, open_chunks = len(chunks), [chunk for chunk in chunks if chunk.index not in accepted]
        posted = self._open_stream(accepted)
        cost = Cost()

        def commit(chunk: Chunk, table: Any, meta: ChunkMeta) -> None:
            nonlocal cost
            accepted[chunk.index] = self._commit(table, meta)
            cost = cost + meta.cost
            if posted is not None:
                self._stream(accepted, posted)

        def tick() -> None:
            rewards = [r for found in accepted.values() for r in found.rewards]
            mean = sum(rewards) / len(rewards) if rewards else None
            self._progress.update(state.round, f"search: chunk {len(accepted)}/{total}", mean)

        self._dispatcher.run("search", open_chunks, commit, tick, in_order=posted is not None)
        ordered = [accepted[index] for index in sorted(accepted)]
        seconds, searched = time.monotonic() - start, sum(len(chunk.trajectories) for chunk in open_chunks)
        values = search_metrics(ordered, cost, seconds, searched)
        for role, busy_s in self._busy().items():
            actors = self._actors.workers if role == "search" else self._actors.rewards
            # an actor that was restarted counts from zero again
            values[f"util/{role}"] = max(0.0, busy_s - busy[role]) / max(seconds * len(actors), 1e-9)
        self._log.metrics(state.round, "search", values)
        return ordered

    def _commit(self, table: Any, meta: ChunkMeta) -> Accepted:
        """The manifest names the shard: from here on the chunk is accepted."""
        self._store.commit([Shard(meta.path, meta.sha256, meta.index, meta.rows, meta.policy_version)])
        seconds = round(meta.seconds, 3)
        self._log.event("chunk_committed", round=self._store.current.round, chunk=meta.index, seconds=seconds)
        nfe = meta.cost.network / meta.rows
        return Accepted(
            meta.index, table, meta.trajectories, meta.conditions, meta.rewards, meta.log_weights, meta.ess, nfe
        )

    def reload(self) -> list[Accepted]:
        """The open round's committed chunks, read back by tasks on the cluster, checksums verified."""
        load: Any = ray.remote(load_shard).options(num_cpus=0.1, num_returns=2, max_retries=3)
        refs = [load.remote(self._storage.uri, shard) for shard in self._store.current.shards]
        return [
            Accepted(shard.chunk, table, *ray.get(meta))
            for shard, (table, meta) in zip(self._store.current.shards, refs, strict=True)
        ]

    def _chunks(self) -> list[Chunk]:
        """The round's work items."""
        state, search = self._store.current, self._config.search
        prompts = round_prompts(self._prompts, state.round, search.trajectories, together=search.kind == "smc")
        return [
            Chunk(
                self._config.seed,
                state.round,
                index,
                state.policy_version,
                tuple(numbers),
                tuple(prompts[n] for n in numbers),
            )
            for index, numbers in enumerate(spans(search.trajectories, search.chunk))
        ]

    def _busy(self) -> dict[str, float]:
        """Seconds that each role's actors have worked so far, added up; one that does not answer counts nothing."""
        refs = [actor.busy_s.remote() for actor in self._actors.rewards.values()]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=BUSY_TIMEOUT_S)
        rewards = 0.0
        for ref in ready:
            with contextlib.suppress(exceptions.RayActorError):
                rewards += ask(ref)
        return {"search": self._dispatcher.busy_s, "reward": rewards}

    # -- M-step ---------------------------------------------------------------------------------------------------

    def fit(self, accepted: Sequence[Accepted]) -> None:
        """Hand the round to the trainer (what was not streamed already) and wait for the new policy."""
        state, groups = self._store.current, self._groups()
        mailbox = self._actors.mailbox
        ask(mailbox.post_job.remote(self._job()))
        weights = fit_weights(accepted, self._config.mstep.weights)
        by_index = {found.index: found for found in accepted}
        for number, indices in enumerate(groups):
            if not ask(mailbox.has_group.remote(number)):
                self._post(number, [by_index[i] for i in indices], weights)
        start = time.monotonic()
        while (result := ask(mailbox.result.remote(state.round))) is None:
            check()
            self._check_trainer(start)
            self._progress.update(state.round, f"fit: {time.monotonic() - start:.0f} s")
            time.sleep(POLL_S)
        if isinstance(result, DavRayError):
            raise result
        self._log.metrics(state.round, "mstep", result)
        self._log.event("policy_written", version=state.policy_version + 1)

    def _job(self) -> Job:
        state = self._store.current
        return Job(state.round, state.policy_version, len(self._groups()), self._config.search.trajectories)

    def _groups(self) -> list[list[int]]:
        search, ranks = self._config.search, self._config.roles.train.replicas
        return training_groups(search.trajectories, search.chunk, self._config.mstep.group, ranks)

    def _post(self, number: int, chunks: Sequence[Accepted], weights: dict[int, float]) -> None:
        """One group to the mailbox, as one Ray dataset per rank."""
        world = self._config.roles.train.replicas
        rows = sum(len(c.trajectories) for c in chunks)
        edges = [round(i * rows / world) for i in range(1, world)]
        try:
            dataset = ray.data.from_arrow_refs([c.table for c in chunks])
        except exceptions.ObjectLostError:
            # the node that held them is gone: the shards are the record
            self._log.event("tables_lost", round=self._store.current.round, group=number)
            again = {found.index: found.table for found in self.reload()}
            dataset = ray.data.from_arrow_refs([again[c.index] for c in chunks])
        shares = dataset.split_at_indices(edges) if edges else [dataset.materialize()]
        mine = {n: weights[n] for c in chunks for n in c.trajectories}
        ask(self._actors.mailbox.post_group.remote(number, shares, mine))

    def _open_stream(self, accepted: dict[int, Accepted]) -> set[int] | None:
        """Groups posted so far, where training may start before the search ends; else None."""
        if self._config.overlap == "none" or self._config.mstep.weights == "trajectory":
            return None
        ask(self._actors.mailbox.post_job.remote(self._job()))
        posted: set[int] = set()
        self._stream(accepted, posted)
        return posted

    def _stream(self, accepted: dict[int, Accepted], posted: set[int]) -> None:
        for number, indices in enumerate(self._groups()):
            if number not in posted and all(i in accepted for i in indices):
                chunks = [accepted[i] for i in indices]
                self._post(number, chunks, fit_weights(chunks, self._config.mstep.weights))
                posted.add(number)

    def _check_trainer(self, since: float) -> None:
        trainer, role = self._actors.trainer, self._config.roles.train
        if trainer is not None and trainer.failure is not None:
            raise RunError("train", trainer.failure)
        troubles = ask(self._actors.mailbox.troubles.remote())
        if len(troubles) > TRAIN_RESTARTS * role.replicas:
            raise RunError("train", f"its ranks failed again and again, last with {troubles[-1]}")
        waited = time.monotonic() - since
        up = ask(self._actors.mailbox.ranks.remote())
        if up < role.replicas and waited > role.start_timeout_s:
            raise RunError(
                "train",
                f"{up} of {role.replicas} ranks found a place in {waited:.0f} s (roles.train.start_timeout_s)",
            )
        if waited > role.call_timeout_s + role.start_timeout_s * (up < role.replicas):
            raise RunError("train", f"no new policy in {waited:.0f} s (roles.train.call_timeout_s)")

    # -- evaluation -----------------------------------------------------------------------------------------------

    def evaluate_pretrained(self) -> None:
        """Round 0: the model before any training."""
        if not self._storage.exists(_evaluation_path(0)):
            self._evaluate(0, 0)

    def evaluate(self) -> dict[str, float]:
        """The metrics of the open round's new policy, on the seeds and prompts of every other round."""
        state = self._store.current
        return self._evaluate(state.round, state.policy_version)

    def _evaluate(self, round: int, version: int) -> dict[str, float]:
        start, tables = time.monotonic(), {}

        def keep(chunk: EvaluationChunk, table: Any, seconds: float) -> None:
            tables[chunk.index] = ray.get(table)

        chunks = evaluate.evaluation_chunks(self._config, round, version, self._prompts)
        self._dispatcher.run(
            "evaluate",
            chunks,
            keep,
            lambda: self._progress.update(round, f"evaluate: chunk {len(tables)}/{len(chunks)}"),
        )
        table = pa.concat_tables([tables[index] for index in sorted(tables)])
        metrics = {**evaluate.summarise(table, self._kind), "time/evaluate_s": time.monotonic() - start}
        self._log.metrics(round, "evaluate", metrics)
        self._storage.write(_evaluation_path(round), buffer.encode(table)[0])  # last: it tells that round 0 is done
        self._progress.say(evaluate.one_line(round, metrics))
        return metrics


def _evaluation_path(round: int) -> str:
    return f"evaluate/round-{round:04d}.parquet"
