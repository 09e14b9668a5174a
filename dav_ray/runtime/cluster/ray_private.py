"""Every name of Ray that its public interface does not promise. No other file of this package uses one.

Each function looks its name up when it is called. Where another version of Ray has it no longer, the function does what
public names allow, does without, or raises `NoSuchName`: one line that says which name is missing in which version.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import ray

from dav_ray.errors import RunError

# the end of the path of the program that starts nodes: the cluster launcher's, and KubeRay's
AUTOSCALER_PROGRAMS = ("autoscaler/_private/monitor.py", "autoscaler/v2/monitor.py")


class NoSuchName(RunError):
    """This version of Ray has a private name no longer, and nothing public does the same."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__("driver", f"ray {ray.__version__} has no {name}, which is needed {what}; allowed: ray 2.60")
        self.name, self.what = name, what

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.what), self.__dict__


def find(name: str) -> Any:
    """The object of a dotted name, MODULE:NAME; None where this Ray has none."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None


def _replace(name: str, value: Any) -> None:
    """Put another object in the place of a name, MODULE:NAME, that this Ray has."""
    module, _, attribute = name.partition(":")
    if find(name) is not None:
        setattr(importlib.import_module(module), attribute, value)


# -- actors and their processes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActorRecord:
    """What Ray's head knows of an actor. state: PENDING_CREATION, DEPENDENCIES_UNREADY, ALIVE, RESTARTING, or DEAD, for
    good; node: the id of the node of its process, empty where there is none."""

    state: str
    node: str


def actor_record(actor: Any) -> ActorRecord:
    """Without the private table: by Ray's state API, which needs the dashboard; NoSuchName where it does not answer."""
    id = actor_id(actor)
    if (table := find("ray._private.state:actors")) is not None:
        found = table(id)
        return ActorRecord(found.get("State", ""), found.get("Address", {}).get("NodeID", ""))
    from ray.util.state import get_actor

    try:
        found: Any = get_actor(id)
    except Exception as error:  # whatever the HTTP client raises
        raise NoSuchName("ray._private.state.actors", "to see whether an actor is alive") from error
    return ActorRecord(found.state if found else "", (found.node_id or "") if found else "")


def actor_id(actor: Any) -> str:
    """In hexadecimal digits. NoSuchName where the handle does not tell."""
    id = getattr(actor, "_ray_actor_id", None)
    if id is None:
        raise NoSuchName("ActorHandle._ray_actor_id", "to ask about an actor")
    return id.hex()


def ended_for_memory(worker: str) -> bool:
    """Whether Ray's memory monitor ended a worker's process (an id): the error that its caller sees does not tell.

    Without the private table: by Ray's state API, and False where that does not answer. The process then takes as much
    again, and the number of its attempts is bounded."""
    state, table = find("ray._private.state:state"), find("ray.core.generated.gcs_pb2:WorkerTableData")
    reasons = find("ray.core.generated.common_pb2:NODE_OUT_OF_MEMORY")
    accessor = getattr(state, "_connect_and_get_accessor", None)
    if accessor is not None and table is not None and reasons is not None:
        data = accessor().get_worker_info(ray.WorkerID(bytes.fromhex(worker)))
        return bool(data) and table.FromString(data).exit_type == reasons
    from ray.util.state import get_worker

    with contextlib.suppress(Exception):  # whatever the HTTP client raises
        found: Any = get_worker(worker)
        return found is not None and found.exit_type == "NODE_OUT_OF_MEMORY"
    return False


def error_log() -> str:
    """The file of this worker's standard error, on its node. Without the private name: how the file is called."""
    worker = find("ray._private.worker:global_worker")
    path = getattr(worker, "get_err_file_path", None)
    return path() if path is not None else f"worker-{ray.get_runtime_context().get_worker_id()}-*.err in Ray's logs"


# -- nodes ------------------------------------------------------------------------------------------------------------


def drain_reader() -> Callable[[float], dict[str, int]]:
    """Connected to the head once: reader(seconds to wait) gives the nodes that are to be taken away, by id: until when
    they are there, milliseconds since 1970; 0: not known. RayError where the head does not answer.

    Without the private client none is known: a node that goes costs the chunk that is searched there."""
    client = find("ray._raylet:GcsClient")
    if client is None:
        return lambda _: {}
    # of the instance: the class hands what it is asked on to another one
    ask = getattr(client(address=ray.get_runtime_context().gcs_address), "get_draining_nodes", None)
    return lambda timeout_s: {} if ask is None else ask(timeout=timeout_s)


def is_embedded() -> bool:
    """Whether this process started the cluster that it is connected to. Without the private name: no, so that a run
    that can't be placed waits some seconds for more nodes."""
    node = find("ray._private.worker:_global_node")
    return node is not None and node.is_head()


def node_types() -> dict[str, str]:
    """The autoscaler's name for the type of each live node, by node id. Without its private client: none is known, and
    live nodes count as if none of them could be started again."""
    ask = find("ray.autoscaler.v2.sdk:get_cluster_status")
    if ask is None:
        return {}
    status = ask(ray.get_runtime_context().gcs_address)
    nodes = [*status.active_nodes, *status.idle_nodes]
    return {node.node_id: node.ray_node_type_name for node in nodes if node.node_id is not None}


def has_node_groups() -> bool:
    """Whether a managed service has its node groups in Ray's tables; other autoscalers have none there. Without the
    private name: no, and the head is asked for an autoscaler that it does not have."""
    state = find("ray._private.state:state")
    if not hasattr(state, "get_cluster_config"):
        return False
    config = state.get_cluster_config()
    return config is not None and len(config.node_group_configs) > 0


def autoscaling_of(cluster: Mapping[str, Any]) -> Mapping[str, Any]:
    """KubeRay's resource as the autoscaler reads it. NoSuchName without the private function."""
    name = "_derive_autoscaling_config_from_ray_cr"
    derive = find(f"ray.autoscaler._private.kuberay.autoscaling_config:{name}")
    if derive is None:
        raise NoSuchName(name, "to read what KubeRay may start")
    return derive(dict(cluster))


def kubernetes_resource(namespace: str, path: str) -> Mapping[str, Any]:
    """A resource of the Kubernetes API, as the head's service account sees it. NoSuchName without the private
    client."""
    client = find("ray.autoscaler._private.kuberay.node_provider:KubernetesHttpApiClient")
    if client is None:
        raise NoSuchName("KubernetesHttpApiClient", "to read what KubeRay may start")
    return client(namespace).get(path)


# -- Ray's start ------------------------------------------------------------------------------------------------------


def init(options: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """`ray.init`; settings: Ray's own, of an embedded cluster. Where it takes none any longer it starts without them:
    what they change is the time that a start takes."""
    private: dict[str, Any] = {"_system_config": dict(settings)} if settings else {}
    try:
        ray.init(**options, **private)
    except RuntimeError as error:
        if not settings or "_system_config" not in str(error):
            raise
        ray.init(**options)


def divert_notices(write: Callable[..., None]) -> None:
    """What nodes say of lost workers and the like goes to `write(data, **options)`. Without the private name it stays
    on the terminal."""
    _replace("ray._private.worker:print_to_stdstream", write)


# -- Ray Data and Ray Train -------------------------------------------------------------------------------------------


def keep_data_actors_here() -> None:
    """Ray Data has two actors that outlive a run, on the node of the process that asks for them first. That is to be
    this one: a rank's node would never be idle again, and never given back. Without the private names that node
    stays."""
    for name in (
        "ray.data._internal.stats:get_or_create_stats_actor",
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator:get_or_create_autoscaling_coordinator",
    ):
        if (start := find(name)) is not None:
            start()


def skip_memory_statistics() -> None:
    """With every dataset Ray Data asks all processes of the cluster for their memory, for its statistics, and waits a
    minute for one that hangs: with a node cut off, or a stopped rank, for each dataset again. Here it does not. Without
    the private name: it waits."""
    _replace("ray.data.dataset:get_memory_info_reply", _unasked)


def _unasked(*_: Any, **__: Any) -> NoReturn:
    raise LookupError("nobody reads what Ray Data spilled")  # it does without


def without_cleaner(trainer: Any) -> Any:
    """The class of a trainer, without Ray Train's actor that gives up the ranks' places where their controller dies: on
    a Ray that ends with the driver nothing is left of them anyway, and without a dashboard that actor takes 12 s to
    end. Without the private names: it takes them."""
    if not hasattr(trainer, "_create_default_callbacks"):
        return trainer

    class Trainer(trainer):
        def _create_default_callbacks(self) -> list[Any]:
            found = super()._create_default_callbacks()
            return [callback for callback in found if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    return Trainer
