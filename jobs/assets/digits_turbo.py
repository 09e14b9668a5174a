"""Distil the shipped `digits` to four steps: `digits_turbo`, a latent consistency model (arXiv 2310.04378).

    python jobs/assets digits_turbo --out dav_ray/assets/digits_turbo

The student is the UNet of `digits`, which is told the guidance scale as well, and says v in place of epsilon: at the
noisiest step that is nearly x_0, where epsilon would have to be right to a hundredth. Autoencoder, tokenizer and text
encoder are those of `digits`. About ten minutes on one CPU core. The same seed and thread count give the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dav_ray.rewards.digits import ASSET as DIGITS
from dav_ray.rewards.digits import DIGIT_NAMES
from jobs.assets.digits import COPIES, EMPTY, Progress, encode
from jobs.assets.digits_data import real_digits
from jobs.assets.digits_job import run

TRAINING_STEPS = 1200
STEPS = 4  # of the distilled model
SOLVER_STEPS = 20  # of the teacher, from noise to image
WIDTH = 32  # of the embedding of the guidance scale
GUIDANCE = (1.0, 3.0)  # the scales that it learns
BATCH = 128


def build_student(teacher: StableDiffusionPipeline) -> LatentConsistencyModelPipeline:
    """The teacher's parts, and a UNet with its weights, that is told the guidance scale and does not heed it yet."""
    unet = UNet2DConditionModel.from_config({**teacher.unet.config, "time_cond_proj_dim": WIDTH})
    unet.load_state_dict(teacher.unet.state_dict(), strict=False)
    nn.init.zeros_(unet.time_embedding.cond_proj.weight)
    scheduler = LCMScheduler.from_config(
        teacher.scheduler.config, prediction_type="v_prediction", original_inference_steps=SOLVER_STEPS
    )
    return LatentConsistencyModelPipeline(
        vae=teacher.vae, text_encoder=teacher.text_encoder, tokenizer=teacher.tokenizer, unet=unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


class Levels:
    """x_t = alpha_t x_0 + sigma_t eps, at the times between which the teacher steps."""

    def __init__(self, scheduler: LCMScheduler) -> None:
        bars = scheduler.alphas_cumprod
        self._alpha, self._sigma = bars.sqrt(), (1 - bars).sqrt()
        stride = len(bars) // SOLVER_STEPS
        self.times = torch.arange(1, SOLVER_STEPS + 1) * stride - 1  # the scheduler's own
        self.before = (self.times - stride).clamp(min=0)
        self._scalings = [scheduler.get_scalings_for_boundary_condition_discrete(t) for t in range(len(bars))]

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma [B, 1, 1, 1] of times [B]."""
        return self._alpha[t].reshape(-1, 1, 1, 1), self._sigma[t].reshape(-1, 1, 1, 1)

    def noised(self, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        alpha, sigma = self.at(t)
        return alpha * clean + sigma * noise

    def consistent(self, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """f(x_t, t) = c_skip x_t + c_out x0_hat, x_t itself at time 0."""
        alpha, sigma = self.at(t)
        skip, out = torch.tensor([self._scalings[time] for time in t.tolist()]).reshape(-1, 2, 1, 1, 1).unbind(1)
        return skip * x + out * (alpha * x - sigma * v)


@dataclass(frozen=True)
class Teacher:
    """The pretrained UNet, guided, and its DDIM step."""

    unet: UNet2DConditionModel
    texts: Tensor  # [11, tokens, D]: the ten names and the empty prompt
    levels: Levels

    @torch.no_grad()
    def step(self, x: Tensor, t: Tensor, then: Tensor, prompts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """x0_hat, and the state at the times `then`; guided by scale [B]."""
        texts = torch.cat([self.texts[EMPTY].expand(len(x), -1, -1), self.texts[prompts]])
        free, told = self.unet(torch.cat([x, x]), torch.cat([t, t]), texts).sample.chunk(2)
        eps = free + scale.reshape(-1, 1, 1, 1) * (told - free)
        alpha, sigma = self.levels.at(t)
        x0 = (x - sigma * eps) / alpha
        return x0, self.levels.noised(x0, then, eps)


def distil(
    pipe: LatentConsistencyModelPipeline,
    teacher: Teacher,
    latents: Tensor,
    labels: Tensor,
    steps: int,
    generator: Generator,
    rate: float,
) -> list[float]:
    """Train the student, leave its averaged weights in `pipe`; the losses.

    In the first quarter it learns to say the teacher's x0_hat. From then on f(x_t, t) is held to f(x_t', t') of the
    state that the teacher's step leads to, with the gradient of the former alone."""
    levels, student = teacher.levels, pipe.unet.train()
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(min(0.998, 1 - 10 / (steps + 10))))
    progress = Progress("turbo", list(student.parameters()), steps, rate)
    for step in range(steps):
        picked = torch.randint(len(labels), (BATCH,), generator=generator)
        index = torch.randint(SOLVER_STEPS, (BATCH,), generator=generator)
        scale = torch.rand(BATCH, generator=generator) * (GUIDANCE[1] - GUIDANCE[0]) + GUIDANCE[0]
        clean, prompts = latents[picked], labels[picked]
        t, then = levels.times[index], levels.before[index]
        x = levels.noised(clean, t, torch.randn(clean.shape, generator=generator))
        told = pipe.get_guidance_scale_embedding(scale - 1, embedding_dim=WIDTH)
        texts = teacher.texts[prompts]
        target, x_then = teacher.step(x, t, then, prompts, scale)
        if step >= steps // 4:
            with torch.no_grad():
                v = student(x_then, then, texts, timestep_cond=told).sample
                target = levels.consistent(x_then, then, v)
        said = levels.consistent(x, t, student(x, t, texts, timestep_cond=told).sample)
        progress.step(F.mse_loss(said, target))
        average.update_parameters(student)
    student.load_state_dict(average.module.state_dict())
    student.eval()
    return progress.losses


def make(out: Path, seed: int, steps: int, copies: int = COPIES, rate: float = 1e-3) -> list[float]:
    """Distil, save to `out`, and return the losses."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    digits, _ = real_digits()
    source = StableDiffusionPipeline.from_pretrained(DIGITS, use_safetensors=True)
    pipe = build_student(source)
    latents, labels = encode(pipe.vae, digits, copies, generator)
    with torch.no_grad():
        texts, _ = pipe.encode_prompt([*DIGIT_NAMES, ""], "cpu", 1, False)
    teacher = Teacher(source.unet.eval(), texts, Levels(pipe.scheduler))
    losses = distil(pipe, teacher, latents, labels, steps, generator, rate)
    pipe.unet.half()
    pipe.vae.half()
    pipe.save_pretrained(out)
    return losses


def sample(
    pipe: LatentConsistencyModelPipeline, count: int, steps: int = STEPS, guidance: float = 2.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """`count` images [N, 3, 32, 32] in [0, 1] of the digits in turn, and their labels."""
    labels = torch.arange(count) % len(DIGIT_NAMES)
    generator = Generator().manual_seed(seed)
    images = [
        pipe(
            [DIGIT_NAMES[label] for label in part], num_inference_steps=steps, guidance_scale=guidance,
            generator=generator, output_type="pt",
        ).images
        for part in labels.split(128)
    ]  # fmt: skip
    return torch.cat(images).float(), labels


def sample_saved(out: Path, count: int) -> tuple[Tensor, Tensor]:
    pipe = LatentConsistencyModelPipeline.from_pretrained(out, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return sample(pipe, count)


def main(words: Sequence[str] | None = None) -> int:
    return run(words, __doc__, "digits_turbo", TRAINING_STEPS, make, sample_saved)
