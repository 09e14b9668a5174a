"""Ray's private names that the runtime uses: each does what is needed, and without it a run is refused or goes on."""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from dav_ray.runtime.cluster import ray_private
from dav_ray.runtime.cluster.ray_private import ActorRecord, NoSuchName
from tests.support.deadlines import until
from tests.support.places import PACKAGE

PRIVATE = re.compile(r"ray\.([a-z_.0-9]+\.)?_|ray\.(core\.generated|autoscaler|train\.v2)\b")
ATTRIBUTES = {"_ray_actor_id", "_actor_id", "_global_node", "_create_default_callbacks", "_system_config"}
ALLOWED = PACKAGE / "runtime/cluster/ray_private.py"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Without the workers that Ray starts ahead: a setting of its own."""
    options = {"address": "local", "num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
    ray_private.init(options, {"prestart_worker_first_driver": False})
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Actor:
    def where(self) -> tuple[str, str, int]:
        here = ray.get_runtime_context()
        return here.get_node_id(), here.get_worker_id(), os.getpid()


@ray.remote(num_cpus=0)
class Unbuilt:
    def __init__(self) -> None:
        raise ValueError("no such weights")


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A version of Ray that has these names no longer."""
    for name in names:
        module, _, attribute = name.partition(":")
        monkeypatch.delattr(importlib.import_module(module), attribute)


def test_a_refusal_names_what_is_missing_in_which_version() -> None:
    error = NoSuchName("some_name", "to see something")
    words = "has no some_name, which is needed to see something; allowed: ray 2.60"
    assert str(error) == f"driver: ray {ray.__version__} {words}"
    assert str(error.__reduce__()[0](*error.__reduce__()[1])) == str(error)


def test_settings_of_an_embedded_ray(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        asked.append(options)
        if "_system_config" in options:
            raise RuntimeError("Unknown keyword argument(s): _system_config")

    started = [process.name() for process in psutil.Process().children(recursive=True)]
    assert not [name for name in started if name.startswith("ray::IDLE")]
    monkeypatch.setattr(ray, "init", init)
    ray_private.init({"address": "local"}, {"one": 1})
    assert asked == [{"address": "local", "_system_config": {"one": 1}}, {"address": "local"}]

    def refuse(**_: Any) -> None:
        raise RuntimeError("another fault")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(RuntimeError, match="another fault"):
        ray_private.init({}, {"one": 1})


def test_where_an_actor_is_and_whether_it_lives(cluster: None) -> None:
    actor: Any = Actor.remote()
    node, _, _ = ray.get(actor.where.remote())
    assert ray_private.actor_record(actor) == ActorRecord("ALIVE", node)
    ray.kill(actor)
    until(lambda: ray_private.actor_record(actor).state == "DEAD", "a killed actor is not dead")
    unbuilt: Any = Unbuilt.remote()
    until(lambda: ray_private.actor_record(unbuilt).state == "DEAD", "an actor that can't be built is not dead")


def test_without_the_table_of_actors_the_state_api_is_asked(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    actor: Any = Actor.remote()
    node, _, _ = ray.get(actor.where.remote())
    without(monkeypatch, "ray._private.state:actors")
    words = rf"ray {ray.__version__} has no ray._private.state.actors, which is needed to see whether an actor is alive"
    with pytest.raises(NoSuchName, match=words):  # it needs the dashboard, which is not there
        ray_private.actor_record(actor)
    told = {actor._ray_actor_id.hex(): SimpleNamespace(state="ALIVE", node_id=node)}
    monkeypatch.setattr("ray.util.state.get_actor", told.get)
    assert ray_private.actor_record(actor) == ActorRecord("ALIVE", node)


def test_the_id_of_an_actor(cluster: None) -> None:
    actor: Any = Actor.remote()
    assert re.fullmatch("[0-9a-f]{32}", ray_private.actor_id(actor))
    with pytest.raises(NoSuchName, match="has no ActorHandle._ray_actor_id, which is needed to ask about an actor"):
        ray_private.actor_id(object())


def test_whether_a_process_was_ended_for_memory(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it was is seen in test_memory.py, with Ray's monitor."""
    actor: Any = Actor.remote()
    _, worker, _ = ray.get(actor.where.remote())
    assert not ray_private.ended_for_memory(worker)
    accessor = ray_private.find("ray._private.state:state")._connect_and_get_accessor()
    table = ray_private.find("ray.core.generated.gcs_pb2:WorkerTableData")
    assert table.FromString(accessor.get_worker_info(ray.WorkerID(bytes.fromhex(worker)))).is_alive
    assert isinstance(ray_private.find("ray.core.generated.common_pb2:NODE_OUT_OF_MEMORY"), int)
    without(monkeypatch, "ray._private.state:state")
    assert not ray_private.ended_for_memory(worker)  # nobody answers
    monkeypatch.setattr("ray.util.state.get_worker", lambda id: SimpleNamespace(exit_type="NODE_OUT_OF_MEMORY"))
    assert ray_private.ended_for_memory(worker)


def test_the_log_of_a_worker(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    @ray.remote(num_cpus=0)
    def shout() -> str:
        import sys

        print("a fault", file=sys.stderr, flush=True)
        return ray_private.error_log()

    path = Path(ray.get(shout.remote()))
    until(lambda: "a fault" in path.read_text(), f"{path} has nothing of it", 10)
    without(monkeypatch, "ray._private.worker:global_worker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_worker_id=lambda: "f00"))
        assert ray_private.error_log() == "worker-f00-*.err in Ray's logs"


def test_nodes_that_drain(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a node that does: test_draining.py."""
    real, asked = ray_private.find("ray._raylet:GcsClient"), list[float]()

    class Client:
        def __init__(self, address: str) -> None:
            self.real = real(address=address)

        def get_draining_nodes(self, timeout: float) -> dict[str, int]:
            asked.append(timeout)
            return {**self.real.get_draining_nodes(timeout=timeout), "f00": 7}

    assert ray_private.drain_reader()(5.0) == {}
    monkeypatch.setattr("ray._raylet.GcsClient", Client)
    assert ray_private.drain_reader()(5.0) == {"f00": 7} and asked == [5.0]
    monkeypatch.delattr(Client, "get_draining_nodes")
    assert ray_private.drain_reader()(5.0) == {}
    without(monkeypatch, "ray._raylet:GcsClient")
    assert ray_private.drain_reader()(5.0) == {}


def test_who_started_the_cluster(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_private.is_embedded()
    without(monkeypatch, "ray._private.worker:_global_node")
    assert not ray_private.is_embedded()


def test_the_types_of_nodes(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several types: test_cluster.py of the doctor."""
    (node,) = [node["NodeID"] for node in ray.nodes()]
    until(lambda: node in ray_private.node_types(), "the autoscaler's tables do not name the node")
    without(monkeypatch, "ray.autoscaler.v2.sdk:get_cluster_status")
    assert ray_private.node_types() == {}


def test_node_groups_of_a_managed_service(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ray_private.has_node_groups()
    groups = SimpleNamespace(get_cluster_config=lambda: SimpleNamespace(node_group_configs=["a"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.state.state", groups)
        assert ray_private.has_node_groups()
    without(monkeypatch, "ray._private.state:state")
    assert not ray_private.has_node_groups()


def test_what_kuberay_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    container = {"name": "ray", "resources": {"limits": {"cpu": "2", "memory": "4Gi"}}}
    template = {"spec": {"containers": [container]}}
    head = {"rayStartParams": {}, "template": template}
    group = {"groupName": "search", "minReplicas": 0, "maxReplicas": 3, "rayStartParams": {}, "template": template}
    cluster = {
        "metadata": {"name": "c", "namespace": "n"},
        "spec": {"enableInTreeAutoscaling": True, "headGroupSpec": head, "workerGroupSpecs": [group]},
    }
    types = ray_private.autoscaling_of(cluster)["available_node_types"]
    assert types["search"]["max_workers"] == 3 and types["search"]["resources"]["CPU"] == 2
    name = "_derive_autoscaling_config_from_ray_cr"
    without(monkeypatch, f"ray.autoscaler._private.kuberay.autoscaling_config:{name}")
    with pytest.raises(NoSuchName, match=f"has no {name}, which is needed to read what KubeRay may start"):
        ray_private.autoscaling_of(cluster)


def test_the_kubernetes_api(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, namespace: str) -> None:
            self.namespace = namespace

        def get(self, path: str) -> dict[str, str]:
            return {"asked": f"{self.namespace}/{path}"}

    name = "ray.autoscaler._private.kuberay.node_provider:KubernetesHttpApiClient"
    assert callable(ray_private.find(name).get)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name.replace(":", "."), Client)
        assert ray_private.kubernetes_resource("space", "rayclusters/x") == {"asked": "space/rayclusters/x"}
    without(monkeypatch, name)
    with pytest.raises(NoSuchName, match="has no KubernetesHttpApiClient"):
        ray_private.kubernetes_resource("space", "rayclusters/x")


def test_notices_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    name, written = "ray._private.worker:print_to_stdstream", list[dict[str, Any]]()
    worker = importlib.import_module("ray._private.worker")
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    ray_private.divert_notices(lambda data, **_: written.append(data))
    worker.print_to_stdstream({"lines": ["8 PYTHON workers"]}, ignore_prefix=False)
    assert written == [{"lines": ["8 PYTHON workers"]}]
    without(monkeypatch, name)
    ray_private.divert_notices(lambda data, **_: written.append(data))
    assert ray_private.find(name) is None and len(written) == 1


def test_the_actors_of_ray_data(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "ray.data._internal.stats:get_or_create_stats_actor",
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator:get_or_create_autoscaling_coordinator",
    )
    assert all(callable(ray_private.find(name)) for name in names)
    ray_private.keep_data_actors_here()
    kept = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert len(kept & {"datasets_stats_actor", "AutoscalingCoordinator"}) == 2, kept
    without(monkeypatch, *names)
    ray_private.keep_data_actors_here()


def test_the_statistics_of_ray_data(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset is made and read although no process is asked for its memory."""
    import pyarrow as pa
    import ray.data
    from ray.data import dataset

    name = "ray.data.dataset:get_memory_info_reply"
    monkeypatch.setattr(dataset, "get_memory_info_reply", ray_private.find(name))
    ray_private.skip_memory_statistics()
    with pytest.raises(LookupError):
        ray_private.find(name)()
    found = ray.data.from_arrow_refs([ray.put(pa.table({"x": [1, 2, 3]}))])
    assert "get_memory_info_reply" in Path(dataset.__file__).read_text()
    found.stats()
    tables: list[pa.Table] = ray.get(found.to_arrow_refs())
    assert pa.concat_tables(tables).column("x").to_pylist() == [1, 2, 3]
    without(monkeypatch, name)
    ray_private.skip_memory_statistics()


def test_trainers_without_the_cleaner() -> None:
    from ray.train.torch import TorchTrainer

    def names(trainer: Any) -> set[str]:
        return {type(callback).__name__ for callback in trainer._create_default_callbacks()}

    plain, ours = (kind(lambda: None) for kind in (TorchTrainer, ray_private.without_cleaner(TorchTrainer)))
    assert names(plain) - names(ours) == {"PlacementGroupCleanerCallback"} and names(ours) < names(plain)
    assert ray_private.without_cleaner(Client := type("Client", (), {})) is Client


def private_names(text: str) -> list[str]:
    """Ray's private names that some source uses, in imports, attributes and strings."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
            found += [f"ray.{node.attr}"] * (node.attr in ATTRIBUTES)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            found += [node.value, *[f"ray.{node.value}"] * (node.value in ATTRIBUTES)]
    return [name for name in found if PRIVATE.match(name)]


@pytest.mark.parametrize(
    "line",
    [
        "from ray._private import state",
        "import ray._raylet",
        "from ray.data._internal.stats import x",
        "from ray.core.generated import gcs_pb2",
        "from ray.autoscaler.v2.sdk import y",
        "ray._private.worker",
        "actor._ray_actor_id",
        "ray.init(**{'_system_config': 1})",
        "find('ray._private.state:actors')",
    ],
)
def test_private_names_are_found(line: str) -> None:
    assert private_names(line)


def test_no_other_file_has_a_private_name() -> None:
    for fine in ("from ray.data import dataset", "import ray.train.torch", "ray.util.state.get_actor", "x._private"):
        assert not private_names(fine)
    users = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if private_names(path.read_text())}
    assert users == {str(ALLOWED.relative_to(PACKAGE))}
