"""The family of masked discrete diffusion: what is known of a model before torch is imported, and how it is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dav_ray.config.families.alphabet import alphabet_of, own_alphabet
from dav_ray.config.families.base import Family, Flops, Runtime
from dav_ray.config.families.masked_checks import LORA_TARGETS, check_weights, masked_mistakes
from dav_ray.config.families.sizes import Sizes, header, json_if_there, read_json
from dav_ray.config.model_path import model_path
from dav_ray.config.networks.held import Held
from dav_ray.diffusion.masked.config_file import BENCHMARK_LENGTH, CONFIG, WEIGHTS

if TYPE_CHECKING:
    from dav_ray.config.schema import Config
    from dav_ray.diffusion.masked.model import MaskedDiffusion

SAMPLING, TRAINING = 6, 5  # elements per letter and hidden unit; training: for each convolution


class Masked(Family):
    """MDLM over letters, with infilling and classes as conditions."""

    samples = "sequences"
    unused = (
        *("channels_last", "draft_vae", "pipeline", "height", "width"),
        *("negative_prompt", "max_sequence_length", "long_prompts"),
    )
    conditional = False
    lora_targets = LORA_TARGETS
    completes = True
    discrete = True
    whole_policy = True
    imports = ("dav_ray.diffusion.masked.model", "dav_ray.diffusion.masked.elbo")
    start = "usually 5 s, as they import torch"

    def own_values(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """The alphabet, by its name where it has one."""
        if section.get("alphabet") is not None:
            return {}
        named = own_alphabet(section.get("path"))
        return {} if named is None else {"alphabet": named}

    def mistakes(self, config: Config, path: str) -> Iterator[str]:
        return masked_mistakes(config, path)

    def check_weights(self, config: Config, path: str) -> None:
        check_weights(config, path)

    def passes(self, config: Config) -> int:
        """Two where a class is guided against none."""
        return 2 if config.search.guidance_scale != 1 and any("class=" in prompt for prompt in config.prompts) else 1

    def shape(self, config: Config) -> tuple[int, int]:
        letters = len(alphabet_of(config.model).letters)
        if config.model.length is not None:
            return letters, config.model.length
        length = json_if_there(Path(model_path(config.model.path)) / CONFIG).get("length")
        return letters, length if isinstance(length, int) else BENCHMARK_LENGTH

    def sizes(self, config: Config, folder: Path) -> Sizes:
        if not folder.is_dir():
            raise ValueError("a .ckpt says nothing before it is loaded")
        return Sizes({"network": header(folder / WEIGHTS)}, {"network": read_json(folder / CONFIG)}, "network")

    def activations(self, sizes: Sizes, *, back: bool) -> tuple[float, float]:
        """Of a CNN of hidden size h over L letters: 6 L h sampling, 5 L h for each convolution training."""
        convolutions = [shape for name, shape in sizes.shapes["network"].items() if name.startswith("convs.")]
        kernels = [shape for shape in convolutions if len(shape) == 3] or [(1, 1, 1)]
        width = sizes.configs["network"]["length"] * max(shape[0] for shape in kernels)
        return width * (TRAINING * len(kernels) if back else SAMPLING), 0.0

    def training(self, sizes: Sizes, *, half: bool, autocast: bool, checkpointing: bool) -> Held:
        """With checkpointing L h for each convolution, and one of them computed again."""
        whole, _ = self.activations(sizes, back=True)
        layers = sum(name.startswith("convs.") and len(shape) == 3 for name, shape in sizes.shapes["network"].items())
        return Held(whole / TRAINING + whole / max(1, layers) if checkpointing else whole)

    def flops(self, config: Config) -> Flops | None:
        """Every convolution goes over all letters; nothing is decoded."""
        try:
            shapes = self.sizes(config, Path(model_path(config.model.path))).shapes["network"].values()
        except (OSError, ValueError):
            return None
        _, length = self.shape(config)
        return Flops(2.0 * length * sum(prod(shape) for shape in shapes if len(shape) == 3), 0.0)

    def sample_bytes(self, config: Config) -> int:
        """Tokens as int64."""
        return 8 * self.shape(config)[1]

    def build(self, config: Config, held: Runtime) -> MaskedDiffusion:
        return self._whole(config, micro_batch=held.micro_batch, device=held.device, autocast=held.autocast)

    def pretrained(self, config: Config) -> MaskedDiffusion:
        return self._whole(config)

    def aligned(self, config: Config, folder: Path) -> MaskedDiffusion:
        from dav_ray.diffusion.masked.model import MaskedDiffusion

        return MaskedDiffusion.from_checkpoint(folder, alphabet=config.model.alphabet, **_sampling(config))

    def _whole(self, config: Config, **options: Any) -> MaskedDiffusion:
        from dav_ray.diffusion.masked.model import MaskedDiffusion

        model = config.model
        return MaskedDiffusion.from_checkpoint(
            model_path(model.path),
            model.weights,
            alphabet=model.alphabet,
            length=model.length,
            **_sampling(config),
            **options,
        )


def _sampling(config: Config) -> dict[str, Any]:
    return {"steps": config.search.steps, "guidance_scale": config.search.guidance_scale}
