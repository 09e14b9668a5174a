"""Every block of Python in a page runs as it stands, in a folder that has what the page speaks of."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.finished_run import finished_run
from tests.support.markdown import Block, all_blocks, files_of
from tests.support.runs import masked_model

BLOCKS = all_blocks("python")
FILE = re.compile(r"# (\w+)\.py\n")  # the first line of a block that is a file of the reader's


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader stands: finished runs under the names that pages use, and a masked model of their own."""
    folder = tmp_path_factory.mktemp("user")
    finished_run(folder / "runs" / "digits")
    (folder / "runs" / "mine").symlink_to("digits")
    (folder / "models").mkdir()
    Path(masked_model(folder)).rename(folder / "models" / "mine")
    return folder


def run(block: Block) -> dict[str, object]:
    """What the block defines. The files of the reader's that its page shows are written first, so that it can import
    them."""
    names: dict[str, object] = {"__name__": "page"}
    for file, written in files_of(block.page).items():
        Path(file).write_text(written)
    if found := FILE.match(block.text):
        names["__name__"] = found[1]
    exec(compile(block.text, block.where, "exec"), names)
    return names


@pytest.mark.parametrize("block", BLOCKS, ids=[block.where for block in BLOCKS])
def test_it_runs(block: Block, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    monkeypatch.setattr(sys, "path", [str(user), *sys.path])
    run(block)


def test_a_block_that_fails_is_found(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    with pytest.raises(ModuleNotFoundError):
        run(Block("page.md", 1, "python", "import no_such_module_of_dav_ray\n"))
