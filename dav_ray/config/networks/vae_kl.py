"""AutoencoderKL, and AutoencoderKLFlux2 which only adds the statistics of its latents: the work is the decoder's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dav_ray.config.networks.counted import Counted, Inputs
from dav_ray.config.networks.unet import known, residual


def vae_kl(config: Mapping[str, Any], at: Inputs) -> Counted:
    """ValueError for blocks that are not counted here."""
    known(config, ("up_block_types",), {"UpDecoderBlock2D"})
    made, latents, area = Counted(), config["latent_channels"], at.height * at.width
    if config.get("use_quant_conv", True):
        made.conv("quant_conv", 2 * latents, 2 * latents, 0, (1, 1))
    if config.get("use_post_quant_conv", True):
        made.conv("post_quant_conv", latents, latents, area, (1, 1))
    if config.get("_class_name") == "AutoencoderKLFlux2":
        packed = latents * config["patch_size"][0] * config["patch_size"][1]
        made.tensor("bn.running_mean", packed)
        made.tensor("bn.running_var", packed)
        made.tensor("bn.num_batches_tracked")
    _encoder(made, config, latents)
    _decoder(made, config, latents, area)
    return made


def _encoder(made: Counted, config: Mapping[str, Any], latents: int) -> None:
    """Not called."""
    channels = config["block_out_channels"]
    inside = channels[0]
    made.conv("encoder.conv_in", config.get("in_channels", 3), inside, 0)
    for level, outside in enumerate(channels):
        for number in range(config["layers_per_block"]):
            name = f"encoder.down_blocks.{level}.resnets.{number}"
            residual(made, name, outside if number else inside, outside, 0)
        inside = outside
        if level < len(channels) - 1:
            made.conv(f"encoder.down_blocks.{level}.downsamplers.0.conv", inside, inside, 0)
    _middle(made, "encoder.mid_block", config, inside, 0)
    made.norm("encoder.conv_norm_out", inside)
    made.conv("encoder.conv_out", inside, 2 * latents, 0)


def _decoder(made: Counted, config: Mapping[str, Any], latents: int, area: int) -> None:
    channels = (config.get("decoder_block_out_channels") or config["block_out_channels"])[::-1]
    inside = channels[0]
    made.conv("decoder.conv_in", latents, inside, area)
    _middle(made, "decoder.mid_block", config, inside, area)
    for level, outside in enumerate(channels):
        for number in range(config["layers_per_block"] + 1):
            name = f"decoder.up_blocks.{level}.resnets.{number}"
            residual(made, name, outside if number else inside, outside, area)
        inside = outside
        if level < len(channels) - 1:
            area *= 4
            made.conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", inside, inside, area)
    made.norm("decoder.conv_norm_out", inside)
    made.conv("decoder.conv_out", inside, config["out_channels"], area)


def _middle(made: Counted, name: str, config: Mapping[str, Any], width: int, area: int) -> None:
    for number in range(2):
        residual(made, f"{name}.resnets.{number}", width, width, area)
    if not config.get("mid_block_add_attention", True):
        return
    made.norm(f"{name}.attentions.0.group_norm", width)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        made.linear(f"{name}.attentions.0.{part}", width, width, area)
    made.attention(area, area, width)
