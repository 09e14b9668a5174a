"""The how-to for a model family: its file is taken from the page; its model is searched and trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deadlines import hung
from tests.support.markdown import files_of

SCRIPT = """
import runpy
import torch
from pathlib import Path

runpy.run_path("make_ddpm.py", run_name="__main__")

from dav_ray.config.build import aligned, build, pretrained, strategy
from dav_ray.config.checks.preflight import check
from dav_ray.config.plan import plan
from dav_ray.config.recipe.load import load
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.errors import UserError
from dav_ray.mstep.fit import Fitter
from dav_ray.rewards.base import local_scorer
from dav_ray.rewards.colour import Brightness
from dav_ray.run_dir import shards
from dav_ray.types import Chunk

Path("my.yaml").write_text(
    "model: {kind: pixels:Pixels, path: ./my-ddpm}\\nreward: {kind: brightness}\\n"
    "search: {steps: 4, trajectories: 4, chunk: 4, candidates: 3, alpha: 0.01, gradient: true, guidance_scale: 1.0}\\n"
    "mstep: {candidates: all, kl: 0.1, batch_size: 8, lora: {rank: 2}}\\n"
)
config = load("my.yaml").config
check(config)
assert config.prompts == ("",) and plan(config).evaluations == 4 + 3 * 3

model, scorer = build(config), local_scorer([("brightness", 1.0, Brightness())])
chunk = Chunk(0, 1, 0, 0, (0, 1, 2, 3), ("",) * 4)
found = strategy(config.search, blend=True)(model, scorer, chunk.conditions, KeyedNoise(0, 1, chunk.trajectories))
PLAIN = ["search.kind=none", "search.gradient=false", "mstep.candidates=winner"]
plain = strategy(load("my.yaml", PLAIN).config.search)
drawn = plain(model, scorer, chunk.conditions, KeyedNoise(0, 2, chunk.trajectories))
assert found.cost.network == 4 * (3 + 3 * 3) and found.sample.shape == (4, 3, 8, 8)  # the last step is deterministic
assert float(found.reward.mean()) > float(drawn.reward.mean())

fitter = Fitter(model, config.mstep, 0)
rows = shards.to_rows(shards.to_table(chunk, found), dict.fromkeys(chunk.trajectories, 1.0))
first, *_, last = [fitter.fit(1, [rows])["mstep/nll"] for _ in range(8)]
assert last < first
model.write_policy(Path("policy"))

pipe = aligned(config, Path("policy"))
x, t = torch.randn(2, 1, 8, 8), torch.tensor([500, 20])
with torch.no_grad():
    assert torch.equal(pipe.unet(x, t).sample, model.trainable()(x, t).sample)
    assert not torch.equal(pipe.unet(x, t).sample, pretrained(config).unet(x, t).sample)

for override in ("model.path=./nothing", "model.alphabet=dna"):
    try:
        check(load("my.yaml", [override]).config)
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader stands, with the files of the page."""
    made = tmp_path_factory.mktemp("family")
    for name, text in files_of("dav_ray/diffusion/README.md").items():
        (made / name).write_text(text)
    return made


def python(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    (folder / "try_it.py").write_text(script)
    return subprocess.run([sys.executable, "try_it.py"], cwd=folder, capture_output=True, text=True, timeout=hung(120))


@pytest.mark.thorough
def test_the_model_of_the_page_is_searched_and_trained(folder: Path) -> None:
    done = python(folder, SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "model.path = ./nothing: has no unet; allowed: the folder of a DDPMPipeline",
        "model.alphabet = dna: a pixels:Pixels model has no use for it; allowed: None",
    ]
