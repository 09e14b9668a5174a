"""A pipeline and its policy load without a word of other libraries, and what can't be loaded is one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dav_ray.config.build import build
from dav_ray.config.recipe.load import load
from dav_ray.diffusion.pipelines.files import load_pipeline
from dav_ray.diffusion.pipelines.schedulers import mistakes
from dav_ray.diffusion.pipelines.stable_diffusion import Parts, StableDiffusion
from dav_ray.errors import UserError
from tests.support.deadlines import hung

LOAD = """
import sys
from pathlib import Path
from dav_ray.diffusion.pipelines.files import attach
from dav_ray.diffusion.pipelines.files import load_pipeline
pipe = load_pipeline(sys.argv[1])
attach(pipe, Path(sys.argv[2]), lora=True)
layers = [module for module in pipe.unet.modules() if hasattr(module, "lora_A")]
print(len(layers), sum(float(layer.lora_B["default_0"].weight.detach().abs().sum()) for layer in layers))
"""


def test_load_and_attach_warn_of_nothing(tiny_folder: str, tmp_path: Path) -> None:
    diffusion = StableDiffusion(Parts.load(tiny_folder), steps=4)
    diffusion.add_adapters(2, 2.0, ["to_q", "to_v"], 0)
    state = diffusion.policy_state()
    state = {name: torch.ones_like(tensor) if "lora_B" in name else tensor for name, tensor in state.items()}
    diffusion.load_policy_state(state)
    diffusion.write_policy(tmp_path)
    command = [sys.executable, "-W", "error", "-c", LOAD, tiny_folder, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=hung(200))
    assert done.returncode == 0, done.stderr
    assert "LoRA" not in done.stderr and "deprecated" not in done.stderr
    wanted = [tensor for name, tensor in state.items() if "lora_B" in name]
    layers, total = done.stdout.split()
    assert int(layers) == len(wanted) > 0 and float(total) == sum(tensor.numel() for tensor in wanted)


def test_what_a_recipe_names_beside_it_is_built_in_any_folder(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ranks do, which live in a folder of Ray Train's."""
    (tmp_path / "sd").symlink_to(tiny_folder)
    (tmp_path / "mine.yaml").write_text("model: {path: sd}\nprompts: [cat]\nreward: {kind: brightness}\n")
    monkeypatch.chdir(tmp_path)
    config = load("mine.yaml").config
    monkeypatch.chdir("/")
    layers = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in build(config).policy_state()}
    assert layers == {"to_q", "to_k", "to_v", "0"}  # of to_out.0


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("org/absent", "no folder here, and not to be had from the hub: offline, and not downloaded before; allowed: "),
        ("./absent", "no such folder; allowed: a folder that every node sees, or a hub id"),
    ],
)
def test_one_line_where_a_pipeline_is_not(path: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        load_pipeline(path)
    assert caught.value.lines[0].startswith(f"model.path = {path}: {line}") and len(caught.value.lines) == 1


def test_a_folder_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"model.path = {tmp_path}: can't be loaded: "):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prediction_type": "sample"}, "prediction_type sample; allowed: epsilon, v_prediction"),
        ({"thresholding": True}, "the scheduler clips by thresholding; allowed: thresholding false"),
        (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "rescale_betas_zero_snr leaves no signal at the first step, where epsilon says nothing of the sample; "
            "allowed: prediction_type v_prediction",
        ),
        ({"_class_name": "LCMScheduler"}, "no stochastic DDIM step for LCMScheduler; allowed: DDIMScheduler, "),
    ],
)
def test_what_is_loaded_is_looked_at_too(tiny_folder: str, tmp_path: Path, changes: dict, line: str) -> None:
    """A model of the hub has no files before, so that only its loaded scheduler tells."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "pipeline"))
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    index = folder / "model_index.json"
    named = {"scheduler": ["diffusers", changes.get("_class_name", "DDIMScheduler")]}
    index.write_text(json.dumps({**json.loads(index.read_text()), **named}))
    with pytest.raises(UserError) as caught:
        load_pipeline(str(folder))
    assert caught.value.lines[0].startswith(f"model.path = {folder}: can't be searched: {line}")
    assert len(caught.value.lines) == 1


def test_no_signal_is_no_mistake_where_the_first_step_has_some(tiny_folder: str) -> None:
    known = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
    assert not list(mistakes({**known, "timestep_spacing": "leading"}))
    assert not list(mistakes({**known, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}))
    assert len(list(mistakes({**known, "timestep_spacing": "linspace"}))) == 1
