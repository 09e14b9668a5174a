"""Hub ids: what one is, and whether it can be had. Nothing is imported or asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dav_ray.errors import UserError
from dav_ray.redact import PATH, show

TRUE = ("1", "ON", "YES", "TRUE")  # what huggingface_hub takes for it


def check_hub_id(path: str) -> None:
    """UserError for a hub id that this machine, which is the only one, has not downloaded and can't."""
    if is_offline() and is_hub_id(path) and not _is_cached(path):
        raise UserError(not_from_the_hub(path, "offline, and not downloaded before"))


def is_offline() -> bool:
    """Whether this process is told not to ask the hub."""
    return any(os.environ.get(name, "").upper() in TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def not_from_the_hub(path: str, why: str) -> str:
    """The line about a hub id that can't be loaded."""
    key = f"model.path = {show(path, PATH)}"
    return f"{key}: no folder here, and not to be had from the hub: {why}; allowed: a folder, or a hub id (org/name)"


def _is_cached(hub_id: str) -> bool:
    """Whether any revision of it was downloaded, where huggingface_hub keeps them (importing it takes a second)."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    snapshots = Path(os.path.expandvars(os.path.expanduser(cache)), f"models--{hub_id.replace('/', '--')}", "snapshots")
    return any(snapshots.glob("*/model_index.json"))


def is_hub_id(path: str, folders: Sequence[str | Path] = (".",)) -> bool:
    """org/name, where no local folder could be meant."""
    parts = path.split("/")
    plain = len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~")
    return plain and not any(os.path.exists(os.path.join(folder, parts[0])) for folder in folders)
