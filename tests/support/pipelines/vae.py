"""The VAE that most of these pipelines have."""

from __future__ import annotations

from typing import Any


def autoencoder(*, levels: int = 2, **options: Any) -> Any:
    """Latents of 4 channels, images 2^(levels - 1) times as large; options: others of `AutoencoderKL`."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        **options,
    )


def flow_autoencoder(*, scaling_factor: float = 0.3611, shift_factor: float = 0.1159, **options: Any) -> Any:
    """As of the transformers' pipelines: without layers between the encoder or the decoder and the latents."""
    return autoencoder(
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        **options,
    )
