"""Which nodes a cluster's autoscaler may start. Runs on the head, where the autoscaler and its settings are.

Ray tells nobody: the cluster launcher's autoscaler reads a file that is named on its command line, KubeRay's a resource
of the Kubernetes API that the head's service account may read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dav_ray.runtime.cluster.ray_private import AUTOSCALER_PROGRAMS, autoscaling_of, kubernetes_resource
from dav_ray.runtime.doctor.pool import NodeType

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Scaling:
    """types: None where nobody starts nodes. most: nodes beside the head, over all types."""

    types: tuple[NodeType, ...] | None
    most: int | None = None


def read_scaling(port: str) -> Scaling:
    """The autoscaler of the cluster whose head listens on this port. LookupError or OSError: it
    can't be read."""
    command = _monitor(port)
    if command is None:
        if "KUBERNETES_SERVICE_HOST" not in os.environ:
            raise LookupError("the head runs no autoscaler of Ray's own")
        return _kuberay()
    option = "--autoscaling-config="
    files = [word.removeprefix(option) for word in command if word.startswith(option)]
    if not files:
        return Scaling(None)
    import yaml

    return parse(yaml.safe_load(Path(files[0]).expanduser().read_text(encoding="utf-8")))


def parse(config: Mapping[str, Any]) -> Scaling:
    """What an autoscaler's configuration says. LookupError where a type's resources are filled in by the cloud."""
    most, head = config.get("max_workers"), config.get("head_node_type")
    types = []
    for name, kind in config["available_node_types"].items():
        if name == head:
            continue
        if not kind.get("resources"):
            raise LookupError(f"node type {name} does not say what it has")
        limit = kind.get("max_workers", most)
        labels = {key: str(value) for key, value in (kind.get("labels") or {}).items()}
        resources = {key: float(value) for key, value in kind["resources"].items()}
        types.append(NodeType(name, resources, labels, int(limit or 0)))
    return Scaling(tuple(types), None if most is None else int(most))


def _monitor(port: str) -> list[str] | None:
    """The command line of the cluster's autoscaler process."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        ours = any(word.startswith("--gcs-address=") and word.endswith(f":{port}") for word in words)
        if ours and any(word.endswith(AUTOSCALER_PROGRAMS) for word in words):
            return words
    return None


def parse_ray_cluster(cluster: Mapping[str, Any]) -> Scaling:
    """What KubeRay's resource says: the autoscaler reads the same."""
    return parse(autoscaling_of(cluster)) if cluster["spec"].get("enableInTreeAutoscaling") else Scaling(None)


def _kuberay() -> Scaling:
    """From the RayCluster that this pod belongs to."""
    namespace = ACCOUNT.read_text(encoding="utf-8").strip()
    return parse_ray_cluster(kubernetes_resource(namespace, f"rayclusters/{os.environ['RAY_CLUSTER_NAME']}"))
