"""Draws samples of a policy in this process, without Ray: the same bits as a search worker's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dav_ray.config.schema import Config
from dav_ray.config.sections.prompts import Prompts
from dav_ray.config.sections.reward import Reward
from dav_ray.errors import RunError
from dav_ray.evaluation.kinds import sample_kind
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.types import EvaluationChunk

if TYPE_CHECKING:
    from dav_ray.evaluation.measure import Judges
    from dav_ray.rewards.base import Scorer

Built = tuple[tuple[str, Any], ...]


def draw(storage: Storage, config: Config, chunks: Sequence[EvaluationChunk]) -> tuple[pa.Table, list[str]]:
    """The rows of all chunks (columns as in `evaluate.measure`, no features), and a line for each reward that did not
    start, which has no column. Chunks are of one policy version. RunError where memory does not do for one state."""
    import torch

    from dav_ray.config.build import for_search
    from dav_ray.diffusion.device import keep_freed_memory, quiet

    quiet()
    keep_freed_memory()
    torch.set_num_threads(config.roles.search.threads)
    device = _device(config.roles.search.gpus)
    rewards, remarks = _rewards(config)
    heldout, silent = _heldout(config, device)
    diffusion = for_search(config, device=device)
    _use(storage, diffusion, chunks[0].policy_version)
    judges, scorer = _judges(config, heldout), _scorer(config, rewards)
    tables = [_measured(diffusion, scorer.of(chunk.name), judges, chunk) for chunk in chunks]
    table = pa.concat_tables(tables)
    return table if rewards else table.drop_columns(["reward"]), [*remarks, *silent]


def _device(gpus: float) -> str:
    """As the role has it, where this machine does too."""
    import torch

    return "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"


def _use(storage: Storage, diffusion: Any, version: int) -> None:
    """Load a policy; version 0 is the model as it was built, unless the run has stored one."""
    from dav_ray.run_dir import policy
    from dav_ray.run_dir.policy_files import versions

    if version or 0 in versions(storage):
        policy.set_weights(diffusion, policy.read_weights(storage, version, diffusion))


def _rewards(config: Config) -> tuple[Built, list[str]]:
    """All of them or none: their sum has one column."""
    built, remarks = [], []
    for reward in config.reward:
        found, why = _built(reward, _device(config.reward_role(reward).gpus), config.prompts)
        built.append((reward.label, found))
        remarks += [f"no reward column: {why}"] if why else []
    return () if remarks else tuple(built), remarks


def _heldout(config: Config, device: str) -> tuple[Built, list[str]]:
    built, remarks = [], []
    for measure in config.evaluate.heldout:
        found, why = _built(measure, device, config.prompts)
        built += [] if why else [(measure.label, found)]
        remarks += [f"no heldout/{measure.label} column: {why}"] if why else []
    return tuple(built), remarks


def _built(reward: Reward, device: str, prompts: Prompts) -> tuple[Any, str]:
    """The reward, or why there is none."""
    from dav_ray.rewards.registry import build

    try:
        return build(reward.kind, reward.args, device, prompts.columns), ""
    except Exception as error:  # a user's class may raise anything
        return None, f"{reward.label} did not start: {type(error).__name__}: {error}"


def _scorer(config: Config, rewards: Built) -> Scorer:
    """The weighted sum; of no rewards it is 0."""
    from dav_ray.rewards.base import Calls, Scorer, all_pixels

    roles = [config.reward_role(reward) for reward in config.reward]
    called = [Calls(reward, role.most, role.retry_s) for (_, reward), role in zip(rewards, roles, strict=False)]

    def call(samples: np.ndarray, conditions: Sequence[str], grad: bool) -> list[Any]:
        return [one(samples, conditions, grad) for one in called]

    weights = [reward.weight for reward in config.reward][: len(rewards)]
    pixels = all_pixels(reward for _, reward in rewards)
    return Scorer([label for label, _ in rewards], weights, call, pixels=pixels)


def _judges(config: Config, heldout: Built) -> Judges:
    from dav_ray.evaluation.measure import Judges

    return Judges(heldout, sample_kind(config), None, config.roles.reward.retry_s)


def _measured(diffusion: Any, scorer: Scorer, judges: Judges, chunk: EvaluationChunk) -> pa.Table:
    """Half as many states at once, again and again, where memory does not suffice."""
    from dav_ray.diffusion.device import free_memory, in_a_line, memory_in_words, out_of_memory
    from dav_ray.evaluation.measure import measure

    while True:
        try:
            return measure(diffusion, scorer, judges, chunk)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            cause = in_a_line(error)
        free_memory()
        if not any([room.halve() for room in diffusion.rooms]):
            words = f"one state at a time does not fit in memory, with {memory_in_words()} taken ({cause})"
            raise RunError("search", words)
