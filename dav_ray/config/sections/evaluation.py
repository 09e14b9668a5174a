"""The configuration's section `evaluate`."""

from __future__ import annotations

from pydantic import Field, field_validator

from dav_ray.config.sections.reward import Reward, with_own_names
from dav_ray.strict import Section


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
        description="features for diversity: auto (pixels of images, of large ones in 64 x 64 blocks; edit distance of "
        "sequences), pixels, digits, or module.path:Name",
    )
    reference: str | None = Field(
        default=None, description="sequences: a FASTA, CSV or Parquet file to compare k-mers with"
    )
    origin: str | None = Field(
        default=None, description="what the reference is; shown in the message when it is missing"
    )
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
