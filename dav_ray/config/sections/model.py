"""The configuration's section `model`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from dav_ray.config.families.table import MODELS, USUAL, named
from dav_ray.registry import Unregistered
from dav_ray.strict import Section


class Model(Section):
    kind: str = Field(
        default=USUAL,
        description="model family; diffusers = a StableDiffusionPipeline, masked = masked discrete diffusion (MDLM)",
        json_schema_extra=MODELS.schema(),
    )
    path: str = Field(
        description="diffusers: pipeline folder, hub id or shipped:digits; masked: model folder, Lightning checkpoint "
        "(.ckpt) or shipped:dna"
    )
    pipeline: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9]+Pipeline$",
        description="diffusers: the pipeline's class; default: the one that its model_index.json names",
        json_schema_extra={"allowed": "the name of a class of diffusers, or null"},
        exclude_if=lambda value: value is None,
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
    height: int | None = Field(
        default=None,
        ge=8,
        le=8192,
        description="diffusers: height of the images in pixels; default: the pipeline's own",
        exclude_if=lambda value: value is None,
    )
    width: int | None = Field(
        default=None,
        ge=8,
        le=8192,
        description="diffusers: width of the images in pixels; default: the pipeline's own",
        exclude_if=lambda value: value is None,
    )
    negative_prompt: str | None = Field(
        default=None,
        description="diffusers: what guidance leads away from; default: as the pipeline does without one",
        exclude_if=lambda value: value is None,
    )
    max_sequence_length: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="diffusers: tokens that the long text encoder (T5, Gemma, Qwen) reads of a prompt, or that stand "
        "for it where it is left out; default: as the pipeline does without one",
        exclude_if=lambda value: value is None,
    )
    long_prompts: Literal["refuse", "cut"] = Field(
        default="refuse",
        description="diffusers: prompts of which no text encoder reads the end: refused with the words that would be "
        "lost, or cut as the pipeline does; the tokenizers of a local folder tell",
        exclude_if=lambda value: value == "refuse",
    )
    draft_above: float = Field(
        default=0.5, ge=0, le=1, description="diffusers: guesses at steps t > draft_above T are decoded by draft_vae"
    )

    @field_validator("kind")
    @classmethod
    def _family(cls, kind: str) -> str:
        try:
            named(kind)
        except Unregistered as error:
            raise ValueError(str(error)) from error
        return kind

    @field_validator("revision", mode="before")
    @classmethod
    def _digits(cls, value: object) -> object:
        """YAML reads a commit or a branch that has digits alone as a number."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _used(self) -> Model:
        for key in named(self.kind).unused:
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default:
                raise ValueError(f"{key} = {value}: a {self.kind} model has no use for it; allowed: {default}")
        return self
