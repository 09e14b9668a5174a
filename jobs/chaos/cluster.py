"""A Ray cluster of three nodes on this machine whose processes are known by pid: a head and two that work.

Each node is a raylet of its own with real workers; their CPUs are declared. They die by SIGKILL, with all their
processes, and others are started in their place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

SITE = Path(__file__).resolve().parent / "site"
ROOT = SITE.parents[2]
STORE = 100 * 1024 * 1024  # bytes of shared memory for each node
NODES = 2  # beside the head
STARTS = 5  # of a node that does not come up
TITLES = {"search": "SearchActor", "reward": "RewardActor", "train": "RayTrainWorker"}  # in Ray's names of processes
SETTINGS = {
    "RAY_health_check_period_ms": "1000",  # a lost node is noticed in seconds
    "RAY_health_check_failure_threshold": "5",
    "RAY_scheduler_spread_threshold": "0",  # actors are spread over the nodes
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_max_direct_call_object_size": "1000",  # tiny tables lie on nodes, and are lost with them, as large ones
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "HF_HUB_OFFLINE": "1",
}


class Site:
    """holds: the folder in which `site/sitecustomize.py` looks for what to hold."""

    def __init__(self, holds: Path) -> None:
        paths = [str(SITE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {**SETTINGS, "PYTHONPATH": os.pathsep.join(paths), "DAV_RAY_CHAOS": str(holds)}
        self.env: Mapping[str, str] = {**os.environ, **own}
        self._before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)  # nodes are started with this process's environment
        self._temp = tempfile.mkdtemp(prefix="dc-", dir="/tmp")  # short: sockets have their paths in it
        self._port = free_port()  # kept, so that the command stays the same on another cluster
        self._cluster: Any = None
        self.nodes: list[Any] = []  # those that work

    @property
    def address(self) -> str:
        return self._cluster.address

    def start(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._add(num_cpus=2, labels={"kind": "head"}, gcs_server_port=self._port, include_dashboard=False)
        self.nodes = []
        for _ in range(NODES):
            self.add_node()

    def add_node(self) -> None:
        self.nodes.append(self._add(num_cpus=3, labels={"kind": "work"}))

    def _add(self, **options: Any) -> Any:
        """A node. Ray gives it 30 s to start, which a busy machine may not keep: then it is tried again."""
        for attempt in range(STARTS):
            before, handler = {child.pid for child in psutil.Process().children()}, signal.getsignal(signal.SIGTERM)
            try:
                return self._cluster.add_node(
                    wait=False,
                    temp_dir=self._temp,
                    object_store_memory=STORE,
                    dashboard_agent_listen_port=free_port(),
                    **options,
                )
            except Exception:  # Ray raises no other
                for child in psutil.Process().children():
                    if child.pid not in before:
                        kill_tree(child.pid)
                if attempt == STARTS - 1:
                    raise
            finally:
                signal.signal(signal.SIGTERM, handler)  # a node takes it over, and would wait for its drivers

    def workers(self, role: str) -> list[psutil.Process]:
        """Processes of the role's actors on the nodes that work, by pid."""
        found = [process for node in self.nodes for process in self.on(node, role)]
        return sorted(found, key=lambda process: process.pid)

    def on(self, node: Any, role: str) -> list[psutil.Process]:
        return [process for process in _below(node) if TITLES[role] in _title(process)]

    def kill_node(self, node: Any) -> None:
        """SIGKILL to its raylet and all that it started."""
        self.nodes.remove(node)
        _kill(node)
        self._cluster.worker_nodes.discard(node)

    def kill(self) -> None:
        """SIGKILL to every process of the cluster, the head's last of all."""
        if self._cluster is None:
            return
        for node in filter(None, [*self.nodes, self._cluster.head_node]):
            _kill(node)
        self._cluster.worker_nodes.clear()
        self._cluster.head_node, self._cluster, self.nodes = None, None, []

    def end(self) -> None:
        self.kill()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(self._temp, ignore_errors=True)


def free_port() -> int:
    """Below those that Ray and the system give to others."""
    for port in range(6400 + os.getpid() % 500, 9900):
        with contextlib.closing(socket.socket()) as probe:
            if port not in _given and probe.connect_ex(("127.0.0.1", port)) != 0:
                with contextlib.suppress(OSError):
                    probe.close()
                    _given.add(port)
                    return port
    sys.exit("no port is free")


_given: set[int] = set()


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and to all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        doomed = [process, *process.children(recursive=True)]
        for one in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def _kill(node: Any) -> None:
    for pid in _roots(node):
        kill_tree(pid)
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def _roots(node: Any) -> Iterator[int]:
    for infos in node.all_processes.values():
        for info in infos:
            if info.process.poll() is None:
                yield info.process.pid


def _below(node: Any) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for pid in _roots(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += psutil.Process(pid).children(recursive=True)
    return found


def _title(process: psutil.Process) -> str:
    """Of a worker of Ray that lives; nothing for others."""
    try:
        words = process.cmdline()
        return words[0] if words and words[0].startswith("ray::") else ""
    except psutil.NoSuchProcess:
        return ""
