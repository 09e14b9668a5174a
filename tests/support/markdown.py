"""The repository's pages: their headings, links and blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import JOBS, PACKAGE, ROOT

FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"(?<!`)!?\[[^\]\n]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of code. language: "" where none is given; line: of the first line of its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page of the repository."""
    found = [*ROOT.glob("*.md")]
    for folder in (PACKAGE, JOBS, ROOT / "cluster", ROOT / "tests"):
        found += folder.rglob("*.md")
    return sorted(found)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: str, written: str) -> Iterator[Block]:
    for found in FENCE.finditer(written):
        yield Block(page, written.count("\n", 0, found.start(2)) + 1, found[1], found[2])


def all_blocks(*languages: str) -> list[Block]:
    """Of these languages, over all pages."""
    found = [block for page in pages() for block in blocks(name(page), text(page))]
    return [block for block in found if block.language in languages]


def files_of(page: str) -> dict[str, str]:
    """Files of the reader's that a page shows: Python whose first line is their name, as in `# my_rewards.py`."""
    found = [block.text for block in all_blocks("python") if block.page == page]
    return {file[1]: block for block in found if (file := re.match(r"# (\w+\.py)\n", block))}


def prose(written: str) -> str:
    """The page without its blocks of code, line numbers as they are."""
    return FENCE.sub(lambda block: "\n" * block[0].count("\n"), written)


def links(written: str) -> list[str]:
    """The targets of links and pictures."""
    return LINK.findall(prose(written))


def inline_code(written: str) -> list[str]:
    return INLINE.findall(prose(written))


def anchors(written: str) -> set[str]:
    """The names under which GitHub links to the headings: letters, digits, - and _, lower case; a second one of the
    same name ends with -1."""
    found: dict[str, int] = {}
    names = set()
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", prose(written), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        names.add(f"{slug}-{count}" if count else slug)
    return names
