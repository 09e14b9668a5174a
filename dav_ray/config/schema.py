"""The run's configuration: every key a user can type, its default and its meaning, in exactly one place.

A frozen, validated record; the sections `search`, `mstep`, `reward` and `roles` stand beside what they configure.
`recipe.py` builds it from YAML and overrides, and words the mistakes; `preflight.py` checks what needs a look at the
disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dav_ray.config.families.table import family_of, family_of_section
from dav_ray.config.identity import former_default, may_change, might_change, unpacked
from dav_ray.config.rules import first_broken
from dav_ray.config.sections.evaluation import Evaluate
from dav_ray.config.sections.init import Init
from dav_ray.config.sections.model import Model
from dav_ray.config.sections.prompts import Prompts
from dav_ray.config.sections.reward import Reward, with_own_names
from dav_ray.config.sections.roles import RewardRole, Roles, override
from dav_ray.mstep.options import MStep
from dav_ray.search.options import Search
from dav_ray.strict import Section


class Track(Section):
    kinds: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=(), description="trackers that get the metrics too"
    )
    project: str = Field(default="dav_ray", description="project name in the trackers")


class Retain(Section):
    last: int | None = Field(
        default=None,
        ge=1,
        description="rounds of which policy, shards and evaluation are kept: so many of the newest, the first, and the "
        "best by its mean reward without search; default: all",
    )


class Config(Section):
    """What `config.yaml` holds. Units: rewards in the reward's own unit, times in seconds."""

    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of everything random in the run")
    rounds: int = Field(default=10, ge=1, le=1_000_000, description="EM rounds")
    model: Model = Field(description="the diffusion model")
    init: Init = Field(default_factory=Init, description="the policy to start from")
    prompts: Prompts = Field(
        description="the prompts; a text file (beside the recipe, or here) has one per line, lines that start with # "
        "are comments (\\# for a prompt that does); objects, lines of JSONL and rows of a table have `prompt`, may "
        "have `weight` (> 0: how often it is searched), and columns for rewards; {template: a photo of {animal}, "
        "animal: [cat, dog]} is all combinations; for masked models conditions: class=NUMBER, fixed=START:LETTERS, or "
        "nothing (the empty text)",
        json_schema_extra={
            "allowed": "a list of texts, or the path of a text file, of JSONL, of Parquet or of a saved data set; a "
            "list of objects; a template with lists"
        },
    )
    reward: tuple[Reward, ...] = Field(
        description="the reward, or a list of them with weights",
        json_schema_extra={"allowed": "a reward (kind, name, weight, args) or a list of them"},
    )
    search: Search = Field(default_factory=Search, description="E-step")
    mstep: MStep = Field(default_factory=MStep, description="M-step")
    batches: Literal["given", "probed"] = Field(
        default="given",
        description="probed: search.chunk, search.micro_batch, search.decode_batch and mstep.micro_batch are found by "
        "throughput and memory when the run starts, and frozen in config.yaml; what is typed for them does not count",
    )
    roles: Roles = Field(default_factory=Roles, validate_default=True, description="who runs where")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="held-out evaluation after each round")
    track: Track = Field(default_factory=Track, description="experiment trackers")
    retain: Retain = Field(default_factory=Retain, description="what is kept of past rounds")
    modules: tuple[str, ...] = Field(
        default=(),
        description="folders where modules of your own (module.path:Name) are looked up first; default: the recipe's "
        "and the current one, if they hold such a module",
        json_schema_extra={"allowed": "a list of folders"},
    )
    overlap: Literal["none", "stream", "round"] = Field(
        default="none",
        description="stream: train on a round's groups while its search still runs (same bits as none); round: search "
        "the next round while this one is trained on, so that its search uses the policy of one round earlier",
    )

    def identity(self) -> str:
        """sha256 of everything that results depend on: of what `may_change` does not name. Defaults are left out, so
        that a run goes on under a release that has keys of which it knew nothing."""
        return self._sha256(may_change)

    def former_identity(self) -> str:
        """The same as 0.1.0 had it, to which more was fixed."""
        return self._sha256(might_change)

    def _sha256(self, free: Callable[[str], bool]) -> str:
        fixed = _fixed(self.model_dump(mode="json", exclude_defaults=True), free)
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names of the layers that get adapters."""
        return self.mstep.lora.targets or family_of(self.model).lora_targets

    @property
    def lag(self) -> int:
        """By how many versions the policy that searches a round is older than the one that is fitted to it."""
        return int(self.overlap == "round")

    @property
    def kept_rounds(self) -> int | None:
        """How many of the newest rounds are kept; None: all. With overlap: round the open round is searched by the
        policy before the last one, which is kept for it."""
        return None if self.retain.last is None else max(self.retain.last, 1 + self.lag)

    def searching_version(self, round: int) -> int:
        """The policy version that searches a round (from 1)."""
        return max(0, round - 1 - self.lag)

    @property
    def pooled(self) -> tuple[Reward, ...]:
        """The rewards that have actors of their own."""
        return tuple(reward for reward in self.reward if reward.where == "pool")

    def reward_role(self, reward: Reward) -> RewardRole:
        """Where the actors of one of the rewards run."""
        return override(self.roles.reward, reward.role)

    @model_validator(mode="before")
    @classmethod
    def _unconditional(cls, values: Any) -> Any:
        """Models that sample without a condition need no prompts; others have to be given some."""
        if isinstance(values, dict) and values.get("prompts") is None:
            family = family_of_section(values.get("model"))
            if family is not None and not family.conditional:
                return {**values, "prompts": [""]}
        return values

    @field_validator("reward", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, Reward)) else value

    @field_validator("reward", "prompts")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if not value:
            raise ValueError("at least one is needed")
        return value

    @field_validator("reward")
    @classmethod
    def _names(cls, value: tuple[Reward, ...]) -> tuple[Reward, ...]:
        return with_own_names(value)

    @field_validator("search", "mstep", "roles", "evaluate", "overlap")
    @classmethod
    def _rules(cls, value: Any, info: ValidationInfo) -> Any:
        """What spans sections (`rules`)."""
        if mistake := first_broken(str(info.field_name), value, info.data):
            raise ValueError(mistake)
        return value


def _fixed(node: Any, free: Callable[[str], bool], path: str = "") -> Any:
    """The tree without the keys that are free. A section of which nothing is left counts as never given."""
    if isinstance(node, dict):
        names = {key: f"{path}.{key}".lstrip(".") for key in node}
        kept = {key: _fixed(value, free, names[key]) for key, value in node.items() if not free(names[key])}
        return {key: value for key, value in kept.items() if value != {} and not former_default(names[key], value)}
    return [_fixed(value, free, path) for value in node] if isinstance(node, list) else unpacked(node)
