"""How far what a rank recomputes of stored transitions is from what the search drew them by.

A worker draws x_{t-1} from p_theta(. | x_t), in its batches and precision. A rank reads both states from a shard and
recomputes log p_theta, in batches and a precision of its own. The policy is the same, and so should the number be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dav_ray.config.schema import Config
from dav_ray.diffusion.base import Diffusion, Kernel
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.diffusion.sampling import ancestral
from dav_ray.mstep.objective import Rows
from dav_ray.run_dir import shards
from dav_ray.types import Chunk, Cost, Trajectories

TRAJECTORIES = 4


@torch.no_grad()
def replayed(config: Config, searched: Diffusion, fitted: Diffusion, num: int = TRAJECTORIES) -> float:
    """The largest |delta log p| of a transition, in nats, over all steps that draw something.

    searched, fitted: the model as a search worker and as a rank has it, with the same policy. The transitions go
    through a shard's bytes in between.
    """
    conditions = tuple(config.prompts[i % len(config.prompts)] for i in range(num))
    chunk = Chunk(config.seed, 1, 0, 0, tuple(range(num)), conditions)
    kernels: dict[int, Kernel] = {}
    noise = KeyedNoise(chunk.seed, chunk.round, chunk.trajectories)
    states = ancestral(searched, conditions, noise, lambda x_t, t, kernel: kernels.update({t: kernel}))
    drawn = [t for t in kernels if not searched.deterministic(t)]
    rows = _stored(chunk, states, searched.decode(states[-1], conditions))
    size, largest = min(config.mstep.micro_batch, num), 0.0
    for t in drawn:
        x_prev = states[searched.steps - t + 1].to(states.device)
        said = kernels[t].nll(x_prev).double().cpu()  # of what is learned: when a mask goes is the schedule's
        for part in torch.arange(num).split(size):
            loss = fitted.step_loss(rows.transitions(part, torch.full_like(part, t)), reference=False)
            largest = max(largest, float((said[part] - loss.nll.double().cpu()).abs().max()))
    return largest


def _stored(chunk: Chunk, states: Tensor, sample: Tensor) -> Rows:
    """The trajectories as a rank reads them."""
    none = torch.zeros(len(chunk.conditions), dtype=torch.float64)
    found = Trajectories(states, None, sample, none, none, none, Cost()).on_host()
    data, _ = shards.encode(shards.to_table(chunk, found))
    return shards.to_rows(shards.decode(data), dict.fromkeys(chunk.trajectories, 1.0))
