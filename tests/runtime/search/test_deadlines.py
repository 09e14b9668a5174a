"""Search workers that hang, are late, or do not come up again: healed within a budget, else named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from dav_ray.errors import DeviceError, RunError
from dav_ray.runtime.search.process import Process, Reply
from tests.runtime.search.test_dispatch import Round, once, pool
from tests.support.deadlines import limit, stretched
from tests.support.sleepers import Item, Sleeper


def one_after_another(done: Round, paused: str) -> list[str]:
    """The events about a worker."""
    names = ("worker_hung", "worker_lost", "worker_failed", "worker_back", "worker_given_up", "worker_joined")
    return [e["event"] for e in done.all_events() if e["event"] in names and e["worker"] == paused]


@pytest.mark.thorough
def test_a_worker_that_gives_no_answer_is_ended_and_its_item_done(shared_ray: None, tmp_path: Path) -> None:
    late_s = stretched(2)
    done = Round(tmp_path, pool({"a": 0.1, "b": 1000.0}), limits=(late_s, stretched(60)))
    done.run(3)  # the item of `b` is doubled, and its worker is not waited for
    in_time, was = limit(60), done.processes["b"].pid
    while not done.events("worker_back"):
        in_time()
        done.run(2)
        time.sleep(0.2)
    hung = done.events("worker_hung")[0]
    assert hung["worker"] == "b" and late_s <= hung["seconds"] < late_s + stretched(4)
    assert one_after_another(done, "b")[:2] == ["worker_hung", "worker_back"]
    assert not Path(f"/proc/{was}").exists()
    assert done.who().keys() == {"a"} and not done.events("worker_lost")


@pytest.mark.slow  # Ray takes seconds to end what is stopped; the test above has one that only takes too long
def test_a_stopped_worker_is_ended_and_its_item_done(shared_ray: None, tmp_path: Path) -> None:
    """SIGSTOP while it works: nothing but time tells."""
    workers, late_s = pool({"a": 0.3, "b": 0.3}), stretched(4)
    done = Round(tmp_path, workers, limits=(late_s, stretched(60)))
    stop = once(lambda: len(done.results) > 3, lambda: os.kill(done.processes["b"].pid, signal.SIGSTOP))
    in_time = limit(60)

    def tick() -> None:
        stop()
        in_time()

    done.run(20, tick=tick)
    while not done.events("worker_back"):
        done.run(2, tick=tick)
    (hung,) = done.events("worker_hung")
    assert hung["worker"] == "b" and late_s <= hung["seconds"] < late_s + stretched(4)
    assert one_after_another(done, "b") == ["worker_hung", "worker_back"]
    assert not Path(f"/proc/{done.processes['b'].pid}").exists()
    assert done.events("requeued") or done.events("doubled")


@pytest.mark.slow
def test_an_item_that_is_always_late_ends_the_run(shared_ray: None, tmp_path: Path) -> None:
    done = Round(tmp_path, pool({"a": 100.0}), limits=(1.5, 60))
    words = r"chunk 0 was late 3 times \(on a, a, a\): no answer in 1.5 s \(roles.search.call_timeout_s\)"
    with pytest.raises(RunError, match=words):
        done.run(1)
    assert [event["item"] for event in done.events("worker_hung")] == ["0"] * 3
    assert len(done.events("worker_back")) == 2


class Brittle(Sleeper):
    """From the second time on, up to the `bad`th, it is not to be built."""

    def __init__(self, name: str, pace: float, folder: str, bad: int) -> None:
        super().__init__(name, pace)
        built = len(list(Path(folder).glob("built-*")))
        (Path(folder) / f"built-{built}").touch()
        if 0 < built < bad:
            raise ValueError("no such weights")


class Mute(Sleeper):
    """The second process of it is there, and does not say so."""

    def __init__(self, name: str, pace: float, folder: str) -> None:
        super().__init__(name, pace)
        self.number = len(list(Path(folder).glob("built-*")))
        (Path(folder) / f"built-{self.number}").touch()

    def ready(self, run_dir: str) -> Process:
        time.sleep(1000 if self.number == 1 else 0)
        return self.process


class Faulty(Sleeper):
    """The first process of it has a GPU that fails."""

    def __init__(self, name: str, pace: float, folder: str) -> None:
        super().__init__(name, pace)
        self.number = len(list(Path(folder).glob("built-*")))
        (Path(folder) / f"built-{self.number}").touch()

    @ray.method(num_returns=2)
    def search(self, item: Item, halvings: int) -> tuple[str, Reply]:
        if self.number == 0:
            raise DeviceError("search", f"{self.name}: AcceleratorError: CUDA error: uncorrectable ECC error")
        return item.name, Reply((self.name, 0.0, 0.0), self.process)


def started(cls: type, *args: Any) -> Any:
    return ray.remote(cls).options(num_cpus=0, max_restarts=-1).remote(*args)


def kill(done: Round, name: str) -> Callable[[], None]:
    return lambda: os.kill(done.processes[name].pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_can_not_be_built_again_is_followed_by_another(shared_ray: None, tmp_path: Path) -> None:
    """Ray gives an actor up whose constructor raised."""
    renewed: list[str] = []

    def renew(name: str) -> Any:
        renewed.append(name)
        return started(Brittle, name, 0.2, str(tmp_path), 3)

    workers = {"a": started(Brittle, "a", 0.2, str(tmp_path), 3), **pool({"b": 0.2})}
    done = Round(tmp_path, workers, renew=renew)
    tick, in_time = once(lambda: len(done.results) > 3, kill(done, "a")), limit(120)
    done.run(20, tick=tick)
    while not done.events("worker_back"):
        in_time()
        done.run(5)
    assert [event["cause"] for event in done.events("worker_failed")] == [
        "a did not start: ValueError: no such weights"
    ] * 2
    assert renewed == ["a", "a"] and one_after_another(done, "a")[-1] == "worker_back"


@pytest.mark.slow
def test_a_worker_whose_gpu_fails_is_started_again(shared_ray: None, tmp_path: Path) -> None:
    done = Round(tmp_path, {"a": started(Faulty, "a", 0.0, str(tmp_path))}).run(3)
    (lost,) = done.events("worker_lost")
    assert lost["cause"] == "search: a: AcceleratorError: CUDA error: uncorrectable ECC error"
    assert one_after_another(done, "a") == ["worker_lost", "worker_back"]


@pytest.mark.slow
def test_workers_that_can_never_be_built_again_end_the_run(
    shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dav_ray.runtime.search.workers.PING_EVERY_S", 0.1)
    workers = {"a": started(Brittle, "a", 0.2, str(tmp_path), 99)}
    done = Round(tmp_path, workers, renew=lambda name: started(Brittle, name, 0.2, str(tmp_path), 99))
    with pytest.raises(RunError, match="no worker is left: a did not start: ValueError: no such weights"):
        done.run(50, tick=once(lambda: len(done.results) > 3, kill(done, "a")))
    assert len(done.events("worker_failed")) == 6
    assert [event["starts"] for event in done.events("worker_given_up")] == [6]


@pytest.mark.slow
def test_a_worker_that_says_nothing_when_it_is_back_is_ended_once_more(shared_ray: None, tmp_path: Path) -> None:
    workers = {"a": started(Mute, "a", 0.2, str(tmp_path)), **pool({"b": 0.2})}
    done = Round(tmp_path, workers, limits=(60, 5))
    tick, in_time = once(lambda: len(done.results) > 3, kill(done, "a")), limit(120)
    done.run(20, tick=tick)
    while not done.events("worker_back"):
        in_time()
        done.run(5)
    assert one_after_another(done, "a") == ["worker_lost", "worker_hung", "worker_back"]
