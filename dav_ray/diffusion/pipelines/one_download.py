"""A model of the hub is downloaded once per node: the driver says which commit, one process of each node fetches it,
the others wait for its lock and ask the hub nothing.

huggingface_hub keeps a lock for each file, so that bytes are fetched once already. What it does not spare is asking:
each process would look up the repository and its files, which the hub allows some 3000 times in five minutes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from dav_ray.diffusion.pipelines.hub import is_offline

COMMIT = re.compile(r"[0-9a-f]{40}")


def commit_of(hub_id: str, revision: str | None) -> str | None:
    """The commit that a revision (None: the newest) stands for now. `revision` itself where the hub does not tell and
    no cache knows: what loads the model says why."""
    from huggingface_hub import resolve_revision
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError

    try:
        return resolve_revision(hub_id, revision=revision, local_files_only=is_offline()).resolved
    except (HfHubHTTPError, HFValidationError, RevisionResolutionError, OSError):
        return revision


def downloaded(hub_id: str, revision: str | None, download: Callable[[bool], str | Path]) -> str:
    """The folder that `download(local_files_only)` gives: from this node's cache where a commit lies there whole, else
    from the hub. A revision that is no commit may have moved, and is always asked for."""
    with _alone(hub_id):
        if revision is not None and COMMIT.fullmatch(revision):
            with contextlib.suppress(OSError, ValueError):  # what the loaders raise for files that are not there
                return str(download(True))
        return str(download(is_offline()))


@contextlib.contextmanager
def _alone(hub_id: str) -> Iterator[None]:
    """No other process with this cache is in here for the same model. A cache that can't be written to has no lock."""
    from filelock import FileLock
    from huggingface_hub.constants import HF_HUB_CACHE

    file = Path(HF_HUB_CACHE, ".locks", f"models--{hub_id.replace('/', '--')}.download.lock")
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(file))
        yield
