"""A recipe of a large model as its tiny twin through Ray: the run ends, and the pipeline loads what it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.config.recipe.test_twins import twin
from tests.support.runs import finish, start

CPUS: dict[str, Any] = {"cpus": 0.2, "gpus": 0, "threads": 1, "replicas": 1}


@pytest.mark.slow
def test_sana_sprint_runs_and_its_pipeline_loads_the_policy(tmp_path: Path) -> None:
    settings = twin("sana_sprint", tmp_path).model_dump(mode="json")
    settings |= {"rounds": 1, "evaluate": {"samples": 2, "batch": 2, "kl_samples": 2, "grid": 2}}
    for name in ("search", "reward", "train"):
        settings["roles"][name] |= CPUS
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    finish(start(tmp_path, "mine.yaml", "--run-dir", "run"), 0)
    assert (tmp_path / "run/report.html").is_file()

    from diffusers import SanaSprintPipeline

    pipe = SanaSprintPipeline.from_pretrained(tmp_path / "pipe")
    pipe.load_lora_weights(str(tmp_path / "run/policy/v0001"))
    assert pipe.get_active_adapters()
