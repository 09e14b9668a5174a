"""A model of the hub: one commit for a run, one download per node, whoever comes later asks nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dav_ray.config.families.table import family_of
from dav_ray.config.recipe.load import load
from dav_ray.diffusion.pipelines.one_download import commit_of, downloaded
from tests.support.deadlines import hung
from tests.support.folder_hub import Hub, hub

NEWEST, OLD = "1" * 40, "a" + "2" * 39

# every process of a node comes at the same time; forked, as each import takes seconds
NODE = """
import multiprocessing, sys
from dav_ray.diffusion.pipelines.files import load_pipeline
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

def one(start):
    start.wait()
    pipe = load_pipeline("some/model", revision=sys.argv[2] or None)
    assert pipe.config._name_or_path == "some/model", pipe.config._name_or_path
    print(pipe.unet.config.sample_size, flush=True)

fork = multiprocessing.get_context("fork")
start = fork.Event()
processes = [fork.Process(target=one, args=(start,)) for _ in range(int(sys.argv[1]))]
[process.start() for process in processes]
start.set()
[process.join() for process in processes]
sys.exit(max(process.exitcode for process in processes))
"""


def node(place: Hub, cache: Path, processes: int, revision: str) -> None:
    """So many processes of a node load the model at the same time."""
    env = {**os.environ, "HF_ENDPOINT": place.address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", NODE, str(processes), revision]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=hung(200))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4"] * processes


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_of_a_node_ask_for_a_commit_as_one_does(tiny_folder: str, tmp_path: Path) -> None:
    with hub(Path(tiny_folder)) as alone, hub(Path(tiny_folder)) as shared:
        node(alone, tmp_path / "alone", 1, NEWEST)
        node(shared, tmp_path / "shared", 4, NEWEST)
        assert alone.fetched(".safetensors") == shared.fetched(".safetensors") == 3  # unet, vae, text encoder
        assert shared.requests == alone.requests and alone.asked > 3

        before = shared.asked
        node(shared, tmp_path / "shared", 2, NEWEST)  # a worker that starts again
        assert shared.asked == before
        node(shared, tmp_path / "shared", 1, "")  # the newest revision may be another one by now
        assert shared.asked > before and shared.fetched(".safetensors") == 3


@pytest.fixture
def place(tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from huggingface_hub import constants

    with hub(Path(tiny_folder), commits=[OLD]) as found:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", found.address)
        yield found


def test_the_driver_asks_which_commit_and_all_nodes_get_that_one(place: Hub) -> None:
    config = load("sd15", ["model.path=some/model"]).config
    pinned = family_of(config.model).pinned(config)
    assert (config.model.revision, pinned.model.revision) == (None, NEWEST)
    place.commit = "3" * 40
    assert family_of(config.model).pinned(pinned).model.revision == NEWEST
    assert pinned.model_copy(update={"model": config.model}) == config

    of_a_folder = load("digits").config
    before = place.asked
    assert family_of(of_a_folder.model).pinned(of_a_folder) is of_a_folder and place.asked == before


def test_a_run_says_which_commit_it_has(place: Hub) -> None:
    from dav_ray.runtime.session import _pinned

    said: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def event(self, name: str, **fields: Any) -> None:
            said.append((name, fields))

    log: Any = Log()
    for words, revision in (([], NEWEST), ([f"model.revision={OLD}"], OLD)):
        config = load("sd15", ["model.path=some/model", *words]).config
        assert _pinned(config, log).model.revision == revision
    assert said == [("model_revision", {"path": "some/model", "revision": NEWEST})]


def test_what_the_hub_does_not_know_is_left_to_who_loads_it(place: Hub) -> None:
    assert commit_of("some/model", OLD) == OLD
    assert commit_of("some/other", None) is None and commit_of("some/model", "v9") == "v9"


def test_offline_the_commit_of_the_cache_counts(place: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit_of("some/model", None) == NEWEST  # is remembered
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place.commit, before = OLD, place.asked
    assert commit_of("some/model", None) == NEWEST and place.asked == before
    assert commit_of("never/seen", None) is None


def test_only_a_commit_is_looked_for_in_the_cache_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    asked: list[bool] = []

    def download(local_files_only: bool) -> str:
        asked.append(local_files_only)
        if local_files_only and len(asked) == 1:
            raise FileNotFoundError
        return "folder"

    for revision, expected in ((NEWEST, [True, False]), ("main", [False]), (None, [False])):
        asked.clear()
        assert downloaded("some/model", revision, download) == "folder"
        assert asked == expected
    asked[:] = [False]  # it lies there
    assert downloaded("some/model", NEWEST, download) == "folder" and asked == [False, True]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert downloaded("some/model", "main", download) == "folder" and asked[-1] is True


def test_a_cache_that_cannot_be_written_to_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file"))
    assert downloaded("some/model", NEWEST, lambda local: "folder") == "folder"


def test_what_fails_for_all_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def download(local_files_only: bool) -> str:
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        downloaded("some/model", NEWEST, download)
