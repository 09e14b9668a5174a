"""AutoencoderKLQwenImage, a VAE of videos that is given one picture: two of three frames of its kernels are empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dav_ray.config.networks.counted import Counted, Inputs

CUBE, POINT = (3, 3, 3), (1, 1, 1)


def vae_qwen(config: Mapping[str, Any], at: Inputs) -> Counted:
    """The work is the decoder's."""
    made, latents, area = Counted(), config["z_dim"], at.height * at.width
    made.conv("quant_conv", 2 * latents, 2 * latents, 0, POINT)
    made.conv("post_quant_conv", latents, latents, area, POINT)
    if config.get("attn_scales"):
        raise ValueError("nothing is known of the work of a VAE with attention at some scales")
    _encoder(made, config)
    _decoder(made, config, area)
    return made


def _encoder(made: Counted, config: Mapping[str, Any]) -> None:
    """Not called."""
    widths = [config["base_dim"] * times for times in config["dim_mult"]]
    inside, number = config["base_dim"], 0
    made.conv("encoder.conv_in", config.get("input_channels", 3), inside, 0, CUBE)
    for level, outside in enumerate(widths):
        for _ in range(config["num_res_blocks"]):
            _residual(made, f"encoder.down_blocks.{number}", inside, outside, 0)
            inside, number = outside, number + 1
        if level < len(widths) - 1:
            made.conv(f"encoder.down_blocks.{number}.resample.1", inside, inside, 0)
            if config["temperal_downsample"][level]:
                made.conv(f"encoder.down_blocks.{number}.time_conv", inside, inside, 0, (3, 1, 1))
            number += 1
    _middle(made, "encoder.mid_block", inside, 0)
    made.tensor("encoder.norm_out.gamma", inside, 1, 1, 1)
    made.conv("encoder.conv_out", inside, 2 * config["z_dim"], 0, CUBE)


def _decoder(made: Counted, config: Mapping[str, Any], area: int) -> None:
    widths = [config["base_dim"] * times for times in reversed(config["dim_mult"])]
    inside, videos = widths[0], config["temperal_downsample"][::-1]
    made.conv("decoder.conv_in", config["z_dim"], inside, area, CUBE)
    _middle(made, "decoder.mid_block", inside, area)
    for level, outside in enumerate(widths):
        name = f"decoder.up_blocks.{level}"
        for number in range(config["num_res_blocks"] + 1):
            _residual(made, f"{name}.resnets.{number}", inside, outside, area)
            inside = outside
        if level < len(widths) - 1:
            area *= 4
            made.conv(f"{name}.upsamplers.0.resample.1", inside, inside // 2, area)
            if videos[level]:  # of one picture there is nothing to do
                made.conv(f"{name}.upsamplers.0.time_conv", inside, 2 * inside, 0, (3, 1, 1))
            inside //= 2
    made.tensor("decoder.norm_out.gamma", inside, 1, 1, 1)
    made.conv("decoder.conv_out", inside, config.get("input_channels", 3), area, CUBE)


def _middle(made: Counted, name: str, width: int, area: int) -> None:
    for number in range(2):
        _residual(made, f"{name}.resnets.{number}", width, width, area)
    made.tensor(f"{name}.attentions.0.norm.gamma", width, 1, 1)
    made.conv(f"{name}.attentions.0.to_qkv", width, 3 * width, area, (1, 1))
    made.conv(f"{name}.attentions.0.proj", width, width, area, (1, 1))
    made.attention(area, area, width)


def _residual(made: Counted, name: str, before: int, after: int, area: int) -> None:
    made.tensor(f"{name}.norm1.gamma", before, 1, 1, 1)
    made.conv(f"{name}.conv1", before, after, area, CUBE)
    made.tensor(f"{name}.norm2.gamma", after, 1, 1, 1)
    made.conv(f"{name}.conv2", after, after, area, CUBE)
    if before != after:
        made.conv(f"{name}.conv_shortcut", before, after, area, POINT)
