"""Searches on a stand-in for a GPU: nothing mixes host and device, and the host seldom waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.config.build import strategy
from dav_ray.diffusion.noise import KeyedNoise, PipelineNoise
from dav_ray.diffusion.pipelines.stable_diffusion import Parts, StableDiffusion
from dav_ray.diffusion.sampling import ancestral
from dav_ray.search.options import Search
from dav_ray.testing.base import scorer
from dav_ray.types import Transitions
from tests.support.stand_in import DEVICE, StandIn

T = 3
PROMPTS = ("one", "two")


class Bright:
    differentiable = True

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return samples.mean((1, 2, 3))


@pytest.fixture(scope="module")
def model(tiny_folder: str) -> StableDiffusion:
    found = StableDiffusion(Parts.load(tiny_folder), steps=T, guidance_scale=3.0, device=DEVICE)
    found.add_adapters(2, 2.0, ("to_q", "to_v"), seed=0)
    for prompt in (None, *PROMPTS):
        found._embedded(prompt)  # once per run
    return found


def synced(model: StableDiffusion, blend: bool = False, **search: Any) -> list[str]:
    """Where the host waited during a search."""
    made = strategy(Search(steps=T, **search), 0.1, blend=blend)
    with StandIn() as gpu:
        found = made(model, scorer(Bright()), PROMPTS, KeyedNoise(0, 1, range(len(PROMPTS))))
    assert found.states.device.type == found.sample.device.type == DEVICE
    assert found.reward.device.type == "cpu" and found.reward.shape == (len(PROMPTS),)
    return gpu.syncs


@pytest.mark.parametrize(
    ("search", "most"),
    [
        ({"candidates": 3}, T),  # what the reward is shown
        pytest.param({"candidates": 3, "blend": True}, T, marks=pytest.mark.thorough),
        pytest.param({"candidates": 3, "score_every": 2}, T, marks=pytest.mark.thorough),
        pytest.param({"kind": "svdd", "candidates": 3}, T, marks=pytest.mark.thorough),
        pytest.param({"kind": "best_of_n", "candidates": 3}, 1, marks=pytest.mark.thorough),
        pytest.param({"kind": "none"}, 1, marks=pytest.mark.thorough),
        ({"kind": "smc", "candidates": 2, "particles": 2}, T),
        ({"kind": "refine", "candidates": 3, "repeats": 1, "depth": 0.7, "warm_start": "off"}, 3 * T),
        # log-densities and slopes come back too
        ({"candidates": 3, "anchor": "pretrained"}, 5 * T),
        pytest.param({"candidates": 3, "gradient": True}, 6 * T, marks=pytest.mark.thorough),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_search_waits_for_the_device_once_a_step(model: StableDiffusion, search: dict[str, Any], most: int) -> None:
    syncs = synced(model, **search)
    assert 0 < len(syncs) <= most, syncs


def test_merged_adapters_and_fresh_samples(tiny_folder: str) -> None:
    model = StableDiffusion(Parts.load(tiny_folder), steps=T, device=DEVICE)
    model.add_adapters(2, 2.0, ("to_q",), seed=0)
    model.merge()
    with StandIn() as gpu, torch.no_grad():
        states = ancestral(model, PROMPTS, PipelineNoise([1, 2]))
        model.decode(states[-1], PROMPTS)
    assert gpu.syncs == []


def test_training_on_the_device(model: StableDiffusion) -> None:
    x = torch.randn(4, *model.event_shape)
    batch = Transitions(x, x, torch.tensor([1, 2, T, T]), ["one"] * 4)
    with StandIn() as gpu:
        loss = model.step_loss(batch, reference=True)
        (loss.nll + loss.kl).sum().backward()
    assert gpu.syncs == [] and loss.nll.device.type == DEVICE


def test_what_a_gpu_refuses_is_refused_and_what_waits_is_counted() -> None:
    there, here = torch.ones(3, device=DEVICE), torch.ones(3)
    with StandIn() as gpu:
        there + torch.tensor(2.0) + there.sum()
        for mix in (lambda: there + here, lambda: torch.cat([there, here]), lambda: there[torch.tensor([0, 1])]):
            with pytest.raises(AssertionError, match="of host and device tensors"):
                mix()
        assert gpu.syncs == []
        assert there.cpu().shape == here.shape and bool((there > 0).any()) and float(there.sum()) == 1.0
        there.to(torch.bfloat16), here.to(DEVICE)
    assert len(gpu.syncs) == 3
