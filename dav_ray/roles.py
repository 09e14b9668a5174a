"""Who runs where: the `roles` section of the configuration."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from dav_ray.section import Section


class Role(Section):
    replicas: int = Field(default=1, ge=1, description="number of actors (search, reward) or ranks (train)")
    min_replicas: int | None = Field(
        default=None,
        ge=1,
        description="search: actors that must be up before work starts, the others join when they find a place; "
        "default: all",
    )
    cpus: float = Field(default=1.0, ge=0, description="CPUs each")
    gpus: float = Field(default=0.0, ge=0, description="GPUs each; a fraction shares one")
    threads: int = Field(default=1, ge=1, description="torch threads each (part of what makes results bit-equal)")
    resources: dict[str, float] = Field(default_factory=dict, description="custom Ray resources each")
    labels: dict[str, str] = Field(
        default_factory=dict, description="node labels to be placed on, for instance role: search"
    )
    start_timeout_s: float = Field(
        default=1200.0, gt=0, description="longest wait for a place; then the run fails and names the role"
    )
    call_timeout_s: float = Field(default=1800.0, gt=0, description="longest wait for one answer")


class Roles(Section):
    search: Role = Field(default_factory=Role, description="search workers")
    reward: Role = Field(default_factory=Role, description="reward workers, for each reward")
    train: Role = Field(default_factory=Role, description="ranks of the M-step")

    @field_validator("search", "reward", "train")
    @classmethod
    def _least(cls, value: Role, info: ValidationInfo) -> Role:
        if value.min_replicas is None:
            return value
        key = f"roles.{info.field_name}.min_replicas = {value.min_replicas}"
        if info.field_name != "search":
            raise ValueError(f"{key}: all of these must be up; allowed: null")
        if value.min_replicas > value.replicas:
            raise ValueError(f"{key}: more than replicas; allowed: at most {value.replicas}")
        return value


UNUSED = ("origin", "python")  # keys of models, rewards and measures that no result depends on


def free() -> tuple[str, ...]:
    """Keys on which no result depends: places, resources, deadlines, trackers. Torch threads and the number of ranks
    are not among them: they decide the order of sums."""
    kept = {"search": {"threads"}, "reward": {"threads"}, "train": {"threads", "replicas"}}
    return (
        "track",
        *(f"roles.{role}.{key}" for role in kept for key in Role.model_fields if key not in kept[role]),
    )
