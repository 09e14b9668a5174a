"""The README's reward of one's own: its code and its command are taken from the text, and move the model."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.build import strategy
from dav_ray.config.checks.preflight import check
from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.search.weighting.choices import judge
from tests.support.places import ROOT

README = (ROOT / "README.md").read_text()
EXAMPLE = re.compile(r"```python\n(# slant\.py\n.*?)```\n+```\n(dav-ray run [^\n]+)\n", re.DOTALL)


def example() -> tuple[str, list[str]]:
    """The module, and the words after `dav-ray run`."""
    found = EXAMPLE.search(README)
    assert found, "README.md has no ```python block that starts with # slant.py, with a command after it"
    return found[1], shlex.split(found[2])[2:]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user stands, his module beside him."""
    (tmp_path / "slant.py").write_text(example()[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "slant", raising=False)
    return tmp_path


def configured() -> Config:
    words = example()[1]
    settings = [word for word in words[1:] if "=" in word and not word.startswith("--")]
    return load(words[0], settings).config


def test_its_search_raises_the_reward_by_a_standard_deviation(folder: Path) -> None:
    """One search of five digits, with what the command says, in this process."""
    from dav_ray.config.build import build
    from dav_ray.diffusion.noise import KeyedNoise, PipelineNoise
    from dav_ray.diffusion.sampling import ancestral
    from dav_ray.rewards.registry import build as build_reward

    config = configured()
    check(config, "local")
    model, reward = build(config), build_reward(config.reward[0].kind, config.reward[0].args, "cpu")

    class Here:
        def score(self, samples: torch.Tensor, conditions: Any) -> torch.Tensor:
            return reward(samples, conditions).double()

        def score_each(self, samples: torch.Tensor, conditions: Any) -> tuple[torch.Tensor, torch.Tensor]:
            values = self.score(samples, conditions)
            return values, values[:, None]

        def score_and_grad(self, samples: torch.Tensor, conditions: Any) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                leaf = samples.detach().requires_grad_()
                values = reward(leaf, conditions)
                (slope,) = torch.autograd.grad(values.sum(), leaf)
            return values.detach().double(), slope

    prompts = config.prompts[::2]
    with torch.no_grad():
        drawn = model.decode(ancestral(model, prompts * 4, PipelineNoise(range(20)))[-1], prompts * 4)
        plain = reward(drawn, prompts * 4).double()
    assert isinstance(config.search.alpha, str)  # in standard deviations, as the rule says
    alpha = float(config.search.alpha.removesuffix("sd")) * float(plain.std(correction=0))
    found = strategy(config.search, alpha)(model, Here(), prompts, KeyedNoise(config.seed, 1, range(len(prompts))))

    assert float(found.reward.mean()) > float(plain.mean()) + float(plain.std(correction=0))
    assert found.choices is not None
    by_value, by_weight = found.choices.mean(0).tolist()
    assert judge(by_value, by_weight, config.search.candidates, alpha) is None  # neither idle nor blind


def test_its_code_keeps_the_contract_of_rewards(folder: Path) -> None:
    """Also for an image that is all black, as `dav-ray try-reward` shows one."""
    command = [sys.executable, "-m", "dav_ray", "try-reward", "slant:Slant", "--gradient"]
    tried = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert tried.returncode == 0 and "WRONG" not in tried.stdout, tried.stdout + tried.stderr


@pytest.mark.slow
def test_its_command_moves_the_model_by_a_standard_deviation(folder: Path) -> None:
    """As it is printed, in a folder of the user's: the last row of the table that it ends with."""
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "dav_ray", "run", *example()[1]]
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 0, ended.stdout + ended.stderr

    rows = [line.strip("│┃ ") for line in ended.stdout.splitlines() if line.startswith(("│", "┃"))]
    header, *_, last = [[cell.strip() for cell in re.split("[│┃]", row)] for row in rows]
    final = dict(zip(header, last, strict=True))
    assert final["round"] == "3" and float(final["rise in sd"]) > 1
    assert float(final["legibility"]) > 0.9
    assert "search.alpha = 0.1 sd: " in ended.stdout
    assert "candidates count in a step" not in ended.stdout  # nothing to complain of
