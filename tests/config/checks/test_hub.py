"""A hub id is looked at before anything starts: the real client, against a server that stands in for the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dav_ray.config.families.table import PIPELINES
from tests.support.hub import Hub, hub

PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
}
LOOK = """
import json, sys
from dav_ray.config.checks.preflight import check_here, model_mistakes
from dav_ray.config.schema import Config
from dav_ray.errors import UserError

said = {}
for path, revision in json.loads(sys.argv[1]):
    config = Config.model_validate({
        "model": {"path": path, "revision": revision}, "prompts": ["a"], "reward": {"kind": "brightness"}
    })
    said[path] = list(model_mistakes(config))
    try:
        check_here(config)
    except UserError as error:
        said[path] += [f"here: {line}" for line in error.lines]
print(json.dumps([said, [name for name in ("torch", "diffusers") if name in sys.modules]]))
"""


def model(name: str = "StableDiffusionPipeline", scheduler: dict[str, Any] | None = None, **parts: Any) -> dict:
    index = {"_class_name": name, **PARTS, **parts}
    settings = {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "steps_offset": 1, **(scheduler or {})}
    return {
        "model_index.json": json.dumps(index).encode(),
        "scheduler/scheduler_config.json": json.dumps(settings).encode(),
        "unet/diffusion_pytorch_model.safetensors": b"gigabytes",
    }


MODELS = {
    "org/fits": model(),
    "org/kolors": model("KolorsPipeline", text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
    "org/wan": model("WanPipeline", transformer=["diffusers", "FluxTransformer2DModel"]),
    "org/flow": model(scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler"}),
    "org/sample": model(scheduler={"prediction_type": "sample"}),
    "org/weights": {"model.safetensors": b"gigabytes"},
}


@pytest.fixture
def served() -> Iterator[Hub]:
    with hub(MODELS, gated="org/gated") as found:
        yield found


def environment(home: Path, url: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return {**kept, "HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1", **more}


def said(env: dict[str, str], cwd: Path, *asked: tuple[str, str | None]) -> dict[str, list[str]]:
    """The lines about each model; nothing heavy is imported for them."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(asked)], env=env, cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines, heavy = json.loads(done.stdout)
    assert heavy == []
    return lines


def test_what_cannot_be_aligned_is_refused_before_its_weights_are_downloaded(served: Hub, tmp_path: Path) -> None:
    names = [*MODELS, "org/gated", "org/nowhere"]
    found = said(environment(tmp_path, served.url), tmp_path, *((name, None) for name in names))
    start = {name: f"model.path = {name}: " for name in names}
    assert found["org/fits"] == []
    sd = f"supported: {', '.join(PIPELINES)}"
    assert found["org/kolors"] == [f"{start['org/kolors']}KolorsPipeline is not supported; {sd}"]
    assert found["org/wan"] == [f"{start['org/wan']}WanPipeline is not supported; {sd}"]
    (line,) = found["org/flow"]
    words = "can't be searched: no stochastic DDIM step for FlowMatchEulerDiscreteScheduler; allowed: DDIMScheduler"
    assert line.startswith(start["org/flow"] + words.split("; allowed")[0])
    assert found["org/sample"] == [
        f"{start['org/sample']}can't be searched: prediction_type sample; allowed: epsilon, v_prediction"
    ]
    absent = "no folder here, and not to be had from the hub: "
    for name, why in (
        ("org/weights", "it has no model_index.json, and is no diffusers pipeline"),
        ("org/gated", "it is gated: accept its terms on the hub, and set HF_TOKEN"),
        ("org/nowhere", "there is no such model, or it is private and HF_TOKEN is not set"),
    ):
        line = f"{start[name]}{absent}{why}; allowed: a folder, or a hub id (org/name)"
        assert found[name] == [line, f"here: {line}"]
    assert set(served.asked) == {
        *(f"{name}/model_index.json" for name in MODELS if name != "org/weights"),
        *(f"org/{name}/scheduler/scheduler_config.json" for name in ("fits", "flow", "sample")),
    }


def test_a_run_is_refused_in_a_line(served: Hub, tmp_path: Path) -> None:
    settings = {"model": {"path": "org/kolors"}, "prompts": ["a"], "reward": {"kind": "brightness"}}
    (tmp_path / "xl.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "dav_ray", "run", "xl.yaml"]
    env = environment(tmp_path / "hf", served.url)
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("dav-ray: model.path = org/kolors: KolorsPipeline is not ")
    assert not (tmp_path / "runs").exists()


def test_what_was_downloaded_before_is_looked_at_without_the_hub(tmp_path: Path) -> None:
    """Offline, or where no hub answers; what is not there is unknown to a driver, and missing on the only machine."""
    with hub(MODELS) as served:
        env = environment(tmp_path, served.url)
        assert said(env, tmp_path, ("org/kolors", None), ("org/fits", None))["org/fits"] == []
    offline, silent = {**env, "HF_HUB_OFFLINE": "1"}, env  # the server is gone
    for env, why in ((offline, "offline"), (silent, "the hub gives no answer")):
        found = said(env, tmp_path, ("org/kolors", None), ("org/fits", None), ("org/flow", None))
        assert "KolorsPipeline is not supported" in found["org/kolors"][0] and found["org/fits"] == []
        assert found["org/flow"] == [
            "here: model.path = org/flow: no folder here, and not to be had from the hub: "
            f"{why}, and not downloaded before; allowed: a folder, or a hub id (org/name)"
        ]


def test_a_revision_that_is_not_there(served: Hub, tmp_path: Path) -> None:
    found = said(environment(tmp_path, served.url), tmp_path, ("org/fits", "fp16"))["org/fits"]
    assert found[0].startswith(
        "model.path = org/fits: no folder here, and not to be had from the hub: it has no revision fp16 "
    )
