"""What preflight refuses: models, rewards, addresses and run directories."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dav_ray.config.checks.preflight import check, check_address, check_run_dir
from dav_ray.config.checks.rewards import _facts_of_source
from dav_ray.config.identity import reason
from dav_ray.config.model_path import model_path
from dav_ray.config.recipe.load import Recipe, load
from dav_ray.diffusion.pipelines.hub import check_hub_id
from dav_ray.errors import UserError
from dav_ray.rewards import registry
from dav_ray.rewards.golden import Golden, encode
from dav_ray.rewards.registry import resolve

REWARDS = """
import json

class Good:
    differentiable = True
    def __init__(self, scale, shift=0.0): ...
    def __call__(self, samples, conditions): ...

class Rough:
    def __call__(self, samples, conditions): ...

class Silent:
    pass

class Bytes:
    wants = "int8"
    def __call__(self, samples, conditions): ...

class Smooth:
    wants, differentiable = "uint8", True
    def __call__(self, samples, conditions): ...

NUMBER = 3

def function(samples, conditions, scale, *, shift=0.0): ...

def smooth(samples, *rest, **args): ...
smooth.differentiable = True

def alone(samples): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder: a pipeline, a file of rewards, a recipe that is right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    make_pipeline(tmp_path / "pipeline")
    (tmp_path / "user_rewards_a.py").write_text(REWARDS)
    (tmp_path / "user_rewards_broken.py").write_text("import json\n1 / 0\n")
    (tmp_path / "mine.yaml").write_text(
        "model: {path: ./pipeline}\nprompts: [cat]\nreward: {kind: brightness}\nsearch: {steps: 20}\n"
    )
    return tmp_path


def make_pipeline(path: Path) -> None:
    parts = {"unet": {"in_channels": 4}, "vae": {"latent_channels": 4}, "text_encoder": {}, "tokenizer": {}}
    for part, config in parts.items():
        (path / part).mkdir(parents=True)
        (path / part / "config.json").write_text(json.dumps(config))
        (path / part / "model.safetensors").write_bytes(header_only("mid.to_q", "mid.to_k", "mid.to_v", "mid.to_out.0"))
    (path / "scheduler").mkdir()
    write(path, "scheduler/scheduler_config.json", _class_name="PNDMScheduler", num_train_timesteps=100)
    index = {part: ["diffusers", "X"] for part in [*parts, "scheduler"]}
    write(path, "model_index.json", _class_name="StableDiffusionPipeline", safety_checker=[None, None], **index)


def header_only(*layers: str) -> bytes:
    """A safetensors file of layers without numbers."""
    entries = {f"{layer}.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for layer in layers}
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def write(path: Path, name: str, **changes: object) -> None:
    file = path / name
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **changes}))


def lines(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        check(load("mine.yaml", overrides).config)
    return [line.replace(f"{os.getcwd()}/", "") for line in caught.value.lines]  # paths are shown absolute


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.path=org/name"],  # a hub id: only the hub can tell
        ["search.gradient=true"],
        ["reward={kind: target_colour, args: {colour: [1, 0, 0]}}"],
        ["reward={kind: user_rewards_a:Good, args: {scale: 2}}", "search.gradient=true"],
        ["evaluate.heldout=[{kind: digit_legibility}]", "evaluate.features=user_rewards_a:Rough"],
        ["reward={kind: user_rewards_a:function, args: {scale: 2}}", "evaluate.features=user_rewards_a:alone"],
        ["reward={kind: user_rewards_a:smooth, args: {x: 1}}", "search.gradient=true"],
        ["reward={kind: ./user_rewards_a.py:Good, args: {scale: 2}}", "search.gradient=true"],
        ["reward={kind: product, args: {rewards: [{kind: user_rewards_a.py:smooth}]}}"],
    ],
)
def test_right_input_passes(folder: Path, overrides: list[str]) -> None:
    check(load("mine.yaml", overrides).config)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["model.path=./nowhere"],
            "model.path = ./nowhere: no such folder; allowed: a pipeline folder, a hub id",
        ),
        (["model.path=a/b/c"], "model.path = a/b/c: no such folder; allowed: "),
        (["model.path=pipeline/.."], "model.path = /"),
        (["model.path=shipped:dgits"], "model.path = shipped:dgits: no such shipped model; allowed: "),
        (["model.variant=fp16"], "model.path = pipeline: the folder unet has no safetensors weights of variant fp16"),
        (
            ["search.steps=101"],
            "search.steps = 101: out of range; allowed: 2 to 100, the model's training steps",
        ),
        (
            ["reward.kind=brightnes"],
            "reward.kind = brightnes: unknown reward; did you mean brightness? allowed: ",
        ),
        (
            ["reward={kind: jpeg_compressibility, args: {qualty: 3}}"],
            'reward.args = {"qualty": 3}: jpeg_compressibility: got an unexpected keyword argument '
            "'qualty'; allowed: quality",
        ),
        (
            ["reward={kind: jpeg_compressibility}", "search.gradient=true"],
            "search.gradient = true: jpeg_compressibility has no gradient; allowed: false, or a reward with",
        ),
        (
            ["reward={kind: digit_legibility}", "search.gradient=true"],
            "search.gradient = true: digit_legibility has no gradient",
        ),
        (
            ["reward={kind: user_rewards_a:Rough}", "search.gradient=true"],
            "search.gradient = true: Rough has no gradient; allowed: false, or a reward with",
        ),
        (
            ["reward={kind: user_rewards_a:Good}"],
            "reward.args = {}: Good: missing a required argument: 'scale'; allowed: scale, shift",
        ),
        (
            ["reward={kind: nowhere:Good}"],
            "reward.kind = nowhere:Good: can't import nowhere (ModuleNotFoundError: No",
        ),
        (
            ["reward={kind: user_rewards_broken:Good}"],
            "reward.kind = user_rewards_broken:Good: can't import user_rewards_broken (ZeroDivisionError:",
        ),
        (
            ["reward={kind: user_rewards_a:Goood}"],
            "reward.kind = user_rewards_a:Goood: user_rewards_a has no Goood; did",
        ),
        (
            ["reward={kind: user_rewards_a:NUMBER}"],
            "reward.kind = user_rewards_a:NUMBER: NUMBER is no class and no function",
        ),
        (
            ["reward={kind: user_rewards_a:function, args: {scale: 1, depth: 2}}"],
            'reward.args = {"scale": 1, "depth": 2}: function: got an unexpected keyword argument '
            "'depth'; allowed: scale, shift",
        ),
        (
            ["reward={kind: user_rewards_a:function}"],
            "reward.args = {}: function: missing a required argument: 'scale'; allowed: scale, shift",
        ),
        (
            ["reward={kind: user_rewards_a:function, args: {scale: 2}}", "search.gradient=true"],
            "search.gradient = true: function has no gradient; allowed: false, or a reward with",
        ),
        (
            ["reward={kind: user_rewards_a:alone}"],
            "reward.kind = user_rewards_a:alone: alone can't be called with (samples, conditions); allowed: a function",
        ),
        (
            ["reward={kind: user_rewards_a:Silent}"],
            "reward.kind = user_rewards_a:Silent: Silent has no __call__",
        ),
        (
            ["reward={kind: user_rewards_a:Bytes}"],
            "reward.kind = user_rewards_a:Bytes: wants = 'int8'; allowed: uint8, float32",
        ),
        (
            ["reward={kind: user_rewards_a:Smooth}"],
            "reward.kind = user_rewards_a:Smooth: wants = 'uint8' and differentiable = True: pixels have no gradient",
        ),
        (
            ["reward={kind: brightness, where: search, python: /usr/bin/python3}"],
            "reward.python = /usr/bin/python3: it runs in the search workers (reward.where); allowed: none",
        ),
        (
            ["reward={kind: brightness, where: search, role: {pip: [timm]}}"],
            "reward.role: an environment of its own, and reward.where = search; allowed: one of them",
        ),
        (["reward={kind: 'user_rewards_a:'}"], "reward.kind = user_rewards_a:: allowed: module.path:Name"),
        (["evaluate.features=pixel"], "evaluate.features = pixel: unknown features; did you mean pixels?"),
        (
            ["evaluate.heldout=[{kind: brightness}, {kind: nope}]"],
            "evaluate.heldout[1].kind = nope: unknown reward",
        ),
    ],
)
def test_one_line_names_key_value_and_what_is_allowed(folder: Path, overrides: list[str], line: str) -> None:
    (found, *others) = lines(*overrides)
    assert found.startswith(line)
    assert all("variant" in other for other in others)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "can't be searched",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "LCMScheduler"},
            "no stochastic DDIM step for LCMScheduler",
        ),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "prediction_type sample; allowed: epsilon",
        ),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "clips by thresholding"),
        ("model_index.json", {"unet": [None, None]}, "StableDiffusionPipeline has no unet"),
        ("model_index.json", {"text_encoder_2": ["transformers", "X"]}, "also needs text_encoder_2"),
        ("unet/config.json", {"in_channels": 9}, "the unet takes 9 channels, the vae has 4"),
    ],
)
def test_pipelines_that_cannot_be_searched(folder: Path, file: str, changes: dict, words: str) -> None:
    write(folder / "pipeline", file, **changes)
    (found,) = lines()
    assert found.startswith("model.path = pipeline: ")
    assert words in found


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("StableDiffusionXLInpaintPipeline", ("text_encoder_2", "tokenizer_2")),
        ("StableDiffusion3InpaintPipeline", ("text_encoder_2", "text_encoder_3", "transformer", "-unet")),
        ("FluxKontextPipeline", ("text_encoder_2", "transformer", "-unet")),
        ("PixArtAlphaPipeline", ("transformer", "-unet")),
        ("ConsistencyModelPipeline", ("-vae", "-text_encoder", "-tokenizer")),
        ("StableDiffusionControlNetPipeline", ("controlnet",)),
    ],
)
def test_another_pipeline_is_one_line(folder: Path, name: str, parts: tuple[str, ...]) -> None:
    file = folder / "pipeline/model_index.json"
    index = json.loads(file.read_text())
    for part in parts:
        if part.startswith("-"):
            del index[part[1:]]
            shutil.rmtree(folder / "pipeline" / part[1:])
        else:
            index[part] = ["diffusers", "X"]
    file.write_text(json.dumps({**index, "_class_name": name}))
    rule = "supported: a StableDiffusionPipeline (SD 1.x, 2.x)"
    assert lines() == [f"model.path = pipeline: {name} is not supported; {rule}"]


def test_a_part_of_a_pipeline_or_a_single_file_is_one_line(folder: Path) -> None:
    write(folder, "pipeline/unet/config.json", _class_name="UNet2DConditionModel")
    assert lines("model.path=pipeline/unet") == [
        "model.path = pipeline/unet: a UNet2DConditionModel alone is not supported; supported: the folder of a "
        "StableDiffusionPipeline (SD 1.x, 2.x)"
    ]
    (folder / "civitai.safetensors").touch()
    (line,) = lines("model.path=civitai.safetensors")
    assert line.startswith(
        "model.path = civitai.safetensors: a single file is not supported; supported: the folder of a "
    )
    assert line.endswith(
        "convert it with StableDiffusionPipeline.from_single_file('civitai.safetensors').save_pretrained(FOLDER)"
    )


def test_a_hub_id_that_is_not_here_and_cannot_be_had(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        check_hub_id("org/name")
    assert caught.value.lines == [
        "model.path = org/name: no folder here, and not to be had from the hub: offline, and not downloaded before; "
        "allowed: a folder, or a hub id (org/name)"
    ]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(UserError, match="^model.path = org/name: no folder here, and not to be had from the hub: "):
        check_hub_id("org/name")  # no hub answers, or says that there is none
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "cache/models--org--name/snapshots/1f").mkdir(parents=True)
    (folder / "cache/models--org--name/snapshots/1f/model_index.json").touch()
    check_hub_id("org/name")


def test_trackers_that_are_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dav_ray.config.checks.trackers.find_spec", lambda name: None)
    assert lines("track.kinds=[wandb,mlflow]") == [
        "track.kinds = wandb: is not installed; allowed: without it, or after: pip install wandb",
        "track.kinds = mlflow: is not installed; allowed: without it, or after: pip install mlflow-skinny",
    ]
    check(load("mine.yaml", ["track.kinds=[wandb]"]).config, tracked=False)  # to evaluate takes none


def test_golden_scores_are_looked_for(folder: Path) -> None:
    (folder / "text.npz").write_text("no archive")
    rule = "allowed: golden/NAME.npz of a run"
    assert lines("reward={kind: brightness, golden: nowhere.npz}") == [
        f"reward.golden = nowhere.npz: can't be read (No such file or directory); {rule}"
    ]
    (line,) = lines("reward={kind: brightness, golden: text.npz}")
    assert line.startswith("reward.golden = text.npz: holds no golden scores (") and line.endswith(rule)
    (line,) = lines("evaluate.heldout=[{kind: brightness, golden: text.npz}]")
    assert line == "evaluate.heldout.golden: held-out measures run inside the search workers; allowed: null"
    golden = Golden(np.zeros((1, 3, 2, 2), np.float32), ("cat",), np.array([0.0]), grad=False)
    (folder / "fine.npz").write_bytes(encode(golden))
    check(load("mine.yaml", ["reward={kind: brightness, golden: fine.npz}"]).config)


def test_missing_parts_are_named(folder: Path) -> None:
    os.rename(folder / "pipeline" / "vae", folder / "gone")
    assert lines() == ["model.path = pipeline: the folder vae is missing"]
    (folder / "pipeline" / "model_index.json").write_text("{")
    (line,) = lines()
    assert line.startswith("model.path = pipeline: is no diffusers pipeline: pipeline/model_index.json is no JSON: ")


def test_all_mistakes_at_once(folder: Path) -> None:
    found = lines("search.steps=101", "reward.kind=nope", "evaluate.features=nope")
    assert [line.split(" ")[0] for line in found] == ["search.steps", "evaluate.features", "reward.kind"]


@pytest.mark.parametrize("name", registry.REWARDS.builtin)
def test_what_is_read_from_a_built_in_rewards_source_is_true(name: str) -> None:
    signature, differentiable = _facts_of_source(registry.REWARDS.target(name))
    found = resolve(name)
    assert list(signature.parameters) == list(inspect.signature(found).parameters)
    assert differentiable is found.differentiable


def test_model_path() -> None:
    assert model_path("org/name") == "org/name"
    assert model_path("~/models") == os.path.expanduser("~/models")
    with pytest.raises(UserError, match="shipped:nope: no such shipped model"):
        model_path("shipped:nope")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "ray://head:10001",
            "--address ray://head:10001: a run can't go through Ray Client; .* ray job submit",
        ),
        ("head", "--address head: is no address; allowed: auto, local or HOST:PORT"),
        ("http://head:8265", "is no address"),
        ("127.0.0.1:1", "--address 127.0.0.1:1: no Ray cluster answers"),
    ],
)
def test_addresses(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_address(address)
    check_address("local")
    check_address("127.0.0.1:1", connect=False)


def refused(run_dir: str, recipe: Recipe) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_run_dir(run_dir, recipe)
    return caught.value.lines


def test_run_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load("mine.yaml")
    check_run_dir("new/run", recipe)
    assert not (folder / "new").exists()
    assert refused("mine.yaml", recipe) == [
        f"--run-dir mine.yaml: {folder}/mine.yaml is a file; allowed: a folder, existing or new"
    ]
    assert refused("mine.yaml/run", recipe)[0].startswith(f"--run-dir mine.yaml/run: {folder}/mine.yaml is a file")
    assert "ftp://x" in refused("ftp://x", recipe)[0]
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "is not writable" in refused("new/run", recipe)[0]


def test_run_directory_of_another_configuration(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(load("mine.yaml").yaml)
    check_run_dir("run", load("mine.yaml", ["roles.search.replicas=3"]))
    assert refused("run", load("mine.yaml", ["search.alpha=0.5", "seed=7"])) == [
        "--run-dir run: holds a run of other settings; allowed: the same, or a new directory "
        "(dav-ray config lists what may change)",
        f"run/config.yaml: seed: was 0, now 7; fixed: {reason('seed')}",
        f"run/config.yaml: search.alpha: was 0.005, now 0.5; fixed: {reason('search.alpha')}",
    ]


def test_a_job_needs_an_absolute_run_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    recipe = load("mine.yaml")
    check_run_dir(str(folder / "run"), recipe)
    assert refused("runs/x", recipe)[0].startswith("--run-dir runs/x: is relative, and a job's working directory is")
