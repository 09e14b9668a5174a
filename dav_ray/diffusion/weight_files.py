"""Weight files: reading those of others (Lightning's .ckpt, torch.save's .pt) without running anything in them.

A checkpoint is a pickle: it may name any class or function. Torch's own unpickler calls those on its list alone;
every other name becomes a stand-in here that keeps what it is given and does nothing, so that a file is readable
though the packages that wrote it (omegaconf, numpy, pandas, ...) are absent or of other versions.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from dav_ray.errors import UserError

ALLOWED = "allowed: a file that torch.save or Lightning wrote (.ckpt, .pt)"


class Inert:
    """What stands for an object of a class that is not looked up. `source`: its dotted name."""

    source = ""
    args: tuple[Any, ...]  # what it was to be called with
    state: Any  # what it was to be filled with

    def __new__(cls, *args: Any) -> Inert:
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.source}>"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dictionary in a checkpoint, tensors on the CPU (mapped from the file: what is not used is not read).

    omegaconf's dictionaries and lists become plain ones, interpolations stay text; other objects are `Inert`.
    UserError, one line naming the file: no such file, one that is no such checkpoint, or one that names a blocked
    function of the operating system.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{file}: no such file; {ALLOWED}")
    try:
        names = get_unsafe_globals_in_checkpoint(str(file))
        with safe_globals([(_stand_in(name), name) for name in names]):
            found = _plain(torch.load(str(file), map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # a damaged or hostile file may raise anything
        raise UserError(f"{file}: can't be read as a checkpoint ({_reason(error)}); {ALLOWED}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds {type(found).__name__}, a dictionary is needed; {ALLOWED}")
    return found


def sorted_header(data: bytes) -> bytes:
    """The same safetensors file with its header's keys sorted: the writer leaves metadata in arbitrary order."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns tensors to 8 bytes
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _stand_in(name: str) -> Any:
    # torch's unpickler fills plain dictionaries only, and omegaconf's metadata holds a filled defaultdict
    return _dictionary if name == "collections.defaultdict" else type("Inert", (Inert,), {"source": name})


def _dictionary(*args: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _plain(value: Any) -> Any:
    """The same with omegaconf's nodes replaced by what they hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, Inert) and value.source.startswith("omegaconf.") and isinstance(value.state, dict):
        for field in ("_content", "_val"):
            if field in value.state:
                return _plain(value.state[field])
    return value


def _reason(error: Exception) -> str:
    """The first sentence of what torch says; the rest is advice to trust the file."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = text.find("Trying to load unsupported GLOBAL")
    return (text[known:] if known >= 0 else text).split(". ")[0]
