"""Every block of YAML in a page: whole recipes load as they stand, parts beside a model, prompts and a reward."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dav_ray.config.keys.json_schema import recipe_schema
from dav_ray.config.recipe.load import load
from tests.support.markdown import Block, all_blocks, blocks, files_of

REST = {"model": {"path": "a/b"}, "prompts": ["cat"], "reward": {"kind": "brightness"}}
WHOLE = """\
Text.
```yaml
model: {path: my/model}
prompts: prompts.txt
reward: [{kind: "my_rewards:Red"}, {kind: brightness, weight: 2}]
```
```python
model: no
```
"""
FOUND = all_blocks("yaml", "yml")


def loads(block: dict[str, Any], folder: Path) -> None:
    """UserError where it is no recipe. Files of prompts and models are the reader's."""
    whole = block if "model" in block else {**REST, **block}
    if isinstance(whole.get("prompts"), str):
        (folder / whole["prompts"]).write_text("cat\n")
    (folder / "my.yaml").write_text(yaml.safe_dump(whole))
    load(str(folder / "my.yaml"))
    jsonschema.validate(whole, recipe_schema())


@pytest.mark.parametrize("block", FOUND, ids=[block.where for block in FOUND])
def test_it_loads(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for file, written in files_of(block.page).items():
        (tmp_path / file).write_text(written)
        monkeypatch.delitem(sys.modules, Path(file).stem, raising=False)
    loads(yaml.safe_load(block.text), tmp_path)


def test_blocks_are_found_and_mistakes_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"README.md", "dav_ray/config/README.md"} <= {block.page for block in FOUND}
    (found,) = [block for block in blocks("page.md", WHOLE) if block.language == "yaml"]
    assert found.line == 3
    block = yaml.safe_load(found.text)
    loads(block, tmp_path)
    with pytest.raises(Exception, match="alhpa: unknown key"):
        loads({**block, "search": {"alhpa": 1}}, tmp_path)
