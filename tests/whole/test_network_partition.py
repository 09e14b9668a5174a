"""Nodes that the network cuts off in the middle of a round, and that come back: real links of network namespaces."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import Config as Settings  # type: ignore[attr-defined]

from tests.runtime.cluster.test_draining import places, workers
from tests.runtime.search.test_dispatch import Round
from tests.support.clusters import free_port
from tests.support.deadlines import until
from tests.support.net import Net, why_not

HEAD, FAR = 2, 3
REASON = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def open_doors() -> Iterator[None]:
    """No tokens between these nodes: this process may have started another Ray before, with one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        Settings.initialize("")
        yield
    Settings.initialize("")


@pytest.fixture
def net(open_doors: None) -> Iterator[Net]:
    """The head at 2, the driver's node, with room for a near worker, at 1, a node for a far one at 3."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as files:
        found, port = Net(files), free_port()
        try:
            for machine in (HEAD, FAR):
                found.add(machine)
            mine = ("--include-dashboard=false", f"--temp-dir={files}", "--num-cpus=0")
            found.start(HEAD, f"--head --port={port}", *mine)
            address = f"{found.address(HEAD)}:{port}"
            free = f"--dashboard-agent-listen-port={free_port()}"
            time.sleep(5)  # a node that finds no head ends
            found.start(1, f"--address={address}", "--num-cpus=1", '--resources={"near": 1}', free)
            add_far(found, address)
            connect(found, address)
            until(lambda: alive(found) == [1, HEAD, FAR], "the nodes did not come up", 240)
            yield found
        finally:
            ray.shutdown()
            found.close()


def connect(net: Net, address: str) -> None:
    """Once the driver's node is there."""

    def try_it() -> bool:
        try:
            ray.init(address=address, _node_ip_address=net.address(1), log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError):
            time.sleep(2)
            return False
        return True

    until(try_it, "no head", 240)


def add_far(net: Net, address: str) -> None:
    net.start(FAR, f"--address={address}", "--num-cpus=0", '--resources={"far": 1}')


def alive(net: Net) -> list[int]:
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    return sorted(int(address.rpartition(".")[2]) for address in addresses)


def pool(pace: float) -> dict[str, Any]:
    found = workers("near", {"near": pace}) | workers("far", {"far": pace})
    assert len(set(places(found).values())) == 2
    return found


def after(number: int, done: Round, *actions: Callable[[], Any]) -> Callable[[], None]:
    """A tick that does the first thing once the far worker has given so many results, the others in turn."""
    left = list(actions)

    def tick() -> None:
        if left and sum(meta[0] == done.processes["far"].node for _, _, meta in done.results) >= number:
            if left[0]() is not False:
                left.pop(0)

    return tick


def told(done: Round, *names: str) -> list[str]:
    return [event["event"] for event in done.all_events() if event["event"] in names and event["worker"] == "far"]


def test_a_node_that_is_cut_off_for_long_is_lost_and_its_chunk_goes_to_another(net: Net, tmp_path: Path) -> None:
    """Ray declares it dead; once the link is there again it ends itself, and a new node takes its place."""
    done = Round(tmp_path, pool(1.0), limits=(300, 300))
    times: dict[str, float] = {}

    def mark(name: str) -> Callable[[], float]:
        return lambda: times.setdefault(name, time.monotonic())

    cut = lambda: (net.cut(FAR), mark("cut")())  # noqa: E731
    dead = lambda: alive(net) == [1, HEAD] and (mark("dead")() or True)  # noqa: E731
    lost = lambda: bool(done.events("worker_lost")) and (mark("lost")() or True)  # noqa: E731
    done.run(90, tick=after(3, done, cut, dead, lost))
    print({name: round(at - times["cut"], 1) for name, at in times.items()})
    assert told(done, "worker_lost", "worker_back") == ["worker_lost"]
    assert len(done.events("requeued") + done.events("doubled")) >= 1
    net.mend(FAR)
    time.sleep(20)  # what the old node had may arrive now
    again = done.run(5)
    assert again.who() == Counter({done.processes["near"].node: 5})
    add_far(net, ray.get_runtime_context().gcs_address)
    seconds = until(lambda: (done.run(4), done.events("worker_back"))[1], "the far worker did not come back")
    print(f"back {seconds:.0f} s after its new node was started")
    assert len(done.run(10).who()) == 2


def test_a_node_that_is_cut_off_for_a_moment_goes_on(net: Net, tmp_path: Path) -> None:
    done = Round(tmp_path, pool(1.0), limits=(300, 300))
    mended = time.monotonic() + 1e9

    def cut() -> None:
        nonlocal mended
        net.cut(FAR)
        mended = time.monotonic() + 5

    def mend() -> bool | None:
        return net.mend(FAR) if time.monotonic() > mended else False

    done.run(40, tick=after(3, done, cut, mend))
    assert told(done, "worker_lost", "worker_hung", "worker_restarted") == []
    assert done.who()[done.processes["far"].node] > 3


def test_a_node_that_the_driver_alone_does_not_see_is_hung(net: Net, tmp_path: Path) -> None:
    """The head sees both: to Ray nobody is dead. The deadline of the call tells."""
    done = Round(tmp_path, pool(1.0), limits=(15, 30))
    tick = after(3, done, lambda: net.blind(FAR))
    begun = time.monotonic()
    done.run(60, tick=tick)
    print(f"60 chunks in {time.monotonic() - begun:.0f} s")
    assert "worker_hung" in told(done, "worker_hung") and alive(net) == [1, HEAD, FAR]
    net.blind(FAR, so=False)
    until(lambda: (done.run(4), done.events("worker_back"))[1], "the far worker did not come back")
    assert len(done.run(10).who()) == 2
