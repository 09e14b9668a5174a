"""Relative paths of a recipe: where they are looked up, what is stored, and that old run directories go on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import dav_ray
from dav_ray.config.checks.preflight import check_run_dir
from dav_ray.config.checks.user_code import announced
from dav_ray.config.identity import unpacked
from dav_ray.config.recipe.differences import differing_keys
from dav_ray.config.recipe.load import Recipe, from_yaml, load
from dav_ray.config.recipe.same_run import earlier_identities
from dav_ray.config.schema import Config
from dav_ray.diffusion.pipelines.hub import is_hub_id
from dav_ray.errors import UserError
from dav_ray.run_dir.manifest import MANIFEST, ManifestStore
from dav_ray.run_dir.storage.uri import open_storage


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes and models; the current folder is another one."""
    (tmp_path / "recipes/model").mkdir(parents=True)
    (tmp_path / "recipes/model/x").touch()
    (tmp_path / "here/local").mkdir(parents=True)
    for name in ("reference.csv", "oracle.safetensors", "golden.npz", "python"):
        (tmp_path / "recipes" / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.path", list(sys.path))
    return tmp_path / "recipes"


def write(recipes: Path, **settings: Any) -> str:
    whole = {"model": {"path": "model"}, "prompts": ["cat"], "reward": {"kind": "brightness"}, **settings}
    (recipes / "mine.yaml").write_text(yaml.safe_dump(whole))
    return str(recipes / "mine.yaml")


def typed(recipe: Recipe) -> Config:
    assert recipe.as_typed is not None
    return recipe.as_typed


def test_every_path_is_made_absolute_beside_the_recipe(recipes: Path) -> None:
    oracle = {"kind": "torch_oracle", "args": {"model": "a:B", "weights": "./oracle.safetensors"}}
    both = {"kind": "product", "args": {"rewards": [oracle, {"kind": "product", "args": {"rewards": [oracle]}}]}}
    recipe = load(
        write(
            recipes,
            model={"path": "model", "draft_vae": "../recipes/model"},
            reward=[{**both, "golden": "golden.npz", "python": "python", "role": {"python": "python"}}],
            evaluate={"reference": "reference.csv", "heldout": [oracle]},
            roles={"train": {"python": "python"}, "search": {"python": "absent/python"}},
        )
    )
    config, weights = recipe.config, str(recipes / "oracle.safetensors")
    assert (config.model.path, config.model.draft_vae) == (str(recipes / "model"), str(recipes / "model"))
    assert config.evaluate.reference == str(recipes / "reference.csv")
    (reward,) = config.reward
    first, second = reward.args["rewards"]
    assert first["args"]["weights"] == second["args"]["rewards"][0]["args"]["weights"] == weights
    assert config.evaluate.heldout[0].args == {"model": "a:B", "weights": weights}
    assert (reward.golden, reward.python) == (str(recipes / "golden.npz"), str(recipes / "python"))
    assert reward.role is not None and reward.role.model_dump()["python"] == str(recipes / "python")
    assert (config.roles.train.python, config.roles.search.python) == (str(recipes / "python"), "absent/python")


def test_what_is_stored_means_the_same_in_any_folder(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(write(recipes), ["evaluate.reference=reference.csv", "model.path=local"])
    assert recipe.config.model.path == str(recipes.parent / "here/local")  # where the command was typed
    monkeypatch.chdir("/")
    assert from_yaml(recipe.yaml, "config.yaml").config == recipe.config


def test_beside_the_recipe_comes_first(recipes: Path) -> None:
    (recipes.parent / "here/model").mkdir()
    assert load(write(recipes)).config.model.path == str(recipes / "model")


def test_home_is_this_users(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(recipes))
    assert load(write(recipes), ["model.path=~/model"]).config.model.path == str(recipes / "model")


@pytest.mark.parametrize("path", ["org/name", "shipped:digits", "/absolute/../x", "nowhere", "./nowhere/at/all"])
def test_what_no_file_here_is_meant_by_stays(recipes: Path, path: str) -> None:
    recipe = load(write(recipes, model={"path": path}))
    assert recipe.config.model.path == yaml.safe_load(recipe.yaml)["model"]["path"] == path
    assert recipe.as_typed == recipe.config


def test_a_hub_id_is_one_where_no_folder_is_meant(recipes: Path) -> None:
    assert load(write(recipes, model={"path": "model/x"})).config.model.path == str(recipes / "model/x")
    typo = load(write(recipes, model={"path": "model/y"})).config.model.path
    assert typo == str(recipes / "model/y") and not is_hub_id(typo)
    assert is_hub_id("model/y") and not is_hub_id("model/y", [recipes])


def test_a_reference_is_stored_as_typed_behind_the_folder_that_it_counts_from(
    recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set to another place later on, relative or absolute, it counts as it would have."""
    for folder in ("first", "second"):
        (recipes / folder / "model").mkdir(parents=True)
    recipe = load(write(recipes, model={"path": "${oc.env:DAV_MODELS,first}/model"}))
    assert recipe.config.model.path == str(recipes / "first/model")
    assert yaml.safe_load(recipe.yaml)["model"]["path"] == f"{recipes}/${{oc.env:DAV_MODELS,first}}/model"

    monkeypatch.chdir("/")
    assert from_yaml(recipe.yaml, "config.yaml").config == recipe.config
    monkeypatch.setenv("DAV_MODELS", "second")
    assert from_yaml(recipe.yaml, "config.yaml").config.model.path == str(recipes / "second/model")
    monkeypatch.setenv("DAV_MODELS", str(recipes.parent / "third"))
    assert from_yaml(recipe.yaml, "config.yaml").config.model.path == str(recipes.parent / "third/model")
    absolute = load(str(recipes / "mine.yaml"))  # stays as typed
    assert yaml.safe_load(absolute.yaml)["model"]["path"] == "${oc.env:DAV_MODELS,first}/model"


def test_modules_are_found_beside_the_recipe_and_where_the_command_was_typed(recipes: Path) -> None:
    (recipes / "own_beside.py").write_text("class A: ...\n")
    (recipes.parent / "here/own_local.py").write_text("class B: ...\n")
    path = write(recipes, reward=[{"kind": "own_beside:A"}, {"kind": "own_local:B"}])
    recipe = load(path)
    assert recipe.config.modules == (str(recipes), str(recipes.parent / "here"))
    assert announced(recipe.config) == [
        f"imports own_beside:A from {recipes}/own_beside.py (reward[0].kind)",
        f"imports own_local:B from {recipes.parent}/here/own_local.py (reward[1].kind)",
    ]
    assert sys.path[:2] == [str(recipes), str(recipes.parent / "here")]
    given = load(path, ["modules=[.]"]).config
    assert given.modules == (str(recipes),) and given.identity() == recipe.config.identity()
    assert load(write(recipes)).config.modules == ()


def old_run(recipes: Path, monkeypatch: pytest.MonkeyPatch, path: str = "model") -> tuple[str, Recipe]:
    """What a release that knew no absolute paths left, started in the recipe's folder, and the recipe now."""
    monkeypatch.chdir(recipes)
    recipe = load(write(recipes, model={"path": path}))
    run = recipes / "run"
    run.mkdir()
    tree = yaml.safe_load(recipe.yaml)
    tree["model"] |= {"path": path, "alphabet": "dna"}
    tree["mstep"]["lora"]["targets"] = ["to_q", "to_k", "to_v", "to_out.0"]
    del tree["modules"]
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    old = Config.model_validate({"model": {"path": path}, "prompts": ["cat"], "reward": {"kind": "brightness"}})
    store = ManifestStore(open_storage(str(run)))
    store.open(old.former_identity(), {})
    store.advance(phase="fit")
    return str(run), recipe


@pytest.mark.parametrize("path", ["model", "./model"])
def test_a_run_that_stored_a_relative_path_goes_on(recipes: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    run, recipe = old_run(recipes, monkeypatch, path)
    check_run_dir(run, recipe)
    storage = open_storage(run)
    former = earlier_identities(recipe, storage)
    with pytest.raises(UserError, match="another configuration"):
        ManifestStore(storage).open(recipe.config.identity(), {})
    ManifestStore(storage).open(recipe.config.identity(), {}, former=former)
    storage.write("config.yaml", recipe.yaml.encode())
    monkeypatch.chdir("/")  # from now on from anywhere
    again = load(str(recipes / "mine.yaml"))
    check_run_dir(run, again)
    assert ManifestStore(storage).open(again.config.identity(), {}).epoch == 3


def test_another_folder_or_model_is_refused(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, recipe = old_run(recipes, monkeypatch)
    monkeypatch.chdir(recipes.parent / "here")
    with pytest.raises(UserError) as caught:
        check_run_dir(run, recipe)
    start = f"{run}/config.yaml: model.path: was model, now {recipes}/model"
    assert caught.value.lines[1].startswith(start) and "start where the run was begun" in caught.value.lines[1]
    assert earlier_identities(load(str(recipes / "mine.yaml"), ["model.path=local"]), open_storage(run)) == ()


def test_load_says_where_a_relative_path_counts_from(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = old_run(recipes, monkeypatch)
    monkeypatch.chdir("/")
    words = (
        f"{run}/config.yaml: model.path = model: counts from the folder where the run was begun; allowed: start there"
    )
    with pytest.raises(UserError, match=words):
        dav_ray.load(run)


def test_a_run_of_which_nothing_came_begins_anew_with_other_settings(
    recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake in a first try does not spoil the run directory; one accepted chunk, or sample, holds it."""
    monkeypatch.chdir(recipes)
    wrong, right = (load(write(recipes, model={"path": path})) for path in ("org/nothing", "model"))
    run = recipes / "run"
    run.mkdir()
    storage = open_storage(str(run))
    ManifestStore(storage).open(wrong.config.identity(), {})
    storage.write("config.yaml", wrong.yaml.encode())
    storage.write("golden/brightness.npz", b"scores of other rewards")

    check_run_dir(str(run), right)
    former = earlier_identities(right, storage)
    assert not storage.exists("config.yaml") and storage.list("golden") == []
    assert ManifestStore(storage).open(right.config.identity(), {}, former=former).epoch == 2
    storage.write("config.yaml", right.yaml.encode())
    check_run_dir(str(run), right)

    storage.write("evaluate/round-0000.parquet", b"samples")
    with pytest.raises(UserError, match="holds a run of other settings"):
        check_run_dir(str(run), wrong)
    assert earlier_identities(wrong, storage) == () and storage.exists("config.yaml") and storage.exists(MANIFEST)


def test_what_a_job_brought_along_is_known_by_its_place(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every upload is unpacked into another folder, and the job goes on."""
    found: list[Recipe] = []
    for name in ("_ray_pkg_1f", "_ray_pkg_2e"):
        copy = recipes / "session/runtime_resources/working_dir_files" / name
        (copy / "model").mkdir(parents=True)
        (copy / "mine.yaml").write_text("model: {path: model}\nprompts: [cat]\nreward: {kind: brightness}\n")
        monkeypatch.chdir(copy)
        found.append(load("mine.yaml"))
        assert found[-1].config.model.path == str(copy / "model")
    first, second = found
    assert first.config.identity() == second.config.identity() == typed(first).identity()
    assert differing_keys(first.yaml, second.yaml) == []
    assert unpacked("/x/working_dir_files/_ray_pkg_1f/a/b") == "a/b" and unpacked("/x/a") == "/x/a"


def test_alphabet_and_layers_that_were_the_default_are_the_default(recipes: Path) -> None:
    path = write(recipes)
    named = load(path, ["model.alphabet=dna", "mstep.lora.targets=[to_q,to_k,to_v,to_out.0]"])
    assert named.config.identity() == load(path).config.identity()
    assert differing_keys(named.yaml, load(path).yaml) == differing_keys(load(path).yaml, named.yaml) == []
    other = load(path, ["mstep.lora.targets=[to_q]"])
    (line,) = differing_keys(named.yaml, other.yaml)
    assert line.startswith('mstep.lora.targets: was null, now ["to_q"]; fixed: ')
    assert other.config.identity() != named.config.identity()
    assert os.path.isabs(other.config.model.path)
