"""Any `StableDiffusionPipeline` with a DDIM-type scheduler as a `Diffusion`: guidance, precision, the UNet's policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.base import Prediction, Room, joined
from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.pipelines.ddim import ContinuousStates, DDIMSchedule
from dav_ray.diffusion.pipelines.files import LORA, UNET, load_draft_vae, load_pipeline, save_lora
from dav_ray.diffusion.policy_network import PolicyNetwork


@dataclass(frozen=True)
class Parts:
    """The parts of a pipeline that sampling needs, weights frozen."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any  # DDIMScheduler
    draft_vae: Any = None  # AutoencoderTiny

    @classmethod
    def load(cls, path: str, *, draft_vae: str | None = None, dtype: str = "float32", **options: Any) -> Parts:
        """From folders or hub ids; options as in `load_pipeline`."""
        pipe = load_pipeline(path, dtype=dtype, **options)
        draft = load_draft_vae(draft_vae, pipe.vae, dtype) if draft_vae else None
        parts = cls(pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.scheduler, draft)
        for module in parts.networks():
            module.requires_grad_(False).eval()
        return parts

    def networks(self) -> list[Any]:
        return [part for part in (self.unet, self.vae, self.text_encoder, self.draft_vae) if part is not None]


class StableDiffusion(ContinuousStates, PolicyNetwork):
    """`Diffusion` over latents [B, C, H, W]."""

    timeless = False

    def __init__(
        self,
        parts: Parts,
        *,
        steps: int,
        eta: float = 1.0,
        guidance_scale: float = 1.0,
        micro_batch: int = 128,
        decode_batch: int = 128,
        device: str | torch.device = "cpu",
        autocast: str = "float32",
        channels_last: bool = False,
        draft_above: float = 1.0,
    ) -> None:
        """draft_above: guesses at steps t > draft_above T are decoded by the parts' draft VAE."""
        super().__init__(parts.unet, device=device, autocast=autocast)
        self.steps = steps
        self.schedule = DDIMSchedule(parts.scheduler, steps, eta)
        self._parts = parts
        self._dtype = parts.unet.dtype
        self._guidance = guidance_scale
        self.rooms = self._room, self._decoding = Room(micro_batch), Room(decode_batch, name="decoder")
        self._embeddings: dict[str, Tensor] = {}
        self._draft_above = draft_above * steps
        for module in parts.networks():
            module.to(self._device)
            if channels_last:
                module.to(memory_format=torch.channels_last)
        if _overflows(parts.vae):
            parts.vae.float()

    @property
    def event_shape(self) -> tuple[int, int, int]:
        size = self._network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self._network.config.in_channels, height, width

    def add_adapters(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """LoRA adapters, zero at the start: every worker builds the same ones from the seed."""
        from peft import LoraConfig

        unet = self._network
        self.adapted = True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # peft types the scale as int, and multiplies by it: any float will do
            scale: Any = alpha
            unet.add_adapter(
                LoraConfig(r=rank, lora_alpha=scale, target_modules=list(targets), init_lora_weights="gaussian")
            )
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # adapters stay in full precision beside half weights
        unet.to(self._device)

    def train_all_weights(self) -> None:
        super().train_all_weights()
        self._network.float()
        self._frozen.float()
        self._dtype = torch.float32

    @property
    def policy_file(self) -> str:
        return LORA if self.adapted else UNET

    @property
    def policy_prefix(self) -> str:
        return "unet." if self.adapted else ""

    def policy_state(self) -> dict[str, Tensor]:
        from peft.utils import get_peft_model_state_dict

        return get_peft_model_state_dict(self._network) if self.adapted else self._network.state_dict()

    def load_policy_state(self, state: dict[str, Tensor]) -> None:
        from peft.utils import set_peft_model_state_dict

        if self.adapted:
            set_peft_model_state_dict(self._network, state)
        else:
            self._network.load_state_dict(state)

    def write_policy(self, folder: Path) -> None:
        """Adapters for `load_lora_weights`, or the UNet for `from_pretrained`."""
        if self.adapted:
            state = {name: tensor.detach().float().cpu() for name, tensor in self.policy_state().items()}
            save_lora(folder, self._network, state)
        else:
            self._network.save_pretrained(folder / "unet")

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        return rng.normal(self.event_shape).to(self._device) * self._parts.scheduler.init_noise_sigma

    def predict(
        self, x_t: Tensor, t: int | Tensor, conditions: Sequence[str], *, reference: bool = False
    ) -> Prediction:
        x_t = x_t.to(self._device)
        steps = (t if isinstance(t, Tensor) else torch.full((len(x_t),), t)).to(self._device)
        output = self._evaluated(
            len(x_t),
            self._room,
            lambda unet, rows: self._guided(unet, x_t[rows], steps[rows], conditions[rows]),
            reference=reference,
        )
        kernel, x0_hat = self.schedule.kernel(x_t, output, steps)
        return Prediction(kernel, x0_hat)

    def move(self, prediction: Prediction, t: int) -> Prediction:
        raise TypeError("what a UNet predicts depends on the step")

    def decode(self, x_0: Tensor, conditions: Sequence[str], t: int = 0) -> Tensor:
        """Images [B, 3, H, W] float32 in [0, 1]."""
        draft = self._parts.draft_vae if t > self._draft_above else None
        vae = draft or self._parts.vae
        latents = (x_0 / vae.config.scaling_factor).to(vae.dtype)

        def images(rows: slice) -> Tensor:
            return (vae.decode(latents[rows]).sample.float() / 2 + 0.5).clamp(0, 1)

        if torch.is_grad_enabled():
            return torch.cat([images(rows) for rows in self._decoding.calls(len(x_0))])
        return joined(len(x_0), self._decoding.each(len(x_0), images))

    def _guided(self, unet: Any, x: Tensor, t: Tensor, conditions: Sequence[str]) -> Tensor:
        """The guided output [B, C, H, W] float32: e_0 + s (e_c - e_0), one pass where s <= 1 (as the pipeline does)."""
        timesteps = self.schedule.timesteps.to(self._device)[t]
        embedded = torch.stack([self._embed(c) for c in conditions])
        guided = self._guidance > 1
        if guided:
            x, timesteps = torch.cat([x, x]), torch.cat([timesteps, timesteps])
            embedded = torch.cat([self._embed("").expand_as(embedded), embedded])
        with self._precision():
            output = unet(x.to(self._dtype), timesteps, encoder_hidden_states=embedded).sample.float()
        if not guided:
            return output
        free, conditional = output.chunk(2)
        return free + self._guidance * (conditional - free)

    @torch.no_grad()
    def _embed(self, condition: str) -> Tensor:
        """Text embedding [tokens, D], computed once per text."""
        if condition not in self._embeddings:
            tokenizer, encoder = self._parts.tokenizer, self._parts.text_encoder
            ids = tokenizer(
                condition,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            self._embeddings[condition] = encoder(ids.to(self._device))[0][0].to(self._dtype)
        return self._embeddings[condition]


def _overflows(vae: Any) -> bool:
    """Whether the decoder has half weights and its own files say that it needs a wider range (SDXL's does)."""
    said = vae.config.get("force_upcast") and "force_upcast" not in vae.config.get("_use_default_values", ())
    return bool(said) and vae.dtype == torch.float16
