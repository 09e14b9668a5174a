"""Versioned, immutable policies in `policy/vNNNN/`: what the M-step made, as users load it.

Stable Diffusion: `pytorch_lora_weights.safetensors` for `StableDiffusionPipeline.load_lora_weights`, or with full
weights `unet/` for `UNet2DConditionModel.from_pretrained`. Masked models: `model.safetensors` and `config.json`,
adapters merged, for `MaskedDiffusion.from_checkpoint`; with LoRA the adapters by themselves too. Beside them
`optimizer.safetensors`, from which training goes on. Version 0 is the pretrained model and has no folder, or the policy
that the run started from (`init.run`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dav_ray.diffusion.base import Diffusion
from dav_ray.errors import RunError
from dav_ray.run_dir.policy_files import OPTIMIZER_FILE, folder
from dav_ray.run_dir.storage.folders import upload
from dav_ray.run_dir.storage.interface import Storage

ADAMW = ("step", "exp_avg", "exp_avg_sq")  # what it keeps of each parameter
SCALER, SCALED = "scaler", ("scale", "growth_tracker")  # what is kept of the scale of a float16 loss

Weights = dict[str, np.ndarray]  # float32, by parameter name


def get_weights(diffusion: Diffusion) -> Weights:
    """The policy's parameters, copied to the CPU."""
    return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in diffusion.policy_state().items()}


def set_weights(diffusion: Diffusion, weights: Weights) -> None:
    """Load the policy's parameters. ValueError where names do not fit."""
    if not set(diffusion.policy_state()) <= set(weights):
        raise ValueError("the adapters in the file are not those of the configuration (mstep.lora)")
    # copied: arrays from the object store are read-only
    diffusion.load_policy_state({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})


def save(
    storage: Storage,
    version: int,
    diffusion: Diffusion,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write version `version`. Written again after a crash it is the same file: training is deterministic. scaler: of
    a float16 loss; nothing is written of one that is not enabled."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as local:
        diffusion.write_policy(Path(local))
        save_file(_flatten(optimizer) | _scale(scaler), Path(local) / OPTIMIZER_FILE)
        upload(storage, local, folder(version))


def read_weights(storage: Storage, version: int, diffusion: Diffusion) -> Weights:
    """The policy's parameters from the run directory, for a model built from the same configuration."""
    from safetensors.numpy import load

    state = _read(storage, f"{folder(version)}/{diffusion.policy_file}", load)
    prefix = diffusion.policy_prefix
    return {name.removeprefix(prefix): array for name, array in state.items()}


def start(storage: Storage, diffusion: Diffusion) -> None:
    """Put a model at version 0, where that is another run's policy (`init.run`). RunError where it is absent."""
    set_weights(diffusion, read_weights(storage, 0, diffusion))


def read_optimizer(
    storage: Storage, version: int, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> None:
    """Put AdamW, and the scale of a float16 loss, back to where version `version` left them. A version that says
    nothing of the scale leaves it where it is."""
    from safetensors.torch import load

    path = f"{folder(version)}/{OPTIMIZER_FILE}"
    flat = _read(storage, path, load)
    scale = {key: flat.pop(f"{SCALER}/{key}") for key in SCALED if f"{SCALER}/{key}" in flat}
    if any(tensor.numel() != 1 for tensor in scale.values()):
        raise RunError("storage", f"{storage.uri}/{path} can't be read: the loss' scale is no number")
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in flat.items():
        index, _, key = name.partition("/")
        known = index.isascii() and index.isdecimal() and len(index) < 10 and int(index) < len(shapes)
        if not known or key not in ADAMW or tuple(tensor.shape) != (() if key == "step" else shapes[int(index)]):
            raise RunError("storage", f"{storage.uri}/{path} can't be read: it is of another optimizer ({name[:60]})")
        state.setdefault(int(index), {})[key] = tensor
    if any(set(found) != set(ADAMW) for found in state.values()):
        raise RunError("storage", f"{storage.uri}/{path} can't be read: it is not whole")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler is not None and scaler.is_enabled() and len(scale) == len(SCALED):
        values = {"scale": float(scale["scale"]), "_growth_tracker": int(scale["growth_tracker"])}
        scaler.load_state_dict({**scaler.state_dict(), **values})


def _read(storage: Storage, path: str, load: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    """RunError naming a file that is absent or damaged."""
    from safetensors import SafetensorError

    try:
        return load(storage.read(path))
    except FileNotFoundError:
        raise RunError("storage", f"{storage.uri}/{path} is absent") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError("storage", f"{storage.uri}/{path} can't be read: {error}") from None


def _scale(scaler: torch.amp.GradScaler | None) -> dict[str, torch.Tensor]:
    state = scaler.state_dict() if scaler is not None else {}
    if not state:  # it is not enabled
        return {}
    values = (state["scale"], float(state["_growth_tracker"]))
    return {
        f"{SCALER}/{key}": torch.tensor(value, dtype=torch.float64) for key, value in zip(SCALED, values, strict=True)
    }


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": torch.as_tensor(value).cpu().contiguous()
        for index, values in state.items()
        for key, value in values.items()
    }
