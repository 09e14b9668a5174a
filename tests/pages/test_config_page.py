"""The page of all keys is what the code says today."""

from __future__ import annotations

import pytest

from dav_ray.config.keys.describe import fields, section_of
from dav_ray.config.keys.markdown import BEGIN, END, page
from dav_ray.config.keys.table import SAME
from tests.support.places import PACKAGE

PAGE = PACKAGE / "config" / "README.md"


def test_it_is_up_to_date() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(written), "run: python -m dav_ray.config.keys.markdown dav_ray/config/README.md"


def test_it_has_every_key_once() -> None:
    written = PAGE.read_text(encoding="utf-8")
    for key, field in fields().items():
        if not section_of(field.annotation) and not key.startswith(tuple(f"{same}." for same in SAME)):
            assert written.count(f"| `{key}` |") == 1, key


def test_what_stands_around_the_keys_is_kept() -> None:
    made = page(f"before\n{BEGIN}\nstale text\n{END}\nafter\n")
    assert made.startswith(f"before\n{BEGIN}\n### General\n") and made.endswith(f"\n{END}\nafter\n")
    assert "stale text" not in made and page(made) == made
    with pytest.raises(ValueError, match="needs the lines"):
        page("no marks")
