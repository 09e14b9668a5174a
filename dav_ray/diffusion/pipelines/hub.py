"""Hub ids: what one is, whether it can be had, and its small files, which tell whether it can be aligned."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dav_ray.errors import UserError
from dav_ray.redact import PATH, show

INDEX = "model_index.json"
TRUE = ("1", "ON", "YES", "TRUE")  # what huggingface_hub takes for it
ANSWER_S = 5.0  # longest wait for the hub's first word


class Unseen(Exception):
    """Neither the hub nor this machine's cache gives a file: nothing is known of it here."""


def check_hub_id(path: str, revision: str | None = None) -> None:
    """UserError for a hub id that this machine, which is the only one, has not downloaded and can't."""
    if not is_hub_id(path):
        return
    if is_offline():
        if not _is_cached(path):
            raise UserError(not_from_the_hub(path, "offline, and not downloaded before"))
        return
    try:
        look(path, INDEX, revision)
    except Unseen as unseen:
        raise UserError(not_from_the_hub(path, f"{unseen}, and not downloaded before")) from unseen
    except ValueError as error:
        raise UserError(not_from_the_hub(path, str(error))) from error


def look(hub_id: str, name: str, revision: str | None = None) -> Path:
    """A small file of a hub id, from the hub, else from this machine's cache. Unseen where neither has it; ValueError,
    in words, where the hub says that there is no such thing."""
    if is_offline() and not _is_cached(hub_id):
        raise Unseen("offline")  # without an import that takes most of a second
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, name, revision=revision, local_files_only=not _answers(hub_id, name)))
    except errors.LocalEntryNotFoundError:
        raise Unseen("offline" if is_offline() else "the hub gives no answer") from None
    except errors.GatedRepoError:
        raise ValueError("it is gated: accept its terms on the hub, and set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise ValueError("there is no such model, or it is private and HF_TOKEN is not set") from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"it has no revision {show(str(revision))} (model.revision)") from None
    except errors.EntryNotFoundError:
        raise ValueError(f"it has no {name}, and is no diffusers pipeline") from None
    except errors.HFValidationError:
        raise ValueError("is no id that the hub knows") from None
    except OSError as error:  # a status that says nothing of the model, a proxy, a full disk
        raise Unseen(f"the hub gives no file ({type(error).__name__})") from None


def _answers(hub_id: str, name: str) -> bool:
    """Whether the hub says anything: the client asks one that is silent again and again, for half a minute."""
    if is_offline():
        return False
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import get_session

    try:
        get_session().head(hf_hub_url(hub_id, name), timeout=ANSWER_S)
    except Exception:  # whatever the library raises with which this version of the client asks
        return False
    return True


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
    return any(snapshots.glob(f"*/{INDEX}"))


def is_hub_id(path: str, folders: Sequence[str | Path] = (".",)) -> bool:
    """org/name, where no local folder could be meant."""
    parts = path.split("/")
    plain = len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~")
    return plain and not any(os.path.exists(os.path.join(folder, parts[0])) for folder in folders)
