"""The family of `StableDiffusionPipeline`: what is known of one before torch is imported, and how it is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dav_ray.config.families.base import Runtime
from dav_ray.config.families.described import enlarged
from dav_ray.config.families.pipeline import Pipeline, latent_options
from dav_ray.config.families.pipeline_checks import Layout, read_part, size_mistakes, useless
from dav_ray.config.families.prompt_lengths import Reader
from dav_ray.config.families.published import TEXT_LENGTH
from dav_ray.config.families.sizes import json_if_there
from dav_ray.config.model_path import model_path
from dav_ray.diffusion.pipelines.schedulers import CONVERTIBLE, mistakes
from dav_ray.redact import show

if TYPE_CHECKING:
    from dav_ray.config.schema import Config
    from dav_ray.diffusion.base import Adaptable

USUAL_SIDE, USUAL_SCALE = 256, 8  # pixels of an image, and of a latent's side; where no file tells


class StableDiffusion(Pipeline):
    """SD 1.x and 2.x: a UNet over a VAE's latents, one text encoder, steps by DDIM."""

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    imports = (
        "dav_ray.diffusion.pipelines.stable_diffusion",
        "diffusers:StableDiffusionPipeline",
        "diffusers:DDIMScheduler",
    )
    readers = (Reader(),)
    layout = Layout(
        name="StableDiffusionPipeline",
        words="a StableDiffusionPipeline (SD 1.x, 2.x)",
        policy="unet",
        networks=("unet", "vae", "text_encoder"),
        parts=("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
        others=frozenset(
            {"text_encoder_2", "transformer", "controlnet", "image_encoder", "prior", "low_res_scheduler"}
        ),
    )

    def mistakes(self, config: Config, path: str) -> Iterator[str]:
        yield from super().mistakes(config, path)
        yield from useless(config.model, ("max_sequence_length",), self.layout)
        try:
            multiple = enlarged(self.part(config, "vae"))
        except ValueError:
            multiple = USUAL_SCALE
        yield from size_mistakes(config.model, multiple)

    def schedule_mistakes(self, key: str, folder: Path, config: Config) -> Iterator[str]:
        return ddim_mistakes(key, folder, config.search.steps)

    def passes(self, config: Config) -> int:
        """As the pipeline does: guidance up to 1 is none."""
        return 1 if config.search.guidance_scale <= 1 else 2

    def shape(self, config: Config) -> tuple[int, int]:
        folder = Path(model_path(config.model.path))
        if config.model.height and config.model.width:
            return config.model.height, config.model.width
        latents, vae = (json_if_there(folder / part / "config.json") for part in ("unet", "vae"))
        size, scale = latents.get("sample_size"), 2 ** (len(vae.get("block_out_channels", [0] * 4)) - 1)
        if isinstance(size, list) and len(size) == 2:
            return size[0] * scale, size[1] * scale
        return (size * scale, size * scale) if isinstance(size, int) else (USUAL_SIDE, USUAL_SIDE)

    def tokens(self, config: Config) -> int:
        return self.part(config, "text_encoder").get("max_position_embeddings", TEXT_LENGTH)

    def build(self, config: Config, held: Runtime) -> Adaptable:
        from dav_ray.diffusion.device import quiet
        from dav_ray.diffusion.pipelines.stable_diffusion import Parts, StableDiffusion

        quiet()
        model = config.model
        return StableDiffusion(
            Parts.load(**self.files(config), draft_vae=model.draft_vae),
            height=model.height,
            width=model.width,
            **latent_options(config, held),
        )

    def pretrained(self, config: Config) -> Any:
        """A `StableDiffusionPipeline`."""
        from dav_ray.diffusion.pipelines.files import load_pipeline

        return load_pipeline(**self.files(config))


def ddim_mistakes(key: str, folder: Path, steps: int) -> Iterator[str]:
    """Why a pipeline's scheduler can't be turned into DDIM of this many steps; key: what the lines are about."""
    try:
        scheduler = read_part(folder / "scheduler" / "scheduler_config.json")
    except ValueError as error:
        yield f"{key}: {error}"
        return
    yield from (f"{key}: can't be searched: {mistake}" for mistake in mistakes(scheduler))
    if str(scheduler.get("_class_name", "no scheduler")) not in CONVERTIBLE:
        return
    trained = scheduler.get("num_train_timesteps", 1000)
    if type(trained) is not int or trained < 2:
        yield f"{key}: can't be searched: num_train_timesteps {show(trained)}; allowed: a whole number >= 2"
        return
    # with an offset, leading timesteps end at (steps - 1) * stride + offset, which has to stay below `trained`
    most = trained - 1 if scheduler.get("steps_offset", 0) and steps == trained else trained
    if steps > most:
        yield f"search.steps = {steps}: out of range; allowed: 2 to {most}, the model's training steps"
