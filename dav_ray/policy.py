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

from dav_ray.config import Config
from dav_ray.diffusion.base import Diffusion
from dav_ray.errors import RunError, UserError
from dav_ray.model_folder import check_there
from dav_ray.policy_files import OPTIMIZER_FILE, folder, versions
from dav_ray.storage import Storage

ADAMW = ("step", "exp_avg", "exp_avg_sq")  # what it keeps of each parameter

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


def save(storage: Storage, version: int, diffusion: Diffusion, optimizer: torch.optim.Optimizer) -> None:
    """Write version `version`. Written again after a crash it is the same file: training is deterministic."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as local:
        diffusion.write_policy(Path(local))
        save_file(_flatten(optimizer), Path(local) / OPTIMIZER_FILE)
        storage.upload_folder(local, folder(version))


def read_weights(storage: Storage, version: int, diffusion: Diffusion) -> Weights:
    """The policy's parameters from the run directory, for a model built from the same configuration."""
    from safetensors.numpy import load

    state = _read(storage, f"{folder(version)}/{diffusion.policy_file}", load)
    prefix = diffusion.policy_prefix
    return {name.removeprefix(prefix): array for name, array in state.items()}


def start(storage: Storage, config: Config, diffusion: Diffusion) -> None:
    """Put a model that was built from the configuration at version 0. RunError where its policy is absent."""
    if config.init.run is not None:
        set_weights(diffusion, read_weights(storage, 0, diffusion))


def read_optimizer(storage: Storage, version: int, optimizer: torch.optim.Optimizer) -> None:
    """Put AdamW back to where version `version` left it."""
    from safetensors.torch import load

    path = f"{folder(version)}/{OPTIMIZER_FILE}"
    flat = _read(storage, path, load)
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


def load(run_dir: str, version: int | None = None) -> Any:
    """The aligned model of a run, ready to sample: a `StableDiffusionPipeline` with a DDIM scheduler, or a
    `MaskedDiffusion`.

    version: a policy version; default: the last one. UserError if there is no run at `run_dir`, or none of this
    version in it.
    """
    from dav_ray.diffusion.families import aligned, pretrained
    from dav_ray.run_files import read_run

    stored = read_run(run_dir)
    version = stored.manifest.policy_version if version is None else version
    there = versions(stored.storage)
    plain = version == 0 and 0 not in there
    if plain or stored.config.model.kind == "diffusers":  # a masked policy is the whole model
        check_there(stored.config.model.path, f"{run_dir}/config.yaml")
    if plain:
        return pretrained(stored.config)
    if version not in there:
        first = "the policy that the run started from" if 0 in there else "the pretrained model"
        known = ", ".join(map(str, sorted({0, *there})))
        raise UserError(f"{run_dir}: has no policy of version {version}; allowed: {known} (0: {first})")
    with tempfile.TemporaryDirectory() as local:
        stored.storage.download_folder(folder(version), local)
        return aligned(stored.config, Path(local))


def _read(storage: Storage, path: str, load: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    """RunError naming a file that is absent or damaged."""
    from safetensors import SafetensorError

    try:
        return load(storage.read(path))
    except FileNotFoundError:
        raise RunError("storage", f"{storage.uri}/{path} is absent") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError("storage", f"{storage.uri}/{path} can't be read: {error}") from None


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": torch.as_tensor(value).cpu().contiguous()
        for index, values in state.items()
        for key, value in values.items()
    }
