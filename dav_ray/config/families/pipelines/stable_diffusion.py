"""The family of `StableDiffusionPipeline`: what is known of one before torch is imported, and how it is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dav_ray.config.families.base import Flops, Runtime
from dav_ray.config.families.pipeline import Pipeline, latent_options
from dav_ray.config.families.pipeline_checks import Layout, read_part
from dav_ray.config.families.prompt_lengths import Reader
from dav_ray.config.families.published import TEXT_LENGTH, published
from dav_ray.config.families.sizes import Held, Sizes, json_if_there
from dav_ray.config.families.unet_flops import decoder_flops, unet_flops
from dav_ray.config.families.unet_memory import decoder_elements, size_of, unet_elements, unet_training
from dav_ray.config.model_path import model_path
from dav_ray.diffusion.pipelines.schedulers import CONVERTIBLE, mistakes
from dav_ray.redact import show

if TYPE_CHECKING:
    from dav_ray.config.schema import Config
    from dav_ray.diffusion.base import Adaptable

USUAL_SIDE = 256  # pixels, where no file tells


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

    def activations(self, sizes: Sizes, *, back: bool) -> tuple[float, float]:
        unet, vae = sizes.configs["unet"], sizes.configs["vae"]
        network = (
            unet_training(unet, half=False, autocast=False, checkpointing=False).narrow if back else unet_elements(unet)
        )
        return network, decoder_elements(unet, vae, back)

    def training(self, sizes: Sizes, *, half: bool, autocast: bool, checkpointing: bool) -> Held:
        return unet_training(sizes.configs["unet"], half=half, autocast=autocast, checkpointing=checkpointing)

    def flops(self, config: Config) -> Flops | None:
        """Decoding is not known where guesses have a decoder of their own."""
        unet, vae, text = (self._part(config, name) for name in ("unet", "vae", "text_encoder"))
        try:
            passes = unet_flops(unet, text.get("max_position_embeddings", TEXT_LENGTH))
            return Flops(passes, None if config.model.draft_vae else decoder_flops(unet, vae))
        except (KeyError, TypeError, ValueError):
            return None

    def sample_bytes(self, config: Config) -> int | None:
        """Three colours as float32."""
        unet, vae = (self._part(config, name) for name in ("unet", "vae"))
        try:
            (height, width), scale = size_of(unet), 2 ** (len(vae["block_out_channels"]) - 1)
            return 4 * 3 * height * width * scale**2
        except (KeyError, TypeError, ValueError):
            return None

    def _part(self, config: Config, name: str) -> Mapping[str, Any]:
        """The configuration of one of the networks; empty where it is not at hand."""
        path = model_path(config.model.path)
        return json_if_there(Path(path) / name / "config.json") or published(path, name)

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
