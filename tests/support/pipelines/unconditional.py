"""`DDPMPipeline` and `DDIMPipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dav_ray.config.build import aligned, build
from dav_ray.config.schema import Config
from dav_ray.diffusion.pipelines.files import as_ddim
from dav_ray.diffusion.pipelines.unconditional import Unconditional
from tests.support.oracle import Recorded, differences, watched

STEPS, SEED, NONE = 4, 3, ["", ""]  # two images, of no prompt


def tiny(*, ddim: bool = True, scheduler: dict[str, Any] | None = None, **unet: Any) -> Any:
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        **{
            **{"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1},
            **{"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 4},
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            **unet,
        }
    )
    options = scheduler or {}
    pipe = DDIMPipeline(network, DDIMScheduler(**options)) if ddim else DDPMPipeline(network, DDPMScheduler(**options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def adapter(pipe: Any, **options: Any) -> Unconditional:
    """Of the pipeline as it is loaded: with a DDIM scheduler."""
    from diffusers import DDIMPipeline

    return Unconditional(DDIMPipeline(pipe.unet, as_ddim(pipe.scheduler)), **options)


def drawn(pipe: Any, **words: Any) -> Recorded:
    """words: a DDIM pipeline's eta."""
    generator = torch.Generator().manual_seed(SEED)
    return watched(pipe, batch_size=2, generator=generator, num_inference_steps=STEPS, **words)


def begun(shape: Sequence[int] = (3, 8, 8)) -> torch.Generator:
    """What a pipeline draws its steps' noise from: it has drawn its start before."""
    noise = torch.Generator().manual_seed(SEED)
    torch.randn(2, *shape, generator=noise)
    return noise


def begin(shape: Sequence[int] = (3, 8, 8)) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(SEED))


def apart(model: Any, pipe: Any, eta: float) -> tuple[float, float]:
    """The largest differences of outputs and of pictures."""
    shape = model.event_shape
    *found, start = differences(model, drawn(pipe, eta=eta), NONE, begin(shape), noise=begun(shape) if eta else None)
    assert start == 0
    return found[0], found[1]


def moved_policy(config: Config, folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """(model, its policy, which is not the pretrained one's); the policy is written into the folder."""
    model: Any = build(config)
    generator = torch.Generator().manual_seed(7)
    state = model.policy_state()
    moved = {name: p + 0.1 * torch.randn(p.shape, generator=generator) for name, p in state.items()}
    model.load_policy_state(moved)
    model.write_policy(folder)
    return model, moved


def config_of(folder: Path, search: dict[str, Any] | None = None, mstep: dict[str, Any] | None = None) -> Config:
    steps = {"steps": STEPS, "trajectories": 4, "chunk": 4, "candidates": 2, **(search or {})}
    reward = {"kind": "brightness"}
    return Config.model_validate(
        {"model": {"path": str(folder)}, "reward": reward, "search": steps, "mstep": mstep or {}}
    )


def round_trip(pipe: Any, folder: Path) -> tuple[float, float]:
    """As `lora_round_trip`, of the pipeline that is loaded with a stored policy: it has no `load_lora_weights`."""
    pipe.save_pretrained(folder / "pipeline")
    config = config_of(folder / "pipeline", mstep={"lora": {"rank": 4}})
    model, _ = moved_policy(config, folder / "policy")
    after = aligned(config, folder / "policy")
    after.set_progress_bar_config(disable=True)
    before = drawn(pipe).images
    return apart(model, after, 1.0)[1], float((drawn(after, eta=1.0).images - before).abs().max())
