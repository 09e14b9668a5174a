"""Whole folders between a run directory and this machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from dav_ray.run_dir.storage.interface import PARALLEL_READS, Storage
from dav_ray.run_dir.storage.local import LocalStorage


def download(storage: Storage, prefix: str, local_dir: str | Path) -> None:
    """Copy a folder to this machine. Raises FileNotFoundError if nothing is in it."""
    names = [str(PurePosixPath(path).relative_to(prefix)) for path in storage.list(prefix)]
    if not names:
        raise FileNotFoundError(f"{storage.uri}/{prefix} is empty or absent")
    target = LocalStorage(str(Path(local_dir).absolute()))
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for _ in pool.map(lambda name: target.write(name, storage.read(_join(prefix, name))), names):
            pass


def upload(storage: Storage, local_dir: str | Path, prefix: str) -> None:
    """Copy a folder of this machine into the run directory, file by file. Raises FileNotFoundError if nothing is in
    it."""
    source = LocalStorage(str(Path(local_dir).absolute()))
    names = source.list("")
    if not names:
        raise FileNotFoundError(f"{local_dir} is empty or absent")
    for name in names:
        storage.write(_join(prefix, name), source.read(name))


def _join(prefix: str, name: str) -> str:
    return str(PurePosixPath(prefix, name))
