"""One CUDA GPU: roles that share it, half precision, memory, the noise of the CPU. Skipped where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.build import build
from dav_ray.config.recipe.load import load
from dav_ray.diffusion.noise import KeyedNoise
from jobs.gpu_check import study
from tests.support.deadlines import hung
from tests.support.runs import finish, recipe, shards, start
from tests.support.tiny import save_tiny
from tests.whole.test_job import ROOT

pytestmark = pytest.mark.gpu
CUDA = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not CUDA, reason="torch sees no CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
SHARES: dict[str, Any] = {
    "search": {"cpus": 0.2, "gpus": 0.4},
    "reward": {"cpus": 0.1, "gpus": 0.2},
    "train": {"cpus": 0.2, "gpus": 0.4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gpu")
    save_tiny(place)
    return place


@needs_gpu
def test_roles_share_one_card(folder: Path) -> None:
    """Two rounds in bfloat16; each role says how much memory it took, and the policy loads on the card."""
    import dav_ray

    mstep = {"batch_size": 16, "lora": {"rank": 2}, "precision": "bfloat16"}
    model = {"path": str(folder / "pipeline"), "dtype": "bfloat16"}
    command = (str(recipe(folder, model=model, mstep=mstep, roles=SHARES)), "--run-dir", "shared")
    finish(start(folder, *command), 0)
    assert len(shards(folder / "shared")) == 6
    lines = [json.loads(line) for line in (folder / "shared/metrics.jsonl").read_text().splitlines()]
    for role, name in (("search", "memory/search_gb"), ("mstep", "memory/train_gb")):
        peaks = [line[name] for line in lines if line["role"] == role]
        assert len(peaks) == 2 and all(0 < peak < 1 for peak in peaks)
    pipe = dav_ray.load(str(folder / "shared")).to("cuda")
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe("a", num_inference_steps=4, generator=torch.Generator().manual_seed(0)).images
    assert image.size == (16, 16)


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_sees_the_noise_of_the_cpu(folder: Path, device: str) -> None:
    config = load(str(recipe(folder))).config
    diffusion: Any = build(config, device=device)
    noise = KeyedNoise(7, 1, (3, 4))
    x = diffusion.prior(["a", "b"], noise.at(4))
    assert x.device.type == device
    assert torch.equal(x.cpu(), noise.at(4).normal(diffusion.event_shape))
    kernel = predict(diffusion, x).kernel
    drawn = (kernel.sample(3, noise.at(3)) - kernel.mean.unsqueeze(1)) / kernel.std.unsqueeze(1)
    expected = noise.at(3).normal((3, *diffusion.event_shape))
    assert torch.allclose(drawn.cpu(), expected, atol=1e-4)


def predict(diffusion: Any, x: torch.Tensor) -> Any:
    return diffusion.predict(x, 4, ["a", "b"])


@needs_gpu
def test_the_card_predicts_what_the_cpu_does(folder: Path) -> None:
    config = load(str(recipe(folder))).config
    x = KeyedNoise(7, 1, (3, 4)).at(4).normal((4, 4, 4))
    on_cpu, on_card = (predict(build(config, device=device), x) for device in ("cpu", "cuda"))
    assert torch.allclose(on_cpu.x0_hat, on_card.x0_hat.cpu(), rtol=0.01, atol=0.01)  # convolutions may use TF32
    assert torch.allclose(on_cpu.kernel.mean, on_card.kernel.mean.cpu(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gpu_check_measures_a_precision(folder: Path, device: str, dtype: str) -> None:
    found = study.measure(str(recipe(folder)), [], device, dtype, 4)
    assert found.dtype == dtype and found.samples_per_s == pytest.approx(4 / found.search_s)
    assert min(found.evaluation_s, found.search_s, found.train_s) > 0
    assert (found.search_gb > 0) == (found.train_gb > 0) == (device == "cuda")
    assert f"| {dtype} |" in study.table("a card", 4, [found]).markdown()


@pytest.mark.skipif(CUDA, reason="there is a CUDA GPU")
def test_gpu_check_needs_a_gpu() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "jobs/gpu_check.py")], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("gpu_check: torch sees no CUDA GPU")


@needs_gpu
@pytest.mark.slow
def test_gpu_check_runs_digits_on_a_shared_card(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path / "run"), "--rounds", "1", "search.trajectories=32", "evaluate.samples=20"]
    command = [sys.executable, str(ROOT / "jobs/gpu_check.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=hung(280))
    assert done.returncode == 0, done.stderr
    assert all(f"| {dtype} |" in done.stdout for dtype in ("float32", "bfloat16", "float16"))
    assert "| 1 |" in done.stdout and (tmp_path / "run/report.html").exists()
