"""What a pipeline's configurations tell of its networks: their sizes, their work, what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dav_ray.config.families.base import Family, Flops
from dav_ray.config.families.pipeline_checks import Layout
from dav_ray.config.families.published import TEXT_LENGTH, published
from dav_ray.config.families.sizes import Sizes, json_if_there, network, read_json
from dav_ray.config.families.unet_memory import decoder_elements, size_of, unet_elements, unet_training
from dav_ray.config.model_path import model_path
from dav_ray.config.networks import held
from dav_ray.config.networks.counted import Counted, Inputs
from dav_ray.config.networks.held import Held
from dav_ray.config.networks.table import counted

if TYPE_CHECKING:
    from dav_ray.config.schema import Config

UNET, KL = "UNet2DConditionModel", ("AutoencoderKL", "AutoencoderKLFlux2")


class Described(Family):
    """A pipeline whose parts have a config.json each, in its folder or among the published ones.

    side: of the images in pixels, where no file tells; text: tokens of a prompt that the network is told of; where
    these follow from the prompt, those of some fifty words.
    """

    layout: ClassVar[Layout]
    side: ClassVar[int] = 512
    text: ClassVar[int] = TEXT_LENGTH
    optional: ClassVar[tuple[str, ...]] = ()  # networks that a pipeline may have besides those of its layout

    def part(self, config: Config, name: str) -> Mapping[str, Any]:
        """The configuration of one of the parts; empty where it is not at hand."""
        path = model_path(config.model.path)
        return json_if_there(Path(path) / name / "config.json") or published(path, name)

    def latent_size(self, config: Config) -> tuple[int, int]:
        """Height and width of the VAE's latents. ValueError where no file tells."""
        network, vae = self.part(config, self.layout.policy), self.part(config, "vae")
        scale = enlarged(vae)
        if config.model.height and config.model.width:
            return config.model.height // scale, config.model.width // scale
        return size_of(network) if "sample_size" in network else (self.side // scale, self.side // scale)

    def sizes(self, config: Config, folder: Path) -> Sizes:
        names = self._networks(folder)
        shapes = {name: network(folder / name, config.model.variant) for name in names}
        return self._sizes(config, shapes, {name: read_json(folder / name / "config.json") for name in names})

    def described(self, config: Config) -> Sizes:
        """The same from configurations alone. ValueError, in words, where they do not tell."""
        names = [*self.layout.networks, *(name for name in self.optional if self.part(config, name))]
        configs = {name: self.part(config, name) for name in names}
        shapes = {name: counted(one, Inputs(0, 0)).shapes for name, one in configs.items()}
        return self._sizes(config, shapes, configs)

    def _networks(self, folder: Path) -> list[str]:
        return [*self.layout.networks, *(name for name in self.optional if (folder / name).is_dir())]

    def _sizes(self, config: Config, shapes: Mapping[str, Any], configs: dict[str, Mapping[str, Any]]) -> Sizes:
        """With the size of the latents that the recipe asks for as `sample_size` of the policy's network."""
        policy = self.layout.policy
        if "vae" in configs:
            configs[policy] = {**configs[policy], "sample_size": list(self.latent_size(config))}
        return Sizes(shapes, configs, policy)

    def activations(self, sizes: Sizes, *, back: bool) -> tuple[float, float]:
        policy, vae = sizes.configs[self.layout.policy], sizes.configs.get("vae", {})
        if back:
            elements = self.training(sizes, half=False, autocast=False, checkpointing=False).narrow
        else:
            elements = unet_elements(policy) if _unet(policy) else held.sampling(self._counted(policy))
        return elements, _decoding(policy, vae, back) if vae else 0.0

    def training(self, sizes: Sizes, *, half: bool, autocast: bool, checkpointing: bool) -> Held:
        policy = sizes.configs[self.layout.policy]
        words = {"half": half, "autocast": autocast, "checkpointing": checkpointing}
        if _unet(policy) and not _deep(policy):
            return unet_training(policy, **words)
        return held.training(policy.get("_class_name", UNET), self._counted(policy), **words)

    def flops(self, config: Config) -> Flops | None:
        """Decoding is not known where guesses have a decoder of their own."""
        try:
            at = Inputs(*self.latent_size(config), self.tokens(config))
            passes = counted(self.part(config, self.layout.policy), at).flops
            decoder = None if config.model.draft_vae else counted(self.part(config, "vae"), at).flops
            return Flops(passes, decoder)
        except (KeyError, TypeError, ValueError):
            return None

    def sample_bytes(self, config: Config) -> int | None:
        """Three colours as float32."""
        try:
            (height, width), scale = self.latent_size(config), enlarged(self.part(config, "vae"))
            return 4 * 3 * height * width * scale**2
        except (KeyError, TypeError, ValueError):
            return None

    def tokens(self, config: Config) -> int:
        """Of a prompt, as the network is told of it."""
        return self.text

    def _counted(self, policy: Mapping[str, Any]) -> Counted:
        return counted(policy, Inputs(*size_of(policy), self.text))


def enlarged(vae: Mapping[str, Any]) -> int:
    """How many times as high as its latents an image is. ValueError where the VAE's configuration does not tell."""
    levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or vae.get("dim_mult")
    if not levels:
        raise ValueError("nothing is known of the VAE's levels")
    return 2 ** (len(levels) - 1)


def _decoding(policy: Mapping[str, Any], vae: Mapping[str, Any], back: bool) -> float:
    """Elements that are held per decoded sample."""
    name = vae.get("_class_name", KL[0])
    if name in KL:
        return decoder_elements(policy, vae, back)
    return held.decoding(name, counted(vae, Inputs(*size_of(policy))), back=back)


def _unet(policy: Mapping[str, Any]) -> bool:
    return policy.get("_class_name", UNET) == UNET


def _deep(unet: Mapping[str, Any]) -> bool:
    """Whether a layer has several transformer blocks."""
    blocks = unet.get("transformer_layers_per_block", 1)
    return blocks > 1 if isinstance(blocks, int) else max(blocks) > 1
