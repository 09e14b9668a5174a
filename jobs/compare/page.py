"""The page of all comparisons; the repository's own page shows some of their tables too."""

from __future__ import annotations

from pathlib import Path

from jobs.tables import Page

HERE = Path(__file__).parent
PAGE = Page(HERE, also=[HERE.parents[1] / "README.md"])
