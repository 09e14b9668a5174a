"""Predictors of a property from a sequence, used as rewards: any torch module with weights in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dav_ray.diffusion.weight_files import read_checkpoint, sorted_header
from dav_ray.errors import UserError
from dav_ray.registry import RULE
from dav_ray.rewards.registry import resolve

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SHIPPED = "shipped:"
LAYOUTS = ("BVL", "BLV")
MOST_NAMES = 3  # of one kind, in one error


class ConvOracle(nn.Module):
    """Small convolutional predictor for sequences of one length, whose places have meanings of their own.

    The outputs are a sum: a weight for every letter at every place, plus what three convolutions with pooling
    between them make of letters together. No batch statistics: a verdict never depends on its neighbours.
    """

    def __init__(
        self,
        length: int,
        letters: int = 4,
        channels: int = 48,
        kernel: int = 11,
        hidden: int = 64,
        outputs: int = 1,
        dropout: float = 0.0,
    ) -> None:
        """kernel: odd width of the first convolution, in letters. ValueError for an even one or a length below 8."""
        super().__init__()
        if length < 8 or kernel % 2 == 0:
            raise ValueError(f"length {length}, kernel {kernel}; allowed: a length from 8, an odd kernel")
        half = channels // 2
        self.direct = nn.Linear(letters * length, outputs)
        self.body = nn.Sequential(
            nn.Conv1d(letters, channels, kernel, padding=kernel // 2), nn.GELU(), nn.AvgPool1d(2),
            nn.Conv1d(channels, channels, 5, padding=2), nn.GELU(), nn.AvgPool1d(2),
            nn.Conv1d(channels, half, 5, padding=2), nn.GELU(), nn.AvgPool1d(2),
            nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(half * (length // 8), hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, outputs),
        )  # fmt: skip

    def forward(self, one_hot: Tensor) -> Tensor:
        """one_hot [B, V, L] -> [B, outputs]."""
        return self.direct(one_hot.flatten(1)) + self.body(one_hot)


class Oracle:
    """One output of a frozen module as a reward: its value, or with `threshold` 1.0 where it is above, else 0.0.

    It computes on the CPU until `place_on` says where.
    """

    differentiable = True

    def __init__(
        self, module: nn.Module, names: Sequence[str], output: int | str, threshold: float | None, letters: int
    ) -> None:
        """names: of the outputs, none if unknown. ValueError for an output that is not among them."""
        self.module = module.float().eval().requires_grad_(False)
        self.threshold, self.letters = threshold, letters
        self.differentiable = threshold is None
        self.place = _place(output, names)
        self.device = torch.device("cpu")

    def place_on(self, device: str) -> None:
        """Compute there from now on; samples and values stay where they are."""
        self.device = torch.device(device)
        self.module.to(self.device)

    def predict(self, one_hot: Tensor) -> Tensor:
        """one_hot [B, V, L] float32 -> all outputs: [B], [B, O] or [B, O, 1]."""
        return self.module(one_hot)

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        """samples: tokens [B, L] or their relaxation [B, L, V]; conditions do not matter. [B] float32, in the module's
        own unit. ValueError for tokens that are no letters (a mask), or outputs that are not one number per sample."""
        if self.threshold is not None and samples.requires_grad:
            raise ValueError(f"threshold = {self.threshold} leaves no gradient; allowed: no threshold")
        letters = one_hot(samples, self.letters).transpose(1, 2)
        outputs = self.predict(letters.to(self.device))
        table = outputs.squeeze(2) if outputs.ndim == 3 and outputs.shape[2] == 1 else outputs
        table = table[:, None] if table.ndim == 1 else table
        if table.ndim != 2 or not 0 <= self.place < table.shape[1]:
            raise ValueError(f"output = {self.place} of a module whose output has the shape {list(outputs.shape)}")
        values = table[:, self.place].float().to(samples.device)
        return values if self.threshold is None else (values > self.threshold).float()


class TorchOracle(Oracle):
    """Any torch module: a class that can be imported, and a file of its weights."""

    differentiable = True

    def __init__(
        self,
        model: str,
        weights: str,
        output: int | str = 0,
        args: dict[str, Any] | None = None,
        layout: str = "BVL",
        threshold: float | None = None,
        prefix: str = "",
        letters: int = 4,
    ) -> None:
        """model: module.path:Class, built with `args`. weights: .safetensors, or what torch.save or Lightning wrote, or
        shipped:NAME; names lose `prefix`. output: its place, or its name in the class's `outputs` or the file's
        metadata. layout: what the module takes, letters before places (BVL) or after (BLV).

        FileNotFoundError: no such weights. ValueError: what does not fit, by name.
        """
        if layout not in LAYOUTS:
            raise ValueError(f"layout = {layout}: unknown; allowed: {', '.join(LAYOUTS)}")
        self.layout = layout
        file = weights_file("weights", weights)
        tensors, metadata = read_weights(file)
        module = _build(model, json.loads(metadata.get("args", "{}")) if args is None else args)
        fit(module, tensors, str(file), prefix)
        names = getattr(module, "outputs", None) or json.loads(metadata.get("outputs", "[]"))
        super().__init__(module, names, output, threshold, letters)

    def predict(self, one_hot: Tensor) -> Tensor:
        return self.module(one_hot if self.layout == "BVL" else one_hot.transpose(1, 2))


def save_oracle(path: str | Path, module: nn.Module, args: dict[str, Any], outputs: list[str], half: bool) -> None:
    """A .safetensors file that `TorchOracle` builds the module from: its weights (half: in float16), the constructor's
    arguments and the outputs' names. The same module is the same bytes."""
    tensors = {
        name: tensor.detach().cpu().to(torch.float16 if half and tensor.is_floating_point() else tensor.dtype)
        for name, tensor in module.state_dict().items()
    }
    metadata = {"args": json.dumps(args, sort_keys=True), "outputs": json.dumps(outputs)}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata=metadata)
    Path(path).write_bytes(sorted_header(data))


def one_hot(samples: Tensor, letters: int) -> Tensor:
    """[B, L, V] float32: samples as they are if they are that, else of tokens [B, L]. ValueError for any others."""
    if samples.ndim == 3 and samples.shape[2] == letters and samples.is_floating_point():
        return samples.float()
    if samples.ndim != 2 or samples.is_floating_point():
        kind = f"{str(samples.dtype).removeprefix('torch.')} {list(samples.shape)}"
        raise ValueError(f"samples are {kind}; allowed: tokens [B, L] or float32 [B, L, {letters}]")
    if samples.numel() and not 0 <= int(samples.min()) <= int(samples.max()) < letters:
        raise ValueError(f"tokens from {samples.min()} to {samples.max()}; allowed: 0 to {letters - 1}")
    return F.one_hot(samples.long(), letters).float()


def weights_file(key: str, value: str) -> Path:
    """The path behind an argument's value. FileNotFoundError if there is no such file."""
    shipped = value.startswith(SHIPPED)
    file = ASSETS / value.removeprefix(SHIPPED) if shipped else Path(value).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{key} = {value}: no such {'shipped ' if shipped else ''}file")
    return file


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the file's metadata. ValueError for a file that holds no weights."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as content:
                return {name: content.get_tensor(name) for name in content.keys()}, content.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{file}: can't be read as safetensors ({error})") from None
    found = checkpoint(file)
    return state_dict(found.get("state_dict", found), file), {}


def checkpoint(file: Path) -> dict[str, Any]:
    """`read_checkpoint` as a reward's constructor words it. ValueError for a file that is none."""
    try:
        return read_checkpoint(file)
    except UserError as error:
        raise ValueError(str(error)) from None


def state_dict(found: Any, file: Path) -> dict[str, Tensor]:
    """`found`, if it is tensors by name, else ValueError."""
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{file}: holds no weights; allowed: a state_dict, or a dictionary with one")
    return found


def fit(module: nn.Module, tensors: Mapping[str, Tensor], file: str, prefix: str = "") -> None:
    """Load the tensors whose names start with `prefix`, without it. ValueError naming all that does not fit."""
    given = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    wanted = module.state_dict()
    shapes = [
        f"{name} {list(given[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    wrong = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": shapes,
    }
    if any(wrong.values()):
        words = "; ".join(f"{kind}: {_some(names)}" for kind, names in wrong.items() if names)
        raise ValueError(f"{file}: does not fit {type(module).__name__}: {words}")
    module.load_state_dict(given)


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _build(model: str, args: dict[str, Any]) -> nn.Module:
    if ":" not in model:
        raise ValueError(f"model = {model}: is no class; allowed: {RULE}")
    try:
        module = resolve(model)(**args)
    except Exception as error:  # a user's class may raise anything
        raise ValueError(f"model = {model}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    if not isinstance(module, nn.Module):
        raise ValueError(f"model = {model}: is no torch.nn.Module; allowed: module.path:Class of one")
    return module


def _place(output: int | str, names: Sequence[str]) -> int:
    if isinstance(output, str) and output in names:
        return list(names).index(output)
    if isinstance(output, str) or (names and not 0 <= output < len(names)):
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(names)) or "a place, from 0: outputs have no names"
        raise ValueError(f"output = {output}: unknown; allowed: {known}")
    return output
