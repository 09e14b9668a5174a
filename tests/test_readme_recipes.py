"""The YAML of README.md: whole recipes load as they stand, parts of recipes beside a model, prompts and a reward."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dav_ray.recipe import load
from dav_ray.recipe_schema import recipe_schema

ROOT = Path(__file__).resolve().parents[1]
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


def blocks(text: str) -> list[dict[str, Any]]:
    """Every block of YAML that is a mapping; several in one block count as one text."""
    found = [yaml.safe_load(block) for block in re.findall(r"^```ya?ml\n(.*?)^```", text, re.M | re.S)]
    return [block for block in found if isinstance(block, dict)]


def loads(block: dict[str, Any], folder: Path) -> None:
    """UserError where it is no recipe. A file of prompts is what the reader writes."""
    whole = block if "model" in block else {**REST, **block}
    if isinstance(whole.get("prompts"), str):
        (folder / whole["prompts"]).write_text("cat\n")
    (folder / "my.yaml").write_text(yaml.safe_dump(whole))
    load(str(folder / "my.yaml"))
    jsonschema.validate(whole, recipe_schema())


README = blocks((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", range(len(README)))
def test_the_yaml_of_the_readme_loads(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loads(README[number], tmp_path)


def test_blocks_are_found_and_mistakes_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(README) >= 2  # parts of recipes, at least
    (block,) = blocks(WHOLE)
    loads(block, tmp_path)
    with pytest.raises(Exception, match="alhpa: unknown key"):
        loads({**block, "search": {"alhpa": 1}}, tmp_path)
