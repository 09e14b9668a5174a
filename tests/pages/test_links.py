"""Every link of every page leads somewhere; every path, module and key that a page names is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from dav_ray.config.keys.describe import is_key
from dav_ray.config.schema import Config
from tests.support.markdown import anchors, inline_code, links, name, pages, text
from tests.support.places import ROOT

PAGES = {name(page): page for page in pages()}
PATH = re.compile(r"(?:dav_ray|jobs|tests|cluster)/[\w./-]*")
MODULE = re.compile(r"dav_ray(?:\.\w+)+")
SECTIONS = tuple(key for key in Config.model_fields)
KEY = re.compile(rf"(?:{'|'.join(SECTIONS)})(?:\.[a-z_]+)+")
FILES = (".json", ".jsonl", ".md", ".npz", ".parquet", ".py", ".safetensors", ".yaml")  # what names of files end with
OLD = ("CHANGELOG.md",)  # what it says of earlier releases is of these


def broken(page: Path, target: str) -> str | None:
    """What is wrong with a link of a page; None where nothing is. Other sites are not asked."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    place = (page.parent / path).resolve() if path else page
    if not place.exists():
        return f"no file {path}"
    if ROOT not in (place, *place.parents):
        return f"{path} is outside the repository"
    if anchor and anchor not in anchors(text(place)):
        return f"no heading #{anchor} in {name(place)}"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    place = PAGES[page]
    wrong = [f"{target}: {why}" for target in links(text(place)) if (why := broken(place, target))]
    assert not wrong


def named_path(words: str) -> str | None:
    """The path of this repository that code in a text is or ends with; None where it is none."""
    found = PATH.fullmatch(words)
    return found[0] if found else None


def unknown(words: str) -> str | None:
    """What is wrong with the code in a text; None where nothing is."""
    if path := named_path(words):
        return None if (ROOT / path).exists() else f"no path {path}"
    if MODULE.fullmatch(words):
        return None if importable(words) else f"no module or name {words}"
    key = words.partition("=")[0].partition(":")[0].strip()
    if KEY.fullmatch(key) and not key.endswith(FILES):
        return None if is_key(key) or ".args." in key else f"no key {key}"
    return None


def importable(dotted: str) -> bool:
    """Whether this is a module, or a name of one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            continue
        if spec is not None:
            held: object = importlib.import_module(module)
            for part in parts[end:]:
                if not hasattr(held, part):
                    return False
                held = getattr(held, part)
            return True
    return False


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OLD])
def test_paths_modules_and_keys_are_there(page: str) -> None:
    wrong = [why for words in inline_code(text(PAGES[page])) if (why := unknown(words))]
    assert not wrong


def test_mistakes_are_found(tmp_path: Path) -> None:
    readme = ROOT / "README.md"
    assert broken(readme, "dav_ray/no_such_page.md") == "no file dav_ray/no_such_page.md"
    assert broken(readme, "SECURITY.md#no-such-heading") == "no heading #no-such-heading in SECURITY.md"
    assert broken(readme, "#no-such-heading") == "no heading #no-such-heading in README.md"
    assert broken(readme, "../outside") is not None
    assert broken(readme, "SECURITY.md#secrets") is None and broken(readme, "https://example.org/x#y") is None
    assert unknown("dav_ray/no_such_file.py") and unknown("dav_ray.no_such_module") and unknown("search.alhpa=1")
    assert (
        unknown("dav_ray.load") is None and unknown("search.alpha") is None and unknown("reward.args.scale=2") is None
    )


def test_headings_are_named_as_github_names_them() -> None:
    found = anchors("# A `key`, and more\n## What? (new)\n## What? (new)\n```\n# no heading\n```\n### snake_case - x\n")
    assert found == {"a-key-and-more", "what-new", "what-new-1", "snake_case---x"}


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, left = set(), ["README.md"]
    while left:
        page = left.pop()
        if page in seen or page not in PAGES:
            continue
        seen.add(page)
        for target in links(text(PAGES[page])):
            place = (PAGES[page].parent / target.partition("#")[0]).resolve()
            if not re.match(r"[a-z]+:", target) and place.is_file() and ROOT in place.parents:
                left.append(place.relative_to(ROOT).as_posix())
    assert seen == set(PAGES)
