"""Networks as their configurations describe them, against diffusers' and transformers' own classes on the meta device:
every tensor's name and shape, and the operations that torch counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dav_ray.config.families.published import PUBLISHED
from dav_ray.config.networks.counted import Counted, Inputs
from dav_ray.config.networks.table import NETWORKS, counted

BOTH = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {
        "block_types": ["ResBlock", "EfficientViTBlock", "EfficientViTBlock"],
        "block_out_channels": [8, 16, 32],
        "layers_per_block": [1, 2, 1],
        "qkv_multiscales": [[], [5], [3, 5]],
    }.items()
}
KL = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
}
UNET = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 2],
    "attention_head_dim": [4, 8],
    "cross_attention_dim": 24,
}
SD3 = {
    "num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 16, "caption_projection_dim": 48,
    "joint_attention_dim": 40, "pooled_projection_dim": 24, "pos_embed_max_size": 16, "sample_size": 16,
    "in_channels": 4, "out_channels": 4,
}  # fmt: skip
FLUX = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 24, "num_attention_heads": 2,
    "joint_attention_dim": 40, "pooled_projection_dim": 24, "axes_dims_rope": [8, 8, 8],
}  # fmt: skip
FLUX_2 = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 24, "num_attention_heads": 2,
    "joint_attention_dim": 40, "axes_dims_rope": [6, 6, 6, 6],
}  # fmt: skip
SANA = {
    "in_channels": 4, "out_channels": 8, "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 12,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 24, "cross_attention_dim": 48, "caption_channels": 40,
}  # fmt: skip
QWEN = {
    "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 24, "num_attention_heads": 2,
    "joint_attention_dim": 40, "axes_dims_rope": [8, 8, 8],
}  # fmt: skip
SMALL: list[tuple[str, dict[str, Any]]] = [
    ("SD3Transformer2DModel", {**SD3, "dual_attention_layers": [0], "qk_norm": "rms_norm"}),
    ("SD3Transformer2DModel", SD3),
    ("FluxTransformer2DModel", FLUX),
    ("FluxTransformer2DModel", {**FLUX, "guidance_embeds": True}),
    ("Flux2Transformer2DModel", FLUX_2),
    ("Flux2Transformer2DModel", {**FLUX_2, "guidance_embeds": False}),
    ("ZImageTransformer2DModel", {
        "in_channels": 4, "n_layers": 2, "n_refiner_layers": 1, "dim": 96, "n_heads": 2, "n_kv_heads": 2,
        "cap_feat_dim": 40, "axes_dims": [16, 16, 16],
    }),
    ("Lumina2Transformer2DModel", {
        "in_channels": 4, "num_layers": 2, "num_refiner_layers": 1, "hidden_size": 96, "num_attention_heads": 4,
        "num_kv_heads": 2, "cap_feat_dim": 40, "multiple_of": 64, "axes_dim_rope": [8, 8, 8],
    }),
    ("SanaTransformer2DModel", SANA),
    ("SanaTransformer2DModel", {**SANA, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}),
    ("QwenImageTransformer2DModel", QWEN),
    ("UNet2DConditionModel", UNET),
    ("UNet2DConditionModel", {
        **UNET, "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 72,
    }),
    ("UNet2DConditionModel", {**UNET, "time_cond_proj_dim": 16, "layers_per_block": [1, 2]}),
    ("AutoencoderKL", KL),
    ("AutoencoderKL", {**KL, "use_quant_conv": False, "use_post_quant_conv": False, "layers_per_block": 2}),
    ("AutoencoderKLFlux2", KL),
    ("AutoencoderDC", {"latent_channels": 4, "attention_head_dim": 8, **BOTH}),
    ("AutoencoderDC", {
        "latent_channels": 4, "attention_head_dim": 8, **BOTH, "upsample_block_type": "interpolate",
        "downsample_block_type": "Conv",
    }),
    ("AutoencoderKLQwenImage", {
        "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "temperal_downsample": [False, True],
    }),
]  # fmt: skip
AT = Inputs(12, 8, 32)


def real(name: str, config: dict[str, Any], device: str = "meta") -> tuple[Any, dict[str, Any]]:
    """The class, and its whole configuration."""
    import diffusers

    with torch.device(device):
        made = getattr(diffusers, name)(**config).eval()
    return made, {**made.config, "_class_name": name}


def call(network: Any, config: dict[str, Any], at: Inputs) -> None:
    """One pass of one state."""
    image, packed = (at.height // 2) * (at.width // 2), config.get("in_channels", 4)
    text = torch.randn(1, at.text, config.get("joint_attention_dim") or config.get("cross_attention_dim") or 1)
    told = torch.ones(1) if config.get("guidance_embeds") else None
    states, one = torch.randn(1, packed, at.height, at.width), torch.zeros(1)
    match config["_class_name"]:
        case "SD3Transformer2DModel":
            network(states, text, torch.randn(1, config["pooled_projection_dim"]), one)
        case "FluxTransformer2DModel":
            ids = {"img_ids": torch.zeros(image, 3), "txt_ids": torch.zeros(at.text, 3)}
            pooled = torch.randn(1, config["pooled_projection_dim"])
            network(torch.randn(1, image, packed), text, pooled, one, guidance=told, **ids)
        case "Flux2Transformer2DModel":
            ids = {"img_ids": torch.zeros(image, 4), "txt_ids": torch.zeros(at.text, 4)}
            network(torch.randn(1, image, packed), text, one, guidance=told, **ids)
        case "QwenImageTransformer2DModel":
            shapes = [[(1, at.height // 2, at.width // 2)]]
            network(torch.randn(1, image, packed), text, None, one, img_shapes=shapes)
        case "ZImageTransformer2DModel":
            network([states[0][:, None]], one, [torch.randn(at.text, config["cap_feat_dim"])])
        case "Lumina2Transformer2DModel":
            mask = torch.ones(1, at.text, dtype=torch.bool)
            network(states, one, torch.randn(1, at.text, config["cap_feat_dim"]), mask)
        case "SanaTransformer2DModel":
            network(states, torch.randn(1, at.text, config["caption_channels"]), one, guidance=told)
        case "UNet2DConditionModel":
            more = {"text_embeds": torch.randn(1, 24), "time_ids": torch.zeros(1, 6)}
            guidance = torch.randn(1, config["time_cond_proj_dim"]) if config["time_cond_proj_dim"] else None
            network(states, one, text, timestep_cond=guidance, added_cond_kwargs=more)
        case "AutoencoderKLQwenImage":
            network.decode(torch.randn(1, config["z_dim"], 1, at.height, at.width))
        case _:
            network.decode(torch.randn(1, config["latent_channels"], at.height, at.width))


def same_tensors(made: Counted, network: Any) -> None:
    theirs = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    buffers = {name for name in theirs if name not in dict(network.named_parameters())}
    assert made.shapes == theirs, set(made.shapes.items()) ^ set(theirs.items())
    assert made.elements - sum(network.state_dict()[name].numel() for name in buffers) == sum(
        parameter.numel() for parameter in network.parameters()
    )


@pytest.mark.parametrize(("name", "config"), SMALL, ids=[f"{i}-{name}" for i, (name, _) in enumerate(SMALL)])
def test_small_networks_have_these_tensors_and_take_what_torch_counts(name: str, config: dict[str, Any]) -> None:
    network, whole = real(name, config, "cpu")
    made = counted(whole, AT)
    same_tensors(made, network)
    plain = sdpa_kernel(SDPBackend.MATH)  # whose products are counted
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        call(network, whole, AT)
    assert made.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


LARGE = 4e9  # elements: torch takes a minute to build such a network, though it holds no values
PARTS = {str(sorted(config.items())): config for parts in PUBLISHED.values() for name, config in parts.items()}


def parts() -> list[Any]:
    """Each published configuration once."""
    found = []
    for config in PARTS.values():
        name = config.get("_class_name") or config.get("architectures", [None])[0]
        if name:
            large = counted(config, AT).elements > LARGE
            found.append(pytest.param(config, id=name, marks=pytest.mark.slow if large else ()))
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("config", parts())
def test_published_networks_have_these_tensors(config: dict[str, Any]) -> None:
    import transformers

    made = counted(config, Inputs(64, 64, 77))
    if "_class_name" in config:
        more = {"down_block_types": ["DownEncoderBlock2D"] * 4} if config["_class_name"] == "AutoencoderKL" else {}
        own = {k: v for k, v in config.items() if k != "_class_name"}
        same_tensors(made, real(config["_class_name"], {**more, **own})[0])
    else:
        kind = getattr(transformers, config["architectures"][0])
        with torch.device("meta"):
            network = kind(kind.config_class(**{k: v for k, v in config.items() if k != "architectures"}))
        assert made.elements == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("hub_id", "billions"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 0.86),
        ("stabilityai/stable-diffusion-xl-base-1.0", 2.57),
        ("stabilityai/stable-diffusion-3.5-medium", 2.47),
        ("stabilityai/stable-diffusion-3.5-large", 8.15),
        ("black-forest-labs/FLUX.1-dev", 11.9),
        ("black-forest-labs/FLUX.2-klein-4B", 3.88),
        ("Tongyi-MAI/Z-Image-Turbo", 6.15),
        ("Alpha-VLLM/Lumina-Image-2.0", 2.61),
        ("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", 1.60),
        ("Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers", 0.59),
        ("Qwen/Qwen-Image", 20.4),
    ],
)
def test_they_are_as_large_as_is_published(hub_id: str, billions: float) -> None:
    parts = PUBLISHED[hub_id]
    made = counted(parts.get("transformer") or parts["unet"], Inputs(64, 64, 77))
    assert made.elements / 1e9 == pytest.approx(billions, rel=0.01)


def test_what_is_not_known_is_said_in_words() -> None:
    with pytest.raises(ValueError, match="nothing is known of the work of PixArtTransformer2DModel"):
        counted({"_class_name": "PixArtTransformer2DModel"}, AT)
    with pytest.raises(ValueError, match="of FluxTransformer2DModel does not tell its layers"):
        counted({"_class_name": "FluxTransformer2DModel"}, AT)
    assert {name for name, _ in SMALL} <= NETWORKS.keys()
