"""What the driver gives the fleet of rewards, and what it gets from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dav_ray.config.sections.roles import RewardRole
from dav_ray.runtime.reward.scaling import LINGER_S


@dataclass(frozen=True)
class RewardSpec:
    """One reward's replicas: what they are built from, where and how many."""

    number: int  # place in the configuration
    label: str
    kind: str
    args: dict[str, Any]
    role: RewardRole
    options: dict[str, Any]  # of each Ray actor
    tolerance: dict[str, float]  # by hardware
    golden: str | None = None  # the user's own file
    golden_check: str = "refuse"  # what becomes of a replica that does not reproduce them: refuse, warn, off
    modules: tuple[str, ...] = ()  # folders of the user's own modules
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of the prompts, by prompt
    linger_s: float = LINGER_S

    @property
    def built(self) -> tuple[Any, ...]:
        """What a replica is built from."""
        return self.kind, dict(self.args), self.role.threads, self.role.most, self.modules, self.columns


@dataclass(frozen=True)
class PoolState:
    """One reward's replicas and queue now; seconds since the fleet started, over all replicas."""

    reward: str
    admitted: int
    starting: int  # those that wait to be admitted among them
    waiting: int  # requests
    busy_s: float
    admitted_s: float
    deviation: float = 0.0  # the largest |score - golden| of a replica that serves all the same
