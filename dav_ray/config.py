"""The run's configuration: every key a user can type, its default and its meaning, in exactly one place.

A frozen, validated record. `dav_ray.recipe` builds it from YAML and overrides and words the mistakes that
validation finds; `dav_ray.preflight` checks what needs a look at the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

GEOMETRIC = re.compile(r"geometric\(\s*(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*\)")
ANCHORS = "current, pretrained or geometric(BETA) with 0 < BETA < 1"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`candidates: yes` is a mistake, not the number 1. Raises ValueError."""
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation in (int, float):
            raise ValueError("wrong type")
        return value


class Model(Section):
    kind: Literal["diffusers"] = Field(
        default="diffusers", description="model family; diffusers = a StableDiffusionPipeline"
    )
    path: str = Field(description="pipeline folder, hub id, or shipped:digits")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="precision of the frozen weights; log-probabilities are summed in float32 in any case",
    )
    variant: str | None = Field(default=None, description="weight files' variant, for instance fp16")
    revision: str | None = Field(default=None, description="revision of a hub id")


class Reward(Section):
    kind: str = Field(description="a built-in reward, or module.path:Name for a class of your own")
    name: str | None = Field(default=None, description="name in metrics and errors; default: the kind")
    weight: float = Field(default=1.0, description="factor in the weighted sum of several rewards")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the reward's constructor")

    @property
    def label(self) -> str:
        return self.name or self.kind.rsplit(":", 1)[-1].rsplit(".", 1)[-1]


class Search(Section):
    kind: Literal["dav", "best_of_n", "none"] = Field(default="dav", description="E-step strategy")
    candidates: int = Field(
        default=4, ge=1, description="M: candidates per step (dav), trajectories per accepted one (best_of_n)"
    )
    alpha: float = Field(default=0.005, gt=0, description="temperature of the tilt exp(r / alpha)")
    gamma: float = Field(default=0.9, gt=0, le=1, description="discount of the value: gamma^(t-1) r(x0_hat) / alpha")
    gradient: bool = Field(
        default=False,
        description="tilt the proposal by the reward's gradient (needs a differentiable reward)",
    )
    anchor: str = Field(
        default="current",
        description="the law that is tilted: this round's model, the pretrained one, or a mixture of both",
        json_schema_extra={"allowed": ANCHORS},
    )
    steps: int = Field(default=50, ge=2, description="T: sampling steps")
    eta: float = Field(default=1.0, ge=0, le=1, description="DDIM eta; a search needs eta > 0")
    guidance_scale: float = Field(
        default=5.0, ge=0, description="classifier-free guidance; 1 = none (one network pass)"
    )
    trajectories: int = Field(default=64, ge=1, description="accepted trajectories per round")
    chunk: int = Field(
        default=32,
        ge=1,
        description="trajectories per work item: the unit of scheduling, retry and durability",
    )
    micro_batch: int = Field(default=128, ge=1, description="largest number of states in one network evaluation")
    decode_batch: int = Field(default=128, ge=1, description="largest number of states decoded to images at once")

    @field_validator("anchor")
    @classmethod
    def _anchor(cls, value: str) -> str:
        match = GEOMETRIC.fullmatch(value)
        if value in ("current", "pretrained") or (match and 0 < float(match[1]) < 1):
            return value
        raise ValueError("unknown anchor")

    @field_validator("eta")
    @classmethod
    def _stochastic(cls, value: float, info: ValidationInfo) -> float:
        if value == 0 and info.data.get("kind", "none") != "none":
            raise ValueError("a search needs a stochastic sampler; allowed: 0 < eta <= 1")
        return value

    @field_validator("gradient")
    @classmethod
    def _uses_gradient(cls, value: bool, info: ValidationInfo) -> bool:
        if value and (kind := info.data.get("kind", "dav")) != "dav":
            raise ValueError(f"{kind} uses no gradient; allowed: false, or true with search.kind = dav")
        return value

    @property
    def beta(self) -> float:
        """Share of the pretrained model in the anchor: 0 current, 1 pretrained, BETA geometric."""
        match = GEOMETRIC.fullmatch(self.anchor)
        return float(match[1]) if match else float(self.anchor == "pretrained")


class Lora(Section):
    rank: int = Field(default=16, ge=1, description="rank of the adapters")
    alpha: float = Field(default=16.0, gt=0, description="adapter scale is alpha / rank")
    targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"),
        description="names (suffixes) of the layers that get adapters",
    )


class MStep(Section):
    parameters: Literal["lora", "full"] = Field(
        default="lora", description="what is trained: adapters, or the full weights"
    )
    lora: Lora = Field(default_factory=Lora, description="adapters (parameters: lora)")
    kl: float = Field(
        default=0.01, ge=0, description="lambda: weight of the summed KL to the pretrained model; 0 = off"
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="AdamW learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW weight decay")
    epochs: int = Field(default=1, ge=1, description="passes over a round's accepted trajectories")
    batch_size: int = Field(
        default=256, ge=1, description="transitions (x_t, x_{t-1}) per optimizer step, over all ranks"
    )
    micro_batch: int = Field(default=128, ge=1, description="transitions per forward and backward on one rank")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradient clipping")
    weights: Literal["none", "trajectory"] = Field(
        default="none",
        description="W_i: none = 1 each (the paper); trajectory = exp(log W), mean 1 per condition",
    )
    candidates: Literal["winner", "all"] = Field(
        default="winner",
        description="which candidates of a step are fitted: the winner (the paper), or all with their softmax weights: "
        "the same expectation at a fraction of the noise",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="autocast precision in training"
    )
    group: int = Field(
        default=1,
        ge=1,
        description="chunks per group: the unit in which a round reaches the trainer's first epoch",
    )


class Role(Section):
    replicas: int = Field(default=1, ge=1, description="number of actors (search, reward) or ranks (train)")
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


def free() -> tuple[str, ...]:
    """Keys on which no result depends: places, resources, deadlines, trackers. Torch threads and the number of ranks
    are not among them: they decide the order of sums."""
    kept = {"search": {"threads"}, "reward": {"threads"}, "train": {"threads", "replicas"}}
    return (
        "track",
        *(f"roles.{role}.{key}" for role in kept for key in Role.model_fields if key not in kept[role]),
    )


class Evaluate(Section):
    samples: int = Field(
        default=100, ge=1, description="fresh samples per round, without search, on fixed seeds and prompts"
    )
    batch: int = Field(default=50, ge=1, description="samples per work item")
    seed: int = Field(default=1_000_000, ge=0, description="seed of the first sample; sample i uses seed + i")
    heldout: tuple[Reward, ...] = Field(default=(), description="measures that are never optimised")
    features: str = Field(default="pixels", description="features for diversity: pixels, digits, or module.path:Name")
    kl_samples: int = Field(default=32, ge=0, description="samples on which the KL to the pretrained model is measured")
    grid: int = Field(default=20, ge=1, description="samples per round shown in the report")

    @field_validator("heldout")
    @classmethod
    def _names(cls, value: tuple[Reward, ...]) -> tuple[Reward, ...]:
        return _with_own_names(value)


class Track(Section):
    kinds: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=(), description="trackers that get the metrics too"
    )
    project: str = Field(default="dav_ray", description="project name in the trackers")


class Config(Section):
    """What `config.yaml` holds. Units: rewards in the reward's own unit, times in seconds."""

    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of everything random in the run")
    rounds: int = Field(default=10, ge=1, description="EM rounds")
    model: Model = Field(description="the diffusion model")
    prompts: tuple[str, ...] = Field(
        description="the prompts; a text file (beside the recipe, or here) has one per line",
        json_schema_extra={"allowed": "a list of texts, or the path of a text file"},
    )
    reward: tuple[Reward, ...] = Field(
        description="the reward, or a list of them with weights",
        json_schema_extra={"allowed": "a reward (kind, name, weight, args) or a list of them"},
    )
    search: Search = Field(default_factory=Search, description="E-step")
    mstep: MStep = Field(default_factory=MStep, description="M-step")
    roles: Roles = Field(default_factory=Roles, description="who runs where")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="held-out evaluation after each round")
    track: Track = Field(default_factory=Track, description="experiment trackers")
    overlap: Literal["none", "stream"] = Field(
        default="none",
        description="stream: train on a round's groups while its search still runs (same bits as none)",
    )

    def identity(self) -> str:
        """sha256 of everything that results depend on; what `free` names may change when a run is continued."""
        fixed = self.model_dump(mode="json")
        for key in free():
            *sections, last = key.split(".")
            node = fixed
            for section in sections:
                node = node[section]
            del node[last]
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

    @field_validator("reward", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, (dict, Reward)) else value

    @field_validator("reward", "prompts")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("at least one is needed")
        return value

    @field_validator("reward")
    @classmethod
    def _names(cls, value: tuple[Reward, ...]) -> tuple[Reward, ...]:
        return _with_own_names(value)

    @field_validator("mstep")
    @classmethod
    def _weights(cls, value: MStep, info: ValidationInfo) -> MStep:
        search = info.data.get("search")
        if value.weights == "trajectory" and search and search.kind == "best_of_n":
            raise ValueError("mstep.weights = trajectory: best_of_n keeps the argmax and has no weights; allowed: none")
        if value.weights == "trajectory" and search and search.kind == "none" and search.beta > 0:
            raise ValueError(
                f"mstep.weights = trajectory: plain samples have weights for search.anchor = current only, "
                f"not {search.anchor}; allowed: none"
            )
        if value.candidates == "all" and search and search.kind != "dav":
            raise ValueError(f"mstep.candidates = all: {search.kind} keeps no candidates; allowed: winner")
        if value.candidates == "all" and value.weights == "trajectory":
            raise ValueError(
                "mstep.candidates = all: the weight of a trajectory depends on its winners; "
                "allowed: winner, or mstep.weights = none"
            )
        return value

    @field_validator("roles")
    @classmethod
    def _a_trajectory_per_rank(cls, value: Roles, info: ValidationInfo) -> Roles:
        search, mstep, ranks = info.data.get("search"), info.data.get("mstep"), value.train.replicas
        if search is None or mstep is None:
            return value
        group = min(search.trajectories, mstep.group * search.chunk)
        if group < ranks:
            raise ValueError(
                f"roles.train.replicas = {ranks}: the trainer gets {group} trajectories at a time; "
                f"allowed: at most {group}, or larger search.trajectories, search.chunk or mstep.group"
            )
        return value


def _with_own_names(rewards: tuple[Reward, ...]) -> tuple[Reward, ...]:
    """The rewards. Raises ValueError if two would get the same name in metrics and errors."""
    labels = [reward.label for reward in rewards]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two entries are named {label}; allowed: names that differ (set name)")
    return rewards
