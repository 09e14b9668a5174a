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

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from dav_ray.init_options import Init
from dav_ray.may_change import may_change, might_change
from dav_ray.mstep.options import LORA_TARGETS, MStep
from dav_ray.rewards.options import Reward, with_own_names
from dav_ray.roles import RewardRole, Roles, override
from dav_ray.same_setting import former_default, unpacked
from dav_ray.search.options import Search
from dav_ray.search.temperature import in_sd
from dav_ray.section import Section


class Model(Section):
    kind: Literal["diffusers", "masked"] = Field(
        default="diffusers",
        description="model family; diffusers = a StableDiffusionPipeline, masked = masked discrete diffusion (MDLM)",
    )
    path: str = Field(
        description="diffusers: pipeline folder, hub id or shipped:digits; masked: model folder, Lightning checkpoint "
        "(.ckpt) or shipped:dna"
    )
    weights: Literal["ema", "raw"] = Field(default="ema", description="masked: which weights of a .ckpt")
    alphabet: str | None = Field(
        default=None,
        description="masked: letters in the order of the tokens; default: the model's own (dna for a .ckpt)",
        json_schema_extra={"allowed": "dna, rna, protein, the letters themselves, or null"},
    )
    length: int | None = Field(
        default=None, ge=1, le=10_000_000, description="masked: letters per sequence; default: the model's own"
    )
    origin: str | None = Field(default=None, description="what the files are, said where one is missing")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="precision of the frozen weights; log-probabilities are summed in float32 in any case",
    )
    variant: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]+$",
        description="weight files' variant, for instance fp16",
        json_schema_extra={"allowed": "letters, digits, _ and -, or null"},
    )
    revision: str | None = Field(default=None, description="revision of a hub id")
    channels_last: bool = Field(default=False, description="diffusers: networks in the channels-last memory format")
    draft_vae: str | None = Field(
        default=None,
        description="diffusers: an AutoencoderTiny (folder or hub id) that decodes early guesses x0_hat; samples are "
        "decoded by the pipeline's own VAE in any case",
    )
    draft_above: float = Field(
        default=0.5, ge=0, le=1, description="diffusers: guesses at steps t > draft_above T are decoded by draft_vae"
    )

    @model_validator(mode="after")
    def _of_images(self) -> Model:
        for key, default in (("channels_last", False), ("draft_vae", None)):
            if self.kind == "masked" and getattr(self, key) != default:
                raise ValueError(f"{key} = {getattr(self, key)}: a masked model has no use for it; allowed: {default}")
        return self


class Evaluate(Section):
    samples: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="fresh samples per round, without search, on fixed seeds and prompts",
    )
    batch: int = Field(default=50, ge=1, description="samples per work item")
    seed: int = Field(default=1_000_000, ge=0, lt=2**32, description="seed of the first sample; sample i uses seed + i")
    heldout: tuple[Reward, ...] = Field(default=(), description="measures that are never optimised")
    features: str = Field(
        default="auto",
        description="features for diversity: auto (pixels of images, edit distance of sequences), pixels, digits, or "
        "module.path:Name",
    )
    reference: str | None = Field(
        default=None, description="sequences: a FASTA, CSV or Parquet file to compare k-mers with"
    )
    origin: str | None = Field(default=None, description="what the reference is, said where it is missing")
    kmer: int = Field(default=3, ge=1, le=8, description="sequences: k of the k-mer correlation with the reference")
    elbo_draws: int = Field(
        default=8,
        ge=0,
        description="sequences: times per sample at which the ELBO under the pretrained model is estimated; 0 = off",
    )
    kl_samples: int = Field(default=32, ge=0, description="samples on which the KL to the pretrained model is measured")
    grid: int = Field(default=20, ge=1, description="samples per round shown in the report")

    @field_validator("heldout")
    @classmethod
    def _names(cls, value: tuple[Reward, ...]) -> tuple[Reward, ...]:
        return with_own_names(value)


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
    prompts: tuple[str, ...] = Field(
        description="the prompts; a text file (beside the recipe, or here) has one per line, lines that start with # "
        "are comments (\\# for a prompt that does); for masked models conditions: class=NUMBER, fixed=START:LETTERS, "
        "or nothing (the empty text)",
        json_schema_extra={"allowed": "a list of texts, or the path of a text file"},
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
        return self.mstep.lora.targets or LORA_TARGETS[self.model.kind]

    @property
    def lag(self) -> int:
        """By how many versions the policy that searches a round is older than the one that is fitted to it."""
        return int(self.overlap == "round")

    def searching_version(self, round: int) -> int:
        """The policy version that searches a round (from 1)."""
        return max(0, round - 1 - self.lag)

    def reward_role(self, reward: Reward) -> RewardRole:
        """Where the actors of one of the rewards run."""
        return override(self.roles.reward, reward.role)

    @model_validator(mode="before")
    @classmethod
    def _unconditional(cls, values: Any) -> Any:
        """A masked model samples without a condition unless one is given; an image model has to be told."""
        model = values.get("model") if isinstance(values, dict) else None
        if isinstance(model, dict) and model.get("kind") == "masked" and values.get("prompts") is None:
            return {**values, "prompts": [""]}
        return values

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
        return with_own_names(value)

    @field_validator("mstep")
    @classmethod
    def _weights(cls, value: MStep, info: ValidationInfo) -> MStep:
        search = info.data.get("search")
        if value.weights == "trajectory" and search and search.weightless:
            raise ValueError(
                f"mstep.weights = trajectory: {search.kind} {search.weightless} and has no weights; allowed: none"
            )
        if value.candidates == "all" and search and search.kind != "dav":
            raise ValueError(f"mstep.candidates = all: {search.kind} keeps no candidates; allowed: winner")
        if value.candidates == "all" and search and search.candidates < 2:
            raise ValueError("mstep.candidates = all: one candidate says nothing; allowed: search.candidates >= 2")
        if value.candidates == "all" and value.target == "completed":
            raise ValueError("mstep.target = completed: fits the winner's x_0; allowed: mstep.candidates = winner")
        if value.target == "completed" and search and (search.score_every > 1 or search.negligible > 0):
            raise ValueError(
                "mstep.target = completed: steps without a score have no guess to be fitted; allowed: unmasked, or "
                "search.score_every = 1 and search.negligible = 0"
            )
        if value.target == "completed" and search and search.kind != "dav":
            raise ValueError(f"mstep.target = completed: {search.kind} completes no states; allowed: unmasked")
        if value.candidates == "all" and value.weights == "trajectory":
            raise ValueError(
                "mstep.candidates = all: the weight of a trajectory depends on its winners; "
                "allowed: winner, or mstep.weights = none"
            )
        return value

    @field_validator("mstep")
    @classmethod
    def _target(cls, value: MStep, info: ValidationInfo) -> MStep:
        model = info.data.get("model")
        if value.candidates == "all" and value.epochs > 1 and model and model.kind == "masked":
            # counts of letters may be negative: fair in expectation, but not something to be fitted to the end
            raise ValueError(f"mstep.epochs = {value.epochs}: with mstep.candidates = all a masked model; allowed: 1")
        if value.target == "completed" and model and model.kind != "masked":
            raise ValueError(f"mstep.target = completed: is for masked models, not {model.kind}; allowed: unmasked")
        return value

    @field_validator("evaluate")
    @classmethod
    def _can_measure_alpha(cls, value: Evaluate, info: ValidationInfo) -> Evaluate:
        search = info.data.get("search")
        if search and in_sd(search.alpha) and value.samples < 2:
            raise ValueError(
                f"evaluate.samples = {value.samples}: one sample has no standard deviation, and search.alpha = "
                f"{search.alpha} is measured on them; allowed: at least 2, or a number as search.alpha"
            )
        return value

    @field_validator("overlap")
    @classmethod
    def _can_overlap(cls, value: str, info: ValidationInfo) -> str:
        search, roles = info.data.get("search"), info.data.get("roles")
        if value == "round" and search and search.kind == "refine" and search.warm_start != "off":
            raise ValueError(
                "search kind refine starts from the last round, which is not closed by then; "
                "allowed: none, stream, or search.warm_start = off"
            )
        if value != "none" and roles and roles.train.lifetime == "round":
            raise ValueError(
                "the ranks of roles.train.lifetime = round live in no search; "
                "allowed: none, or roles.train.lifetime = run"
            )
        return value

    @field_validator("roles")
    @classmethod
    def _own_roles(cls, value: Roles, info: ValidationInfo) -> Roles:
        for i, reward in enumerate(info.data.get("reward", ())):
            try:
                override(value.reward, reward.role)
            except ValidationError as error:
                raise ValueError(f"reward[{i}].role.{error.errors()[0]['msg'].partition(', ')[2]}") from None
        return value

    @field_validator("roles")
    @classmethod
    def _a_trajectory_per_rank(cls, value: Roles, info: ValidationInfo) -> Roles:
        search, mstep, ranks = info.data.get("search"), info.data.get("mstep"), value.train.replicas
        if search is None or mstep is None:
            return value
        probed = info.data.get("batches") == "probed"  # the chunk is made large enough
        group = search.trajectories if probed else min(search.trajectories, mstep.group * search.chunk)
        if group < ranks:
            raise ValueError(
                f"roles.train.replicas = {ranks}: the trainer gets {group} trajectories at a time; "
                f"allowed: at most {group}, or larger search.trajectories, search.chunk or mstep.group"
            )
        return value


def _fixed(node: Any, free: Callable[[str], bool], path: str = "") -> Any:
    """The tree without the keys that are free. A section of which nothing is left counts as never given."""
    if isinstance(node, dict):
        names = {key: f"{path}.{key}".lstrip(".") for key in node}
        kept = {key: _fixed(value, free, names[key]) for key, value in node.items() if not free(names[key])}
        return {key: value for key, value in kept.items() if value != {} and not former_default(names[key], value)}
    return [_fixed(value, free, path) for value in node] if isinstance(node, list) else unpacked(node)
