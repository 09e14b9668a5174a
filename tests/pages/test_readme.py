"""The README is short, and its first commands are the ones that everything else builds on."""

from __future__ import annotations

from tests.support.markdown import blocks
from tests.support.places import ROOT

MOST_LINES = 250
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_it_begins_with_a_run_and_the_tests() -> None:
    first, second = [block.text for block in blocks("README.md", README) if block.text.startswith("pip")][:2]
    assert first == "pip install -e . && dav-ray run digits\n"
    assert second == 'pip install -e ".[dev]" && pytest\n'  # .ci/run takes it from here


def test_every_picture_has_words_for_those_who_do_not_see_it() -> None:
    assert "![](" not in README
