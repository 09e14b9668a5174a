"""What weight files say of a network's size: safetensors headers and JSON, no tensor is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dav_ray.diffusion.weight_headers import tensor_shapes
from dav_ray.strict import parse_object

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by name


@dataclass(frozen=True)
class Sizes:
    """shapes: of each network's tensors; configs: each network's config.json; both by the network's name. policy: the
    name of the network that is trained."""

    shapes: Mapping[str, Shapes]
    configs: Mapping[str, Mapping[str, Any]]
    policy: str

    def elements(self, network: str) -> int:
        return sum(prod(shape) for shape in self.shapes[network].values())


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name from a safetensors file. ValueError if it is none."""
    try:
        return tensor_shapes(file)
    except ValueError as error:
        raise ValueError(f"{file.name} {error}") from None


def network(folder: Path, variant: str | None) -> Shapes:
    """All files of a network, of the variant that is loaded. ValueError where there is none."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if _variant(file) == variant]
    if not files:
        raise ValueError(f"{folder.name} has no safetensors here")
    return {name: shape for file in files for name, shape in header(file).items()}


def read_json(file: Path) -> Mapping[str, Any]:
    """OSError or ValueError where there is no JSON object."""
    return parse_object(file.read_bytes())


def json_if_there(file: Path) -> Mapping[str, Any]:
    """The same; empty where it can't be read."""
    try:
        return read_json(file)
    except (OSError, ValueError):
        return {}


def _variant(file: Path) -> str | None:
    """fp16 of model.fp16.safetensors, or of model.fp16-00001-of-00002.safetensors."""
    parts = file.name.removesuffix(".safetensors").split(".")
    return parts[1].split("-")[0] if len(parts) > 1 else None


def adapter_elements(shapes: Shapes, rank: int, targets: Sequence[str]) -> int:
    """Parameters of LoRA on the layers whose name, or whose name's end, is one of the targets."""
    total = 0
    for name, shape in shapes.items():
        layer = name.removesuffix(".weight")
        if layer == name or len(shape) < 2 or not any(layer == t or layer.endswith(f".{t}") for t in targets):
            continue
        total += rank * (prod(shape[1:]) + shape[0])  # A: rank x (in x kernel), B: out x rank
    return total
