"""Tables of the studies: formatted here alone, kept beside a study's page, and written into it.

A study's folder has a page `README.md`, its last published tables `results.json`, and `figures/`. The page has a place
for each table, two lines with whatever `--write-readme` puts between them:

    <!-- table: NAME -->
    <!-- end -->

NAME is the table's title in small letters, with hyphens. The place `measured` gets the release, the machine and the
command of all of them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dav_ray import __version__

PLACE = re.compile(r"^<!-- table: (?P<name>\S+) -->\n.*?^<!-- end -->$", re.DOTALL | re.MULTILINE)
ORIGINS = "measured"  # the place of where and when
UNSAID = ("--out", "--json", "--grid")  # options that say where files go, and nothing about what is measured


@dataclass(frozen=True)
class Table:
    """Cells as they are shown. title: without one, a table has no place on a page."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @property
    def name(self) -> str:
        """Of its place on a page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def markdown(self) -> str:
        lines = [f"**{self.title}**", ""] if self.title else []
        lines += [_row(self.header), _row("---" for _ in self.header), *(_row(row) for row in self.rows)]
        return "\n".join([*lines, *(["", self.note] if self.note else []), ""])


@dataclass(frozen=True)
class Origin:
    """What measured a table."""

    command: str
    release: str
    machine: str

    def text(self) -> str:
        return f"dav_ray {self.release}, {self.machine}, `{self.command}`"


@dataclass(frozen=True)
class Stored:
    table: Table
    origin: Origin

    @classmethod
    def of(cls, record: dict[str, Any]) -> Stored:
        rows = tuple(tuple(row) for row in record["rows"])
        table = Table(record["title"], tuple(record["header"]), rows, record["note"])
        return cls(table, Origin(**record["origin"]))


class Page:
    """folder: of the study; also: other pages, which show some of its tables."""

    def __init__(self, folder: Path, also: Sequence[Path] = ()) -> None:
        self.folder, self.also = folder, also
        self.readme, self.results = folder / "README.md", folder / "results.json"

    def stored(self) -> list[Stored]:
        if not self.results.exists():
            return []
        return [Stored.of(record) for record in json.loads(self.results.read_text(encoding="utf-8"))]

    def show_stored(self, *, write: bool) -> int:
        """Print the tables of results.json, and write them into the page if asked to. The exit code."""
        for each in self.stored():
            print(each.table.markdown(), flush=True)
        if write:
            self.write()
        return 0

    def publish(self, tables: Sequence[Table], words: Sequence[str], *, device: str = "", figures: Path | None = None):
        """Take over tables that have just been measured by `python jobs/NAME WORDS`, and write the page.

        Tables of results.json that are not among them stay. device: a GPU's name, where one did the work. figures: a
        folder; those of its pictures that the page has are taken over.
        """
        origin = Origin(_command(self.folder.name, words), __version__, device or _machine())
        new = {table.name: Stored(table, origin) for table in tables}
        old = {each.table.name: each for each in self.stored()}
        self._check(old | new)
        self.results.write_text(_json((old | new).values()), encoding="utf-8")
        self.write()
        for picture in self.folder.glob("figures/*.png"):
            if figures is not None and (figures / picture.name).exists():
                shutil.copyfile(figures / picture.name, picture)

    def write(self) -> None:
        """The tables of results.json into their places."""
        stored = {each.table.name: each for each in self.stored()}
        self._check(stored)
        texts = {name: each.table.markdown() for name, each in stored.items()}
        for page in (self.readme, *self.also):
            text = page.read_text(encoding="utf-8")
            known = texts | {ORIGINS: _origins(list(stored.values()))} if page == self.readme else texts
            page.write_text(PLACE.sub(lambda place, known=known: _filled(place, known), text), encoding="utf-8")

    def _check(self, stored: dict[str, Stored]) -> None:
        """ValueError where the page has no place for a table, or a place for none."""
        places = set(places_of(self.readme)) - {ORIGINS}
        if absent := sorted(stored.keys() - places):
            raise ValueError(f"{self.readme}: no place for {', '.join(absent)}: add the lines <!-- table: NAME --> ...")
        if unknown := sorted(places - stored.keys()):
            raise ValueError(f"{self.readme}: no results for {', '.join(unknown)}; there are: {', '.join(stored)}")


def places_of(page: Path) -> list[str]:
    """Names of the tables that a page has a place for."""
    return [place["name"] for place in PLACE.finditer(page.read_text(encoding="utf-8"))]


def add_page_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write-readme", action="store_true", help="the tables go into README.md and results.json")
    parser.add_argument("--stored", action="store_true", help="measure nothing: the tables of results.json")


def save(figure: Any, path: Path) -> None:
    """A Matplotlib figure as a PNG of 64 colours: a third of the bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _filled(place: re.Match[str], texts: dict[str, str]) -> str:
    name = place["name"]
    return f"<!-- table: {name} -->\n\n{texts[name]}\n<!-- end -->" if name in texts else place[0]


def _origins(stored: Sequence[Stored]) -> str:
    """A line for each origin, with the titles of its tables where there are several."""
    titles: dict[Origin, list[str]] = {}
    for each in stored:
        titles.setdefault(each.origin, []).append(each.table.title)
    if len(titles) == 1:
        return f"Measured with {stored[0].origin.text()}.\n"
    return "\n".join([f"- {', '.join(names)}: {origin.text()}" for origin, names in titles.items()]) + "\n"


def _command(study: str, words: Sequence[str]) -> str:
    said = [word for i, word in enumerate(words) if word not in UNSAID and words[max(0, i - 1)] not in UNSAID]
    return " ".join(["python", f"jobs/{study}", *([shlex.join(w for w in said if w != "--write-readme")] * bool(said))])


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def _json(stored: Iterable[Stored]) -> str:
    """A line per row, so that a change shows which."""
    records = []
    for each in stored:
        fields = {**asdict(each.table), "origin": asdict(each.origin)}
        rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in fields.pop("rows"))
        lines = [f'  "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in fields.items()]
        records.append(" {\n" + ",\n".join([*lines, f'  "rows": [\n{rows}\n  ]']) + "\n }")
    return "[\n" + ",\n".join(records) + "\n]\n"
