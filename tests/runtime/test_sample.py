"""`dav-ray sample` in this process: files of the kind that the run draws, the samples of the model itself, and what is
said where something is missing or in the way."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import dav_ray
from dav_ray.cli import app
from dav_ray.config.build import build
from dav_ray.config.recipe.load import load
from dav_ray.diffusion.masked.alphabet import Alphabet, read_sequences
from dav_ray.run_dir import policy
from dav_ray.run_dir.manifest import ManifestStore
from dav_ray.run_dir.storage.uri import open_storage
from tests.support.deadlines import hung
from tests.support.places import ROOT
from tests.support.runs import masked_recipe

RED = "class Red:\n  def __call__(self, samples, conditions): return samples.float().flatten(1).mean(1)\n"
HINT = "for one of your own start this where its module is found (cd, PYTHONPATH); --no-reward asks for none"


def image_recipe(folder: Path, pipeline: str) -> Path:
    settings: dict[str, Any] = {
        "model": {"path": pipeline},
        "prompts": ["a", "b", "c"],
        "reward": {"kind": "jpeg_compressibility"},
        "search": {"steps": 4, "guidance_scale": 2.0},
        "mstep": {"lora": {"rank": 2}},
        "evaluate": {"samples": 4, "batch": 2, "heldout": [{"kind": "brightness", "name": "light"}]},
        "roles": {"reward": {"batch": 1}},
    }
    (folder / "images.yaml").write_text(yaml.safe_dump(settings))
    return folder / "images.yaml"


def trained_run(folder: Path, recipe: Path) -> None:
    """A run in ./run whose policies 1 and 2 are of random weights; the first was the better one."""
    loaded = load(str(recipe))
    (folder / "run").mkdir()
    (folder / "run/config.yaml").write_text(loaded.yaml)
    storage = open_storage(str(folder / "run"))
    store = ManifestStore(storage)
    store.open("0" * 64, {})
    diffusion = build(loaded.config)
    for version in (1, 2):
        generator = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for parameter in diffusion.trainable().parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
        policy.save(storage, version, diffusion, optimizer)
        line = f'{{"round": {version}, "role": "evaluate", "evaluate/reward_mean": {-version}.0}}'
        storage.append_line("metrics.jsonl", line)
    store.advance(phase="evaluate", policy_version=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> dict[str, Path]:
    """Folders with a run each, of images and of sequences."""
    found = {kind: tmp_path_factory.mktemp(kind) for kind in ("images", "sequences")}
    trained_run(found["images"], image_recipe(found["images"], tiny_folder))
    evaluate = {"samples": 4, "batch": 2, "heldout": [{"kind": "gc_window", "name": "window"}], "elbo_draws": 2}
    trained_run(found["sequences"], masked_recipe(found["sequences"], evaluate=evaluate))
    return found


@pytest.fixture
def here(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The user's folder, from which the runs are ../..; each test has its own."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def sample(run: Path, *words: str, num: int = 3, out: str = "out") -> tuple[int, str, list[str]]:
    """Exit code, stdout, lines on stderr."""
    command = ["sample", str(run / "run"), "--num", str(num), "--out", out, *words]
    result = CliRunner().invoke(app.app, command)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr.splitlines()


def rows(file: str) -> list[dict[str, str]]:
    with open(file, newline="") as text:
        return list(csv.DictReader(text))


def pictures(folder: str) -> np.ndarray:
    return np.stack([np.array(Image.open(file)) for file in sorted(Path(folder).glob("*.png"))]).astype(int)


def drawn(run: Path, prompts: list[str], seeds: list[int], version: int, steps: int) -> np.ndarray:
    """What the pipeline itself draws, in the calls that `evaluate.batch` makes of it."""
    pipe = dav_ray.load(str(run / "run"), version)
    pipe.set_progress_bar_config(disable=True)
    images: list[Any] = []
    for a in range(0, len(seeds), 2):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[a : a + 2]]
        options = {"num_inference_steps": steps, "eta": 1.0, "guidance_scale": 2.0, "generator": generators}
        images += pipe(prompts[a : a + 2], **options).images
    return np.stack([np.array(image) for image in images]).astype(int)


def test_images_are_the_pipelines_own(runs: dict[str, Path], here: Path) -> None:
    assert sample(runs["images"]) == (0, "3 samples and samples.csv in out\n", [])
    listed = rows("out/samples.csv")
    assert list(listed[0]) == ["file", "sample", "seed", "condition", "reward", "heldout/light"]
    assert [row["condition"] for row in listed] == ["a", "b", "c"]

    expected = drawn(runs["images"], ["a", "b", "c"], [1_000_000, 1_000_001, 1_000_002], 2, 4)
    assert np.abs(pictures("out") - expected).max() <= 1  # adapters that the pipeline merges round in the last digit
    assert [float(row["heldout/light"]) for row in listed] == pytest.approx(
        (pictures("out") / 255).mean((1, 2, 3)).tolist(), abs=0.01
    )
    words = ["--seed", "5", "--prompt", "x", "--prompt", "y", "--steps", "3", "--version", "1", "--no-reward"]
    assert sample(runs["images"], *words, out="other")[::2] == (0, [])
    expected = drawn(runs["images"], ["x", "y", "x"], [5, 6, 7], 1, 3)
    assert np.abs(pictures("other") - expected).max() <= 1 and np.abs(pictures("out") - expected).max() > 5
    assert list(rows("other/samples.csv")[0]) == ["file", "sample", "seed", "condition"]


def test_sequences_are_the_models_own(runs: dict[str, Path], here: Path) -> None:
    assert sample(runs["sequences"], out="x.csv") == (0, "3 samples in x.csv\n", [])
    expected = dav_ray.load(str(runs["sequences"] / "run")).sample(3, seed=1_000_000)
    listed = rows("x.csv")
    assert [row["sequence"] for row in listed] == expected
    assert list(listed[0]) == ["sample", "seed", "condition", "sequence", "reward", "elbo", "heldout/window"]

    words = ["--prompt", "fixed=2:TATA", "--seed", "7", "--version", "best", "--steps", "3", "--no-reward"]
    assert sample(runs["sequences"], *words, out="x.fa")[::2] == (0, [])
    model = dav_ray.load(str(runs["sequences"] / "run"), version=1)
    model.steps = 3
    texts = Alphabet.of("dna").decode(read_sequences("x.fa", Alphabet.of("dna")))
    assert texts == model.sample(3, seed=7, conditions=["fixed=2:TATA"]) and texts[0][2:6] == "TATA"
    assert [line for line in Path("x.fa").read_text().splitlines() if line[0] == ">"] == [">0", ">1", ">2"]
    assert sample(runs["sequences"])[0] == 0
    assert sorted(file.name for file in Path("out").iterdir()) == ["samples.csv", "samples.fasta"]


def test_ray_is_not_even_imported(runs: dict[str, Path], here: Path) -> None:
    code = (
        "import sys; from dav_ray.cli.app import app\n"
        "try: app(sys.argv[1:])\nexcept SystemExit as done: assert not done.code, done.code\n"
        "assert 'ray' not in sys.modules"
    )
    words = ["sample", str(runs["sequences"] / "run"), "--num", "2", "--out", "x.csv"]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, *words], env=env, check=True, timeout=hung(120))
    assert len(rows("x.csv")) == 2


def test_nothing_is_written_over_unasked(runs: dict[str, Path], here: Path) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("x.csv").write_text("mine")
    Path("empty").mkdir()
    rule = "allowed: another place, or --force to write over what is there"
    for out, what in (("full", "a folder with files in it"), ("x.csv", "a file")):
        assert sample(runs["sequences"], out=out) == (2, "", [f"dav-ray: --out {out}: is {what} already; {rule}"])
    assert Path("x.csv").read_text() == "mine" and list(Path("full").iterdir()) == [Path("full/mine.txt")]
    assert sample(runs["sequences"], out="empty")[0] == 0
    assert sample(runs["sequences"], "--force", out="x.csv")[0] == 0
    assert sample(runs["sequences"], "--force", out="full")[0] == 0
    assert len(rows("x.csv")) == 3 and Path("full/mine.txt").read_text() == "mine"


@pytest.fixture
def elsewhere(runs: dict[str, Path], here: Path) -> Path:
    """A run with a reward and a measure in a module that is not found from here."""
    settings = yaml.safe_load((runs["sequences"] / "run/config.yaml").read_text())
    settings["reward"] = [{"kind": "gone_rewards:Red"}, {"kind": "gc_content"}]
    settings["evaluate"]["heldout"] += [{"kind": "gone_rewards:Red", "name": "other"}]
    settings["evaluate"]["features"] = "gone_features:Space"
    place = here / "theirs"
    (place / "run").mkdir(parents=True)
    for name in ("manifest.json", "metrics.jsonl", "policy"):
        (place / "run" / name).symlink_to(runs["sequences"] / "run" / name)
    (place / "run/config.yaml").write_text(yaml.safe_dump(settings))
    return place


def test_rewards_that_are_not_found_leave_columns_out(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output, errors = sample(elsewhere, out="x.csv")
    assert (code, output) == (0, "3 samples in x.csv\n")
    why = "can't import gone_rewards (ModuleNotFoundError: No module named 'gone_rewards')"
    assert errors == [
        f"dav-ray: no reward column: reward[0].kind = gone_rewards:Red: {why}; {HINT}",
        f"dav-ray: no heldout/other column: evaluate.heldout[1].kind = gone_rewards:Red: {why}; {HINT}",
    ]
    listed = rows("x.csv")
    assert list(listed[0]) == ["sample", "seed", "condition", "sequence", "elbo", "heldout/window"]
    assert sample(elsewhere, "--no-reward", out="y.csv") == (0, "3 samples in y.csv\n", [])
    assert [row["sequence"] for row in rows("y.csv")] == [row["sequence"] for row in listed]

    (elsewhere / "gone_rewards.py").write_text(RED)
    monkeypatch.syspath_prepend(str(elsewhere))
    code, output, errors = sample(elsewhere, out="z.csv")
    assert (code, errors) == (0, []) and "imports gone_rewards:Red from " in output
    assert {"reward", "heldout/other"} <= set(rows("z.csv")[0])
    sys.modules.pop("gone_rewards")


def test_a_module_is_found_where_the_run_found_it(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """config.yaml says where: `sample` needs no other folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("gone_rewards", None)
    (elsewhere / "gone_rewards.py").write_text(RED)
    file = elsewhere / "run/config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "modules": [str(elsewhere)]}))
    code, output, errors = sample(elsewhere, out="w.csv")
    sys.modules.pop("gone_rewards", None)
    assert (code, errors) == (0, []) and f"imports gone_rewards:Red from {elsewhere}" in output
    assert {"reward", "reward/Red", "heldout/other"} <= set(rows("w.csv")[0])


def test_a_reward_that_fails_on_samples_says_how_to_draw_without(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "gone_rewards.py").write_text(RED.replace("return", "raise ValueError('no'); return"))
    monkeypatch.syspath_prepend(str(elsewhere))
    code, _, errors = sample(elsewhere, out="z.csv")
    assert code == 1 and not Path("z.csv").exists()
    assert "gone_rewards.py" in errors[1] and errors[-2] == "ValueError: no"  # the user's own traceback
    assert "Red gave ValueError: no" in errors[-1] and "--no-reward draws without" in errors[-1]
    (elsewhere / "gone_rewards.py").write_text(
        "class Red:\n  def __init__(self): raise OSError('no file')\n" + RED[11:]
    )
    sys.modules.pop("gone_rewards")
    code, _, errors = sample(elsewhere, out="z.csv")
    assert code == 0 and [line[:60] for line in errors] == [
        "dav-ray: no reward column: Red did not start: OSError: no file"[:60],
        "dav-ray: no heldout/other column: other did not start: OSError: no file"[:60],
    ]
    sys.modules.pop("gone_rewards")


def test_mistakes_cost_no_import_of_torch(runs: dict[str, Path], here: Path) -> None:
    Path("there.csv").write_text("mine")
    code = (
        "import sys; from dav_ray.cli.app import app\n"
        "try: app(sys.argv[1:])\nexcept SystemExit as done: assert done.code == 2, done.code\n"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    for words in (["--out", "there.csv"], ["--out", "x.csv", "--version", "9"]):
        command = [sys.executable, "-c", code, "sample", str(runs["sequences"] / "run"), "--num", "2", *words]
        subprocess.run(command, env=env, check=True, timeout=hung(120))


MISTAKES = {
    "--version 3": "--version 3: {run} has no such policy; allowed: best, last, 1, 2",
    "--version first": "--version first: is no version; allowed: best, last or a whole number >= 0",
    "--prompt fixed=30:TATA": "prompts[0] = fixed=30:TATA: ",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_found_first(runs: dict[str, Path], here: Path, words: str) -> None:
    code, output, errors = sample(runs["sequences"], *words.split())
    assert (code, output, len(errors)) == (2, "", 1) and not Path("out").exists()
    assert errors[0].startswith("dav-ray: " + str(MISTAKES[words]).format(run=runs["sequences"] / "run"))


def test_a_place_that_can_not_be(runs: dict[str, Path], here: Path) -> None:
    line = "dav-ray: --out x.fasta: this run's samples are images, written one file each; allowed: a folder"
    assert sample(runs["images"], out="x.fasta") == (2, "", [line])
    code, _, errors = sample(runs["images"], "--steps", "5000")
    assert code == 2 and errors[0].startswith("dav-ray: search.steps = 5000: out of range; allowed: 2 to ")


@pytest.mark.slow
def test_search_workers_draw_the_same_bits_without_a_reward(runs: dict[str, Path], here: Path) -> None:
    """On actors, whose fleet of rewards is empty."""
    from dav_ray.config.stored import read_run
    from dav_ray.evaluation.drawing import draw
    from dav_ray.evaluation.measure import evaluation_chunks
    from dav_ray.runtime.inference import measuring
    from dav_ray.runtime.sample import Wanted, drawn_with

    stored = read_run(str(runs["sequences"] / "run"))
    config, remarks = drawn_with(stored.config, Wanted(5, "out", prompts=("fixed=2:TATA",), reward=False), "auto")
    chunks = evaluation_chunks(config, 2, 2, config.prompts, 5)
    with measuring(stored, "local", config) as measure:
        table = measure(chunks)
    mine, _ = draw(stored.storage, config, chunks)

    assert remarks == [] and mine.column_names == [name for name in table.column_names if name != "reward"]
    assert table.select(mine.column_names).equals(mine) and mine.num_rows == 5
