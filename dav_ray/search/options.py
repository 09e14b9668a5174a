"""The configuration's section `search`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dav_ray.diffusion import noise_rules
from dav_ray.search import kinds
from dav_ray.search.facts import Facts
from dav_ray.search.weighting import temperature
from dav_ray.strict import Section

GEOMETRIC = re.compile(r"geometric\(\s*(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*\)")
ADAPTIVE = re.compile(r"adaptive\(\s*(\d*\.?\d+)\s*\)")
TEMPERINGS = "discount, linear or adaptive(SHARE) with 0 < SHARE < 1"
ANCHORS = "current, pretrained or geometric(BETA) with 0 < BETA < 1"

# keys that only some kinds use, and what they are where another kind is chosen
SOME_USE: dict[str, object] = {
    "anchor": "current",
    "ratio": "sum",
    "choice": "draw",
    "particles": 1,
    "resampling": "systematic",
    "resample_below": 0.5,
    "tempering": "discount",
    "warm_start": "own",
    "score_every": 1,
    "negligible": 0.0,
}


class Search(Section):
    kind: str = Field(
        default="dav",
        description="E-step strategy: dav, smc = dav with resampling across the particles of a prompt, svdd = dav "
        "without gradient, density ratio and discount, refine = re-noise and search again, best_of_n, none = plain "
        "samples",
        json_schema_extra=kinds.SEARCHES.schema(),
    )
    candidates: int = Field(
        default=4,
        ge=1,
        le=1_000_000,
        description="M: candidates per step and trajectory; best_of_n: trajectories per accepted one",
    )
    alpha: temperature.Alpha = Field(
        default=0.005,
        description="temperature: the search multiplies the anchor's law by exp(r / alpha); in the reward's unit, or "
        'as "0.1 sd" in standard deviations of the pretrained reward, measured in round 0 and fixed from then on',
        json_schema_extra={"allowed": temperature.ALLOWED, "anyOf": temperature.SCHEMA},
    )
    gamma: float = Field(
        default=0.9, gt=0, le=1, description="discount of noisy states: V(x_t) = gamma^t r(x0_hat(x_t)) / alpha"
    )
    gradient: bool = Field(
        default=False,
        description="draw candidates from the kernel tilted by the reward's gradient (needs a differentiable reward)",
    )
    anchor: str = Field(
        default="current",
        description="the model whose law the search tilts: this round's, the pretrained one, or a mixture of both",
        json_schema_extra={"allowed": ANCHORS},
    )
    steps: int = Field(default=50, ge=2, le=1_000_000, description="T: sampling steps")
    noise: str | None = Field(
        default=None,
        description="Gaussian models: how much noise a step draws. ddim, cps and renoise keep the level of the noise; "
        "flow_sde and dance do so in first order, for flows alone; default: the model's own, renoise for SANA-Sprint "
        "and LCM, else ddim",
        json_schema_extra=noise_rules.NOISE_RULES.schema(),
        exclude_if=lambda value: value is None,
    )
    eta: noise_rules.Eta = Field(
        default=1.0,
        description="Gaussian models: the share of noise that a step draws, 0 = none; a list has one for each step, "
        "the first for the step from x_T, and steps beyond its end draw none. Steps that draw nothing cost one network "
        "evaluation, no reward, and are not trained",
        json_schema_extra={"allowed": noise_rules.ALLOWED, "anyOf": noise_rules.SCHEMA},
    )
    guidance_scale: float = Field(
        default=5.0,
        ge=0,
        description="guidance as the pipeline takes it: mostly 1 = none (one network pass); Z-Image: 0 = none; FLUX.1: "
        "told to the network",
    )
    trajectories: int = Field(default=64, ge=1, le=1_000_000, description="accepted trajectories per round")
    chunk: int = Field(
        default=32,
        ge=1,
        description="trajectories per work item: the unit of scheduling, retry and durability",
    )
    ratio: Literal["sum", "mean"] = Field(
        default="sum",
        description="log-density ratio of a candidate: summed over dimensions, or averaged, as the authors' released "
        "code does; an averaged one leaves no valid trajectory weight",
    )
    choice: Literal["draw", "best"] = Field(
        default="draw",
        description="the candidate that is kept: drawn from softmax(log w), or the best (SVDD's alpha -> 0), which "
        "leaves no valid trajectory weight",
    )
    particles: int = Field(default=1, ge=1, le=1_000_000, description="smc: particles per accepted trajectory")
    resampling: Literal["systematic", "stratified", "ssp"] = Field(
        default="systematic", description="smc: resampling scheme"
    )
    resample_below: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="smc: resample where less than this share of the particles is effective; 1 = at every step",
    )
    tempering: str = Field(
        default="discount",
        description="smc: how V(x_t) grows to r / alpha: by gamma^t, by 1 - t/T, or as fast as keeps that share of the "
        "particles effective (0.9 or more; each step takes its share)",
        json_schema_extra={"allowed": TEMPERINGS},
    )
    score_every: int = Field(
        default=1,
        ge=1,
        description="dav: score only the states x_t with t divisible by this number; the model draws the others by "
        "itself, which costs one network evaluation in place of M",
    )
    negligible: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="dav: do not score the states x_t where this changes the choice by less, in total variation: "
        "tanh(gamma^t spread / (4 alpha))",
    )
    spread: float | None = Field(
        default=None,
        gt=0,
        description="dav: the most by which the rewards of a step's candidates differ, in the unit of alpha (a number "
        "or sd), for `negligible`",
    )
    repeats: int = Field(
        default=8, ge=1, le=1_000_000, description="refine: how often a sample is re-noised and searched again"
    )
    depth: float = Field(default=0.25, gt=0, le=1, description="refine: how far back, as a share of T")
    warm_start: Literal["own", "resampled", "off"] = Field(
        default="own",
        description="refine: start from the last round's samples of the same prompt, each trajectory from one of them "
        "(own) or drawn by softmax(r / alpha) (resampled); off = every round starts afresh",
    )
    parts: int = Field(
        default=1,
        ge=1,
        description="parts of a chunk that are searched in turns: while one waits for its rewards, another computes",
    )
    micro_batch: int = Field(default=128, ge=1, description="largest number of states in one network evaluation")
    decode_batch: int = Field(default=128, ge=1, description="largest number of states decoded to images at once")
    gradient_batch: int | None = Field(
        default=None,
        ge=1,
        description="largest number of states of which the reward's gradient is taken at once: the graphs of network "
        "and decoder are held for all of them; default: those of a chunk, fewer once memory ran out",
        exclude_if=lambda value: value is None,
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="autocast precision of the search's networks"
    )
    merge: Literal["off", "on", "auto"] = Field(
        default="off",
        description="search workers predict with the adapters added into a second copy of the adapted layers' weights: "
        "the same up to rounding, and quicker, most of all on a GPU; auto: on a GPU",
        exclude_if=lambda value: value == "off",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile policy and decoder on search workers, which takes minutes at their start",
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="keyword arguments of the constructor of a search of your own; parameters that have the name of a "
        "key of this section get the value of this key",
        exclude_if=lambda value: not value,
    )

    @field_validator("kind", mode="before")
    @classmethod
    def _kind(cls, value: object) -> object:
        if not isinstance(value, str) or (":" not in value and value not in kinds.SEARCHES):
            raise ValueError("unknown value")
        if ":" not in value and (fault := kinds.SEARCHES.fault(value)):
            raise ValueError(fault)
        return value

    @field_validator("alpha", mode="before")
    @classmethod
    def _alpha(cls, value: object) -> temperature.Alpha:
        return temperature.parsed(value)

    @field_validator("anchor")
    @classmethod
    def _anchor(cls, value: str) -> str:
        match = GEOMETRIC.fullmatch(value)
        if value in ("current", "pretrained") or (match and 0 < float(match[1]) < 1):
            return value
        raise ValueError("unknown anchor")

    @field_validator("tempering")
    @classmethod
    def _tempering(cls, value: str) -> str:
        match = ADAPTIVE.fullmatch(value)
        if value in ("discount", "linear") or (match and 0 < float(match[1]) < 1):
            return value
        raise ValueError("unknown tempering")

    @field_validator("warm_start", "merge", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        """YAML reads the words as truth values."""
        return {False: "off", True: "on"}[value] if isinstance(value, bool) else value

    @field_validator("noise", mode="before")
    @classmethod
    def _noise(cls, value: object) -> object:
        if value is not None and (
            not isinstance(value, str) or (":" not in value and value not in noise_rules.NOISE_RULES)
        ):
            raise ValueError("unknown value")
        return value

    @field_validator("eta", mode="before")
    @classmethod
    def _eta(cls, value: object, info: ValidationInfo) -> noise_rules.Eta:
        eta = noise_rules.parsed(value, info.data.get("noise"), info.data.get("steps"))
        kind = info.data.get("kind")
        if not noise_rules.draws(eta) and kind and kinds.ships(kind) and kinds.facts_class(kind).stochastic:
            raise ValueError(STOCHASTIC)
        return eta

    @field_validator("gradient")
    @classmethod
    def _uses_gradient(cls, value: bool, info: ValidationInfo) -> bool:
        kind = info.data.get("kind", "dav")
        if value and kinds.ships(kind) and (mistake := no_gradient(kind, kinds.facts_class(kind).uses)):
            raise ValueError(mistake)
        return value

    @model_validator(mode="after")
    def _fits_the_kind(self) -> Search:
        """Keys that would be ignored or make no sense where another strategy is chosen. ValueError names the first."""
        if kinds.ships(self.kind):
            for mistake in useless(self, self.facts.uses):
                raise ValueError(mistake)
            if self.args:
                raise ValueError(
                    f"search.args = {self.args}: search.kind = {self.kind} has keys of its own; allowed: {{}}, or the "
                    "arguments of a search of your own"
                )
        return self

    @model_validator(mode="after")
    def _can_skip(self) -> Search:
        """What steps without a score need. ValueError names the key."""
        if self.negligible > 0 and self.spread is None:
            raise ValueError("negligible needs to know how far rewards differ; allowed: 0, or with search.spread")
        if (self.score_every > 1 or self.negligible > 0) and self.beta > 0:
            raise ValueError(
                f"anchor = {self.anchor}: steps without a score follow the current model; allowed: current, or "
                "search.score_every = 1 and search.negligible = 0"
            )
        if self.walked and self.beta > 0:
            raise ValueError(
                f"anchor = {self.anchor}: steps that draw nothing follow the current model; allowed: current, or "
                "search.eta > 0 at every step"
            )
        return self

    @property
    def facts(self) -> Facts:
        """What this kind of search says of itself. Imports a search that does not ship with dav_ray; UserError where
        that fails."""
        return kinds.facts_class(self.kind)(self)

    @property
    def walked(self) -> frozenset[int]:
        """The steps t in 2..T, from x_t to x_{t-1}, that draw nothing."""
        each = noise_rules.schedule(self.eta, self.steps)
        return frozenset(t for t in range(2, self.steps + 1) if each[self.steps - t] == 0)

    @property
    def beta(self) -> float:
        """Share of the pretrained model in the anchor: 0 current, 1 pretrained, BETA geometric."""
        match = GEOMETRIC.fullmatch(self.anchor)
        return float(match[1]) if match else float(self.anchor == "pretrained")


STOCHASTIC = "a search needs a stochastic sampler; allowed: 0 < eta <= 1"


def no_gradient(kind: str, uses: Collection[str]) -> str:
    """What is wrong with `gradient: true`; nothing where the kind uses it."""
    if "gradient" in uses:
        return ""
    *first, last = kinds.using("gradient")
    return f"{kind} uses no gradient; allowed: false, or true with search.kind = {', '.join(first)} or {last}"


def useless(search: Search, uses: Collection[str]) -> Iterator[str]:
    """A line for each key that the kind has no use for and that is not at its default."""
    for key, default in SOME_USE.items():
        if getattr(search, key) != default and key not in uses:
            yield (
                f"search.{key} = {getattr(search, key)}: search.kind = {search.kind} has no use for it; "
                f"allowed: {default}, or search.kind = {' or '.join(kinds.using(key))}"
            )
