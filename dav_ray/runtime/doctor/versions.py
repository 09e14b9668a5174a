"""What is installed on each node, and where nodes differ."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from dav_ray.runtime.doctor.findings import Finding

MUST_AGREE = ("python", "dav_ray", "ray", "torch")  # else actors can't talk to each other, or bits differ
LIBRARIES = ("dav_ray", "ray", "torch", "diffusers", "transformers", "numpy")
SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int  # bytes


@dataclass(frozen=True)
class Installed:
    """versions: python's and the libraries', by name."""

    versions: Mapping[str, str]
    gpus: tuple[Gpu, ...] = ()


def installed() -> Installed:
    """What this node has."""
    found = {name: _version(name) for name in LIBRARIES}
    return Installed({"python": platform.python_version(), **found}, _gpus())


def compare(nodes: Mapping[str, Installed]) -> Iterator[Finding]:
    """One line per program: its version, or who has which where nodes differ; and each node's GPUs."""
    for name in ("python", *LIBRARIES):
        having: dict[str, list[str]] = {}
        for node, found in nodes.items():
            having.setdefault(found.versions[name], []).append(node)
        if len(having) == 1:
            yield Finding(name, next(iter(having)))
        elif having:
            text = "; ".join(f"{number} on {', '.join(names)}" for number, names in sorted(having.items()))
            yield Finding(name, f"differs: {text}", ok=name not in MUST_AGREE)
    for node, found in nodes.items():
        if found.gpus:
            gpus = ", ".join(f"{gpu.name} with {gpu.memory / 1e9:.0f} GB" for gpu in found.gpus)
            yield Finding(f"node {node}", gpus)


def _gpus() -> tuple[Gpu, ...]:
    """By the driver's own program: torch would show this process only what Ray gave it."""
    if shutil.which(SMI[0]) is None:
        return ()
    said = subprocess.run(SMI, capture_output=True, text=True, timeout=20)
    rows = [line.rsplit(",", 1) for line in said.stdout.splitlines()] if said.returncode == 0 else []
    return tuple(Gpu(row[0].strip(), int(row[1]) * MIB) for row in rows if len(row) == 2 and row[1].strip().isdigit())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
