"""The E-step as the paper's pseudocode is usually written: one trajectory at a time, children one by one, the parent
evaluated again at every step. The same draws and the same choices as the batched search."""

from __future__ import annotations

import torch
from torch import Tensor

from dav_ray.diffusion.base import Diffusion, Prediction
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.search.base import Scorer
from dav_ray.search.options import Search
from dav_ray.search.weighting.weights import choose, value
from dav_ray.types import Chunk


@torch.no_grad()
def plain_search(diffusion: Diffusion, scorer: Scorer, chunk: Chunk, search: Search) -> Tensor:
    """The accepted samples' rewards [B]. No gradients, anchor current: log w = V."""
    rewards = [
        _one(diffusion, scorer, condition, KeyedNoise(chunk.seed, chunk.round, [number]), search)
        for number, condition in zip(chunk.trajectories, chunk.conditions, strict=True)
    ]
    return torch.cat(rewards)


def _one(diffusion: Diffusion, scorer: Scorer, condition: str, noise: KeyedNoise, search: Search) -> Tensor:
    conditions = [condition]
    x = diffusion.prior(conditions, noise.at(diffusion.steps))
    reward = torch.zeros(1, dtype=torch.float64)
    for t in range(diffusion.steps, 0, -1):
        rng = noise.at(t - 1)
        parent = diffusion.predict(x, t, conditions)
        children = parent.kernel.sample(1 if diffusion.deterministic(t) else search.candidates, rng)[0]
        rewards = torch.cat([_score(diffusion, scorer, child[None], t - 1, conditions) for child in children])
        v = value(rewards[None], search.alpha, search.gamma ** (t - 1), t - 1)
        kept = int(choose(v, rng.uniform(())))
        x, reward = children[kept][None], rewards[kept][None]
    return reward


def _score(diffusion: Diffusion, scorer: Scorer, x: Tensor, t: int, conditions: list[str]) -> Tensor:
    guess: Prediction | None = diffusion.predict(x, t, conditions) if t > 0 else None
    return scorer.score(diffusion.decode(guess.x0_hat if guess else x, conditions), conditions)
