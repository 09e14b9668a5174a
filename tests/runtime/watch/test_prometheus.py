"""What Prometheus sees of a run: names that the dashboard asks for, values on a real node's metrics port."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from dav_ray.config.recipe.load import load
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.cluster.connect import connected
from dav_ray.runtime.watch.prometheus import COMMITTED, RECORDS, TABLES, Prometheus
from tests.support.deadlines import hung, stretched, until
from tests.support.places import ROOT
from tests.support.runs import recipe

BOARD = ROOT / "cluster/grafana.json"


def test_the_dashboard_asks_for_what_a_run_exports() -> None:
    """In both directions, tags included."""
    queries = [target["expr"] for panel in json.loads(BOARD.read_text())["panels"] for target in panel["targets"]]
    asked: dict[str, set[str]] = {}
    for query in queries:
        grouped = re.search(r"by \(([^)]*)\)", query)
        for name in re.findall(r"ray_(dav_\w+)", query):
            asked.setdefault(name, set()).update(re.split(r",\s*", grouped[1]) if grouped else ())
    made = {name: {"run", *tags} for name, (tags, _) in TABLES.items()} | {f"{COMMITTED}_total": {"run"}}
    assert asked == made


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The Ray that `--address local` starts, with reports every second in place of every ten."""
    config = load(str(recipe(tmp_path_factory.mktemp("recipe"))), []).config
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        with connected("local", config):
            yield


@pytest.fixture
def exported(embedded: None, tmp_path: Path) -> Iterator[tuple[RunLog, str]]:
    run = tmp_path.name
    with Prometheus(run) as prometheus:
        yield RunLog(open_storage(str(tmp_path)), 1, None, prometheus), run


def scrape(run: str) -> dict[str, float]:
    """Series of a run: name with the tags that are not Ray's own -> value."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=hung(10)).read().decode()
    series = {}
    for name, tags, value in re.findall(r"^ray_(dav_\w+)\{(.*)\} (\S+)$", text, re.M):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        if pairs.get("run") == run:
            own = ",".join(
                f"{key}={pairs[key]}" for key in ("role", "measure", "reward", "device", "group") if key in pairs
            )
            series[f"{name}[{own}]" if own else name] = float(value)
    return series


def series_when(true: Callable[[dict[str, float]], bool], run: str) -> dict[str, float]:
    """The series, once they are as they should be."""
    seen = [scrape(run)]

    def as_they_should() -> bool:
        seen[0] = scrape(run)
        return true(seen[0])

    until(as_they_should, lambda: str(seen[0]), pause_s=0.3)
    return seen[0]


def test_records_events_and_live_numbers_arrive(exported: tuple[RunLog, str]) -> None:
    log, run = exported
    log.event("driver_started", round=2, phase="search")
    log.event("chunk_committed", round=3, chunk=0, seconds=0.1)
    log.event("chunk_committed", round=3, chunk=1, seconds=0.1)
    log.metrics(3, "search", {"reward/mean": -0.5, "search/log_z": 1.0, "util/search": 0.75, "util/reward": 0.25})
    log.metrics(3, "search", {"reward/blue": 2.0, "reward/infeasible": 1.0})
    log.metrics(3, "search", {"search/reward_wait_share": 0.4, "search/decode_share": 0.3, "chunk_s/NVIDIA_L4": 25.0})
    log.metrics(3, "search", {"search/tflops": 30.0, "peak_share/NVIDIA_L4": 0.25, "group_chunk_s/l4": 26.0})
    log.metrics(3, "evaluate", {"diversity/unique": 0.9, "heldout/kl": 4.0, "median/reward": 1.0})
    log.live("workers", 4, role="search")
    log.live("chunks_outstanding", 2)
    expected = {
        "dav_round": 3.0,
        "dav_chunks_committed_total": 2.0,
        "dav_chunks_outstanding": 2.0,
        "dav_workers[role=search]": 4.0,
        "dav_reward_mean": -0.5,
        "dav_reward[reward=blue]": 2.0,
        "dav_search_reward_wait_share": 0.4,
        "dav_search_decode_share": 0.3,
        "dav_chunk_s[device=NVIDIA_L4]": 25.0,
        "dav_search_tflops": 30.0,
        "dav_peak_share[device=NVIDIA_L4]": 0.25,
        "dav_group_chunk_s[group=l4]": 26.0,
        "dav_util[role=search]": 0.75,
        "dav_util[role=reward]": 0.25,
        "dav_diversity[measure=unique]": 0.9,
        "dav_heldout[measure=kl]": 4.0,
    }
    assert series_when(lambda series: len(series) >= len(expected), run) == expected


def test_a_value_that_is_said_once_stays_and_one_that_is_not_finite_goes(exported: tuple[RunLog, str]) -> None:
    """Ray forgets a gauge after two reports."""
    log, run = exported
    log.metrics(1, "search", {"reward/mean": 1.0, "reward/std": 2.0})
    series_when(lambda series: len(series) == 2, run)
    log.metrics(2, "search", {"reward/std": float("nan")})
    series_when(lambda series: "dav_reward_std" not in series, run)
    time.sleep(5)  # more than two reports
    series_when(lambda series: series == {"dav_reward_mean": 1.0}, run)
    log.metrics(3, "search", {"reward/std": 0.5})
    series_when(lambda series: series == {"dav_reward_mean": 1.0, "dav_reward_std": 0.5}, run)


def test_a_round_costs_microseconds(exported: tuple[RunLog, str]) -> None:
    with Prometheus("cost") as prometheus:
        start = time.perf_counter()
        for _ in range(100):
            prometheus.record(dict.fromkeys(RECORDS, 1.0))
        assert (time.perf_counter() - start) / 100 < stretched(0.005)
