"""Checkpoints of others: what they hold is read, what they would run is not."""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from dav_ray.diffusion.weight_files import Inert, read_checkpoint
from dav_ray.errors import UserError


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    (line,) = caught.value.lines
    assert "\n" not in line
    return line


class Creates:
    """Unpickled by the standard library, this calls `function(path, *more)`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def test_what_lightning_writes_is_read(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {"model": {"length": 200, "name": "dit", "rates": [1, 0.5, None]}, "copy": "${model.name}"}
    )
    assert config["copy"] == "dit"
    weights = collections.OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(2, dtype=torch.float16))
    cache = collections.defaultdict(dict, {"x": {"y": 1}})
    path = saved(tmp_path / "a.ckpt", {"state_dict": weights, "hyper_parameters": {"config": config}, "cache": cache})
    found = read_checkpoint(path)

    assert found["hyper_parameters"]["config"] == {
        "model": {"length": 200, "name": "dit", "rates": [1, 0.5, None]},
        "copy": "${model.name}",
    }
    assert found["cache"] == {"x": {"y": 1}}
    assert list(found["state_dict"]) == ["a", "b"]
    assert torch.equal(found["state_dict"]["a"], weights["a"])
    assert found["state_dict"]["b"].dtype == torch.float16


def test_unknown_objects_are_inert(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", {"place": Path("x/y"), "number": np.float64(2.5), "class": UserError})
    found = read_checkpoint(str(path))

    assert isinstance(found["place"], Inert) and found["place"].source.startswith("pathlib.")
    assert found["place"].args == ("x", "y")
    assert isinstance(found["number"], Inert) and found["number"].source.endswith("multiarray.scalar")
    assert issubclass(found["class"], Inert)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    target = tmp_path / "created"
    found = read_checkpoint(saved(tmp_path / "a.ckpt", {"x": Creates(open, str(target), "w"), "y": 3}))

    assert found["y"] == 3
    assert isinstance(found["x"], Inert) and found["x"].args == (str(target), "w")
    path = saved(tmp_path / "b.ckpt", {"x": Creates(os.mkdir, str(target))})
    words = f"{path}: can't be read as a checkpoint (Trying to load unsupported GLOBAL posix.mkdir"
    assert refused(path).startswith(words)
    assert not target.exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.ckpt", {"x": torch.zeros(1000)}).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.ckpt").write_bytes(whole[:size])
        assert refused(tmp_path / "cut.ckpt").startswith(f"{tmp_path}/cut.ckpt: can't be read as a checkpoint (")
    (tmp_path / "text.ckpt").write_text("no checkpoint\nat all\n")
    assert refused(tmp_path / "text.ckpt").startswith(f"{tmp_path}/text.ckpt: can't be read as a checkpoint (")
    assert refused(tmp_path / "none.ckpt").startswith(f"{tmp_path}/none.ckpt: no such file; allowed: ")
    assert "holds list, a dictionary is needed" in refused(saved(tmp_path / "list.ckpt", [1, 2]))
