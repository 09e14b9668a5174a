"""Installed packages that register names, made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


def install(
    folder: Path, name: str, points: Mapping[str, Mapping[str, str]], *, version: str = "1.2", **modules: str
) -> None:
    """A distribution in a folder of sys.path: its modules' sources, and its entry points, name -> target by group."""
    folder.mkdir(exist_ok=True)
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA.format(name=name, version=version))
    lines = [f"[{group}]\n" + "".join(f"{key} = {to}\n" for key, to in held.items()) for group, held in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
