"""A run directory as a run leaves it, made in this process, without Ray: one round of a few digits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

SETTINGS = (
    *("rounds=1", "search.trajectories=4", "search.chunk=2", "search.steps=4", "search.candidates=2"),
    *("evaluate.samples=4", "evaluate.batch=4", "evaluate.kl_samples=0", "mstep.batch_size=8", "mstep.epochs=1"),
)


def finished_run(folder: Path) -> None:
    """Search, training and evaluation of the recipe `digits`, cut down, with the code that a run's actors call."""
    import torch

    from dav_ray.config.build import build, strategy
    from dav_ray.config.partition import round_prompts, spans
    from dav_ray.config.recipe.load import load
    from dav_ray.diffusion.noise import KeyedNoise
    from dav_ray.evaluation.kinds import sample_kind
    from dav_ray.evaluation.measure import Judges, evaluation_chunks, measure, summarise, table_path
    from dav_ray.mstep.fit import Fitter
    from dav_ray.rewards.base import local_scorer
    from dav_ray.rewards.registry import build as build_reward
    from dav_ray.run_dir import policy, shards
    from dav_ray.run_dir.manifest import ManifestStore, Shard
    from dav_ray.run_dir.records import RunLog
    from dav_ray.run_dir.storage.local import LocalStorage
    from dav_ray.types import Chunk

    recipe = load("digits", SETTINGS)
    config, storage = recipe.config, LocalStorage(str(folder))
    alpha = float(str(config.search.alpha).removesuffix(" sd"))
    (entry,) = config.reward
    scorer = local_scorer([(entry.label, 1.0, build_reward(entry.kind, entry.args))])
    model, judges = build(config), Judges.build(config)
    store = ManifestStore(storage)
    log = RunLog(storage, store.open(config.identity(), {}).epoch)
    storage.write("config.yaml", recipe.yaml.encode())

    def evaluate(round: int) -> dict[str, float]:
        with torch.no_grad():
            chunks = evaluation_chunks(config, round, round, config.prompts)
            table = shards.concat([measure(model, scorer, judges, chunk) for chunk in chunks])
        storage.write(table_path(round), shards.encode(table)[0])
        metrics = summarise(table, sample_kind(config))
        log.metrics(round, "evaluate", metrics)
        return metrics

    evaluate(0)
    tables = []
    prompts = round_prompts(config.prompts, 1, config.search.trajectories, together=False)
    for index, numbers in enumerate(spans(config.search.trajectories, config.search.chunk)):
        chunk = Chunk(config.seed, 1, index, 0, tuple(numbers), tuple(prompts[n] for n in numbers), alpha)
        noise = KeyedNoise(chunk.seed, chunk.round, chunk.trajectories)
        found = strategy(config.search, alpha, blend=True)(model, scorer, chunk.conditions, noise)
        table = shards.to_table(chunk, found)
        data, sha256 = shards.encode(table)
        path = shards.shard_path(1, index, sha256)
        storage.write(path, data)
        store.commit([Shard(path, sha256, index, table.num_rows, 0)])
        log.event("chunk_committed", round=1, chunk=index, cost=asdict(found.cost))
        tables.append(table)
    store.advance(phase="fit")
    fitter = Fitter(model, config.mstep, config.seed)
    weights = dict.fromkeys(range(config.search.trajectories), 1.0)
    log.metrics(1, "mstep", fitter.fit(1, [shards.to_rows(shards.concat(tables), weights)]))
    policy.save(storage, 1, model, fitter.optimizer)
    store.advance(phase="evaluate", policy_version=1)
    store.close_round(evaluate(1))
    store.finish()
