"""Where a model lies: a folder, a hub id, or one that ships with the package."""

from __future__ import annotations

import os
from pathlib import Path

from dav_ray.diffusion.pipelines.hub import is_hub_id
from dav_ray.errors import UserError
from dav_ray.redact import PATH, show

SHIPPED = "shipped:"
ASSETS = Path(__file__).parents[1] / "assets"


def model_path(path: str) -> str:
    """What is loaded: a shipped model's folder, a local folder or file, or a hub id as it is.

    Call it on the node that loads the model: a shipped model's folder is that node's. Raises UserError for an
    unknown shipped model.
    """
    if not path.startswith(SHIPPED):
        return os.path.expanduser(path)
    found = [asset for name in ("model_index.json", "config.json") for asset in ASSETS.glob(f"*/{name}")]
    names = sorted(f"{SHIPPED}{asset.parent.name}" for asset in found)
    if path not in names:
        known = ", ".join(names) or "none is installed"
        raise UserError(f"model.path = {show(path, PATH)}: no such shipped model; allowed: {known}")
    return str(ASSETS / path.removeprefix(SHIPPED))


def check_there(path: str, where: str) -> None:
    """UserError for a stored path that counts from a folder which is not the current one: earlier releases stored them
    so. where: the file that holds it."""
    if path.startswith(SHIPPED) or is_hub_id(path) or os.path.exists(os.path.expanduser(path)):
        return
    start = f"{where}: model.path = {show(path, PATH)}"
    if os.path.isabs(os.path.expanduser(path)):
        raise UserError(f"{start}: is not there any more; allowed: the model that the run began with, in its place")
    raise UserError(
        f"{start}: counts from the folder where the run was begun; allowed: start there, or write the absolute path "
        "into that file"
    )
