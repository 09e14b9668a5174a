"""What a model's files say of its size: safetensors headers and JSON, no tensor is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dav_ray.config import Config
from dav_ray.masked_model import CONFIG, WEIGHTS
from dav_ray.model_folder import NETWORKS, model_path
from dav_ray.parsing import parse_object, tensor_shapes

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by name


@dataclass(frozen=True)
class Sizes:
    """shapes: of each network's tensors; configs: each network's config.json; both by the network's name."""

    shapes: Mapping[str, Shapes]
    configs: Mapping[str, Mapping[str, Any]]

    def elements(self, network: str) -> int:
        return sum(prod(shape) for shape in self.shapes[network].values())


def read_sizes(config: Config) -> Sizes:
    """The networks of a recipe's model. OSError or ValueError, in words: they are not on this machine, or are no
    safetensors."""
    place = Path(_local(model_path(config.model.path), config.model.revision))
    if config.model.kind == "masked":
        if not place.is_dir():
            raise ValueError("a .ckpt says nothing before it is loaded")
        return Sizes({"network": header(place / WEIGHTS)}, {"network": _json(place / CONFIG)})
    shapes = {name: _network(place / name, config.model.variant) for name in NETWORKS}
    return Sizes(shapes, {name: _json(place / name / "config.json") for name in NETWORKS})


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name from a safetensors file. ValueError if it is none."""
    try:
        return tensor_shapes(file)
    except ValueError as error:
        raise ValueError(f"{file.name} {error}") from None


def adapter_elements(shapes: Shapes, rank: int, targets: Sequence[str]) -> int:
    """Parameters of LoRA on the layers whose name, or whose name's end, is one of the targets."""
    total = 0
    for name, shape in shapes.items():
        layer = name.removesuffix(".weight")
        if layer == name or len(shape) < 2 or not any(layer == t or layer.endswith(f".{t}") for t in targets):
            continue
        total += rank * (prod(shape[1:]) + shape[0])  # A: rank x (in x kernel), B: out x rank
    return total


def _network(folder: Path, variant: str | None) -> Shapes:
    """All files of a network, of the variant that is loaded."""
    files = [file for file in sorted(folder.glob("*.safetensors")) if _variant(file) == variant]
    if not files:
        raise ValueError(f"{folder.name} has no safetensors here")
    return {name: shape for file in files for name, shape in header(file).items()}


def _variant(file: Path) -> str | None:
    """fp16 of model.fp16.safetensors, or of model.fp16-00001-of-00002.safetensors."""
    parts = file.name.removesuffix(".safetensors").split(".")
    return parts[1].split("-")[0] if len(parts) > 1 else None


def _local(path: str, revision: str | None) -> str:
    """The folder itself, or where the hub's files of this id lie on this machine."""
    if Path(path).exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(path, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        raise ValueError(f"{path} is not on this machine") from None


def _json(file: Path) -> Mapping[str, Any]:
    return parse_object(file.read_bytes())
