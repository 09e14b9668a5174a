"""A Ray cluster on this machine that grows from nothing and shrinks again: Ray's autoscaler over its fake nodes.

The head declares one CPU by default; every other node is started when actors want it, and ended when it is idle. Nodes
are real raylets with real workers; only their CPUs and GPUs are declared.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)

from tests.support.clusters import attempts
from tests.support.deadlines import hung, until
from tests.support.processes import end, lives, with_mark

RAY = str(Path(sys.executable).with_name("ray"))
MARK = "DAV_RAY_TEST_CLUSTER"  # in the environment of every process of a cluster
STORE = 150_000_000  # bytes of shared memory for each node


@dataclass(frozen=True)
class NodeType:
    """What a node of this type declares, and how many there may be."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    most: int = 1
    least: int = 0


@dataclass(frozen=True)
class Cluster:
    """address: HOST:PORT; env: what a driver's process, `ray` and `dav-ray` need to reach it; home: logs."""

    address: str
    env: Mapping[str, str]
    home: Path
    mark: str

    def processes(self) -> list[psutil.Process]:
        """Every process of the cluster that lives now: head, fake nodes, agents, workers."""
        return with_mark(MARK, self.mark)

    def nodes(self) -> int:
        """Nodes beside the head that are up now, by their raylets."""
        raylets = [p for p in self.processes() if _name(p) == "raylet"]
        return len(raylets) - 1


@contextlib.contextmanager
def autoscaled(
    types: Mapping[str, NodeType], *, idle_minutes: float = 0.2, head: NodeType | None = None, timeout_s: float = 120
) -> Iterator[Cluster]:
    """A head with an autoscaler over node types by name, with ports, token and temporary folder of its own.

    Labels of a type work with `label_selector`. idle_minutes: how long an idle node stays. At the end every process is
    ended by its id, fake nodes too, and none may be left: AssertionError.
    """
    cluster, process = attempts(lambda: _started(types, head or NodeType({"CPU": 1}), idle_minutes, timeout_s))
    try:
        yield cluster
    finally:
        _end(cluster, process)
        left = cluster.processes()
        assert not left, f"processes of the cluster are left: {left}"
        shutil.rmtree(cluster.home, ignore_errors=True)


def _started(
    types: Mapping[str, NodeType], head: NodeType, idle_minutes: float, timeout_s: float
) -> tuple[Cluster, subprocess.Popen[bytes]]:
    """A cluster, and its head's process."""
    home = Path(tempfile.mkdtemp(prefix="as-", dir="/tmp"))  # short: socket paths may have 107 characters
    mark, port, dashboard = uuid.uuid4().hex, *free_ports(2)
    (home / "token").write_text(uuid.uuid4().hex * 2)
    (home / "types.json").write_text(json.dumps(_config(types, head, idle_minutes, port)))
    env, log = _driver_env(home), home / "head.log"
    reached = {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    with open(log, "w") as out:
        process = subprocess.Popen(
            _command(home, port, dashboard, head),
            env={**env, **_head_env(mark)},
            cwd=home,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def there() -> bool:
        assert process.poll() is None, log.read_text()
        return "Ray runtime started" in log.read_text()

    until(there, lambda: f"the head did not start in {timeout_s:.0f} s: {log.read_text()}", timeout_s)
    return Cluster(f"127.0.0.1:{port}", reached, home, mark), process


def free_ports(number: int) -> list[int]:
    """Different ports outside 10002 to 19999, where Ray's workers listen."""
    with contextlib.ExitStack() as stack:
        probes: list[socket.socket] = []
        while len(probes) < number:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            if not 10002 <= probe.getsockname()[1] <= 19999:
                probes.append(probe)
        return [probe.getsockname()[1] for probe in probes]


def _config(types: Mapping[str, NodeType], head: NodeType, idle_minutes: float, port: int) -> dict[str, Any]:
    """What `ray start --autoscaling-config` reads."""
    available: dict[str, Any] = {
        FAKE_HEAD_NODE_TYPE: {
            "resources": dict(head.resources),
            "labels": dict(head.labels),
            "node_config": {},
            "max_workers": 0,
        }
    }
    for name, kind in types.items():
        available[name] = {
            "resources": {"CPU": 0, **kind.resources, "object_store_memory": STORE},
            "labels": dict(kind.labels),
            "node_config": {},
            "min_workers": kind.least,
            "max_workers": kind.most,
        }
    return {
        "cluster_name": "fake",
        "max_workers": sum(kind.most for kind in types.values()),
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": idle_minutes,
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": available,
        "provider": {
            # by the name of its class: as a provider of its own it would need a file that Ray's wheel lacks
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "use_node_id_as_ip": True,  # the nodes share one address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": f"127.0.0.1:{port}",
        },
        **{f"{which}_commands": [] for which in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{which}_start_ray_commands": [] for which in ("head", "worker")},
        "file_mounts": {},
        "cluster_synced_files": [],
    }


def _command(home: Path, port: int, dashboard: int, head: NodeType) -> list[str]:
    client, agent = free_ports(2)
    own = {name: amount for name, amount in head.resources.items() if name not in ("CPU", "GPU")}
    return [
        *(RAY, "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
        *(f"--port={port}", f"--ray-client-server-port={client}", f"--temp-dir={home / 'ray'}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--autoscaling-config={home / 'types.json'}", f"--object-store-memory={STORE}"),
        *(f"--num-cpus={head.resources.get('CPU', 0):g}", f"--num-gpus={head.resources.get('GPU', 0):g}"),
        *([f"--resources={json.dumps(own)}"] if own else []),
        *([f"--labels={','.join(f'{key}={value}' for key, value in head.labels.items())}"] if head.labels else []),
    ]


def _driver_env(home: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **inherited,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _head_env(mark: str) -> dict[str, str]:
    return {
        MARK: mark,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
    }


def _end(cluster: Cluster, head: subprocess.Popen[bytes]) -> None:
    """The head takes its own processes down with it; the fake nodes would outlive the autoscaler that started them."""
    nodes = cluster.processes()
    head.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(hung(20))
    end(lambda: list({*filter(lives, nodes), *cluster.processes()}))
    head.wait(hung(5))


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
