"""What a model's files say of its size: safetensors headers and JSON, no tensor is read."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from dav_ray.config.families.sizes import Shapes, Sizes
from dav_ray.config.families.table import family_of
from dav_ray.config.model_path import model_path
from dav_ray.config.schema import Config


def read_sizes(config: Config) -> Sizes:
    """The networks of a recipe's model. OSError or ValueError, in words: they are not on this machine, or are no
    safetensors."""
    place = Path(_local(model_path(config.model.path), config.model.revision))
    return family_of(config.model).sizes(config, place)


def adapter_elements(shapes: Shapes, rank: int, targets: Sequence[str]) -> int:
    """Parameters of LoRA on the layers whose name, or whose name's end, is one of the targets."""
    total = 0
    for name, shape in shapes.items():
        layer = name.removesuffix(".weight")
        if layer == name or len(shape) < 2 or not any(layer == t or layer.endswith(f".{t}") for t in targets):
            continue
        total += rank * (prod(shape[1:]) + shape[0])  # A: rank x (in x kernel), B: out x rank
    return total


def _local(path: str, revision: str | None) -> str:
    """The folder itself, or where the hub's files of this id lie on this machine."""
    if Path(path).exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(path, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        raise ValueError(f"{path} is not on this machine") from None
