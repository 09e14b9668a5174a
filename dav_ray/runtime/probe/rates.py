"""How long a round takes, from the time of one evaluation, one decoding and one training transition."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from dav_ray.config.plan import Plan
from dav_ray.config.schema import Config

BACKWARD = 2.0  # a backward pass takes about twice its forward pass


@dataclass(frozen=True)
class Rates:
    """Measured on one worker. Seconds per guided evaluation, per decoded state, per transition of the M-step (forward,
    reference and backward); bytes at the peak, of the GPU, or of the host where there is none; replay: the largest
    |delta log p| of stored transitions, in nats (`replay.py`)."""

    evaluation_s: float
    decode_s: float
    transition_s: float
    peak: int
    device: str
    replay: float = 0.0


@dataclass(frozen=True)
class RoundTime:
    """Seconds per round. Rewards are not in it: they answer while other chunks are searched."""

    search_s: float
    train_s: float
    chunk_s: float  # of one search worker, for one chunk


def round_time(config: Config, plan: Plan, rates: Rates) -> RoundTime:
    """With all replicas on nodes as fast as the one that was measured. Chunks are searched in waves."""
    search, roles = config.search, config.roles
    evaluations = plan.evaluations + plan.reference_evaluations + BACKWARD * plan.backward_evaluations
    each = evaluations * rates.evaluation_s + plan.reward_calls * rates.decode_s
    waves = ceil(plan.chunks / roles.search.replicas)
    rows = min(search.trajectories, waves * search.chunk)
    transitions = ceil(plan.transitions * config.mstep.epochs / roles.train.replicas)
    chunk = min(search.trajectories, search.chunk)
    return RoundTime(rows * each, transitions * rates.transition_s, chunk * each)
