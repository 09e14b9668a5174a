"""`Lumina2Pipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.config.families.pipelines.lumina_2 import Lumina2 as Family
from dav_ray.diffusion.pipelines.flows.lumina_2 import Lumina2
from tests.support.encoders import gemma
from tests.support.oracle import (
    Recorded,
    differences,
    gradient_is_finite,
    lora_round_trip,
    of_recipe,
    own_side,
    recorded,
)

STEPS, PROMPTS = 4, ["a cat", "two dogs, one of them asleep"]


def tiny(**scheduler: Any) -> Any:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    torch.manual_seed(0)
    tokenizer, encoder = gemma(layers=2)
    pipe = Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=4,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(300, 16, 16),
            cap_feat_dim=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **scheduler}),
        vae=AutoencoderKL(  # the pipeline takes it that images are eight times as large as latents
            block_out_channels=(8,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any, *, height: int = 32, width: int = 32, guidance: float = 4.0, **options: Any) -> Lumina2:
    return Lumina2(pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, height=height, width=width, **options)


def begin(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(1))


def drawn(
    height: int = 32, width: int = 32, guidance: float = 4.0, negative: str | None = None
) -> Callable[[Any], Recorded]:
    words = {"height": height, "width": width, "guidance_scale": guidance, "num_inference_steps": STEPS}
    without = None if negative is None else [negative] * len(PROMPTS)
    return lambda pipe: recorded(pipe, PROMPTS, begin(height, width), negative_prompt=without, **words)


@pytest.mark.parametrize(
    ("height", "width", "guidance", "negative", "scheduler"),
    [
        (32, 32, 1.0, None, {}),
        (32, 48, 4.0, None, {"use_dynamic_shifting": True}),
        (48, 32, 4.0, "blurred, and of a bad quality", {}),
    ],
)
def test_it_says_what_the_pipeline_says(
    height: int, width: int, guidance: float, negative: str | None, scheduler: dict[str, Any]
) -> None:
    pipe = tiny(**scheduler)
    oracle = drawn(height, width, guidance, negative)(pipe)
    model = model_of(pipe, height=height, width=width, guidance=guidance, negative_prompt=negative)
    output, images, start = differences(model, oracle, PROMPTS, begin(height, width))
    assert start == 0
    assert output < 1e-5
    assert images < 1e-5


def test_in_half_precision_it_says_the_same() -> None:
    pipe = tiny().to(torch.bfloat16)
    start = begin().bfloat16()  # the pipeline leaves the type of latents that it is given as it is
    oracle = recorded(pipe, PROMPTS, start, height=32, width=32, guidance_scale=1.0, num_inference_steps=STEPS)
    output, *_ = differences(model_of(pipe, guidance=1.0), oracle, PROMPTS, start)
    assert output == 0


def test_guidance_keeps_the_length_of_rows() -> None:
    conditional, free = begin(), begin().flip(0)
    found = model_of(tiny()).guided(free, conditional)
    torch.testing.assert_close(found.norm(dim=-1), conditional.norm(dim=-1))
    mixed = free + 4 * (conditional - free)
    torch.testing.assert_close(found / found.norm(dim=-1, keepdim=True), mixed / mixed.norm(dim=-1, keepdim=True))


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    apart, moved = lora_round_trip(model_of, tiny, drawn(), Family.lora_targets, PROMPTS, begin(), tmp_path)
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient() -> None:
    assert gradient_is_finite(model_of(tiny()), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    search = {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 4}
    model = of_recipe(tiny(), tmp_path, PROMPTS, search=search, height=32, width=48)
    *apart, _ = differences(model, drawn(32, 48)(tiny()), PROMPTS, begin(32, 48))
    assert max(apart) < 1e-5
    assert own_side(tmp_path) == 32
