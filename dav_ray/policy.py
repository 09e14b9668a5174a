"""Versioned, immutable policies in `policy/vNNNN/`: what the M-step made, as users load it.

LoRA: `pytorch_lora_weights.safetensors`, for `StableDiffusionPipeline.load_lora_weights`.
Full weights: `unet/`, for `UNet2DConditionModel.from_pretrained`.
Beside them `optimizer.safetensors`, from which training goes on. Version 0 is the pretrained model and has no folder.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dav_ray.config import Config
from dav_ray.diffusion.stable_diffusion import StableDiffusion, load_pipeline
from dav_ray.storage import Storage

LORA_FILE = "pytorch_lora_weights.safetensors"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"

Weights = dict[str, np.ndarray]  # float32, by parameter name


def folder(version: int) -> str:
    return f"policy/v{version:04d}"


def get_weights(diffusion: StableDiffusion) -> Weights:
    """The policy's parameters, copied to the CPU."""
    from peft.utils import get_peft_model_state_dict

    unet = diffusion.trainable()
    state = get_peft_model_state_dict(unet) if diffusion.adapted else unet.state_dict()
    return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in state.items()}


def set_weights(diffusion: StableDiffusion, weights: Weights) -> None:
    """Load the policy's parameters. ValueError where names do not fit."""
    from peft.utils import set_peft_model_state_dict

    # copied: arrays from the object store are read-only
    state = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    unet = diffusion.trainable()
    if not diffusion.adapted:
        unet.load_state_dict(state)
        return
    if set(state) != set(get_weights(diffusion)):
        raise ValueError("the adapters in the file are not those of the configuration (mstep.lora)")
    set_peft_model_state_dict(unet, state)


def save(storage: Storage, version: int, diffusion: StableDiffusion, optimizer: torch.optim.Optimizer) -> None:
    """Write version `version`. Written again after a crash it is the same file: training is deterministic."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as local:
        unet = diffusion.trainable()
        if diffusion.adapted:
            layers: dict[str, torch.nn.Module | torch.Tensor] = {
                name: torch.from_numpy(array) for name, array in get_weights(diffusion).items()
            }
            StableDiffusionPipeline.save_lora_weights(
                local,
                unet_lora_layers=layers,
                unet_lora_adapter_metadata=_metadata(unet),
            )
            _order_header(Path(local) / LORA_FILE)
        else:
            unet.save_pretrained(Path(local) / "unet")
        save_file(_flatten(optimizer), Path(local) / OPTIMIZER_FILE)
        storage.upload_folder(local, folder(version))


def read_weights(storage: Storage, version: int, *, lora: bool) -> Weights:
    """The policy's parameters from the run directory."""
    from safetensors.numpy import load

    state = load(storage.read(f"{folder(version)}/{LORA_FILE if lora else UNET_FILE}"))
    return {name.removeprefix("unet."): array for name, array in state.items()} if lora else state


def read_optimizer(storage: Storage, version: int, optimizer: torch.optim.Optimizer) -> None:
    """Put AdamW back to where version `version` left it."""
    from safetensors.torch import load

    flat = load(storage.read(f"{folder(version)}/{OPTIMIZER_FILE}"))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in flat.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load(run_dir: str, version: int | None = None) -> Any:
    """The aligned model of a run, ready to sample: a `StableDiffusionPipeline` with a DDIM scheduler.

    version: a policy version; default: the last one. UserError if there is no run at `run_dir`.
    """
    from dav_ray.model_folder import model_path
    from dav_ray.run_files import read_run

    stored = read_run(run_dir)
    config = stored.config
    version = stored.manifest.policy_version if version is None else version
    model = config.model
    pipe = load_pipeline(model_path(model.path), dtype=model.dtype, variant=model.variant, revision=model.revision)
    if version > 0:
        _attach(pipe, stored.storage, version, config)
    return pipe


def _attach(pipe: Any, storage: Storage, version: int, config: Config) -> None:
    with tempfile.TemporaryDirectory() as local:
        storage.download_folder(folder(version), local)
        if config.mstep.parameters == "lora":
            pipe.load_lora_weights(local, weight_name=LORA_FILE)
        else:
            pipe.unet = type(pipe.unet).from_pretrained(Path(local) / "unet")


def _order_header(file: Path) -> None:
    """Rewrite a safetensors file with its header's keys sorted: the writer leaves its metadata in arbitrary order."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns tensors to 8 bytes
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


def _metadata(unet: Any) -> dict[str, Any]:
    """The adapters' configuration, without which a scale alpha / rank != 1 is lost. Sets, which have no order, sorted:
    the same policy is the same file."""
    config = unet.peft_config["default"].to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": torch.as_tensor(value).cpu().contiguous()
        for index, values in state.items()
        for key, value in values.items()
    }
