"""The networks by the class that their configurations name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dav_ray.config.networks.counted import Counted, Inputs
from dav_ray.config.networks.flux_2 import flux_2
from dav_ray.config.networks.joint import flux, qwen_image, sd3
from dav_ray.config.networks.refined import lumina_2, z_image
from dav_ray.config.networks.sana import sana
from dav_ray.config.networks.text_encoders import clip, gemma_2, qwen_2_5_vl, qwen_3, t5
from dav_ray.config.networks.unet import unet
from dav_ray.config.networks.vae_dc import vae_dc
from dav_ray.config.networks.vae_kl import vae_kl
from dav_ray.config.networks.vae_qwen import vae_qwen

NETWORKS: dict[str, Callable[[Mapping[str, Any], Inputs], Counted]] = {
    "AutoencoderDC": vae_dc,
    "AutoencoderKL": vae_kl,
    "AutoencoderKLFlux2": vae_kl,
    "AutoencoderKLQwenImage": vae_qwen,
    "CLIPTextModel": clip,
    "CLIPTextModelWithProjection": clip,
    "Flux2Transformer2DModel": flux_2,
    "FluxTransformer2DModel": flux,
    "Gemma2Model": gemma_2,
    "Lumina2Transformer2DModel": lumina_2,
    "Qwen2_5_VLForConditionalGeneration": qwen_2_5_vl,
    "Qwen3ForCausalLM": qwen_3,
    "Qwen3Model": qwen_3,
    "QwenImageTransformer2DModel": qwen_image,
    "SD3Transformer2DModel": sd3,
    "SanaTransformer2DModel": sana,
    "T5EncoderModel": t5,
    "UNet2DConditionModel": unet,
    "ZImageTransformer2DModel": z_image,
}


def counted(config: Mapping[str, Any], at: Inputs) -> Counted:
    """The network of a config.json. ValueError, in words, for one that is not known or whose configuration does not
    tell all."""
    name = config.get("_class_name") or (config.get("architectures") or ["no class"])[0]
    if name not in NETWORKS:
        raise ValueError(f"nothing is known of the work of {name}")
    try:
        return NETWORKS[name](config, at)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the configuration of {name} does not tell its layers ({error})") from error
