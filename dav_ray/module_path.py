"""Where a process finds modules of the user's own. Standard library only: a reward may live in another environment."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def on_path(folders: Sequence[str]) -> None:
    """Look in these folders first, in this order, for what is imported from now on."""
    for folder in reversed(folders):
        if folder in sys.path:
            sys.path.remove(folder)
        sys.path.insert(0, folder)
