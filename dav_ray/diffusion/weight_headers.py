"""Shapes of the tensors in a file of weights, from its header: no tensor is read, no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dav_ray.strict import parse_object

# bytes per element of the types that safetensors knows
TYPES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}


MOST_HEADER = 100_000_000  # bytes, as the safetensors library has it


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file, from its header; none of the tensors is read.

    ValueError where the file is not whole or its header says what can't be; OSError where it can't be read.
    """
    size = file.stat().st_size
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER):
            raise ValueError("is no safetensors file, or only a part of one")
        header = parse_object(content.read(length))
    shapes, end = {}, 0
    for name, entry in header.items():
        if name != "__metadata__":
            shapes[name], last = _tensor(name, entry)
            end = max(end, last)
    if 8 + length + end != size:
        raise ValueError(f"is only a part of a safetensors file: {size:,} bytes, its header says {8 + length + end:,}")
    return shapes


def _tensor(name: str, entry: Any) -> tuple[tuple[int, ...], int]:
    """Shape, and where its bytes end."""
    held: dict[str, Any] = entry if isinstance(entry, dict) else {}
    shape: Any = held.get("shape")
    offsets: Any = held.get("data_offsets")
    width = TYPES.get(str(held.get("dtype")))
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
        raise ValueError(f"has a header that is none, at {name[:60]}")
    if width is not None and math.prod(shape) * width != offsets[1] - offsets[0]:
        raise ValueError(f"has a tensor whose bytes do not fit its shape, {name[:60]}")
    return tuple(shape), offsets[1]


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
