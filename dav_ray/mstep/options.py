"""The configuration's section `mstep`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dav_ray.moved import names_of
from dav_ray.mstep import registry
from dav_ray.strict import Section


class Lora(Section):
    rank: int = Field(default=16, ge=1, le=65_536, description="rank of the adapters")
    alpha: float = Field(default=16.0, gt=0, description="adapter scale is alpha / rank")
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="names (suffixes) of the layers that get adapters; default: attention (to_q, to_k, to_v, to_out.0) "
        "of diffusers models, convs and final_conv of masked ones",
        json_schema_extra={"allowed": "a list of at least one name, or null"},
    )


class MStep(Section):
    parameters: Literal["lora", "full"] = Field(
        default="lora", description="what is trained: adapters, or the full weights"
    )
    lora: Lora = Field(default_factory=Lora, description="adapters (parameters: lora)")
    steps: int | None = Field(
        default=None,
        ge=1,
        description="k: how many of a trajectory's T transitions an epoch fits, drawn anew for each trajectory and "
        "epoch and weighted T / k: the same expectation, with more noise, for k / T of the cost; default: all",
    )
    kl: float = Field(
        default=0.01, ge=0, description="lambda: weight of the summed KL to the pretrained model; 0 = off"
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="AdamW learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW weight decay")
    epochs: int = Field(default=1, ge=1, description="passes over a round's accepted trajectories")
    batch_size: int = Field(
        default=256, ge=1, description="transitions (x_t, x_{t-1}) per optimizer step, over all ranks"
    )
    kl_measured: int = Field(
        default=8,
        ge=1,
        description="transitions per optimizer step, over all ranks, on which the metric mstep/kl is measured in "
        "float32 where the M-step computes in half precision",
    )
    micro_batch: int = Field(default=128, ge=1, description="transitions per forward and backward on one rank")
    checkpointing: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="gradient checkpointing: hold the inputs of the network's blocks alone for the backward pass, "
        "which computes the rest again; several times less memory for a third more computing, and the same gradients. "
        "auto = on a GPU that would not hold the micro-batch otherwise",
    )
    max_grad_norm: float = Field(
        default=1.0,
        gt=0,
        description="norm to which gradients are clipped; the objective sums over dimensions and steps, so that the "
        "default clips nearly every step (mstep/clipped), of which AdamW takes little notice",
    )
    weights: Literal["none", "trajectory"] = Field(
        default="none",
        description="W_i: none = 1 each (the paper); trajectory = exp(log W), mean 1 per condition",
    )
    candidates: Literal["winner", "all"] = Field(
        default="winner",
        description="which candidates of a step are fitted: the winner, which is the one that was kept (the paper), or "
        "all with their softmax weights: the same expected gradient at a fraction of the noise",
    )
    target: Literal["unmasked", "completed"] = Field(
        default="unmasked",
        description="masked: what a step fits: the tokens that it unmasked (the paper), or the winner's completed x_0 "
        "at all masked positions (the authors' released variant)",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="autocast precision in training"
    )
    group: int = Field(
        default=1,
        ge=1,
        description="chunks per group: the unit in which a round reaches the trainer's first epoch",
    )
    objective: str = Field(
        default="weighted_nll",
        description="what is minimised: weighted_nll = the negative log-likelihood plus kl times the KL, each "
        "trajectory with its weight (the paper), or an objective of your own",
        json_schema_extra=registry.OBJECTIVES.schema(),
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="keyword arguments of an objective of your own",
        exclude_if=lambda value: not value,
    )

    @field_validator("objective", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        if not isinstance(value, str) or (":" not in value and value not in registry.OBJECTIVES):
            raise ValueError("unknown value")
        if ":" not in value and (fault := registry.OBJECTIVES.fault(value)):
            raise ValueError(fault)
        return value

    @model_validator(mode="after")
    def _takes_arguments(self) -> MStep:
        if self.args and registry.ships(self.objective):
            raise ValueError(
                f"mstep.args = {self.args}: mstep.objective = {self.objective} takes no arguments; allowed: {{}}, or "
                "those of an objective of your own"
            )
        return self

    @field_validator("checkpointing", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        """YAML reads the words as truth values."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def batch_of_rank(mstep: MStep, ranks: int) -> int:
    """Transitions of one rank per optimizer step, at most."""
    return max(1, mstep.batch_size // ranks)


if not TYPE_CHECKING:  # pyright would take any name for one of this module's
    __getattr__ = names_of("mstep.options")
