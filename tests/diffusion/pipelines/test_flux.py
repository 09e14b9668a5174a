"""`FluxPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.config.build import build
from dav_ray.config.families.pipelines.flux import Flux as Family
from dav_ray.diffusion.noise import PipelineNoise
from dav_ray.diffusion.pipelines.flux import Flux
from tests.support.encoders import clip, t5
from tests.support.families import changed, mistakes, recipe_of
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, recorded

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


def model_of(pipe: Any, *, height: int = 16, width: int = 16, **options: Any) -> Flux:
    return Flux(pipe, **{"steps": STEPS, "eta": 0.0, "guidance_scale": 3.5, **options}, height=height, width=width)


def noise(model: Flux) -> Tensor:
    return torch.randn(2, *model.event_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("height, width", [(16, 16), (16, 24)])
@pytest.mark.parametrize("dev, guidance", [(True, 1.0), (True, 3.5), (False, 0.0)])
def test_it_says_what_the_pipeline_says(tmp_path: Path, dev: bool, guidance: float, height: int, width: int) -> None:
    pipe = tiny(tmp_path, dev=dev)
    model = model_of(pipe, height=height, width=width, guidance_scale=guidance)
    start = noise(model)
    oracle = recorded(
        pipe, PROMPTS, start, num_inference_steps=STEPS, guidance_scale=guidance, height=height, width=width
    )
    output, images, begin = differences(model, oracle, PROMPTS, start)
    assert begin == 0
    assert output < 1e-5
    assert images < 1e-5


def test_guidance_is_told_and_takes_one_pass(tmp_path: Path) -> None:
    pipe, told = tiny(tmp_path), list[Any]()
    pipe.transformer.register_forward_pre_hook(lambda _, args, words: told.append(words["guidance"]), with_kwargs=True)
    model = model_of(pipe, guidance_scale=5.0)
    with torch.no_grad():
        model.predict(noise(model), 2, PROMPTS)
    assert [guidance.tolist() for guidance in told] == [[5.0, 5.0]]


def test_a_seed_gives_the_pipelines_noise(tmp_path: Path) -> None:
    pipe, seeds = tiny(tmp_path), [3, 1]
    model = model_of(pipe, width=24)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents, _ = pipe.prepare_latents(2, 4, 16, 24, torch.float32, "cpu", generators)
    assert torch.equal(model.prior(PROMPTS, PipelineNoise(seeds).at(STEPS)), latents)


def test_the_pipeline_loads_the_adapters(tmp_path: Path) -> None:
    model = model_of(tiny(tmp_path))
    start = noise(model)

    def draw(pipe: Any) -> Tensor:
        words = {"num_inference_steps": STEPS, "guidance_scale": 3.5, "height": 16, "width": 16}
        return recorded(pipe, PROMPTS, start, **words).images

    found = lora_round_trip(
        model_of, lambda: tiny(tmp_path), draw, PROMPTS, start, Family.lora_targets, tmp_path / "policy"
    )
    assert found.moved > 1e-3
    assert found.loaded < 1e-5
    assert found.restored == 0


def test_the_reward_has_a_gradient(tmp_path: Path) -> None:
    model = model_of(tiny(tmp_path))
    assert gradient_is_finite(model, PROMPTS, noise(model))


def test_a_recipe_builds_it_from_its_folder(tmp_path: Path) -> None:
    pipe = tiny(tmp_path)
    config = recipe_of(
        pipe, tmp_path / "pipe", model={"height": 16, "width": 32}, search={"steps": STEPS, "guidance_scale": 3.5}
    )
    assert mistakes(config) == []
    assert (Family().passes(config), Family().shape(config)) == (1, (16, 32))
    built, known = build(config), model_of(pipe, width=32, eta=1.0)
    assert built.policy_file == "pytorch_lora_weights.safetensors"
    with torch.no_grad():
        kernels = [model.predict(noise(known), STEPS, PROMPTS).kernel for model in (built, known)]
    assert torch.equal(kernels[0].mean, kernels[1].mean)
    assert torch.equal(kernels[0].std, kernels[1].std)


def test_what_it_can_not_draw_is_one_line_each(tmp_path: Path) -> None:
    config = recipe_of(tiny(tmp_path), tmp_path / "pipe", model={}, search={"steps": STEPS})
    found = mistakes(changed(config, width=24, negative_prompt="blurred"))
    assert found == [
        "model.width = 24: the VAE can't hold it; allowed: a multiple of 16",
        "model.negative_prompt = blurred: FluxPipeline takes none; allowed: null",
    ]
    file = tmp_path / "pipe/transformer/config.json"
    file.write_text(file.read_text().replace('"in_channels": 16', '"in_channels": 24'))
    (line,) = mistakes(config)
    assert "the transformer takes 24 channels, the vae has 4 (times 4); allowed: a text-to-image pipeline" in line
