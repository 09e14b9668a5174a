"""`ZImagePipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.config.families.pipelines.z_image import ZImage as Family
from dav_ray.config.schema import Config
from dav_ray.diffusion.pipelines.flows.z_image import ZImage
from tests.support.encoders import qwen3
from tests.support.oracle import Recorded, differences, gradient_is_finite, lora_round_trip, of_recipe, recorded

# one text on each side of 32 tokens, a multiple of which the network takes
STEPS, PROMPTS = 4, ["a cat", "two dogs, one of them asleep"]


def tiny(**scheduler: Any) -> Any:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    torch.manual_seed(0)
    tokenizer, encoder = qwen3()
    pipe = ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=24,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 4, 4],
            axes_lens=[256, 32, 32],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
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
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    for token in (pipe.transformer.x_pad_token, pipe.transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # zeros until trained
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any, *, height: int = 16, width: int = 16, guidance: float = 4.0, **options: Any) -> ZImage:
    return ZImage(pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, height=height, width=width, **options)


def begin(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(2, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(1))


def drawn(
    height: int = 16, width: int = 16, guidance: float = 4.0, negative: str | None = None
) -> Callable[[Any], Recorded]:
    words = {"height": height, "width": width, "guidance_scale": guidance, "num_inference_steps": STEPS}
    without = None if negative is None else [negative] * len(PROMPTS)
    return lambda pipe: recorded(pipe, PROMPTS, begin(height, width), negative_prompt=without, **words)


@pytest.mark.parametrize(
    ("height", "width", "guidance", "negative", "scheduler"),
    [
        (16, 16, 0.0, None, {}),
        (16, 16, 0.5, None, {"use_dynamic_shifting": True}),
        (16, 24, 1.0, None, {}),
        (24, 16, 4.0, "blurred, and of a bad quality", {}),
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
    oracle = drawn()(pipe)
    output, *_ = differences(model_of(pipe), oracle, PROMPTS, begin())
    # the passes lie in another order in the batch
    assert output <= 0.01 * max(float(said.abs().max()) for said in oracle.outputs)


@pytest.mark.parametrize("guidance, passes", [(0.0, 1), (0.5, 2), (1.0, 2)])
def test_guidance_takes_a_second_pass_where_its_scale_is_not_zero(guidance: float, passes: int) -> None:
    pipe, rows = tiny(), list[int]()
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with torch.no_grad():
        model_of(pipe, guidance=guidance).predict(begin(), 2, PROMPTS)
    assert rows == [passes * len(PROMPTS)]
    sections = {"model": {"path": "x/y"}, "prompts": ["a"], "reward": {"kind": "brightness"}}
    assert Family().passes(Config.model_validate({**sections, "search": {"guidance_scale": guidance}})) == passes


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    apart, moved = lora_round_trip(model_of, tiny, drawn(), Family.lora_targets, PROMPTS, begin(), tmp_path)
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient() -> None:
    assert gradient_is_finite(model_of(tiny()), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    search = {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 4}
    model = of_recipe(tiny(), tmp_path, PROMPTS, search=search, height=16, width=32)
    *apart, _ = differences(model, drawn(16, 32)(tiny()), PROMPTS, begin(16, 32))
    assert max(apart) < 1e-5
