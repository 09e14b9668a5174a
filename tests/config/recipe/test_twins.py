"""Every recipe of a large model as its tiny twin: the same settings on a tiny pipeline of the same class, searched for
one chunk and fitted for one step in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.build import for_search, for_training, strategy
from dav_ray.config.checks.preflight import model_mistakes
from dav_ray.config.plan import plan
from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.mstep.fit import Fitter
from dav_ray.mstep.objective import Rows
from dav_ray.rewards.base import local_scorer
from dav_ray.rewards.registry import build as build_reward
from dav_ray.types import Trajectories
from tests.diffusion.pipelines import test_stable_diffusion_3 as sd3
from tests.diffusion.pipelines import test_stable_diffusion_xl as sdxl
from tests.diffusion.pipelines.few_step import test_latent_consistency as lcm
from tests.diffusion.pipelines.few_step import test_sana_sprint as sprint
from tests.diffusion.pipelines.flows import test_flux as flux
from tests.diffusion.pipelines.flows import test_qwen_image as qwen
from tests.diffusion.pipelines.flows import test_z_image as z_image
from tests.support.tiny import tiny_pipeline

TINY = ["search.candidates=2", "search.trajectories=2", "search.chunk=2", "prompts=[a, b]", "mstep.batch_size=2"]
LONG = ["search.steps=4"]  # of recipes whose fifty steps would say no more


def turbo(folder: Path) -> Any:
    """With the scheduler of SDXL-Turbo."""
    from diffusers import EulerAncestralDiscreteScheduler

    pipe = sdxl.tiny(folder)
    pipe.scheduler = EulerAncestralDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing"
    )
    return pipe


TWINS: dict[str, tuple[Callable[[Path], Any], int, list[str]]] = {  # the pipeline, its images' side, changes
    "sd15": (tiny_pipeline, 16, LONG),
    "sd15_one_gpu": (tiny_pipeline, 16, LONG),
    "sd21": (lambda folder: tiny_pipeline(folder, prediction_type="v_prediction"), 16, LONG),
    "sdxl": (sdxl.tiny, 16, ["search.steps=4", "search.eta=[1, 1]"]),
    "sdxl_turbo": (turbo, 16, []),
    "sd35_medium": (sd3.tiny, 16, []),
    "flux_dev": (flux.tiny, 16, []),
    "flux_schnell": (lambda folder: flux.tiny(folder, dev=False), 16, []),
    "z_image_turbo": (lambda _: z_image.tiny(), 16, []),
    "sana_sprint": (lambda _: sprint.tiny(), 32, []),
    "qwen_image": (lambda _: qwen.tiny(), 16, []),
    "lcm": (lcm.tiny, 16, []),
}


def twin(name: str, folder: Path) -> Config:
    """The recipe on a tiny pipeline in `folder`; it has no mistakes."""
    make, side, changes = TWINS[name]
    make(folder).save_pretrained(folder / "pipe")
    size = [f"model.height={side}", f"model.width={side}", "model.dtype=float32"]
    precision = ["search.precision=float32", "mstep.precision=float32"]
    config = load(name, [f"model.path={folder / 'pipe'}", *size, *precision, *TINY, *changes]).config
    assert not (found := list(model_mistakes(config))), found
    return config


def searched(config: Config) -> Trajectories:
    """A chunk of the first round."""
    rewards = [(reward.label, reward.weight, build_reward(reward.kind, reward.args)) for reward in config.reward]
    noise = KeyedNoise(config.seed, 0, range(config.search.chunk))
    search = strategy(config.search, blend=config.mstep.candidates == "all")
    return search(for_search(config), local_scorer(rewards), config.prompts[: config.search.chunk], noise)


@pytest.mark.parametrize("name", TWINS)
def test_a_chunk_is_searched_and_a_step_is_fitted(name: str, tmp_path: Path) -> None:
    config = twin(name, tmp_path)
    found = searched(config)
    assert found.reward.isfinite().all() and found.states.isfinite().all()
    assert found.cost.network == plan(config).evaluations * config.search.chunk
    assert found.sample.shape == (2, 3, config.model.height, config.model.width)

    model = for_training(config, micro_batch=2)
    before = {name: tensor.clone() for name, tensor in model.policy_state().items()}
    weights = torch.ones(2, dtype=torch.float64)
    targets = None if found.targets is None else found.targets.transpose(0, 1)
    real = torch.ones(2, dtype=torch.bool)
    rows = Rows(found.states.transpose(0, 1), targets, tuple(config.prompts), weights, real)
    said = Fitter(model, config.mstep, config.seed).fit(1, [rows])
    assert said["mstep/rows"] == 2 and all(value == value for value in said.values())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.policy_state().items())
