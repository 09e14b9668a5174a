"""`dav-ray try-reward`: what is found out about rewards that keep the contract and about those that break it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from dav_ray.cli.app import app
from dav_ray.cli.trial.samples import drawn, images, made_up, sequences
from dav_ray.config.recipe.load import load
from dav_ray.rewards.base import local_scorer
from dav_ray.rewards.registry import build
from tests.support.runs import masked_model

OWN = '''
import torch

class Redness:
    differentiable = True

    def __init__(self, times=1.0):
        self.times = times

    def __call__(self, samples, conditions):
        return self.times * (samples[:, 0] - samples[:, 1:].mean(1)).mean((1, 2))

class Broken:
    def __init__(self):
        open("/nope/model.pt")

    def __call__(self, samples, conditions): ...

class Counts:
    """Another value at each call."""
    def __init__(self):
        self.calls = 0

    def __call__(self, samples, conditions):
        self.calls += 1
        return samples.flatten(1).mean(1) + self.calls

def mean(samples):
    return samples.float().flatten(1).mean(1)

def listed(samples, conditions): return mean(samples).tolist()
def array(samples, conditions): return mean(samples).numpy()
def one(samples, conditions): return mean(samples).mean()
def column(samples, conditions): return mean(samples)[:, None]
def nan(samples, conditions): return mean(samples).log().sqrt()
def infinite(samples, conditions): return 1 / mean(samples)
def dead(samples, conditions): return mean(samples).log()
def raises(samples, conditions): return helper(samples)
def helper(samples): raise KeyError("no such letters")
def squeezed(samples, conditions): return mean(samples)[:, None].squeeze()

def ranked(samples, conditions):
    return mean(samples) - mean(samples).max()

def detached(samples, conditions): return mean(samples.detach())
def doubled(samples, conditions): return mean(samples) + mean(samples - samples.detach())
def flat(samples, conditions): return mean(samples.round() + 0 * samples)
def steep(samples, conditions): return (mean(samples) - mean(samples)).sqrt()
def neighbour(samples, conditions): return mean(samples) + (mean(samples) - mean(samples).detach()).sum()

for function in (detached, doubled, flat, steep, neighbour):
    function.differentiable = True
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> Path:
    place = tmp_path_factory.mktemp("try")
    (place / "own_tried.py").write_text(OWN)
    image = {"model": {"path": tiny_folder}, "prompts": ["a", "b"], "search": {"steps": 3, "guidance_scale": 1.0}}
    rewards = [{"kind": "brightness"}, {"kind": str(place / "own_tried.py") + ":Redness", "weight": 2.0}]
    (place / "images.yaml").write_text(yaml.safe_dump({**image, "reward": rewards}))
    masked = {"model": {"kind": "masked", "path": masked_model(place)}, "mstep": {"lora": {"targets": ["convs"]}}}
    (place / "words.yaml").write_text(
        yaml.safe_dump({**masked, "reward": {"kind": "gc_content"}, "search": {"steps": 4}})
    )
    return place


def tried(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return CliRunner().invoke(app, ["try-reward", *words])


def test_a_reward_that_keeps_the_contract(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = tried(folder, monkeypatch, "own_tried:Redness", "--arg", "times=2.5", "--num", "4")
    assert done.exit_code == 0, done.output
    assert f"imports own_tried:Redness from {folder}/own_tried.py" in done.output
    oks = re.findall(r"^  ok +([^:\n]+)", done.output, re.M)
    assert oks == [
        "one number for each sample",
        "no NaN, no plus infinity",
        "the same when asked twice",
        "each value depends on its own sample alone",
        "has a gradient",
        "the gradient is that of the values",
        "the gradient of a value is zero at all other samples",
    ]
    shown = images(4, 256, 256)
    values = build("own_tried:Redness", {"times": 2.5})(shown.samples, shown.conditions)
    assert [f"{value:.6g} ({name})" in done.output for value, name in zip(values, shown.names, strict=True)] == [
        True
    ] * 4
    assert "[4], float32" in done.output and "ms a sample in a batch of 4" in done.output and "WRONG" not in done.output


@pytest.mark.parametrize(
    ("name", "words", "advice"),
    [
        (
            "listed",
            "answers: TypeError: returned list, a torch.Tensor is needed",
            "return a torch.Tensor of one number",
        ),
        ("array", "answers: TypeError: returned ndarray, a torch.Tensor is needed", "torch.as_tensor(values)"),
        ("one", "one number for each sample: shape [] where [4] is needed", "not their mean"),
        ("column", "one number for each sample: shape [4, 1] where [4] is needed", "squeeze(1) where it is [B, 1]"),
        ("nan", "no NaN, no plus infinity: nan for sample 0 (black)", "return minus infinity for a sample"),
        ("infinite", "no NaN, no plus infinity: inf for sample 0 (black)", "minus infinity"),
        ("raises", "answers: KeyError: 'no such letters'", ", in helper"),
        ("Broken", "is built from its arguments: FileNotFoundError: [Errno 2]", 'own_tried.py", line 15, in __init__'),
        ("squeezed", "one sample alone: shape [] where [1] is needed", "squeeze(1) and not squeeze()"),
        ("Counts", "the same when asked twice: sample ", "no state between calls"),
        (
            "ranked",
            "each value depends on its own sample alone: sample 0 (black): -1 in the batch, 0 alone",
            "no mean, rank",
        ),
        ("detached", "has a gradient: RuntimeError: element 0 of tensors does not require grad", "stay in torch"),
        ("doubled", "the gradient is that of the values: sample ", "by finite differences"),
        ("flat", "the gradient is that of the values: sample ", "a step without a gradient (round"),
        ("steep", "has a gradient: it is not finite", "mind sqrt"),
        ("neighbour", "the gradient of a value is zero at all other samples: value 0 has one at sample 1", "no batch"),
    ],
)
def test_what_breaks_it_is_named_with_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str, advice: str
) -> None:
    done = tried(folder, monkeypatch, f"./own_tried.py:{name}", "--num", "4")
    assert done.exit_code == 1, done.output
    assert f"  WRONG {words}" in done.output and advice in done.output


def test_minus_infinity_and_a_constant_keep_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = tried(folder, monkeypatch, "own_tried:dead", "--num", "3")
    assert done.exit_code == 0 and "-inf (black)" in done.output
    done = tried(folder, monkeypatch, "gc_window", "--num", "1", "--gradient")
    assert done.exit_code == 1 and "WRONG says that it has a gradient: differentiable is not True" in done.output
    done = tried(folder, monkeypatch, "gc_window", "--tokens", "dna:4", "--arg", "low=0", "--arg", "high=1")
    assert done.exit_code == 0 and "note  values differ: all samples are worth the same" in done.output


def test_sequences_are_tokens_and_relaxations(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = tried(folder, monkeypatch, "gc_content", "--num", "4")
    assert done.exit_code == 0 and "on 4 made-up sequences of 200 letters" in done.output
    assert "ok    one-hot letters are worth what tokens are" in done.output
    done = tried(folder, monkeypatch, "words.yaml", "--num", "4")
    assert done.exit_code == 0 and "gc_content, on 4 made-up sequences of 24 letters" in done.output


def test_all_rewards_of_a_recipe_on_samples_of_its_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = tried(folder, monkeypatch, "images.yaml", "--model", "images.yaml", "--num", "6")
    assert done.exit_code == 0, done.output
    shown = drawn(load(str(folder / "images.yaml")).config, 6, "cpu")
    assert shown.conditions == ("a", "b") * 3 and shown.samples.shape == (6, 3, 16, 16) and shown.real
    rewards: list[tuple[str, float, Any]] = [("a", 1.0, build("brightness", {}))]
    rewards.append(("b", 2.0, build(f"{folder}/own_tried.py:Redness", {})))
    sd = float(local_scorer(rewards).score(shown.samples, shown.conditions).numpy().std())
    assert (
        f'the weighted sum has a standard deviation of {sd:.3g} over 6 samples: search.alpha: "0.1 sd" is'
        in done.output
    )
    assert f"about {0.1 * sd:.2g}, a value" in done.output
    assert (
        "brightness, on 6 samples of the model" in done.output and "Redness, on 6 samples of the model" in done.output
    )


def test_samples_are_those_that_an_evaluation_draws(folder: Path) -> None:
    """Sample i of any number, whatever the batch: its seed's own."""
    config = load(str(folder / "words.yaml"), ["evaluate.batch=2"]).config
    few, many = drawn(config, 2, "cpu"), drawn(config, 5, "cpu")
    assert few.letters == 4 and few.samples.dtype == torch.int64
    assert torch.equal(many.samples[:2], few.samples) and many.names[4] == f"seed {config.evaluate.seed + 4}"


def test_made_up_samples_have_the_models_size(folder: Path) -> None:
    assert made_up(3, load(str(folder / "images.yaml")).config, None).samples.shape == (3, 3, 16, 16)
    shown = images(4, 8, 12)
    assert shown.samples[0].max() == 0 and shown.samples[1].min() == 1
    assert shown.samples.min() >= 0 and shown.samples.max() <= 1 and shown.names[2:] == ("soft colours", "noise")
    assert np.unique(sequences(6, "protein", 50).samples).size == 20


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["brightnes"], "brightnes: no reward and no recipe; did you mean brightness?"),
        ([], "what is to be tried?"),
        (["own_tried:mea"], "reward.kind = own_tried:mea: own_tried has no mea; did you mean mean?"),
        (["own_tried.py"], "own_tried.py: names no class or function; allowed: own_tried.py:Name"),
        (["own_tried:Redness", "--arg", "times"], "--arg times: allowed: NAME=VALUE"),
        (["own_tried:Redness", "--arg", "time=2"], 'reward.args = {"time": 2}: Redness: got an unexpected keyword'),
        (["own_tried:Redness", "seed=3"], "seed=3: is a setting of a recipe; allowed: with --model RECIPE"),
        (["images.yaml", "--arg", "times=2"], "--arg: is for one reward; allowed: settings such as"),
        (["gc_content", "--tokens", "dna"], "--tokens dna: allowed: ALPHABET:LENGTH"),
        (["--again", "nowhere.json"], "nowhere.json: holds no samples"),
    ],
)
def test_mistakes_in_the_call(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str) -> None:
    done = tried(folder, monkeypatch, *words)
    assert done.exit_code == 2 and f"dav-ray: {line}" in done.output.replace("try-reward: ", ""), done.output
