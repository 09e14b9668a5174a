"""A model family of another package: one file and an entry point, then it is checked, built, searched and trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.distributions import install
from tests.support.places import ROOT

FAMILY = '''
import torch
from torch import nn

from dav_ray.config.families.base import Family
from dav_ray.config.families.sizes import Sizes
from dav_ray.diffusion.base import Prediction, Room
from dav_ray.diffusion.gaussian import GaussianKernel
from dav_ray.diffusion.policy_network import PolicyNetwork

SHAPE = (3, 4, 4)


class Toy(PolicyNetwork):
    """x_{t-1} ~ N(W x_t / 2, 1/4) over images of 4 x 4 pixels."""

    timeless = False

    def __init__(self, steps, micro_batch, **held):
        network = nn.Linear(48, 48, bias=False).requires_grad_(False)
        nn.init.eye_(network.weight)
        super().__init__(network, **held)
        self.steps, self.rooms = steps, (Room(micro_batch),)

    def predict(self, x_t, t, conditions, *, reference=False):
        def call(network, rows):
            return network(x_t[rows].flatten(1)).reshape(-1, *SHAPE)

        x0_hat = self._evaluated(len(x_t), self.rooms[0], call, reference=reference)
        return Prediction(GaussianKernel(x0_hat / 2, torch.full((len(x_t), 1, 1, 1), 0.5)), x0_hat)

    def prior(self, conditions, rng):
        return rng.normal(SHAPE)

    def deterministic(self, t):
        return False

    def move(self, prediction, t):
        raise TypeError

    def renoise(self, x, start, end, conditions, rng):
        return x + rng.normal(SHAPE)

    def relax(self, x_t):
        return x_t

    def harden(self, x0_hat):
        return x0_hat

    def decode(self, x_0, conditions, t=0):
        return torch.sigmoid(x_0)


class ToyFamily(Family):
    samples = "images"
    unused = ("draft_vae",)
    conditional = False
    lora_targets = ("",)
    imports = ("toy",)
    start = "usually 5 s"

    def mistakes(self, config, path):
        if path != "toy":
            yield f"model.path = {path}: no such toy; allowed: toy"

    def passes(self, config):
        return 1

    def shape(self, config):
        return 4, 4

    def sizes(self, config, folder):
        return Sizes({"network": {"weight": (48, 48)}}, {"network": {}}, "network")

    def build(self, config, held):
        return Toy(config.search.steps, held.micro_batch, device=held.device, autocast=held.autocast)

    def pretrained(self, config):
        return Toy(config.search.steps, 8)

    def aligned(self, config, folder):
        return self.pretrained(config)
'''
USE = r"""
import pathlib, sys, torch
from safetensors.torch import load_file
from dav_ray.cli.lists import listed
from dav_ray.config.build import build, strategy
from dav_ray.config.checks.preflight import check
from dav_ray.config.plan import plan
from dav_ray.config.recipe.load import load
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.errors import UserError
from dav_ray.rewards.base import local_scorer
from dav_ray.rewards.registry import build as reward
from dav_ray.types import Transitions

folder = pathlib.Path(sys.argv[1])
(folder / "toy.yaml").write_text("model: {kind: toy, path: toy}\nreward: {kind: brightness}\n"
    "search: {steps: 3, candidates: 4, alpha: 0.01}\nmstep: {parameters: full}\n")
config = load(str(folder / "toy.yaml")).config
assert [entry.package for entry in listed("models") if entry.name == "toy"] == ["toys 1.2"]
assert config.prompts == ("",) and plan(config).network_passes == 1
check(config)

def mistakes(*overrides):
    try:
        check(load(str(folder / "toy.yaml"), overrides).config)
    except UserError as error:
        return error.lines

assert mistakes("model.path=other") == ["model.path = other: no such toy; allowed: toy"]
assert mistakes("model.draft_vae=x/y") == [
    "model.draft_vae = x/y: a toy model has no use for it; allowed: None"]
assert mistakes("model.kind=tou", "prompts=[a]") == [
    "model.kind = tou: unknown model family; did you mean toy? allowed: diffusers, masked, toy, or module.path:Name"]

model = build(config)
noise, scorer = KeyedNoise(0, 1, range(8)), local_scorer([("brightness", 1.0, reward("brightness", {}))])
found = strategy(config.search)(model, scorer, [""] * 8, noise)
plain = strategy(config.search.model_copy(update={"kind": "none"}))(model, scorer, [""] * 8, noise)
assert found.reward.mean() > plain.reward.mean() + 0.01, (found.reward, plain.reward)
x = torch.randn(8, 3, 4, 4)
loss = model.step_loss(Transitions(x, x + 1, torch.full((8,), 2), [""] * 8), reference=True)
assert torch.equal(loss.kl, torch.zeros(8))
loss.nll.sum().backward()
weight = model.trainable().weight
with torch.no_grad():
    weight -= 0.01 * weight.grad
moved = model.step_loss(Transitions(x, x + 1, torch.full((8,), 2), [""] * 8), reference=True)
assert moved.nll.sum() < loss.nll.sum() and (moved.kl > 0).all()
model.write_policy(folder / "policy")
assert torch.equal(load_file(folder / "policy" / model.policy_file)["weight"], weight)
"""


def test_a_family_is_one_file_and_an_entry_point(tmp_path: Path) -> None:
    install(tmp_path / "site", "toys", {"dav_ray.models": {"toy": "toy:ToyFamily"}}, toy=FAMILY)
    path = os.pathsep.join([str(ROOT), str(tmp_path / "site")])
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
