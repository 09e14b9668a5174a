"""Times a recipe's model on the node where this runs, at the recipe's shapes."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dav_ray.config.schema import Config
from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.mstep.options import batch_of_rank
from dav_ray.runtime.probe.rates import Rates
from dav_ray.runtime.probe.replay import replayed
from dav_ray.types import Transitions

REPEATS = 3
WARM_S = 20.0  # a call that takes longer is not made again


def measure(config: Config, device: str) -> Rates:
    """One evaluation and one decoding at the search's shapes, one step at the M-step's: means over a few calls;
    and stored transitions, replayed."""
    from dav_ray.config.build import for_search, for_training
    from dav_ray.diffusion.device import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(config.roles.search.threads)
    diffusion = for_search(config, device=device)
    evaluation_s, decode_s = _search(config, diffusion)
    fitted = for_training(config, device=device, micro_batch=config.mstep.micro_batch)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    apart = replayed(config, diffusion, fitted)
    return Rates(evaluation_s, decode_s, _train(config, fitted), peak(device), name, apart)


def _search(config: Config, diffusion: Diffusion) -> tuple[float, float]:
    search = config.search
    rows = min(search.micro_batch, search.chunk * search.candidates * search.particles)
    x, conditions = states(config, diffusion, rows)
    with torch.no_grad():
        predict = _seconds(lambda: diffusion.predict(x, diffusion.steps, conditions))
        decoded = min(rows, search.decode_batch)
        decode = _seconds(lambda: diffusion.decode(x[:decoded], conditions[:decoded]))
    return predict / rows, decode / decoded


def _train(config: Config, diffusion: Diffusion) -> float:
    mstep = config.mstep
    rows = min(mstep.micro_batch, batch_of_rank(mstep, config.roles.train.replicas))
    batch = transitions(config, diffusion, rows)
    return _seconds(lambda: train_step(config, diffusion, batch)) / rows


def states(config: Config, diffusion: Diffusion, rows: int) -> tuple[Tensor, list[str]]:
    """x_T [rows, *event], and a prompt for each."""
    conditions = [config.prompts[i % len(config.prompts)] for i in range(rows)]
    return diffusion.prior(conditions, KeyedNoise(0, 0, range(rows)).at(diffusion.steps)), conditions


@torch.no_grad()
def transitions(config: Config, diffusion: Diffusion, rows: int) -> Transitions:
    """First steps, x_T to x_{T-1}."""
    t = diffusion.steps
    x_t, conditions = states(config, diffusion, rows)
    noise = KeyedNoise(0, 0, range(rows)).at(t - 1)
    x_prev = diffusion.predict(x_t, t, conditions).kernel.sample(1, noise)[:, 0]
    return Transitions(x_t, x_prev, torch.full((rows,), t), conditions)


def train_step(config: Config, diffusion: Diffusion, batch: Transitions) -> None:
    """Forward, reference and backward, as in the M-step."""
    loss = diffusion.step_loss(batch, reference=config.mstep.kl > 0)
    (loss.nll + config.mstep.kl * loss.kl).sum().backward()


def _seconds(call: Callable[[], object]) -> float:
    """Mean time of a call, after one that does not count."""
    first = seconds(call)
    return first if first > WARM_S else sum(seconds(call) for _ in range(REPEATS)) / REPEATS


def seconds(call: Callable[[], object]) -> float:
    """Time of one call, until the GPU is done with it."""
    start = time.monotonic()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - start


def peak(device: str) -> int:
    """Bytes at most so far: of this process' tensors on the GPU, or of the whole process on the host."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
