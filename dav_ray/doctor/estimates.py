"""Memory and time of a recipe as findings; both are estimates, and say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dav_ray.config import Config
from dav_ray.doctor.findings import Finding
from dav_ray.doctor.memory import CUDA_CONTEXT, Memory, search_memory, train_memory
from dav_ray.doctor.packing import actor_demand
from dav_ray.doctor.pool import Pool
from dav_ray.doctor.timing import Rates, round_time
from dav_ray.doctor.versions import Installed
from dav_ray.doctor.weights import Sizes, read_sizes
from dav_ray.plan import Plan
from dav_ray.roles import Role


def memory(config: Config, plan: Plan, pool: Pool, told: Mapping[str, Installed]) -> Iterator[Finding]:
    """What one search worker and one rank take, against the GPUs of the nodes where they may be."""
    try:
        sizes = read_sizes(config)
    except (OSError, ValueError) as error:
        yield Finding("memory", f"not estimated: {error}")
        return
    yield from memory_of(sizes, config, plan, pool, told)


def memory_of(sizes: Sizes, config: Config, plan: Plan, pool: Pool, told: Mapping[str, Installed]) -> Iterator[Finding]:
    """The same for a model of these sizes."""
    needs = (
        ("search", config.roles.search, search_memory(config, sizes, plan.network_passes)),
        ("train", config.roles.train, train_memory(config, sizes, plan.network_passes)),
    )
    for name, role, need in needs:
        yield _against(name, role, need, _gpu_memory(role, pool, told))


def time(config: Config, plan: Plan, rates: Rates) -> Iterator[Finding]:
    """A round's two steps, from what was measured."""
    found = round_time(config, plan, rates)
    each = (
        f"{_ms(rates.evaluation_s)} per evaluation, {_ms(rates.decode_s)} per decoding, "
        f"{_ms(rates.transition_s)} per transition trained on"
    )
    yield Finding("measured", f"{each}; at most {_bytes(rates.peak)} of memory; on {rates.device}")
    at_most = "at most " if config.model.kind == "masked" else ""
    yield Finding(
        "time per round",
        f"{at_most}some {found.search_s:,.0f} s of search (and the rewards) and {found.train_s:,.0f} s of training",
    )


def _against(name: str, role: Role, need: Memory, gpus: list[float]) -> Finding:
    parts = f"weights {_bytes(need.weights)}, activations {_bytes(need.activations)}"
    parts += f", gradients and optimizer {_bytes(need.training)}" if need.training else ""
    if role.gpus == 0:
        return Finding(
            f"memory {name}", f"some {_bytes(need.total)} of host memory each, beside Python's own ({parts})"
        )
    total = need.total + CUDA_CONTEXT
    text = f"some {_bytes(total)} of GPU memory each ({parts}, CUDA {_bytes(CUDA_CONTEXT)})"
    if not gpus:
        return Finding(f"memory {name}", f"{text}; no GPU is up to compare with")
    return Finding(f"memory {name}", f"{text}; the largest share of a GPU is {_bytes(max(gpus))}", total <= max(gpus))


def _gpu_memory(role: Role, pool: Pool, told: Mapping[str, Installed]) -> list[float]:
    """What one actor gets of the GPU on each live node that could hold it, in bytes."""
    suitable = [node.name for node in pool.nodes if not node.lacks(actor_demand(role))]
    gpus = [told[name].gpus for name in suitable if name in told and told[name].gpus]
    return [min(gpu.memory for gpu in found) * min(1.0, role.gpus) for found in gpus]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _bytes(amount: float) -> str:
    return f"{amount / 1e9:.3g} GB" if amount >= 1e9 else f"{amount / 1e6:.3g} MB"
