"""A run that starts from the policy of an earlier one: which, its copy, the model at version 0, and every mistake."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import dav_ray
from dav_ray.cli.app import app
from dav_ray.config.build import build
from dav_ray.config.plan import plan, render
from dav_ray.config.recipe.differences import differing_keys
from dav_ray.config.recipe.load import Recipe, load
from dav_ray.diffusion.noise import PipelineNoise
from dav_ray.errors import RunError, UserError
from dav_ray.run_dir import policy
from dav_ray.run_dir.manifest import ManifestStore
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.initial_policy import ORIGIN, copy_initial, with_version
from dav_ray.runtime.search.worker import SearchActor
from dav_ray.runtime.spent import Meter
from tests.run_dir.test_manifest import written_shard
from tests.support.runs import masked_model

KINDS = [("masked", "lora"), ("masked", "full"), ("diffusers", "lora"), ("diffusers", "full")]


def recipe(folder: Path, kind: str, parameters: str, tiny: str, **changes: Any) -> Path:
    """Beside it, where it is of a masked model, that model with random weights."""
    settings: dict[str, Any] = {
        "rounds": 2,
        "model": {"kind": kind, "path": masked_model(folder) if kind == "masked" else tiny},
        "prompts": [""],
        "reward": {"kind": "gc_content" if kind == "masked" else "brightness"},
        "search": {"steps": 4, "trajectories": 4, "chunk": 4},
        "mstep": {"parameters": parameters, "lora": {"rank": 2, "targets": ["convs" if kind == "masked" else "to_q"]}},
        "evaluate": {"samples": 4},
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


def earlier_run(storage: Storage, made: Recipe, means: dict[int, float]) -> dict[int, dict[str, torch.Tensor]]:
    """A run with a policy per closed round, and the rewards that these had; returns the policies."""
    store, log, found = ManifestStore(storage), RunLog(storage, 1), {}
    store.open(made.config.identity(), {})
    storage.write("config.yaml", made.yaml.encode())
    for number, mean in means.items():
        diffusion = build(made.config)
        rng = torch.Generator().manual_seed(number)
        state = {name: t + 0.1 * torch.randn(t.shape, generator=rng) for name, t in diffusion.policy_state().items()}
        diffusion.load_policy_state(state)
        found[number] = {name: tensor.detach().clone() for name, tensor in diffusion.policy_state().items()}
        store.commit([written_shard(storage, 0, round=number, policy_version=number - 1)])
        store.advance(phase="evaluate", policy_version=number)
        trained = [p for p in diffusion.trainable().parameters() if p.requires_grad]
        policy.save(storage, number, diffusion, torch.optim.AdamW(trained))
        log.metrics(number, "evaluate", {"evaluate/reward_mean": mean})
        store.close_round({})
    return found


@pytest.mark.parametrize(("kind", "parameters"), KINDS)
def test_a_run_starts_from_the_best_policy(kind: str, parameters: str, tmp_path: Path, tiny_folder: str) -> None:
    """Its copy is version 0, the reference stays the pretrained model, and the earlier run is needed no more."""
    path = recipe(tmp_path, kind, parameters, tiny_folder)
    earlier, mine = open_storage(str(tmp_path / "earlier")), open_storage(str(tmp_path / "new"))
    policies = earlier_run(earlier, load(str(path)), {1: 2.0, 2: 1.0})
    asked = load(str(path), [f"init={{run: {tmp_path}/earlier, version: best}}", "search.alpha=0.5"])
    found = with_version(asked, mine.uri)
    assert found.config.init.version == 1 and yaml.safe_load(found.yaml)["init"]["version"] == 1
    first_line = render(found.config, plan(found.config)).splitlines()[0]
    assert first_line.split(maxsplit=2) == ["starts", "from", f"policy 1 of {tmp_path}/earlier"]

    ManifestStore(mine).open(found.config.identity(), {})
    mine.write("config.yaml", found.yaml.encode())
    log = RunLog(mine, 1)
    copy_initial(found.config, mine, log)
    copied = [name for name in mine.list("policy/v0000") if name != ORIGIN]
    assert copied and all(mine.read(name) == earlier.read(name.replace("v0000", "v0001")) for name in copied)
    assert not any("optimizer" in name for name in copied)
    origin = _weights(dav_ray.load(earlier.uri, 1))
    shutil.rmtree(tmp_path / "earlier")

    copy_initial(found.config, mine, log)  # is there already
    again = with_version(asked, mine.uri)
    assert again.config == found.config and differing_keys(found.yaml, again.yaml) == []
    pretrained, started = build(load(str(path)).config), build(again.config)
    policy.start(mine, started)
    state = started.policy_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in policies[1].items())
    x = started.prior([""], PipelineNoise([7]).at(4))
    with torch.no_grad():
        policy_kl, reference_kl = (
            float(pretrained.predict(x, 2, [""]).kernel.kl(started.predict(x, 2, [""], reference=reference).kernel))
            for reference in (False, True)
        )
    assert reference_kl == 0 < policy_kl
    assert _weights(dav_ray.load(mine.uri, 0)) == origin != _weights(_unaligned(path))


def _unaligned(path: Path) -> Any:
    from dav_ray.config.build import pretrained

    return pretrained(load(str(path)).config)


def _weights(model: Any) -> list[float]:
    """One number per tensor, adapters included."""
    module = model.unet if hasattr(model, "unet") else model.trainable()
    return [float(tensor.double().norm()) for tensor in module.state_dict().values()]


def test_a_worker_of_full_weights_goes_back_to_the_pretrained_model(tmp_path: Path) -> None:
    """After it served another version; of full weights it keeps no copy."""
    made = load(str(recipe(tmp_path, "masked", "full", "")))
    storage = open_storage(str(tmp_path / "run"))
    policies = earlier_run(storage, made, {1: 1.0})
    worker: Any = SearchActor.__new__(SearchActor)
    worker._spec, worker._storage, worker._device = SimpleNamespace(config=made.config), storage, "cpu"
    worker._diffusion, worker._version, worker._initial = build(made.config), 0, None
    worker._meter, worker._events = Meter("cpu"), []
    worker._posted = lambda version: None
    before = {name: tensor.clone() for name, tensor in worker._diffusion.policy_state().items()}

    worker._use(1)
    assert all(torch.equal(worker._diffusion.policy_state()[name], t) for name, t in policies[1].items())
    worker._use(0)
    assert all(torch.equal(worker._diffusion.policy_state()[name], tensor) for name, tensor in before.items())


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, and beside it a run of it with versions 1 and 2."""
    made = load(str(recipe(tmp_path, "masked", "lora", "")))
    earlier_run(open_storage(str(tmp_path / "earlier")), made, {1: 2.0, 2: 1.0})
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["init.run=nowhere"], "init.run = nowhere: no such directory; allowed: "),
        (["init.run=empty"], "init.run: {here}/empty: is no run directory (it has no manifest.json); allowed: "),
        (["init.run=new"], "init.run = new: is this run's own directory; allowed: "),
        (
            ["init={run: earlier, version: 3}"],
            "init.version = 3: {here}/earlier has no such policy; allowed: best, last, 1, 2",
        ),
        (["init.run=earlier", "mstep.lora.rank=3"], "mstep.lora.rank = 3: init.run = {here}/earlier was made with 2; "),
        (["init.run=earlier", "mstep.lora.targets=[linear]"], 'mstep.lora.targets = ["linear"]: init.run = '),
        (["init.run=earlier", "mstep.parameters=full"], "mstep.parameters = full: init.run = "),
        (["init.run=earlier", "model.path=shipped:dna"], "model.path = shipped:dna: init.run = "),
    ],
)
def test_mistakes_are_one_line_each(folder: Path, overrides: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        with_version(load("mine.yaml", overrides), "new")
    (found,) = caught.value.lines
    assert found.startswith(line.format(here=folder))


def test_other_family_and_no_version_yet(folder: Path, tiny_folder: str) -> None:
    other = folder / "other"
    other.mkdir()
    path = recipe(other, "diffusers", "lora", tiny_folder)
    with pytest.raises(UserError) as caught:
        with_version(load(str(path), [f"init.run={folder}/earlier"]), "new")
    assert caught.value.lines[0].startswith("model.kind = diffusers: init.run = ")

    earlier_run(open_storage(str(folder / "begun")), load("mine.yaml"), {})
    with pytest.raises(UserError, match="init.version = last: .*/begun has no policy yet; allowed: "):
        with_version(load("mine.yaml", ["init.run=begun"]), "new")
    with pytest.raises(UserError, match=r"init.version = 3: of which run\? allowed: with init.run only"):
        load("mine.yaml", ["init.version=3"])
    with pytest.raises(UserError, match="init.version = first: .*allowed: best, last or a version"):
        load("mine.yaml", ["init={run: earlier, version: first}"])


def test_the_command_says_so_before_anything_starts(folder: Path) -> None:
    done = CliRunner().invoke(app, ["run", "mine.yaml", "init.run=nowhere", "--run-dir", "new"])
    assert done.exit_code == 2 and "init.run = " in done.output
    done = CliRunner().invoke(app, ["run", "mine.yaml", "init.run=earlier", "--run-dir", "new", "--dry-run"])
    assert done.exit_code == 0 and f"run: {folder}/earlier" in done.output and "version: 2" in done.output


def test_another_origin_is_refused(folder: Path) -> None:
    """The run has started: what it started from is fixed."""
    plain, other = load("mine.yaml"), with_version(load("mine.yaml", ["init.run=earlier"]), "new")
    lines = differing_keys(plain.yaml, other.yaml)
    assert [line.partition(":")[0] for line in lines] == ["init.run", "init.version"]
    assert plain.config.identity() != other.config.identity()


def test_a_policy_that_went_before_it_was_copied(folder: Path) -> None:
    found = with_version(load("mine.yaml", ["init.run=earlier"]), "new")
    shutil.rmtree(folder / "earlier/policy/v0002")
    storage = open_storage(str(folder / "new"))
    with pytest.raises(RunError, match="policy/v0002 is absent"):
        copy_initial(found.config, storage, RunLog(storage, 1))
    assert storage.list("policy") == []
