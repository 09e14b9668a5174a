"""What all diffusers pipelines over latents share as a `Diffusion`: adapters, precision, guidance, decoding, files.

A pipeline is one file with a subclass of `LatentModel`: how a prompt is embedded, how the network is called, and what
its decoder takes.
"""

from __future__ import annotations

import inspect
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dav_ray.diffusion.base import Room, joined
from dav_ray.diffusion.gaussian import GaussianSteps
from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.pipelines.encoders import ENCODER, MOST_EMBEDDED, drop
from dav_ray.diffusion.pipelines.files import LORA, WEIGHTS, save_lora
from dav_ray.diffusion.pipelines.network_steps import NetworkSteps

Embedding = Mapping[str, Tensor]  # of one prompt, without a dimension for the batch


class LatentModel(NetworkSteps):
    """`Diffusion` over latents [B, *event] of a pipeline that diffusers loads. Its weights are frozen."""

    pipeline: ClassVar[str]  # the class's name in diffusers
    component: ClassVar[str] = "transformer"  # the network's name in the pipeline

    def __init__(
        self,
        parts: Any,
        schedule: GaussianSteps,
        *,
        guidance_scale: float = 1.0,
        negative_prompt: str | None = None,
        max_sequence_length: int | None = None,
        micro_batch: int = 128,
        decode_batch: int = 128,
        device: str | torch.device = "cpu",
        autocast: str = "float32",
        channels_last: bool = False,
        draft_above: float = 1.0,
    ) -> None:
        """parts: the pipeline, or an object with its parts; maybe a `draft_vae`, which decodes guesses at steps t >
        draft_above T."""
        network = getattr(parts, self.component)
        super().__init__(network, device=device, autocast=autocast)
        self.steps, self.schedule = len(schedule.timesteps) - 1, schedule
        self._parts, self._dtype = parts, network.dtype
        self._guidance, self._negative = guidance_scale, negative_prompt
        self._longest = max_sequence_length
        self.rooms = self._room, self._decoding = Room(micro_batch), Room(decode_batch, name="decoder")
        self._embeddings: dict[str | None, Embedding] = {}  # None: without the prompt
        self._closed = False  # no others follow
        self._draft_above = draft_above * self.steps
        for module in self._modules():
            module.requires_grad_(False).eval().to(self._device)
            if channels_last:
                module.to(memory_format=torch.channels_last)
        if _overflows(parts.vae):
            parts.vae.float()

    # -- what a pipeline says of itself ---------------------------------------------------------------------------

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one state."""

    @abstractmethod
    def embed(self, prompt: str) -> Embedding:
        """What the network is told of a prompt."""

    @abstractmethod
    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        """One pass at states x [B, *event] of the network's type and steps t [B], told `embedded` with a dimension for
        the batch -> [B, *event], as `schedule.prediction` reads it."""

    def embed_none(self, negative_prompt: str | None) -> Embedding:
        """What it is told in the pass without the prompt, which guidance leads away from."""
        return self.embed(negative_prompt or "")

    def longest(self) -> dict[str, int]:
        """What the pipeline's `encode_prompt` is told of the number of tokens; nothing: as many as it takes itself."""
        return {} if self._longest is None else {"max_sequence_length": self._longest}

    def unpacked(self, x_0: Tensor) -> Tensor:
        """The states as the latents [B, C, H, W] that they stand for, in the network's scale."""
        return x_0

    def latents(self, x_0: Tensor) -> Tensor:
        """What the VAE decodes, [B, C, H, W]."""
        return _in_scale_of(self._parts.vae, self.unpacked(x_0))

    def pixels(self, vae: Any, latents: Tensor) -> Tensor:
        """[B, 3, H, W], about in [-1, 1]."""
        return vae.decode(latents).sample

    def guided(self, free: Tensor, conditional: Tensor) -> Tensor:
        """Classifier-free guidance: e_0 + s (e_c - e_0)."""
        return free + self._guidance * (conditional - free)

    @property
    def guides(self) -> bool:
        """Whether an evaluation takes two passes."""
        return self._guidance > 1

    # -- what is trained ------------------------------------------------------------------------------------------

    def add_adapters(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """LoRA adapters, zero at the start: every worker builds the same ones from the seed."""
        from peft import LoraConfig

        self.adapted = True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # peft types the scale as int, and multiplies by it: any float will do
            scale: Any = alpha
            self._network.add_adapter(
                LoraConfig(r=rank, lora_alpha=scale, target_modules=list(targets), init_lora_weights="gaussian")
            )
        for parameter in self._network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # adapters stay in full precision beside half weights
        self._network.to(self._device)

    def compile(self) -> None:
        """The network and the decoders, which have the larger part of the work; decoders in the channels-last
        format."""
        super().compile()
        for vae in (self._parts.vae, self._draft):
            if vae is not None:
                vae.to(memory_format=torch.channels_last)
                vae.decoder = torch.compile(vae.decoder)

    def release(self, prompts: Sequence[str], *, decodes: bool = True) -> None:
        """Text encoders go once the prompts are embedded, unless the embeddings would take more memory, or be too many;
        decoders go where nothing is decoded."""
        texts: list[str | None] = [*dict.fromkeys(prompts), *([None] if self.guides else [])]
        encoders = [part for name, part in self._named().items() if name.startswith(ENCODER)]
        if prompts and encoders and len(texts) <= MOST_EMBEDDED and self._worthwhile(texts, encoders):
            for text in texts:
                self._embedded(text)
            self._closed = True
            drop(encoders)
        if not decodes:
            drop([vae for vae in (self._parts.vae, self._draft) if vae is not None])

    def _worthwhile(self, texts: Sequence[str | None], encoders: Sequence[Any]) -> bool:
        """Whether the embeddings of all texts take less memory than the encoders."""
        one = sum(part.nbytes for part in self._embedded(texts[0]).values())
        return one * len(texts) < sum(p.nbytes for encoder in encoders for p in encoder.parameters())

    @property
    def policy_file(self) -> str:
        return LORA if self.adapted else f"{self.component}/{WEIGHTS}"

    @property
    def policy_prefix(self) -> str:
        return f"{self.component}." if self.adapted else ""

    def policy_state(self) -> dict[str, Tensor]:
        from peft.utils import get_peft_model_state_dict

        return get_peft_model_state_dict(self._network) if self.adapted else self._network.state_dict()

    def load_policy_state(self, state: dict[str, Tensor]) -> None:
        from peft.utils import set_peft_model_state_dict

        if self.adapted:
            set_peft_model_state_dict(self._network, state)
            self._merge_again()
        else:
            self._network.load_state_dict(state)

    def write_policy(self, folder: Path) -> None:
        """Adapters for the pipeline's `load_lora_weights`, or the network for `from_pretrained`."""
        if self.adapted:
            state = {name: tensor.detach().float().cpu() for name, tensor in self.policy_state().items()}
            save_lora(folder, self.pipeline, self.component, self._network, state)
        else:
            # one file, whatever its size: `policy_file`
            self._network.save_pretrained(folder / self.component, max_shard_size=sys.maxsize)

    # -- calls ----------------------------------------------------------------------------------------------------

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        return rng.normal(self.event_shape).to(self._device)

    def decode(self, x_0: Tensor, conditions: Sequence[str], t: int = 0) -> Tensor:
        """Images [B, 3, H, W] float32 in [0, 1]."""
        draft = self._draft if t > self._draft_above else None
        vae = draft or self._parts.vae
        # a draft has a scale of its own
        latents = (_in_scale_of(draft, self.unpacked(x_0)) if draft else self.latents(x_0)).to(vae.dtype)

        def images(rows: slice) -> Tensor:
            return (self.pixels(vae, latents[rows]).float() / 2 + 0.5).clamp(0, 1)

        if torch.is_grad_enabled():
            return torch.cat([images(rows) for rows in self._decoding.calls(len(x_0))])
        return joined(len(x_0), self._decoding.each(len(x_0), images))

    def _evaluate(self, network: Any, x: Tensor, t: Tensor, conditions: Sequence[str]) -> Tensor:
        """The guided output [B, *event] float32; one pass where guidance is off (as the pipelines do)."""
        dtype = torch.float32 if self._exact else self._dtype
        found = [self._embedded(condition) for condition in conditions]
        if self.guides:
            x, t = torch.cat([x, x]), torch.cat([t, t])
            found = [self._embedded(None)] * len(conditions) + found
        with self._precision():
            output = self.output(network, x.to(dtype), t, self._batch(found, dtype)).float()
        return self.guided(*output.chunk(2)) if self.guides else output

    def _batch(self, found: Sequence[Embedding], dtype: torch.dtype) -> Embedding:
        """With a dimension for the batch; numbers in the network's type."""
        stacked = {name: torch.stack([one[name] for one in found]) for name in found[0]}
        return {name: part.to(dtype) if part.is_floating_point() else part for name, part in stacked.items()}

    @torch.no_grad()
    def _embedded(self, prompt: str | None) -> Embedding:
        """Computed once per text."""
        if prompt not in self._embeddings:
            if self._closed:
                raise ValueError(f"{prompt!r}: is none of the prompts for which the text encoders were asked (release)")
            self._embeddings[prompt] = self.embed_none(self._negative) if prompt is None else self.embed(prompt)
        return self._embeddings[prompt]

    @property
    def _draft(self) -> Any:
        return getattr(self._parts, "draft_vae", None)

    def _modules(self) -> list[Any]:
        """All networks of the pipeline."""
        return list({id(part): part for part in self._named().values()}.values())

    def _named(self) -> dict[str, Any]:
        """The same by their names in the pipeline."""
        parts = {**(getattr(self._parts, "components", None) or vars(self._parts)), "draft_vae": self._draft}
        return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}


def usual(pipe: Any, argument: str) -> Any:
    """What the pipeline's call takes for an argument that it is not given."""
    return inspect.signature(type(pipe).__call__).parameters[argument].default


def _in_scale_of(vae: Any, latents: Tensor) -> Tensor:
    """The network's latents as this VAE's decoder takes them."""
    return latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)


def _overflows(vae: Any) -> bool:
    """Whether the decoder has half weights and its own files say that it needs a wider range (SDXL's does)."""
    said = vae.config.get("force_upcast") and "force_upcast" not in vae.config.get("_use_default_values", ())
    return bool(said) and vae.dtype == torch.float16
