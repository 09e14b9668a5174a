"""Ray on this machine for tests: started again where a loaded machine was too slow for it, and ended with the test.

`tests/conftest.py` ends what is left of a file's processes all the same, and fails it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray
from ray.cluster_utils import Cluster

from tests.support.deadlines import hung
from tests.support.processes import end, of_this_run

TRIES = 3  # Ray gives its processes a fixed time to start, which is short on a loaded machine
STORE = 100 * 1024 * 1024  # bytes of shared memory for each node
Found = TypeVar("Found")


@contextlib.contextmanager
def local_ray(**options: Any) -> Iterator[None]:
    """A Ray of this process alone; options: of `ray.init`."""
    attempts(lambda: ray.init(address="local", include_dashboard=False, log_to_driver=False, **options))
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def cluster_of(*, connect: bool = True, **head: Any) -> Iterator[Cluster]:
    """A cluster that has a head, and ends with all its nodes; head: of `Cluster.add_node`; connect: this process is its
    driver."""
    found = attempts(lambda: _with_head(head))
    try:
        if connect:
            attempts(lambda: ray.init(address=found.address, log_to_driver=False))
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


def add_node(cluster: Cluster, **options: Any) -> Any:
    """One more node, which is up."""
    node = attempts(lambda: cluster.add_node(wait=False, object_store_memory=STORE, **options))
    cluster._wait_for_node(node, timeout=hung(30))
    return node


def attempts(start: Callable[[], Found]) -> Found:
    """What starts processes, at most three times; those of a start that failed are ended."""
    for number in range(1, TRIES + 1):
        before = {process.pid for process in of_this_run()}
        try:
            return start()
        except Exception:
            if number == TRIES:
                raise
            ray.shutdown()
            end(lambda before=before: [process for process in of_this_run() if process.pid not in before])
    raise AssertionError("unreachable")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _with_head(options: dict[str, Any]) -> Cluster:
    found = Cluster()
    # the default port of the agent may be another Ray's on this machine
    own = {"include_dashboard": False, "dashboard_agent_listen_port": free_port()}
    found.add_node(object_store_memory=STORE, **own, **options)
    return found
