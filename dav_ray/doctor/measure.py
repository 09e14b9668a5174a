"""Times a recipe's model on the node where this runs, at the recipe's shapes."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import torch

from dav_ray.config import Config
from dav_ray.diffusion.base import Diffusion
from dav_ray.doctor.timing import Rates
from dav_ray.noise import KeyedNoise
from dav_ray.types import Transitions

REPEATS = 3
WARM_S = 20.0  # a call that takes longer is not made again


def measure(config: Config, device: str) -> Rates:
    """One evaluation and one decoding at the search's shapes, one step at the M-step's: means over a few calls."""
    from dav_ray.device import quiet
    from dav_ray.diffusion.families import build, for_search

    quiet()
    torch.set_num_threads(config.roles.search.threads)
    diffusion = for_search(config, device=device)
    evaluation_s, decode_s = _search(config, diffusion)
    fitted = build(config, device=device, autocast=config.mstep.precision, micro_batch=config.mstep.micro_batch)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return Rates(evaluation_s, decode_s, _train(config, fitted), _peak(device), name)


def _search(config: Config, diffusion: Diffusion) -> tuple[float, float]:
    search = config.search
    rows = min(search.micro_batch, search.chunk * search.candidates * search.particles)
    conditions = [config.prompts[i % len(config.prompts)] for i in range(rows)]
    x = diffusion.prior(conditions, KeyedNoise(0, 0, range(rows)).at(diffusion.steps))
    with torch.no_grad():
        predict = _seconds(lambda: diffusion.predict(x, diffusion.steps, conditions))
        decoded = min(rows, search.decode_batch)
        decode = _seconds(lambda: diffusion.decode(x[:decoded], conditions[:decoded]))
    return predict / rows, decode / decoded


def _train(config: Config, diffusion: Diffusion) -> float:
    mstep = config.mstep
    rows = min(mstep.micro_batch, max(1, mstep.batch_size // config.roles.train.replicas))
    conditions = [config.prompts[i % len(config.prompts)] for i in range(rows)]
    noise = KeyedNoise(0, 0, range(rows))
    t = diffusion.steps
    with torch.no_grad():
        x_t = diffusion.prior(conditions, noise.at(t))
        x_prev = diffusion.predict(x_t, t, conditions).kernel.sample(1, noise.at(t - 1))[:, 0]
    batch = Transitions(x_t, x_prev, torch.full((rows,), t), conditions)

    def step() -> None:
        loss = diffusion.step_loss(batch, reference=mstep.kl > 0)
        (loss.nll + mstep.kl * loss.kl).sum().backward()

    return _seconds(step) / rows


def _seconds(call: Callable[[], object]) -> float:
    """Mean time of a call, after one that does not count."""
    first = _once(call)
    return first if first > WARM_S else sum(_once(call) for _ in range(REPEATS)) / REPEATS


def _once(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - start


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
