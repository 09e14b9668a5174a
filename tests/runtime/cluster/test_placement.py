"""What a role asks of Ray, and where Ray then puts its actors."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from dav_ray.config.sections.roles import PoolRole, RewardRole, Role
from dav_ray.runtime.cluster.placement import actor_options
from tests.support.clusters import add_node, cluster_of


class Where:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


@pytest.mark.parametrize(
    "role, asked",
    [
        (Role(labels={"accelerator": "a100"}), {"label_selector": {"accelerator": "a100"}}),
        (RewardRole(cpus=0.5, memory_gb=2, accelerator="L4"), {"memory": 2_000_000_000, "accelerator_type": "L4"}),
        (PoolRole(resources={"disk": 1}, gpus=1), {"resources": {"disk": 1}, "num_gpus": 1}),
    ],
)  # fmt: skip
def test_what_it_asks_for(role: Role, asked: dict[str, Any]) -> None:
    options = actor_options(role, "a", "space")
    assert asked.items() <= options.items() and (options["name"], options["namespace"]) == ("a", "space")


@pytest.mark.slow  # four nodes; the test above has what Ray is asked for
def test_actors_are_where_their_labels_say() -> None:
    with cluster_of(num_cpus=1, labels={"role": "head"}) as cluster:
        nodes = {
            name: add_node(cluster, num_cpus=1, labels={"role": name}).node_id for name in ("search", "reward", "train")
        }
        for name in ("reward", "search", "train"):
            options = actor_options(Role(cpus=0.2, labels={"role": name}), f"{name}-0", "space")
            actor: Any = ray.remote(Where).options(**options).remote()
            assert ray.get(actor.node.remote(), timeout=300) == nodes[name]
