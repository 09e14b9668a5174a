"""Finds a role's batch sizes on the node where this runs: builds the model and times it at growing sizes.

Search: decoding first (image models), then the network with that many states decoded at once; the M-step by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from dav_ray.config.batches import (
    LONGEST_S,
    SHARE,
    TRAINED,
    Batches,
    Measured,
    choose,
    chunk_for,
    grow,
    largest_chunk,
    states_per_trajectory,
)
from dav_ray.config.build import for_search, for_training
from dav_ray.config.schema import Config
from dav_ray.config.sections.roles import Role
from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.device import free_memory, keep_freed_memory, memory_in_words, out_of_memory
from dav_ray.errors import RunError
from dav_ray.mstep.options import batch_of_rank
from dav_ray.runtime.cluster.placement import GB
from dav_ray.runtime.probe.measure import peak, seconds, states, train_step, transitions


@dataclass(frozen=True)
class Probed:
    """The sizes that one role was asked for, and what was measured, by network, decode or train."""

    batches: Batches
    measured: dict[str, list[Measured]]


def probe_search(config: Config, device: str) -> Probed:
    """chunk, micro_batch and decode_batch; the fourth size is the configuration's."""
    keep_freed_memory()
    torch.set_num_threads(config.roles.search.threads)
    limit = _limit(config, config.roles.search, device)
    diffusion = for_search(config, device=device)
    most = largest_chunk(config) * states_per_trajectory(config)
    given, measured = Batches.of(config), dict[str, list[Measured]]()
    decoded = given.decode_batch
    if len(diffusion.rooms) > 1:
        measured["decode"] = _measured("search", lambda n: _decode(config, diffusion, n), device, limit, most)
        decoded = diffusion.rooms[1].limit = choose(measured["decode"])
    measured["network"] = _measured("search", lambda n: _network(config, diffusion, n), device, limit, most)
    micro_batch = choose(measured["network"])
    return Probed(Batches(chunk_for(config, micro_batch), micro_batch, decoded, given.train), measured)


def probe_train(config: Config, device: str) -> Probed:
    """mstep.micro_batch; the other sizes are the configuration's."""
    keep_freed_memory()
    mstep = config.mstep
    torch.set_num_threads(config.roles.train.threads)
    limit = _limit(config, config.roles.train, device)
    diffusion = for_training(config, device=device, micro_batch=1)
    trained = sum(p.numel() for p in diffusion.trainable().parameters() if p.requires_grad)
    limit -= (TRAINED - 4) * trained  # beside the gradient: AdamW's moments, DDP's bucket
    most = batch_of_rank(mstep, config.roles.train.replicas)
    measured = _measured("train", lambda n: _train(config, diffusion, n), device, limit, most)
    given = Batches.of(config)
    return Probed(Batches(given.chunk, given.micro_batch, given.decode_batch, choose(measured)), {"train": measured})


def _measured(
    role: str, call_for: Callable[[int], Callable[[], object]], device: str, limit: float, most: int
) -> list[Measured]:
    """Sizes of a call, as many as fit. RunError where not even one row does."""
    found = grow(lambda size: _once(call_for, size, device), limit, most)
    if not found:
        raise RunError(role, f"one state at a time does not fit in memory, with {memory_in_words()} taken")
    return found


def _once(call_for: Callable[[int], Callable[[], object]], size: int, device: str) -> Measured | None:
    """The faster of two calls, after one that does not count; None where memory runs out."""
    free_memory()
    _forget_peak(device)
    try:
        call = call_for(size)
        seconds(call)
        took = seconds(call)
        if took <= LONGEST_S:
            took = min(took, seconds(call))
        return Measured(size, took, peak(device))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None


def _decode(config: Config, diffusion: Diffusion, size: int) -> Callable[[], object]:
    diffusion.rooms[1].limit = size
    x, conditions = states(config, diffusion, size)
    return torch.no_grad()(lambda: diffusion.decode(x, conditions))


def _network(config: Config, diffusion: Diffusion, size: int) -> Callable[[], object]:
    """`size` candidates are predicted, and where the search takes gradients their parents are, with backward."""
    diffusion.rooms[0].limit = size
    x, conditions = states(config, diffusion, size)
    parents = max(1, size // config.search.candidates)

    def call() -> None:
        with torch.no_grad():
            diffusion.predict(x, diffusion.steps, conditions)
        if config.search.gradient:
            leaf = diffusion.relax(x[:parents]).detach().requires_grad_()
            x0_hat = diffusion.predict(leaf, diffusion.steps, conditions[:parents]).x0_hat
            torch.autograd.grad(diffusion.decode(x0_hat, conditions[:parents]).sum(), leaf)

    return call


def _train(config: Config, diffusion: Diffusion, size: int) -> Callable[[], object]:
    diffusion.rooms[0].limit = size
    batch = transitions(config, diffusion, size)
    return lambda: train_step(config, diffusion, batch)


def _limit(config: Config, role: Role, device: str) -> float:
    """Bytes that one actor of the role may take: its share of the GPU; on the host what it sets aside, else its part of
    what is free, if all search workers and ranks were on this node."""
    if device == "cuda":
        return SHARE * min(1.0, role.gpus) * torch.cuda.mem_get_info()[1]
    sharers = config.roles.search.replicas + config.roles.train.replicas
    return SHARE * (role.memory_gb * GB or psutil.virtual_memory().available / sharers)


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # where it may not be set back, the peak is that of all sizes so far
        Path("/proc/self/clear_refs").write_text("5")
