"""What one EM round does on the cluster: search and commit, fit, evaluate."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray
from ray import exceptions

from dav_ray.config.figures import work
from dav_ray.config.partition import round_prompts, spans
from dav_ray.config.plan import costs
from dav_ray.config.schema import Config
from dav_ray.errors import RunError
from dav_ray.evaluation.kinds import sample_kind
from dav_ray.evaluation.measure import evaluation_chunks, one_line, rise, summarise, table_path
from dav_ray.report.table import read_metrics
from dav_ray.run_dir import shards
from dav_ray.run_dir.manifest import ManifestStore, Shard, ShardLost
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.runtime import measured_alpha
from dav_ray.runtime.accepted import Accepted, Tally, load_shard, search_metrics
from dav_ray.runtime.cluster.failures import unwrap
from dav_ray.runtime.cluster.nodes import Nodes
from dav_ray.runtime.initial_policy import initial_name
from dav_ray.runtime.reward.fleet import FleetView
from dav_ray.runtime.search.dispatch import Dispatcher, Done
from dav_ray.runtime.session import Session
from dav_ray.runtime.train.job import TrainJob
from dav_ray.runtime.watch.choice_hints import ChoiceHints, alternatives
from dav_ray.runtime.watch.kl_noise import KlNoise
from dav_ray.runtime.watch.progress import Progress
from dav_ray.types import Chunk

READ_S = 1200.0  # longest wait for shards to be read back


class Rounds:
    """The steps of the open round, and of the next one where it is searched ahead. Everything it needs to know after a
    restart is in the manifest."""

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
        self._dispatcher = Dispatcher(actors.team, log)
        self._fleet, self._nodes = FleetView(actors.fleet, log), Nodes(log)
        self._job = TrainJob(config, actors.ranks, log, self._reload)
        self._prompts, self._kind, self._work = config.prompts, sample_kind(config), work(config)
        self._accepted: dict[int, dict[int, Accepted]] = {}  # round -> index -> chunk, of rounds that are not closed
        self._lost: dict[int, dict[int, Shard]] = {}  # the same of committed shards that can't be read any more
        self._searched: set[int] = set()  # rounds, by this driver
        self._alpha = math.nan  # the temperature of the run's searches, once it is known
        self._hints, self._kl_noise = ChoiceHints(config.search, storage, log, progress), KlNoise(log, progress)
        self._idle_since = self._round_start = time.monotonic()
        self._busy_before = self._worked()

    # -- E-step ---------------------------------------------------------------------------------------------------

    def search(self, round: int) -> None:
        """Search what the manifest does not name yet of the open round or of the next one; committed chunk by chunk."""
        chunks, accepted = self._chunks(round), self._chunks_of(round)
        open_chunks = [chunk for chunk in chunks if chunk.index not in accepted]
        if not open_chunks and self._recorded(round):
            return  # it was searched ahead, or before a restart
        start, busy = time.monotonic(), self._busy()
        ahead = round > self._store.current.round
        streams = self._job.streams and not ahead
        if streams:
            self._job.open(round)
            self._job.stream(accepted)
        tally = Tally.of(accepted.values())

        def commit(done: Sequence[Done]) -> None:
            accepted.update(self._commit(done))
            for _, _, found in done:
                tally.add(found)
            if streams:
                self._job.stream(accepted)

        def tick() -> None:
            self._progress.update(round, f"search: chunk {len(accepted)}/{len(chunks)}", tally.mean)
            if ahead:
                self._job.poll()
            self._watch()

        self._dispatcher.run("search", open_chunks, commit, tick, in_order=streams)
        self._idle_since = time.monotonic()
        self._fleet.flush()
        seconds, searched = time.monotonic() - start, sum(len(chunk.trajectories) for chunk in open_chunks)
        values = search_metrics(self._in_order(round), tally.cost, seconds, searched)
        values |= self._busy_shares(busy, seconds) | tally.ledger.metrics(self._work) | self._fleet.deviations()
        values |= tally.of_rewards(searched)
        if tally.memory_gb:
            values["memory/search_gb"] = tally.memory_gb
        most = alternatives(self._config.search, [c for chunk in chunks for c in chunk.conditions])
        values |= {"search/ess_most": most, "search/alpha": self._alpha}
        self._log.metrics(round, "search", values)
        self._hints.tell(round, self._in_order(round), most, self._alpha)
        self._searched.add(round)

    def _recorded(self, round: int) -> bool:
        """Whether the metrics of the round's search are written."""
        return round in self._searched or (round, "search") in read_metrics(self._storage)

    def _commit(self, done: Sequence[Done]) -> dict[int, Accepted]:
        """The manifest names the shards, in one write: from here on the chunks are accepted. By index."""
        at = done[0].item.round
        lost = self._lost.get(at, {})
        again = {d.result.shard.chunk: old for d in done if (old := lost.pop(d.result.shard.chunk, None)) is not None}
        shards = [found.shard for _, _, found in done]
        ahead = at > self._store.current.round
        named = {s.chunk: s for s in self._store.commit(shards, ahead=ahead, lost=tuple(again.values()))}
        self._actors.ranks.ensure()
        accepted: dict[int, Accepted] = {}
        for chunk, table, found in done:
            shard, old = found.shard, again.get(found.shard.chunk)
            if named[shard.chunk] != shard:
                path = named[shard.chunk].path
                raise RunError("storage", f"shard {path} is there, and its search now gives sha256 {shard.sha256}")
            if old is not None and old != shard:  # by another kind of GPU or CPU, or another library
                fields = {"chunk": shard.chunk, "lost": old.sha256, "sha256": shard.sha256}
                self._log.event("shard_replaced", round=at, **fields)
            seconds = round(found.spent.seconds, 3)
            self._log.event("chunk_committed", round=at, chunk=shard.chunk, seconds=seconds)
            accepted[chunk.index] = Accepted(table, shard, found.scores)
        return accepted

    def _chunks_of(self, round: int) -> dict[int, Accepted]:
        """The committed chunks of the open round or of the next one, by index; read back after a restart. Without those
        whose shards are lost: they are searched again."""
        if round not in self._accepted:
            found, lost = self._read_back(round)
            for error in lost.values():
                self._log.event("shard_lost", round=round, cause=error.cause)
            self._accepted[round] = {chunk.index: chunk for chunk in found}
            self._lost[round] = {shard.chunk: shard for shard in lost}
        return self._accepted[round]

    def _in_order(self, round: int) -> list[Accepted]:
        accepted = self._chunks_of(round)
        return [accepted[index] for index in sorted(accepted)]

    def _reload(self, round: int) -> list[Accepted]:
        """A round's committed chunks, read back. Raises ShardLost."""
        found, lost = self._read_back(round)
        for error in lost.values():
            raise error
        return found

    def _read_back(self, round: int) -> tuple[list[Accepted], dict[Shard, ShardLost]]:
        """A round's committed chunks, read by tasks on the cluster, checksums verified; what is lost of them."""
        load: Any = ray.remote(load_shard).options(num_cpus=1, num_returns=2, max_retries=3)
        shards = self._store.current.shards_of(round)
        names = [reward.label for reward in self._config.reward]
        refs = [load.remote(self._storage.uri, shard, names) for shard in shards]
        try:
            read = ray.get([scores for _, scores in refs], timeout=READ_S)
        except exceptions.GetTimeoutError:
            raise RunError("driver", f"the shards of round {round} were not read back in {READ_S:.0f} s") from None
        except exceptions.RayTaskError as error:
            raise unwrap(error) from error
        found = [
            Accepted(table, shard, scores)
            for shard, (table, _), scores in zip(shards, refs, read, strict=True)
            if not isinstance(scores, ShardLost)
        ]
        lost = {s: scores for s, scores in zip(shards, read, strict=True) if isinstance(scores, ShardLost)}
        return found, lost

    def _chunks(self, round: int) -> list[Chunk]:
        """The round's work items."""
        search, version = self._config.search, self._config.searching_version(round)
        prompts = round_prompts(
            *(self._prompts, round, search.trajectories),
            together=search.facts.together,
            weights=self._prompts.weights,
            seed=self._config.seed,
        )
        return [
            Chunk(
                *(self._config.seed, round, index, version),
                *(tuple(numbers), tuple(prompts[n] for n in numbers), self._alpha),
            )
            for index, numbers in enumerate(spans(search.trajectories, search.chunk))
        ]

    def _busy(self) -> tuple[float, float, float]:
        """Seconds that search workers computed, that rewards' replicas worked, and that these were there, added up."""
        return self._dispatcher.busy_s, *self._fleet.seconds()

    def _busy_shares(self, before: tuple[float, float, float], seconds: float) -> dict[str, float]:
        search_s, reward_s, there_s = (max(0.0, n - b) for n, b in zip(self._busy(), before, strict=True))
        workers_s = seconds * len(self._actors.team.actors)
        return {"util/search": search_s / max(workers_s, 1e-9), "util/reward": reward_s / max(there_s, 1e-9)}

    # -- M-step ---------------------------------------------------------------------------------------------------

    def post(self, round: int) -> None:
        """Hand a round that is searched to the trainer: what was not streamed already."""
        if self._config.roles.train.lifetime == "round":
            self._release_idle()  # the ranks that start now may wait for their place
        if len(self._chunks_of(round)) < len(self._chunks(round)):
            self.search(round)  # shards were lost after it had been searched
        self._job.post(round, self._in_order(round))

    def fit(self) -> None:
        """Wait for the policy that comes of the open round, which was posted."""
        round = self._store.current.round

        def tick(waited_s: float) -> None:
            self._release_idle()
            self._watch()
            self._progress.update(round, f"fit: {waited_s:.0f} s")

        metrics = self._job.wait(tick)
        self._log.metrics(round, "mstep", metrics)
        self._kl_noise.tell(round, metrics)
        self._log.event("policy_written", version=round)

    # -- evaluation -----------------------------------------------------------------------------------------------

    def evaluate_pretrained(self) -> None:
        """Round 0: the model before training. From its rewards follows an alpha in standard deviations."""
        if not self._storage.exists(table_path(0)):
            self._evaluate(0, 0)

        def pretrained() -> pa.Table:
            return shards.decode(self._storage.read(table_path(0)))

        alpha = self._config.search.alpha
        self._alpha = measured_alpha.settle(alpha, self._store, self._log, self._progress, pretrained)
        self._round_start, self._busy_before = time.monotonic(), self._worked()

    def evaluate(self) -> dict[str, float]:
        """The metrics of the open round's new policy, on the seeds and prompts of every other round; the round ends."""
        state = self._store.current
        metrics = self._evaluate(state.round, state.policy_version)
        self._accepted.pop(state.round, None)
        return metrics

    def _evaluate(self, round: int, version: int) -> dict[str, float]:
        start, table = time.monotonic(), self._measured(round, version)
        metrics = {**summarise(table, self._kind), "time/evaluate_s": time.monotonic() - start}
        first = metrics if round == 0 else read_metrics(self._storage).get((0, "evaluate"), {})
        metrics |= {"evaluate/samples": float(table.num_rows), **rise(metrics, first)}
        if round > 0:
            metrics |= self._round_times()
        self._log.metrics(round, "evaluate", metrics)
        self._log.samples(round, table, self._config.evaluate.grid)
        # last: it tells that round 0 is done
        self._storage.write(table_path(round), shards.encode(table)[0])
        self._progress.say(one_line(round, metrics, initial_name(self._config)))
        return metrics

    def _measured(self, round: int, version: int) -> pa.Table:
        chunks = evaluation_chunks(self._config, round, version, self._prompts)

        def tick(done: int) -> None:
            self._progress.update(round, f"evaluate: chunk {done}/{len(chunks)}")
            self._watch()

        table = self._dispatcher.gather(chunks, tick)
        self._idle_since = time.monotonic()
        return table

    def _round_times(self) -> dict[str, float]:
        """How long the round took since the one before ended, and which share of it search workers and ranks worked."""
        now, worked = time.monotonic(), self._worked()
        seconds = now - self._round_start
        search, train = (max(0.0, after - before) for before, after in zip(self._busy_before, worked, strict=True))
        self._round_start, self._busy_before = now, worked
        return {
            "time/round_s": seconds,
            "busy/search": search / max(seconds * self._config.roles.search.replicas, 1e-9),
            "busy/train": train / max(seconds, 1e-9),
            **costs(self._config, seconds),
        }

    # -- between the steps ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Write down what happened to nodes, rewards and ranks."""
        self._nodes.tick()
        self._fleet.tick()
        self._job.look()

    def _release_idle(self) -> None:
        idle_s = self._config.roles.search.idle_s
        if idle_s is not None and time.monotonic() - self._idle_since >= idle_s:
            self._actors.team.release()

    def _worked(self) -> tuple[float, float]:
        """Seconds that search workers, all together, and ranks, each, have worked so far."""
        return self._dispatcher.busy_s, self._job.busy_s()
