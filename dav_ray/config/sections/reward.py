"""The configuration's section `reward`: one of the rewards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dav_ray.config.sections.roles import OwnRole
from dav_ray.strict import Section


class Reward(Section):
    kind: str = Field(
        description="a built-in reward, or module.path:Name or path/to/file.py:Name of a class or function of your own"
    )
    name: str | None = Field(default=None, description="name in metrics and errors; default: the kind")
    weight: float = Field(default=1.0, description="factor in the weighted sum of several rewards")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the reward's constructor")
    origin: str | None = Field(default=None, description="what its files are; shown in the message when one is missing")
    where: Literal["pool", "search"] = Field(
        default="pool",
        description="pool: in actors of its own (roles.reward); search: in each search worker, in a thread beside the "
        "model, so that no samples are sent; on its GPU if the reward's role has gpus, which are not counted then",
        exclude_if=lambda value: value == "pool",
    )
    python: str | None = Field(
        default=None,
        description="interpreter of the reward's own environment, on the node where it runs (same Python and ray)",
    )
    golden: str | None = Field(
        default=None,
        description="golden scores (golden/NAME.npz of a run) that every worker of this reward has to reproduce before "
        "it is used; default: what the first worker of the run scores first",
        json_schema_extra={"allowed": "the path of a file"},
    )
    golden_check: Literal["refuse", "warn", "off"] = Field(
        default="refuse",
        description="what becomes of a worker that does not reproduce the golden scores: it is refused; it serves, and "
        "events and metrics say by how much it differs (warn); nobody is asked (off)",
    )
    tolerance: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="by how much a golden score may be missed, times the score's size where that is above 1; by "
        "hardware: cpu, or the GPU's type as Ray names it (for instance A100); default: 0.001, and in half precision "
        "more: up to a tenth of the standard deviation of the golden scores",
        json_schema_extra={"allowed": "numbers >= 0 by hardware, `default` for the rest"},
    )
    role: OwnRole | None = Field(  # type: ignore[valid-type]
        default=None,
        description="actors of this reward alone: any key of roles.reward",
        json_schema_extra={"allowed": "keys of roles.reward"},
    )

    @field_validator("golden_check", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        """YAML reads the word as a truth value."""
        return "off" if value is False else value

    @property
    def label(self) -> str:
        return self.name or self.kind.rsplit(":", 1)[-1].rsplit(".", 1)[-1]


def with_own_names(rewards: tuple[Reward, ...]) -> tuple[Reward, ...]:
    """The rewards. Raises ValueError if two would get the same name in metrics and errors."""
    labels = [reward.label for reward in rewards]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two entries are named {label}; allowed: names that differ (set name)")
    return rewards
