"""Files of masked models: a folder with `config.json` and `model.safetensors`, or a Lightning checkpoint of the DNA
benchmark (Gosai enhancers): `state_dict` with names `backbone.*`, `ema.shadow_params` in the parameters' order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dav_ray.diffusion import adapters
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.config_file import BENCHMARK_LENGTH, CONFIG, MOST, WEIGHTS, read_config
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.errors import UserError

MODEL, ADAPTERS = WEIGHTS, "adapters.safetensors"
# Another backbone is one file with a class like `DilatedCNN` (forward, fixed, sizes), and a line here.
BACKBONES = {"dilated_cnn": DilatedCNN}
FIXED = tuple(name for backbone in BACKBONES.values() for name in backbone.fixed)  # parameters that are never trained


@dataclass(frozen=True)
class Settings:
    """What the weights do not tell."""

    alphabet: Alphabet
    length: int
    classes: int
    time_conditioned: bool


@dataclass(frozen=True)
class Stored:
    """Weights by the backbone's names, and what they belong to."""

    where: str
    state: dict[str, Tensor]
    alphabet: Alphabet
    length: int
    classes: int
    time_conditioned: bool
    backbone: str = "dilated_cnn"


def read(path: str | Path, weights: Literal["raw", "ema"], alphabet: Alphabet | None, length: int | None) -> Stored:
    """A model folder or a checkpoint. UserError: one line per thing that does not fit."""
    place = Path(path).expanduser()
    if weights not in ("raw", "ema"):
        raise UserError(f"weights = {weights}: unknown; allowed: raw, ema")
    if place.is_dir():
        return _folder(place, alphabet, length)
    if place.is_file():
        return _lightning(place, weights, alphabet or Alphabet.of("dna"), length)
    raise UserError(f"{place}: no such file or folder; allowed: a model folder or a Lightning checkpoint (.ckpt)")


def build_backbone(found: Stored) -> DilatedCNN:
    """The network with the stored weights, sizes from the tensors. UserError naming each tensor that does not fit."""
    family = BACKBONES[found.backbone]
    _check_sizes(found)
    try:
        sizes = family.sizes(found.state, found.classes)
    except ValueError as error:
        raise UserError(f"{found.where}: {error}") from None
    if sizes["tokens"] != found.alphabet.mask + 1:
        raise UserError(
            f"{found.where}: was made for {sizes['tokens'] - 1} letters and a mask; model.alphabet = "
            f"{found.alphabet.letters} has {found.alphabet.mask}; allowed: an alphabet of {sizes['tokens'] - 1} letters"
        )
    backbone = family(**sizes)
    wanted, given = backbone.state_dict(), found.state
    mistakes = [f"{found.where}: has no {name}" for name in wanted if name not in given]
    mistakes += [f"{found.where}: {name} is not part of the network" for name in given if name not in wanted]
    mistakes += [
        f"{found.where}: {name} is {list(given[name].shape)}; allowed: {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    mistakes += [
        f"{found.where}: {name} holds values that are not finite"
        for name, tensor in given.items()
        if not bool(torch.isfinite(tensor).all())
    ]
    if mistakes:
        raise UserError(mistakes)
    backbone.load_state_dict({name: tensor.float() for name, tensor in given.items()})
    return backbone


def _check_sizes(found: Stored) -> None:
    """UserError where what the file says is larger than what it holds: a network of that size would fill the memory."""
    for name, tensor in found.state.items():
        if tensor.numel() == 0 or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(
                f"{found.where}: {name} is {list(tensor.shape)}, and the file does not hold as many numbers"
            )
    held = found.state.get("cls_embedder.weight")
    if held is None and found.classes:
        raise UserError(f"{found.where}: has no cls_embedder.weight, and says {found.classes} classes")
    if held is not None and found.classes != (held.shape[0] - 1 if held.ndim == 2 else -1):
        raise UserError(f"{found.where}: says {found.classes} classes, and its cls_embedder.weight others")


def write(folder: Path, backbone: nn.Module, settings: Settings, *, adapted: bool = False, half: bool = False) -> None:
    """The model as `read` takes it, adapters merged; the adapters by themselves where there are any."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = adapters.merged(backbone)
    if half:  # the Fourier frequencies are large: rounded, their angles would be off
        state = {name: tensor if name in FIXED else tensor.half() for name, tensor in state.items()}
    save_file(state, folder / MODEL)
    config = {
        "model_type": "dav_ray.masked",
        "backbone": next(name for name, family in BACKBONES.items() if isinstance(backbone, family)),
        "alphabet": settings.alphabet.letters,
        "length": settings.length,
        "classes": settings.classes,
        "time_conditioning": settings.time_conditioned,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if adapted:
        own = {name: p.detach().cpu() for name, p in backbone.named_parameters() if ".lora_" in name}
        save_file(own, folder / ADAPTERS)


def _folder(folder: Path, alphabet: Alphabet | None, length: int | None) -> Stored:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = read_config(folder)
        state = load_file(folder / MODEL)
    except (ValueError, SafetensorError, OSError) as error:
        raise UserError(f"{folder}: is no masked model: {error}") from None
    name = config.get("backbone", "dilated_cnn")
    if name not in BACKBONES:
        raise UserError(f"{folder}: its backbone is {name}; allowed: {', '.join(BACKBONES)}")
    own = Alphabet.of(config["alphabet"])
    if alphabet is not None and own != alphabet:
        raise UserError(f"{folder}: its alphabet is {own.letters}, not {alphabet.letters}; set model.alphabet to it")
    size = length or int(config["length"])
    return Stored(str(folder), state, own, size, config["classes"], config["time_conditioning"], name)


def _lightning(file: Path, weights: str, alphabet: Alphabet, length: int | None) -> Stored:
    from dav_ray.diffusion.weight_files import read_checkpoint

    checkpoint = read_checkpoint(file)
    tensors = checkpoint.get("state_dict")
    if not isinstance(tensors, dict):
        raise UserError(f"{file}: has no state_dict; allowed: a Lightning checkpoint of a masked diffusion model")
    state = {n.removeprefix("backbone."): t for n, t in tensors.items() if str(n).startswith("backbone.")}
    if not state:
        raise UserError(f"{file}: its state_dict has no backbone.*; allowed: a checkpoint of the dilated CNN")
    if others := [name for name, value in state.items() if not _plain_tensor(value)]:
        raise UserError([f"{file}: {name} is no plain tensor of numbers" for name in others])
    if weights == "ema":
        state |= _shadow(file, checkpoint, state)
    hyper = _plain(checkpoint.get("hyper_parameters"))
    config = hyper.get("config", hyper)
    model = config.get("model", {}) if isinstance(config, dict) else {}
    embedder = state.get("cls_embedder.weight")
    return Stored(
        str(file),
        state,
        alphabet,
        length or _whole(model.get("length")) or BENCHMARK_LENGTH,
        0 if embedder is None or embedder.ndim == 0 else len(embedder) - 1,
        bool(config.get("time_conditioning", False)) if isinstance(config, dict) else False,
    )


def _shadow(file: Path, checkpoint: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`ema.shadow_params` by name: in the order of the parameters, those that are never trained left out."""
    shadow = _plain(checkpoint.get("ema")).get("shadow_params")
    if not isinstance(shadow, (list, tuple)) or not all(map(_plain_tensor, shadow)):
        raise UserError(f"{file}: has no ema.shadow_params; allowed: weights = raw")
    names = [name for name in state if name not in FIXED]
    if len(shadow) == len(state):  # an average that was kept of the fixed ones too
        names = list(state)
    if len(shadow) != len(names):
        raise UserError(f"{file}: ema.shadow_params has {len(shadow)} tensors; allowed: {len(names)}, as parameters")
    mistakes = [
        f"{file}: ema.shadow_params[{i}] is {list(tensor.shape)}; {name} is {list(state[name].shape)}"
        for i, (name, tensor) in enumerate(zip(names, shadow, strict=True))
        if tensor.shape != state[name].shape
    ]
    if mistakes:
        raise UserError(mistakes)
    return dict(zip(names, shadow, strict=True))


def _plain_tensor(value: Any) -> bool:
    """Of numbers that are there: a checkpoint may hold sparse and quantized ones, or shapes without numbers."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and (value.dtype.is_floating_point and not value.is_quantized)
    )


def _plain(value: Any) -> dict[str, Any]:
    """What is no mapping says nothing."""
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 0 < value <= MOST else None
