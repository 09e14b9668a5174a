"""Train the shipped `digits_flow`: a tiny Stable Diffusion 3, a rectified flow over the latents of `digits`.

    python jobs/assets digits_flow --out dav_ray/assets/digits_flow

The autoencoder is that of `digits`; the transformer and two CLIP text encoders are trained together. T5 is left out.
About ten minutes on one CPU core. The same seed and thread count give the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from dav_ray.diffusion.pipelines.files import load_pipeline
from dav_ray.diffusion.pipelines.schedulers import FLOWS
from dav_ray.rewards.digits import ASSET as DIGITS
from dav_ray.rewards.digits import DIGIT_NAMES
from jobs.assets.digits import COPIES, EMPTY, Progress, build_tokenizer, encode
from jobs.assets.digits_data import real_digits
from jobs.assets.digits_job import run

STEPS = 2000  # of training
TOKENS = 8  # of a text encoder: the longest name has five letters, between two marks
WIDTH, HEADS, BLOCKS = 64, 4, 4
LONG_EVERY = 8  # of so many training steps one is long
# (empty tokens in place of T5's, batch): 256 is what the pipeline takes if it is told nothing, ten times the work
LONG, SHORT = (256, 32), (1, 128)
GUIDANCE = 2.0


def build_pipeline() -> StableDiffusion3Pipeline:
    """Untrained, but for the autoencoder: 32x32 images, latents [4, 8, 8] in 4x4 patches."""
    tokenizer = build_tokenizer(TOKENS)
    one, two = (_text_encoder(tokenizer) for _ in range(2))
    width = one.config.hidden_size + two.config.hidden_size
    vae = AutoencoderKL.from_pretrained(DIGITS, subfolder="vae", use_safetensors=True)
    # the pipeline adds it to what it decodes, and takes no None
    vae.register_to_config(shift_factor=0.0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, pos_embed_max_size=4,
        num_layers=BLOCKS, num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS,
        joint_attention_dim=width, pooled_projection_dim=width, caption_projection_dim=WIDTH, qk_norm="rms_norm",
    )  # fmt: skip
    _start_as_identity(transformer)
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0), vae=vae,
        text_encoder=one, tokenizer=tokenizer, text_encoder_2=two, tokenizer_2=tokenizer,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, projection_dim=16,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config)


def _start_as_identity(transformer: SD3Transformer2DModel) -> None:
    """Every block's gates are zero at the start (adaLN-Zero, Peebles & Xie 2023), and so is the output."""
    layers = [block.norm1.linear for block in transformer.transformer_blocks]
    layers += [block.norm1_context.linear for block in transformer.transformer_blocks]
    for layer in [*layers, transformer.norm_out.linear, transformer.proj_out]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def embeddings(pipe: StableDiffusion3Pipeline, longest: int) -> tuple[Tensor, Tensor]:
    """Of the ten names and the empty prompt: the texts' [11, tokens, D] and the pooled [11, D]; with gradients."""
    text, _, pooled, _ = pipe.encode_prompt(
        [*DIGIT_NAMES, ""], None, None, do_classifier_free_guidance=False, max_sequence_length=longest
    )
    return text, pooled


def train(
    pipe: StableDiffusion3Pipeline, latents: Tensor, labels: Tensor, steps: int, generator: Generator, rate: float
) -> list[float]:
    """Train transformer and text encoders together, leave their averaged weights in `pipe`; the losses.

    Levels of noise are logit-normal (Esser et al. 2024); a tenth of the prompts is left out, for guidance.
    """
    parts = {"transformer": pipe.transformer, "one": pipe.text_encoder, "two": pipe.text_encoder_2}
    model = nn.ModuleDict(parts).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(min(0.998, 1 - 10 / (steps + 10))))
    progress = Progress("flow", list(model.parameters()), steps, rate)
    for step in range(steps):
        longest, batch = LONG if step % LONG_EVERY == 0 else SHORT
        picked = torch.randint(len(labels), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < 0.1
        prompts = labels[picked].masked_fill(dropped, EMPTY)
        clean = latents[picked]
        noise = torch.randn(clean.shape, generator=generator)
        sigma = torch.randn(batch, generator=generator).sigmoid()
        level = sigma.reshape(-1, 1, 1, 1)
        text, pooled = embeddings(pipe, longest)
        velocity = pipe.transformer(
            torch.lerp(clean, noise, level),
            timestep=sigma * pipe.scheduler.config.num_train_timesteps,
            # index_select, since the gradient of plain indexing adds up in an order that differs from run to run
            encoder_hidden_states=text.index_select(0, prompts),
            pooled_projections=pooled.index_select(0, prompts),
        ).sample
        progress.step(F.mse_loss(velocity, noise - clean))
        average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    model.eval()
    return progress.losses


def make(out: Path, seed: int, steps: int, copies: int = COPIES, rate: float = 2e-3) -> list[float]:
    """Train, save to `out`, and return the losses."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    digits, _ = real_digits()
    pipe = build_pipeline()
    latents, labels = encode(pipe.vae.eval(), digits, copies, generator)
    losses = train(pipe, latents, labels, steps, generator, rate)
    save(pipe, out)
    return losses


def save(pipe: StableDiffusion3Pipeline, out: Path) -> None:
    """Transformer and autoencoder in half precision, the text encoders not (`jobs.assets.digits.save` says why)."""
    pipe.transformer.half()
    pipe.vae.half()
    pipe.save_pretrained(out)


def sample(
    pipe: StableDiffusion3Pipeline, count: int, steps: int, seed: int = 0, longest: int = LONG[0]
) -> tuple[Tensor, Tensor]:
    """`count` images [N, 3, 32, 32] in [0, 1] of the digits in turn, by the pipeline's own steps, and their labels."""
    labels = torch.arange(count) % len(DIGIT_NAMES)
    generator = Generator().manual_seed(seed)
    images = [
        pipe(
            [DIGIT_NAMES[label] for label in part], num_inference_steps=steps, guidance_scale=GUIDANCE,
            max_sequence_length=longest, generator=generator, output_type="pt",
        ).images
        for part in labels.split(128)
    ]  # fmt: skip
    return torch.cat(images).float(), labels


def load(folder: Path) -> StableDiffusion3Pipeline:
    pipe = load_pipeline(str(folder), "StableDiffusion3Pipeline", FLOWS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample_saved(out: Path, count: int) -> tuple[Tensor, Tensor]:
    """As the recipe draws them."""
    return sample(load(out), count, steps=10, longest=SHORT[0])


def main(words: Sequence[str] | None = None) -> int:
    return run(words, __doc__, "digits_flow", STEPS, make, sample_saved)
