"""What all steps share: device, sizes, the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dav_ray.config.build import build
from dav_ray.config.partition import round_prompts
from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.diffusion.base import Diffusion
from dav_ray.rewards import registry
from dav_ray.rewards.base import Scorer, local_scorer
from dav_ray.types import Chunk
from jobs.gpu_hour.models import SD15, TINY, Sizes, saved

STEPS = 4  # T: the paper's is 50; a step costs the same
JPEG = "reward={kind: jpeg_compressibility}"


@dataclass(frozen=True)
class Setting:
    """out: folder for model, runs and results."""

    out: Path
    device: str
    tiny: bool

    @property
    def sizes(self) -> Sizes:
        return TINY if self.tiny else SD15

    @property
    def dtype(self) -> str:
        """Of weights and autocast, where a case does not say it."""
        return "bfloat16" if self.device == "cuda" else "float32"

    @property
    def card(self) -> str:
        return torch.cuda.get_device_name() if self.device == "cuda" else "cpu"

    def config(self, *words: str) -> Config:
        """The recipe `sd15` with few steps; reward: JPEG."""
        folder = saved(self.out / "model", self.sizes, self.device, getattr(torch, self.dtype))
        own = [f"model.path={folder.resolve()}", f"model.dtype={self.dtype}", f"mstep.precision={self.dtype}"]
        own += [f"search.steps={STEPS}", JPEG, "evaluate.heldout=[]", "search.trajectories=8"]
        own += [f"roles.{role}.replicas=1" for role in ("search", "reward", "train")]
        if self.tiny:
            own += ["search.chunk=2", "search.candidates=2", "search.trajectories=2", "mstep.lora.rank=2"]
        return load("sd15", [*own, *words]).config

    def clip(self) -> str:
        """The override for a reward of the size of CLIP."""
        args = "{tiny: true}" if self.tiny else "{}"
        return f"reward={{kind: 'jobs.gpu_hour.clip_reward:ClipSized', name: clip, args: {args}}}"

    def diffusion(self, config: Config) -> Diffusion:
        return build(config, device=self.device, autocast=config.search.precision)

    def scorer(self, config: Config) -> Scorer:
        """Rewards in this process."""
        return local_scorer(
            [(r.label, r.weight, registry.build(r.kind, dict(r.args), self.device)) for r in config.reward]
        )


def chunk_of(config: Config, size: int | None = None) -> Chunk:
    """The first chunk of a run, or of another size."""
    size = size or config.search.chunk
    prompts: Sequence[str] = round_prompts(config.prompts, 1, size, together=config.search.facts.together)
    return Chunk(config.seed, 1, 0, 0, tuple(range(size)), tuple(prompts))
