"""What a run tells of itself while it goes on, and what in it witnesses a fault and its recovery."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """Of the manifest: before the first one all is empty."""

    round: int = 0
    phase: str = ""
    committed: int = 0  # chunks of the open round
    epoch: int = 0


@dataclass(frozen=True)
class Hit:
    """What was killed. epoch, cluster: of the driver at the time; held: how many actors of each role went with it."""

    role: str
    at: float  # seconds of time.time()
    epoch: int
    cluster: str
    held: Mapping[str, int]


@dataclass(frozen=True)
class Told:
    """How the events tell it. at, back: when it was noticed, and made good; None: not yet."""

    witness: str = ""
    at: float | None = None
    back: float | None = None


class View:
    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def state(self) -> State:
        try:
            found = json.loads((self.run_dir / "manifest.json").read_text())
        except (FileNotFoundError, ValueError):
            return State()
        return State(found["round"], found["phase"], len(found["shards"]), found["epoch"])

    def events(self) -> list[Event]:
        return lines(self.run_dir / "events.jsonl")

    def has_policy(self, round: int) -> bool:
        return (self.run_dir / f"policy/v{round:04d}").exists()

    def cluster(self) -> str:
        """Ray's name of the cluster that the last driver was on."""
        return next((event["cluster"] for event in reversed(self.events()) if event["event"] == "driver_started"), "")


def lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines of a file of JSON; none where it is absent."""
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def told(hit: Hit, events: Sequence[Event], *, done: bool) -> Told:
    """done: the run has ended well."""
    since = [event for event in events if event["time"] >= hit.at - 0.01]
    find = {"search": _search, "reward": _reward, "train": _train, "node": _node}.get(hit.role, _driver)
    return find(hit, since, done)


def _search(hit: Hit, events: Sequence[Event], done: bool) -> Told:
    lost = _first(events, lambda e: e["event"] in ("worker_lost", "worker_restarted", "actor_lost"))
    return _then(lost, events, lambda e: e["event"] in ("worker_back", "worker_restarted") or _placed(e, "search"))


def _reward(hit: Hit, events: Sequence[Event], done: bool) -> Told:
    lost = _first(events, lambda e: e["event"] == "replica_lost")
    return _then(lost, events, lambda e: _placed(e, "reward"))


def _train(hit: Hit, events: Sequence[Event], done: bool) -> Told:
    lost = _first(events, lambda e: e["event"] == "train_restarted")
    return _then(lost, events, lambda e: e["event"] == "train_restarted")


def _node(hit: Hit, events: Sequence[Event], done: bool) -> Told:
    """Made good when everything that was on it is somewhere again."""
    lost = _first(events, lambda e: e["event"] == "node_lost")
    if lost is None:
        return Told()
    times = [lost["time"]]
    for role, number in hit.held.items():
        back: dict[Any, float] = {}
        for event in events:
            who = _who_is_back(event, role)
            if who is not None:
                back.setdefault(who, event["time"])
        if len(back) < number:
            return Told("node_lost", lost["time"])
        times += sorted(back.values())[number - 1 : number]
    return Told("node_lost", lost["time"], max(times))


def _who_is_back(event: Event, role: str) -> Any:
    """The actor or rank of the role that an event calls back; None if it calls none."""
    if role == "train" and event["event"] == "train_restarted":
        return f"train-{event['rank']}"
    if role == "search" and event["event"] in ("worker_back", "worker_restarted"):
        return event["worker"]
    return event["actor"] if _placed(event, role) else None


def _driver(hit: Hit, events: Sequence[Event], done: bool) -> Told:
    """Made good when search workers are there again; or when the run is over, if no work was left."""
    other = hit.role == "head"
    began = _first(
        events,
        lambda e: e["event"] == "driver_started" and e["epoch"] > hit.epoch and (e["cluster"] != hit.cluster) == other,
    )
    found = _then(began, events, lambda e: _placed(e, "search"))
    if began is not None and found.back is None and done:
        return Told(found.witness, found.at, events[-1]["time"])
    return found


def _placed(event: Event, role: str) -> bool:
    return event["event"] == "actor_placed" and event["role"] == role


def _first(events: Sequence[Event], matches: Callable[[Event], bool]) -> Event | None:
    return next((event for event in events if matches(event)), None)


def _then(lost: Event | None, events: Sequence[Event], back: Callable[[Event], bool]) -> Told:
    if lost is None:
        return Told()
    later = _first([event for event in events if event["time"] >= lost["time"]], back)
    return Told(lost["event"], lost["time"], later["time"] if later else None)
