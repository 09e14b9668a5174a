"""What networks hold for the backward pass and at their peak, against what autograd keeps of diffusers' own classes."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dav_ray.config.families.table import PIPELINES
from dav_ray.config.networks import held
from dav_ray.config.networks.counted import Inputs
from dav_ray.config.networks.table import counted
from dav_ray.registry import load
from tests.config.networks.test_networks import SMALL, call, real
from tests.support.like_a_gpu import LikeAGpu

FAMILIES = {
    "SD3Transformer2DModel": "StableDiffusion3Pipeline",
    "FluxTransformer2DModel": "FluxPipeline",
    "Flux2Transformer2DModel": "Flux2KleinPipeline",
    "ZImageTransformer2DModel": "ZImagePipeline",
    "Lumina2Transformer2DModel": "Lumina2Pipeline",
    "SanaTransformer2DModel": "SanaPipeline",
    "QwenImageTransformer2DModel": "QwenImagePipeline",
    "UNet2DConditionModel": "StableDiffusionXLPipeline",
}
XL = {
    "block_out_channels": [32, 64, 128],
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 204,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 72,
}
CASES = {name: config for name, config in reversed(SMALL) if name in FAMILIES} | {"UNet2DConditionModel": XL}
AT = Inputs(32, 32, 64)
HALF = torch.bfloat16


def kept(name: str, config: dict[str, Any], *, half: bool, autocast: bool, checkpointing: bool) -> float:
    """Bytes that a pass keeps and that are no weights."""
    from peft import LoraConfig

    network, whole = real(name, config, "cpu")
    network = network.to(HALF if half else torch.float32).requires_grad_(False).train()
    network.add_adapter(LoraConfig(r=1, target_modules=list(load(PIPELINES[FAMILIES[name]])().lora_targets)))
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if checkpointing:
        network.enable_gradient_checkpointing()
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    storages: dict[int, Any] = {}

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    gpu = LikeAGpu(HALF if autocast else None)
    torch.set_default_dtype(HALF if half else torch.float32)
    try:
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor), gpu:
            call(network, whole, AT)
    finally:
        torch.set_default_dtype(torch.float32)
    own |= {tensor.untyped_storage()._cdata for tensor in gpu._weights.values()}
    return sum(storage.nbytes() for key, storage in storages.items() if key not in own)


@pytest.mark.thorough
@pytest.mark.parametrize(("half", "autocast"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("name", CASES)
def test_training_keeps_about_what_is_said(name: str, half: bool, autocast: bool) -> None:
    made = counted({**real(name, CASES[name], "cpu")[1]}, AT)
    words = {"half": half, "autocast": autocast}
    found = kept(name, CASES[name], **words, checkpointing=False)
    width = 2 if half else 4
    assert held.training(name, made, **words, checkpointing=False).bytes(width) == pytest.approx(found, rel=0.2)


@pytest.mark.parametrize("name", CASES)
def test_with_checkpointing_blocks_keep_what_goes_into_them(name: str) -> None:
    """What is computed again comes on top of what autograd keeps until then."""
    made = counted({**real(name, CASES[name], "cpu")[1]}, AT)
    found = kept(name, CASES[name], half=False, autocast=False, checkpointing=True) / 4
    said = held.training(name, made, half=False, autocast=False, checkpointing=True)
    again = held.FACTORS[name].whole * max(made.blocks)
    assert said.wide == 0
    assert 0.55 * found < said.narrow - again < 1.4 * found  # tables of angles are as large as narrow states
    assert found < held.FACTORS[name].whole * made.put / 2


class Peak(TorchDispatchMode):
    """Elements of float32 that are alive at once, at most."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        tensors = (*network.parameters(), *network.buffers())
        self.live = {tensor.untyped_storage()._cdata: 0 for tensor in tensors}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.live:
                storage = tensor.untyped_storage()
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, key)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


@pytest.mark.parametrize("name", [name for name in CASES if name != "UNet2DConditionModel"])
def test_sampling_holds_about_what_is_said(name: str) -> None:
    network, whole = real(name, CASES[name], "cpu")
    made = counted(whole, AT)
    with torch.no_grad(), Peak(network) as peak:
        call(network, whole, AT)
    tables = 2.5 if name == "QwenImageTransformer2DModel" else 2  # of angles, which do not grow with the image
    assert peak.most / 4 / tables < held.sampling(made) < 2.6 * peak.most / 4


@pytest.mark.parametrize("number", [i for i, (name, _) in enumerate(SMALL) if name.startswith("Autoencoder")])
def test_decoding_holds_about_what_is_said(number: int) -> None:
    name, config = SMALL[number]
    network, whole = real(name, config, "cpu")
    at = Inputs(16, 16)
    with torch.no_grad(), Peak(network) as peak:
        call(network, whole, at)
    assert held.decoding(name, counted(whole, at), back=False) == pytest.approx(peak.most / 4, rel=0.25)
