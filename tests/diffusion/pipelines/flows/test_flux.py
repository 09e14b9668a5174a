"""`FluxPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.config.checks.preflight import model_mistakes
from dav_ray.config.families.pipelines.flux import Flux as Family
from dav_ray.config.schema import Config
from dav_ray.diffusion.noise import PipelineNoise
from dav_ray.diffusion.pipelines.flows.flux import Flux
from tests.support.encoders import clip, t5
from tests.support.oracle import Recorded, differences, gradient_is_finite, lora_round_trip, of_recipe, recorded

STEPS, PROMPTS = 4, ["a cat", "two dogs, one of them asleep"]


def tiny(folder: Path, *, dev: bool = True) -> Any:
    """dev: with embedded guidance and a shift that depends on the size, as FLUX.1-dev; else as schnell."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    (tokenizer, one), (tokenizer_2, two) = clip(folder / "clip"), t5(folder / "t5", width=24)
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=12,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=dev,
            axes_dims_rope=(4, 4, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev),
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        text_encoder=one,
        tokenizer=tokenizer,
        text_encoder_2=two,
        tokenizer_2=tokenizer_2,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any, *, height: int = 16, width: int = 16, guidance: float = 3.5) -> Flux:
    return Flux(pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, height=height, width=width)


def begin(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(2, height * width // 16, 16, generator=torch.Generator().manual_seed(1))


def drawn(height: int = 16, width: int = 16, guidance: float = 3.5, *, dev: bool = True) -> Callable[[Any], Recorded]:
    """With as many tokens of text as the model was made for."""
    words: dict[str, Any] = {"height": height, "width": width, "guidance_scale": guidance}
    words |= {"num_inference_steps": STEPS, "max_sequence_length": 512 if dev else 256}
    return lambda pipe: recorded(pipe, PROMPTS, begin(height, width), **words)


@pytest.mark.parametrize("height, width", [(16, 16), (16, 24)])
@pytest.mark.parametrize("dev, guidance", [(True, 1.0), (True, 3.5), (False, 0.0)])
def test_it_says_what_the_pipeline_says(tmp_path: Path, dev: bool, guidance: float, height: int, width: int) -> None:
    pipe = tiny(tmp_path, dev=dev)
    oracle = drawn(height, width, guidance, dev=dev)(pipe)
    model = model_of(pipe, height=height, width=width, guidance=guidance)
    output, images, start = differences(model, oracle, PROMPTS, begin(height, width))
    assert start == 0
    assert output < 1e-5
    assert images < 1e-5


def test_in_half_precision_it_says_the_same(tmp_path: Path) -> None:
    pipe = tiny(tmp_path).to(torch.bfloat16)
    output, *_ = differences(model_of(pipe), drawn()(pipe), PROMPTS, begin())
    assert output == 0


def test_guidance_is_told_and_takes_one_pass(tmp_path: Path) -> None:
    pipe, told = tiny(tmp_path), list[Any]()
    pipe.transformer.register_forward_pre_hook(lambda _, args, words: told.append(words["guidance"]), with_kwargs=True)
    with torch.no_grad():
        model_of(pipe, guidance=5.0).predict(begin(), 2, PROMPTS)
    assert [guidance.tolist() for guidance in told] == [[5.0, 5.0]]


def test_a_seed_gives_the_pipelines_noise(tmp_path: Path) -> None:
    pipe, seeds = tiny(tmp_path), [3, 1]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents, _ = pipe.prepare_latents(2, 4, 16, 24, torch.float32, "cpu", generators)
    assert torch.equal(model_of(pipe, width=24).prior(PROMPTS, PipelineNoise(seeds).at(STEPS)), latents)


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    apart, moved = lora_round_trip(
        model_of, lambda: tiny(tmp_path), drawn(), Family.lora_targets, PROMPTS, begin(), tmp_path / "policy"
    )
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient(tmp_path: Path) -> None:
    assert gradient_is_finite(model_of(tiny(tmp_path)), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    search = {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 3.5}
    model = of_recipe(tiny(tmp_path), tmp_path / "pipe", PROMPTS, search=search, height=16, width=32)
    *apart, _ = differences(model, drawn(16, 32)(tiny(tmp_path)), PROMPTS, begin(16, 32))
    assert max(apart) < 1e-5


def test_what_it_can_not_draw_is_one_line_each(tmp_path: Path) -> None:
    folder = tmp_path / "pipe"
    tiny(tmp_path).save_pretrained(folder)
    section = {"path": str(folder), "width": 24, "negative_prompt": "blurred"}
    sections = {"model": section, "prompts": ["a"], "reward": {"kind": "brightness"}}
    config = Config.model_validate(sections)
    assert Family().passes(config) == 1
    assert list(model_mistakes(config)) == [
        "model.width = 24: the VAE can't hold it; allowed: a multiple of 16",
        "model.negative_prompt = blurred: a FluxPipeline has no use for it; allowed: null",
    ]
    file = folder / "transformer/config.json"
    file.write_text(file.read_text().replace('"in_channels": 16', '"in_channels": 24'))
    found = list(model_mistakes(config))
    words = "the transformer takes 24 channels, the vae has 4 (times 4); allowed: a text-to-image pipeline"
    assert any(words in line for line in found)
