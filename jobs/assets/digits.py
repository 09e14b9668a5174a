"""Train the shipped digits assets: a tiny latent-diffusion text-to-image pipeline and a reader of its images.

    python jobs/assets digits --out dav_ray/assets/digits

About ten minutes on two CPU cores. The same seed and thread count give the same weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dav_ray.rewards.digits import ASSET, DIGIT_NAMES, READER_FILE, DigitLegibility, DigitReader
from jobs.assets.digits_data import SIZE, Digits, degrade, real_digits, warp, within_label_distance

TOKENS = 16
EMPTY = len(DIGIT_NAMES)  # row of the empty prompt, after the ten names
GRID = Path(__file__).with_name("figures") / "digits.png"
COPIES = 24  # augmented latents kept of every training digit


def build_tokenizer(length: int = TOKENS) -> CLIPTokenizer:
    """A byte-level tokenizer: 256 characters, the same at a word's end, and two marks; no merges."""
    letters = sorted(ByteLevel.alphabet())
    entries = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({entry: index for index, entry in enumerate(entries)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocab), str(merges), model_max_length=length)


def build_pipeline() -> StableDiffusionPipeline:
    """The untrained pipeline: 32x32 images, latents [4, 8, 8], attention at 4x4 only, where it is cheap."""
    tokenizer = build_tokenizer()
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, projection_dim=32,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vae = AutoencoderKL(
        sample_size=SIZE, block_out_channels=(8, 16, 32), layers_per_block=1, norm_num_groups=8,
        latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, mid_block_add_attention=False,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text_config), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


class Progress:
    """One training run's optimiser, with a warm-up and a cosine decay, and its losses."""

    def __init__(self, name: str, parameters: list[nn.Parameter], steps: int, rate: float) -> None:
        self.name, self.parameters, self.steps = name, parameters, steps
        self.losses: list[float] = []
        self._start = time.perf_counter()
        self._optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, rate, steps, pct_start=0.05)

    def step(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self.losses.append(loss.item())
        done = len(self.losses)
        if done % max(1, self.steps // 8) == 0:
            recent = self.losses[-max(1, self.steps // 8) :]
            mean, seconds = sum(recent) / len(recent), time.perf_counter() - self._start
            print(f"{self.name}: step {done}/{self.steps}, loss {mean:.4f}, {seconds:.0f} s")


def draw(digits: Digits, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A batch of `count` training digits, warped, and their labels."""
    picked = torch.randint(len(digits.labels), (count,), generator=generator)
    return warp(digits.images[picked], generator), digits.labels[picked]


def train_reader(digits: Digits, steps: int, generator: Generator) -> DigitReader:
    """A reader of the real digits, in eval mode."""
    reader = DigitReader()
    progress = Progress("reader", list(reader.parameters()), steps, rate=3e-3)
    for _ in range(steps):
        images, labels = draw(digits, 128, generator)
        progress.step(F.cross_entropy(reader(degrade(images, generator)), labels, label_smoothing=0.05))
    return reader.eval()


def train_vae(vae: AutoencoderKL, digits: Digits, steps: int, generator: Generator) -> list[float]:
    """Train the autoencoder, set `scaling_factor` so that latents have unit deviation; the losses."""
    progress = Progress("vae", list(vae.parameters()), steps, rate=3e-3)
    for _ in range(steps):
        images = draw(digits, 64, generator)[0] * 2 - 1
        posterior = vae.encode(images).latent_dist
        restored = vae.decode(posterior.sample(generator)).sample
        progress.step(F.mse_loss(restored, images) + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel())
    vae.register_to_config(scaling_factor=1.0)
    latents, _ = encode(vae.eval(), digits, 1, generator)
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    return progress.losses


@torch.no_grad()
def encode(vae: AutoencoderKL, digits: Digits, copies: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Scaled latents [copies * N, 4, 8, 8] of `copies` warped versions of each digit, and their labels."""
    latents = [
        vae.encode(warp(part, generator) * 2 - 1).latent_dist.mean
        for _ in range(copies)
        for part in digits.images.split(256)
    ]
    return torch.cat(latents) * vae.config.scaling_factor, digits.labels.repeat(copies)


def train_unet(
    pipe: StableDiffusionPipeline, digits: Digits, steps: int, generator: Generator, copies: int
) -> list[float]:
    """Train UNet and text encoder together, leave their averaged weights in `pipe`; the losses."""
    batch = 128
    latents, labels = encode(pipe.vae, digits, copies, generator)
    model = nn.ModuleDict({"unet": pipe.unet, "text": pipe.text_encoder}).train()
    tokens = pipe.tokenizer([*DIGIT_NAMES, ""], padding="max_length", return_tensors="pt").input_ids
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(min(0.998, 1 - 10 / (steps + 10))))
    progress = Progress("unet", list(model.parameters()), steps, rate=2e-3)
    for _ in range(steps):
        picked = torch.randint(len(labels), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < 0.1
        prompts = labels[picked].masked_fill(dropped, EMPTY)
        clean = latents[picked]
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(pipe.scheduler.config.num_train_timesteps, (batch,), generator=generator)
        # index_select, since the gradient of plain indexing adds up in an order that differs from run to run
        text = model["text"](tokens).last_hidden_state.index_select(0, prompts)
        noisy = pipe.scheduler.add_noise(clean, noise, times)
        progress.step(F.mse_loss(model["unet"](noisy, times, text).sample, noise))
        average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    model.eval()
    return progress.losses


def save(pipe: StableDiffusionPipeline, reader: DigitReader, out: Path) -> None:
    """Write the pipeline and the reader; all weights but the text encoder's in half precision."""
    out.mkdir(parents=True, exist_ok=True)
    # transformers loads a model in the precision it was saved in, diffusers in float32: a half-precision text
    # encoder would not fit its UNet when a caller names no dtype.
    pipe.unet.half()
    pipe.vae.half()
    pipe.save_pretrained(out)
    (out / READER_FILE).parent.mkdir(exist_ok=True)
    save_file(reader.half().state_dict(), out / READER_FILE)


def make(
    out: Path, seed: int, reader_steps: int, vae_steps: int, unet_steps: int, copies: int = COPIES
) -> dict[str, list[float]]:
    """Train everything, save it to `out`, and return the losses of the VAE and the UNet."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    train, _ = real_digits()
    pipe = build_pipeline()
    reader = train_reader(train, reader_steps, generator)
    losses = {
        "vae": train_vae(pipe.vae, train, vae_steps, generator),
        "unet": train_unet(pipe, train, unet_steps, generator, copies),
    }
    save(pipe, reader, out)
    return losses


def sample(pipe: StableDiffusionPipeline, count: int, steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`count` images [N, 3, 32, 32] in [0, 1] of the digits in turn, by DDIM with eta 1, and their labels."""
    labels = torch.arange(count) % len(DIGIT_NAMES)
    generator = torch.Generator().manual_seed(seed)
    images = [
        pipe(
            [DIGIT_NAMES[label] for label in part], num_inference_steps=steps, guidance_scale=2.0, eta=1.0,
            generator=generator, output_type="pt",
        ).images
        for part in labels.split(128)
    ]  # fmt: skip
    return torch.cat(images).float(), labels


def write_grid(images: Tensor, labels: Tensor, path: Path, columns: int = 8) -> None:
    """A PNG with one row per digit and `columns` samples in each, enlarged twice."""
    rows = [torch.cat(list(images[labels == digit][:columns]), dim=2) for digit in range(len(DIGIT_NAMES))]
    pixels = (torch.cat(rows, dim=1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(path)


def check(out: Path, count: int) -> None:
    """Reload what was saved, print its size, accuracy, legibility and variety, and draw a grid.

    That of the shipped model is the page's figure; any other lies beside what was saved."""
    print(f"size: {sum(file.stat().st_size for file in out.rglob('*') if file.is_file()):,} bytes")
    train, test = real_digits()
    legible = DigitLegibility(out / READER_FILE)
    names = [DIGIT_NAMES[label] for label in test.labels]
    print(f"reader: {legible(test.images, names).mean():.4f} of {len(names)} held-out digits read")
    print(f"real digits: within-prompt distance {within_label_distance(train.images, train.labels):.2f}")
    pipe = StableDiffusionPipeline.from_pretrained(out, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    for steps in (10, 15, 20):
        start = time.perf_counter()
        images, labels = sample(pipe, count, steps)
        seconds = time.perf_counter() - start
        score = legible(images, [DIGIT_NAMES[label] for label in labels]).mean()
        print(f"{steps} steps: {score:.3f} of {count} samples legible, drawn in {seconds:.0f} s")
        print(f"{steps} steps: within-prompt distance {within_label_distance(images, labels):.2f}")
    write_grid(images, labels, GRID if out == ASSET else out.with_suffix(".png"))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the digits pipeline and its reader.")
    parser.add_argument("--out", type=Path, default=ASSET, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader-steps", type=int, default=1000)
    parser.add_argument("--vae-steps", type=int, default=1000)
    parser.add_argument("--unet-steps", type=int, default=2500)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--check", type=int, default=500, help="samples in the legibility check; 0 skips it")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    make(options.out, options.seed, options.reader_steps, options.vae_steps, options.unet_steps)
    print(f"trained in {time.perf_counter() - start:.0f} s")
    if options.check:
        check(options.out, options.check)
    return 0
