"""Shapes of the tensors in a file of weights, from its header: no tensor is read, no torch."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file, from its header; none of the tensors is read.

    ValueError where the file is not whole or its header says what can't be; OSError where it can't be read.
    """
    try:
        with safe_open(file, framework="numpy") as held:
            return {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"is no safetensors file, or only a part of one ({error})") from None
