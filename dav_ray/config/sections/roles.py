"""Who runs where: the `roles` section of the configuration."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from dav_ray.strict import Section

# Samples per call of a reward on a GPU. A model of 7 B parameters takes 15 GB in bfloat16; an image and its prompt are
# some 700 tokens, whose activations, keys, values and logits take a GB: with 8 of them it fits into 24 GB, and is busy.
GPU_BATCH = 8


class Role(Section):
    """What each actor or rank of a role takes, and the environment that it lives in."""

    replicas: int = Field(
        default=1, ge=1, le=10_000, description="number of actors (search, reward) or ranks (train), at most"
    )
    cpus: float = Field(default=1.0, ge=0, le=10_000, description="CPUs each")
    gpus: float = Field(default=0.0, ge=0, le=1000, description="GPUs each; a fraction shares one")
    memory_gb: float = Field(
        default=0.0, ge=0, le=1_000_000, description="host memory each, as Ray counts it; 0: none is reserved"
    )
    accelerator: str | None = Field(default=None, description="Ray's name of a GPU type, for instance A100 or L4")
    threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="torch threads each; results are equal bit for bit only with the same number",
    )
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="custom Ray resources each",
        json_schema_extra={"allowed": "numbers >= 0 by name"},
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="node labels to be placed on, for instance role: search"
    )
    python: str | None = Field(
        default=None, description="interpreter of the role's own environment, on its nodes (same Python and ray)"
    )
    pip: tuple[str, ...] = Field(default=(), description="packages that Ray installs for this role on its nodes")
    container: str | None = Field(
        default=None, description="image that this role runs in, with the same ray and dav_ray"
    )
    start_timeout_s: float = Field(
        default=1200.0, gt=0, description="longest wait for free resources; then the run fails and names the role"
    )
    call_timeout_s: float = Field(default=1800.0, gt=0, description="longest wait for one answer")

    @model_validator(mode="after")
    def _one_environment(self) -> Self:
        given = [name for name in ("python", "pip", "container") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: two environments; allowed: one of python, pip, container")
        return self


class PoolRole(Role):
    """A role of actors that come and go."""

    min_replicas: int | None = Field(
        default=None,
        ge=1,
        description="search: actors that must be up before work starts, the others join when resources are free; "
        "reward: actors that are kept, up to `replicas` of them while calls queue; default: all",
    )
    idle_s: float | None = Field(
        default=None,
        ge=0,
        description="actors without work for so long are released, so that their nodes or GPUs serve others, and "
        "started again when they are needed; default: never",
    )

    @model_validator(mode="after")
    def _least(self) -> Self:
        if self.min_replicas is not None and self.min_replicas > self.replicas:
            raise ValueError(
                f"min_replicas = {self.min_replicas}: more than replicas; allowed: at most {self.replicas}"
            )
        return self

    @property
    def least(self) -> int:
        return self.replicas if self.min_replicas is None else self.min_replicas


class RewardRole(PoolRole):
    call_timeout_s: float = Field(
        default=300.0, gt=0, description="reward: an actor that gives no answer for so long is replaced"
    )
    batch: int | None = Field(
        default=None,
        ge=1,
        description="most samples per call of the reward, half of it for an actor whose memory runs out; default: what "
        f"a search worker sends, and {GPU_BATCH} where the reward has a GPU",
    )
    merge: bool = Field(
        default=False,
        description="calls of several search workers are merged, up to `batch` samples: the last bits of a value may "
        "then depend on which calls came together",
    )
    retry_s: float = Field(
        default=600.0,
        ge=0,
        description="reward: how long a request is made again that fails for now (no connection, HTTP 408, 429 or 5xx, "
        "a timeout, dav_ray.errors.Transient), later and later; then the run fails",
    )

    @property
    def most(self) -> int | None:
        """Most samples per call; None: no limit."""
        return GPU_BATCH if self.batch is None and self.gpus > 0 else self.batch


class TrainRole(Role):
    lifetime: Literal["run", "round"] = Field(
        default="run",
        description="round: ranks are started for each M-step and ended after it, so that the search may use their "
        "GPUs",
    )


def _partial(section: type[Section], name: str) -> type[Section]:
    """The same keys, each of them null unless given."""
    fields: dict[str, Any] = {}
    for key, field in section.model_fields.items():
        optional = copy.copy(field)
        optional.default, optional.default_factory, optional.annotation = None, None, field.annotation | None  # type: ignore[operator]
        fields[key] = optional.annotation, optional
    return create_model(name, __base__=Section, **fields)


OwnRole = _partial(RewardRole, "OwnRole")


def override(role: RewardRole, own: Section | None) -> RewardRole:
    """The role with the keys that a reward sets for itself. Raises ValueError where they do not go together."""
    if own is None:
        return role
    return RewardRole.model_validate(role.model_dump() | own.model_dump(exclude_none=True))


class Roles(Section):
    search: PoolRole = Field(default_factory=PoolRole, description="search workers")
    reward: RewardRole = Field(default_factory=RewardRole, description="reward workers, for each reward")
    train: TrainRole = Field(default_factory=TrainRole, description="ranks of the M-step")
