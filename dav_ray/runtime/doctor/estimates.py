"""Memory and time of a recipe as findings; both are estimates, and say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import ceil

from dav_ray.config.batches import SHARE
from dav_ray.config.families.sizes import Sizes
from dav_ray.config.families.table import family_of
from dav_ray.config.memory import CUDA_CONTEXT, Memory, search_memory, train_memory
from dav_ray.config.plan import Plan
from dav_ray.config.schema import Config
from dav_ray.config.sections.roles import Role
from dav_ray.runtime.doctor.findings import Finding
from dav_ray.runtime.doctor.packing import actor_demand
from dav_ray.runtime.doctor.pool import Pool
from dav_ray.runtime.doctor.versions import Installed
from dav_ray.runtime.doctor.weights import read_sizes
from dav_ray.runtime.probe.rates import Rates, RoundTime, round_time

# Nats. The ratio of two laws that should be one is then off by 10 %, half of the usual clip range of 0.2; the KL of an
# M-step's transition is of this size, too.
MOST_REPLAY = 0.1
MARGIN = 3.0  # times what is measured: rewards, slower nodes and a policy's download come on top


def memory(config: Config, plan: Plan, pool: Pool, nodes: Mapping[str, Installed]) -> Iterator[Finding]:
    """What one search worker and one rank take, against the GPUs of the nodes where they may be."""
    try:
        found = list(memory_of(read_sizes(config), config, plan, pool, nodes))
    except (OSError, ValueError) as error:
        found = [Finding("memory", f"not estimated: {error}")]
    yield from found


def memory_of(
    sizes: Sizes, config: Config, plan: Plan, pool: Pool, nodes: Mapping[str, Installed]
) -> Iterator[Finding]:
    """The same for a model of these sizes."""
    search, train, passes = config.roles.search, config.roles.train, plan.network_passes
    yield _against("search", search, search_memory(config, sizes, passes), _gpu_memory(search, pool, nodes))
    gpus, need = _gpu_memory(train, pool, nodes), train_memory(config, sizes, passes)
    on = config.mstep.checkpointing == "on"
    if config.mstep.checkpointing == "auto" and train.gpus and gpus and need.total + CUDA_CONTEXT > SHARE * max(gpus):
        on, need = True, train_memory(config, sizes, passes, checkpointing=True)
    found = _against("train", train, need, gpus)
    yield replace(found, text=f"{found.text}; with gradient checkpointing") if on else found


def time(config: Config, plan: Plan, rates: Rates) -> Iterator[Finding]:
    """A round's two steps, from what was measured."""
    found = round_time(config, plan, rates)
    each = (
        f"{_ms(rates.evaluation_s)} per evaluation, {_ms(rates.decode_s)} per decoding, "
        f"{_ms(rates.transition_s)} per transition trained on"
    )
    yield Finding("measured", f"{each}; at most {_bytes(rates.peak)} of memory; on {rates.device}")
    at_most = "at most " if family_of(config.model).discrete else ""
    yield Finding(
        "time per round",
        f"{at_most}some {found.search_s:,.0f} s of search (and the rewards) and {found.train_s:,.0f} s of training",
    )
    yield from deadlines(config, found)


def replay(config: Config, rates: Rates) -> Finding:
    """How far log p of stored transitions, as a rank recomputes it, is from what they were drawn by."""
    text = f"largest |delta log p| of stored transitions: {rates.replay:.2g} nats (model.dtype {config.model.dtype}, "
    text += f"search.precision {config.search.precision}, mstep.precision {config.mstep.precision})"
    if rates.replay <= MOST_REPLAY:
        return Finding("replay", text)
    advice = "as much as a step of training may move; set the same precision for both, or float32"
    return Finding("replay", f"{text}: above {MOST_REPLAY:g}, {advice}", ok=False)


def deadlines(config: Config, found: RoundTime) -> Iterator[Finding]:
    """Whether what one worker or rank does at a time ends well before it is taken for hung."""
    search, roles = config.search, config.roles
    chunk_s, limit = found.chunk_s, roles.search.call_timeout_s
    takes = f"a chunk of {search.chunk} takes some {chunk_s:,.0f} s, which a spot node that goes takes along"
    smaller = int(limit / (MARGIN * chunk_s / search.chunk)) if chunk_s else search.chunk
    chunk = f" or search.chunk = {smaller}" if 1 <= smaller < search.chunk else ""
    yield _deadline("search", takes, chunk_s, limit, chunk)
    train = f"the training of a round takes some {found.train_s:,.0f} s"
    yield _deadline("train", train, found.train_s, roles.train.call_timeout_s, "")


def _deadline(role: str, takes: str, seconds: float, limit: float, else_set: str) -> Finding:
    if MARGIN * seconds <= limit:
        return Finding(f"deadline {role}", f"{takes}; roles.{role}.call_timeout_s = {limit:g} leaves room")
    late = "ends it as hung" if seconds > limit else "is near, and slower nodes or rewards come on top"
    needed = f"set roles.{role}.call_timeout_s = {ceil(MARGIN * seconds)}{else_set}"
    return Finding(
        f"deadline {role}", f"{takes}; roles.{role}.call_timeout_s = {limit:g} {late}: {needed}", seconds <= limit
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


def _gpu_memory(role: Role, pool: Pool, nodes: Mapping[str, Installed]) -> list[float]:
    """What one actor gets of the GPU on each live node that could hold it, in bytes."""
    suitable = [node.name for node in pool.nodes if not node.lacks(actor_demand(role))]
    gpus = [nodes[name].gpus for name in suitable if name in nodes and nodes[name].gpus]
    return [min(gpu.memory for gpu in found) * min(1.0, role.gpus) for found in gpus]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _bytes(amount: float) -> str:
    return f"{amount / 1e9:.3g} GB" if amount >= 1e9 else f"{amount / 1e6:.3g} MB"
