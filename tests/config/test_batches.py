"""Sizes of batches: what is chosen on curves of known throughput, what follows for the chunk, where it is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.exceptions import RayTaskError, WorkerCrashedError

from dav_ray.config.batches import Batches, Measured, choose, chunk_for, grow, largest_chunk, too_few_chunks
from dav_ray.config.build import build
from dav_ray.config.checks.preflight import check_run_dir
from dav_ray.config.plan import plan, render
from dav_ray.config.recipe.load import load, with_batches
from dav_ray.config.schema import Config
from dav_ray.config.sections.model import Model
from dav_ray.config.sections.roles import Role
from dav_ray.errors import RunError, UserError
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.probe import probing, settle
from dav_ray.runtime.probe.probing import probe_search, probe_train
from tests.runtime.search.test_memory import Narrow
from tests.support.runs import events, finish, masked_recipe, start

SIZES = [2**i for i in range(11)]


def curve(seconds: Callable[[int], float], peak: Callable[[int], float] = float, oom: int = 10**9) -> Any:
    return lambda size: None if size >= oom else Measured(size, seconds(size), peak(size))


def tried(measure: Any, limit: float = 1e9, most: int = 10**6) -> tuple[list[int], int]:
    found = grow(measure, limit, most)
    return [one.size for one in found], choose(found)


def test_overhead_and_a_cost_per_row() -> None:
    """n rows in a + b n seconds: of the best rate, that of the largest size N, a share (a / N + b) / (a / n + b)."""
    assert tried(curve(lambda n: 0.16 + 0.01 * n)) == (SIZES, 256)  # 0.956 of the rate at 1024; 128 have 0.903
    # 64 -> 128 gains 1.5 %, 128 -> 256 0.8 %; 64 have 0.977 of the rate at 256, 32 have 0.949
    assert tried(curve(lambda n: 0.02 + 0.01 * n)) == (SIZES[:9], 64)


def test_a_device_that_computes_row_by_row_gets_one() -> None:
    assert tried(curve(lambda n: 0.01 * n)) == ([1, 2, 4], 1)


def test_a_rate_that_doubles_grows_to_the_largest() -> None:
    assert tried(curve(lambda n: 0.01)) == (SIZES, 1024)
    assert tried(curve(lambda n: 0.01), most=24) == ([1, 2, 4, 8, 16, 32], 32)  # 24 rows go through at once
    assert tried(curve(lambda n: 0.01), most=1) == ([1], 1)


def test_a_slower_half_way_does_not_end_it() -> None:
    """One doubling without gain is noise, or a kernel that changes."""
    assert tried(curve(lambda n: 0.02 if n == 4 else 0.01), most=8) == ([1, 2, 4, 8], 8)


def test_memory_ends_it() -> None:
    assert tried(curve(lambda n: 0.01, oom=16)) == ([1, 2, 4, 8], 8)
    # 100 + 10 n bytes: 64 rows are foreseen to take 740
    assert tried(curve(lambda n: 0.01, lambda n: 100 + 10 * n), limit=739) == ([1, 2, 4, 8, 16, 32], 32)
    assert tried(curve(lambda n: 0.01, lambda n: 100 + 10 * n), limit=740) == ([1, 2, 4, 8, 16, 32, 64], 64)
    assert grow(curve(lambda n: 0.01, oom=1), 1e9, 8) == []


def test_a_call_that_takes_too_long_is_the_last_one() -> None:
    assert tried(curve(lambda n: 9.0 * n**0.5)) == ([1, 2, 4, 8], 8)


def config(mstep: dict[str, Any] | None = None, ranks: int = 1, workers: int = 1, **search: Any) -> Config:
    roles = {"search": {"replicas": workers}, "train": {"replicas": ranks}}
    return Config.model_validate(
        {
            **{"model": {"path": "x/y"}, "prompts": ["a"], "reward": {"kind": "brightness"}, "batches": "probed"},
            **{"search": search, "mstep": mstep or {}, "roles": roles},
        }
    )


@pytest.mark.parametrize(
    ("micro_batch", "made", "chunk"),
    [
        (128, config(candidates=4, trajectories=640), 32),
        (100, config(candidates=16, trajectories=640), 7),
        (2, config(candidates=16, trajectories=640), 1),
        (128, config(kind="smc", candidates=2, particles=8, trajectories=640), 8),
        (128, config(kind="none", candidates=4, trajectories=640), 128),
        (1024, config(candidates=4, trajectories=64), 22),  # three chunks for the worker
        (1024, config(candidates=4, trajectories=64, workers=3), 8),
        (1, config(candidates=4, trajectories=64, ranks=5), 5),  # a group holds a trajectory per rank
        (1, config({"group": 2}, candidates=4, trajectories=64, ranks=5), 3),
        (1024, config(candidates=4, trajectories=7, workers=9, ranks=4), 4),
        (1024, config(candidates=4, trajectories=1), 1),
    ],
)
def test_chunks_fill_micro_batches_within_what_workers_and_ranks_need(
    micro_batch: int, made: Config, chunk: int
) -> None:
    assert chunk_for(made, micro_batch) == chunk <= largest_chunk(made) <= made.search.trajectories


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            {"workers": 64, "trajectories": 320, "chunk": 8},
            "40 chunks per round for 64 search workers, 24 of which get none: from 192 on they stay busy; set "
            "search.chunk = 1; mstep.group = 8 keeps the trainer's groups about as large",
        ),
        (
            {"workers": 16, "trajectories": 320, "chunk": 8, "mstep": {"group": 2}},
            "40 chunks per round for 16 search workers: from 48 on they stay busy; set search.chunk = 6; "
            "mstep.group = 3 keeps the trainer's groups about as large",
        ),
        (
            {"workers": 8, "trajectories": 20, "chunk": 4},
            "5 chunks per round for 8 search workers, 3 of which get none: from 24 on they stay busy; set search.chunk "
            "= 1 and search.trajectories = 24; mstep.group = 4 keeps the trainer's groups about as large",
        ),
        (
            {"workers": 8, "trajectories": 20, "chunk": 1},
            "20 chunks per round for 8 search workers: from 24 on they stay busy; set search.trajectories = 24 or "
            "roles.search.replicas = 6",
        ),
        ({"workers": 13, "trajectories": 320, "chunk": 8}, ""),  # 40 = 3 x 13 + 1
        ({"workers": 1, "trajectories": 4, "chunk": 4}, ""),
        ({"workers": 2, "trajectories": 64, "chunk": 16}, ""),
    ],
)
def test_a_pool_that_will_stand_idle_is_named_with_what_to_set(words: dict[str, Any], said: str) -> None:
    made = config(**words).model_copy(update={"batches": "given"})
    assert too_few_chunks(made) == said
    assert bool(re.search(rf"\nwarning +{re.escape(said)}\n", render(made, plan(made)))) == bool(said)
    assert too_few_chunks(made.model_copy(update={"batches": "probed"})) == ""


def test_what_is_said_of_an_idle_pool_mends_it() -> None:
    """Also where the pool may grow: replicas is what it grows to at most."""
    keys = ["roles.search.replicas=64", "roles.search.min_replicas=2"]
    said = too_few_chunks(load("sd15", keys).config)
    found = dict(re.findall(r"([a-z.]+) = (\d+)", said))
    mended = load("sd15", [*keys, *(f"{key}={value}" for key, value in found.items())]).config
    assert found and too_few_chunks(mended) == "" == too_few_chunks(load("sd15").config)
    assert plan(mended).optimizer_steps == plan(load("sd15", keys).config).optimizer_steps


def test_ranks_are_held_against_the_chunk_only_where_it_is_given() -> None:
    words = ["search.trajectories=64", "search.chunk=2", "roles.train.replicas=4"]
    with pytest.raises(UserError, match="the trainer gets 2 trajectories at a time"):
        load("digits", words)
    recipe = load("digits", [*words, "batches=probed"])
    text = render(recipe.config, plan(recipe.config))
    assert re.search(r"\nbatches +sizes of chunk and batches are found when the run starts: ", text)
    with pytest.raises(UserError, match="the trainer gets 65 trajectories at a time|at most 64"):
        load("digits", ["search.trajectories=64", "roles.train.replicas=65", "batches=probed"])


FOUND = Batches(8, 32, 4, 16)


def _placed(_: Config) -> None:
    """Every role finds a place."""


def test_a_recipe_takes_sizes_and_keeps_its_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOW_MANY", "7")
    words = ["batches=probed", "mstep.epochs=${oc.env:HOW_MANY}", "search.chunk=${oc.env:HOW_MANY}"]
    typed = load("digits", [*words, "evaluate.batch=${search.chunk}"])
    recipe = with_batches(typed, FOUND)
    assert Batches.of(typed.config).chunk == 7 and Batches.of(recipe.config) == FOUND
    assert (recipe.config.mstep.epochs, recipe.config.evaluate.batch) == (7, 8)
    stored = yaml.safe_load(recipe.yaml)
    assert stored["mstep"]["epochs"] == "${oc.env:HOW_MANY}" and stored["evaluate"]["batch"] == "${search.chunk}"
    assert stored["search"]["chunk"] == 8 and stored["mstep"]["micro_batch"] == 16 and stored["batches"] == "probed"
    assert with_batches(recipe, Batches.of(recipe.config)) == recipe
    assert str(FOUND) == ("search.chunk 8, search.micro_batch 32, search.decode_batch 4, mstep.micro_batch 16")


def test_probed_sizes_may_differ_from_what_is_typed(tmp_path: Path) -> None:
    probed, given = load("digits", ["batches=probed"]), load("digits")
    run = str(tmp_path)
    (tmp_path / "config.yaml").write_text(with_batches(probed, FOUND).yaml)
    check_run_dir(run, probed)
    check_run_dir(run, load("digits", ["batches=probed", "search.micro_batch=3"]))
    assert _changes(run, load("digits", ["batches=probed", "mstep.epochs=9"])) == ["mstep.epochs: was 2, now 9"]
    assert _changes(run, given)[0] == "search.chunk: was 8, now 16"
    assert "batches: was probed, now given" in _changes(run, given)
    (tmp_path / "config.yaml").write_text(given.yaml)
    assert _changes(run, probed) == ["batches: was given, now probed"]


def _changes(run: str, recipe: Any) -> list[str]:
    """What is refused, without why."""
    return [line.partition("; fixed: ")[0] for line in _refused(run, recipe)]


def _refused(run: str, recipe: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_run_dir(run, recipe)
    return [line.removeprefix(f"{run}/config.yaml: ") for line in caught.value.lines[1:]]


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = masked_recipe(tmp_path_factory.mktemp("probed"), batches="probed")
    return load(str(path), ["search.gradient=true", "search.trajectories=16"]).config


@pytest.mark.thorough
def test_a_masked_model_is_timed_in_search_and_training(masked: Config) -> None:
    """16 trajectories of 2 candidates, three chunks: 12 states at once; 16 transitions per step."""
    search, train = probe_search(masked, "cpu"), probe_train(masked, "cpu")
    assert search.measured.keys() == {"network"} and train.measured.keys() == {"train"}
    for found, most in ((search.measured["network"], 16), (train.measured["train"], 16)):
        sizes = [one.size for one in found]
        assert sizes == SIZES[: len(sizes)] and 3 <= len(sizes) and sizes[-1] <= most
        assert all(0 < one.seconds < 20 and one.peak > 10**8 for one in found)
    micro_batch = choose(search.measured["network"])
    given = masked.search.decode_batch, masked.mstep.micro_batch
    assert search.batches == Batches(chunk_for(masked, micro_batch), micro_batch, *given)
    assert train.batches.train == choose(train.measured["train"])


@pytest.mark.thorough
def test_decoding_is_timed_before_the_network(tiny_folder: str) -> None:
    words = {"steps": 2, "candidates": 2, "trajectories": 4, "gradient": True}
    made = config(**words).model_copy(update={"model": Model(path=tiny_folder)})
    found = probe_search(made, "cpu")
    assert list(found.measured) == ["decode", "network"]
    assert found.batches.decode_batch == choose(found.measured["decode"]) <= 4


@pytest.mark.thorough
def test_memory_that_runs_out_ends_the_growth_and_names_the_role(
    masked: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(rows: int) -> None:
        def built(*words: Any, **options: Any) -> Any:
            model: Any = build(*words, **options)
            model._policy = Narrow(model._policy, rows)
            return model

        for name in ("for_training", "for_search"):
            monkeypatch.setattr(probing, name, built)

    narrow(2)
    for found in (probe_search(masked, "cpu"), probe_train(masked, "cpu")):
        assert [[one.size for one in sizes] for sizes in found.measured.values()] == [[1, 2]]
    narrow(0)
    with pytest.raises(RunError, match="^search: one state at a time does not fit in memory, with .* GB of the host"):
        probe_search(masked, "cpu")
    with pytest.raises(RunError, match="^train: one state at a time does not fit"):
        probe_train(masked, "cpu")


def test_a_run_that_goes_on_has_the_sizes_that_it_found(
    masked: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its config.yaml; one that begins measures them."""
    asked: list[tuple[str, float]] = []

    def here(role: Role, work: Callable[..., Any], name: str, made: Config, *, timeout_s: float) -> Any:
        asked.append((name, timeout_s))
        return probing.Probed(FOUND, {name: [Measured(4, 0.5, 2e9)]})

    monkeypatch.setattr(settle, "run_as", here)
    storage, recipe = open_storage(str(tmp_path)), load("digits", ["batches=probed", "roles.train.start_timeout_s=5"])
    assert settle.settle(load("digits"), storage, _placed) == (load("digits"), {}) and not asked
    found, fields = settle.settle(recipe, storage, _placed)
    assert asked == [("search", 1800), ("train", 605)] and Batches.of(found.config) == FOUND
    rows = [{"size": 4, "per_s": 8.0, "gb": 2.0}]
    assert fields == {**FOUND.by_key(), "measured": {"search": rows, "train": rows}}
    storage.write("config.yaml", found.yaml.encode())
    assert settle.settle(recipe, storage, _placed) == (found, {}) and len(asked) == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "search: its batches were not probed in 1800 s .roles.search.start_timeout_s . 600 s.; see"),
        (WorkerCrashedError(), "search: its batches could not be probed: The worker died unexpectedly"),
        (RayTaskError("f", "", RunError("search", "no memory")), "^search: no memory$"),
    ],
)
def test_a_probe_that_fails_names_its_role(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(settle, "run_as", fails)
    with pytest.raises(RunError, match=words):
        settle.settle(load("digits", ["batches=probed"]), open_storage(str(tmp_path)), _placed)


@pytest.mark.slow
def test_a_run_finds_its_batches_once(tmp_path: Path) -> None:
    """They are in config.yaml and in the event; the same command, whatever it types for them, is the same run."""
    masked_recipe(tmp_path, rounds=1, batches="probed")
    output = finish(start(tmp_path, "tiny.yaml", "--run-dir", "run"), 0)
    stored = (tmp_path / "run/config.yaml").read_text()
    sizes = Batches.of(load(str(tmp_path / "run/config.yaml")).config)
    (event,) = [event for event in events(tmp_path / "run") if event["event"] == "batches_probed"]
    assert {key: event[key] for key in sizes.by_key()} == sizes.by_key()
    assert f"batches: {sizes}\n" in output
    network = [Measured(one["size"], one["size"] / one["per_s"], 0) for one in event["measured"]["network"]]
    assert [one.size for one in network] == SIZES[: len(network)] and sizes.micro_batch == choose(network)
    assert 1 <= sizes.chunk <= 6 and sizes.chunk == chunk_for(
        load(str(tmp_path / "tiny.yaml")).config, sizes.micro_batch
    )
    committed = [event for event in events(tmp_path / "run") if event["event"] == "chunk_committed"]
    assert len(committed) == -(-12 // sizes.chunk)

    more = finish(start(tmp_path, "tiny.yaml", "search.chunk=3", "--run-dir", "run"), 0)
    assert "this run is finished (1 rounds)" in more and (tmp_path / "run/config.yaml").read_text() == stored
