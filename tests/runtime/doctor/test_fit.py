"""What a pool of nodes can hold, now and grown: pure logic of the doctor."""

from __future__ import annotations

from typing import Any

import pytest

from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.runtime.doctor.autoscaler import parse, parse_ray_cluster, read_scaling
from dav_ray.runtime.doctor.fit import fits, never
from dav_ray.runtime.doctor.packing import Want, pack, phases
from dav_ray.runtime.doctor.pool import Demand, Node, NodeType, Pool
from tests.cluster.test_files import CLUSTERS, node_types
from tests.cluster.test_files import load as cluster_file


def config(**roles: dict) -> Config:
    settings = {"model": {"path": "x/y"}, "prompts": ["a"], "reward": {"kind": "jpeg_compressibility"}}
    return Config.model_validate({**settings, "roles": roles})


def said(made: Config, pool: Pool) -> dict[str, tuple[bool, str]]:
    return {finding.subject: (finding.ok, finding.text) for finding in fits(made, pool)}


def want(name: str, count: int, labels: dict[str, str] | None = None, **resources: float) -> Want:
    return Want(name, count, count, Demand(resources, labels or {}))


TWO = Pool((Node("a", {"CPU": 4, "GPU": 1}, {"zone": "east"}), Node("b", {"CPU": 16}, {"zone": "west"})))
HEAD = Node("head", {"CPU": 1}, {}, "head")


def scaled(*types: NodeType, nodes: tuple[Node, ...] = (HEAD,), most: int | None = None) -> Pool:
    return Pool(nodes, "types", types, most)


@pytest.mark.parametrize(
    ("role", "fit", "words"),
    [
        ({"cpus": 8}, True, "fits 1 of 2 nodes"),
        ({"cpus": 2, "gpus": 0.5}, True, "fits 1 of 2 nodes"),
        ({"gpus": 2}, False, "GPU: 2 needed, the largest node has 1"),
        ({"cpus": 8, "gpus": 1}, False, "not together on one node"),
        ({"resources": {"tpu": 1}}, False, "tpu: 1 needed, the largest node has 0"),
        ({"labels": {"zone": "north"}}, False, "label zone=north: on no node"),
        ({"labels": {"zone": "in(west, north)"}}, True, "fits 1 of 2 nodes"),
        ({"labels": {"zone": "!east"}}, True, "fits 1 of 2 nodes"),
        ({"labels": {"zone": "!in(east, west)"}}, False, "label zone=!in(east, west): on no node"),
        ({"cpus": 8, "labels": {"zone": "east"}}, False, "CPU: 8 needed, the largest node with these labels has 4"),
        ({"accelerator": "L4"}, False, "accelerator_type:L4: 0.001 needed"),
        ({"cpus": 9, "replicas": 2}, False, "there is room for 1 of 2"),
        ({"cpus": 9, "replicas": 2, "min_replicas": 1}, True, "1 of 2 have a place, at least 1 are needed"),
    ],
)
def test_a_role_alone(role: dict[str, Any], fit: bool, words: str) -> None:
    ok, text = said(config(search=role), TWO)["role search"]
    assert (ok, words in text) == (fit, True), text
    refused = [line for line in never(config(search=role), TWO) if line.startswith("role search: ")]
    assert bool(refused) is not fit


def test_a_part_of_a_gpu_comes_out_of_one_gpu() -> None:
    pool = Pool((Node("a", {"CPU": 99, "GPU": 2}, {}),))
    assert never(config(search={"replicas": 2, "gpus": 0.6}, train={"gpus": 0}), pool) == []
    (line,) = never(config(search={"replicas": 3, "gpus": 0.6}, train={"gpus": 0}), pool)
    assert "there is room for 2 of 3" in line
    made = config(search={"replicas": 2, "gpus": 0.6}, train={"gpus": 0.5})
    assert never(made, pool) == []  # 1.7 of 2 GPUs
    assert said(made, pool)["all roles"] == (False, "no place found for 1 x train")
    made = config(search={"replicas": 2, "gpus": 0.6}, train={"gpus": 0.4})
    assert said(made, pool)["all roles"] == (True, "fit now, and 1 CPU free for Ray Data")
    assert pack(pool, [want("half", 1, GPU=0.5), want("whole", 2, GPU=1)]).without == {"half": 1}


def test_all_roles_are_packed_and_not_only_summed() -> None:
    """3 x 3 CPU go into 10 CPUs, but not into two nodes of 5."""
    nodes = (Node("a", {"CPU": 5}, {}), Node("b", {"CPU": 5.5}, {}))
    made = config(search={"cpus": 3}, reward={"cpus": 3}, train={"cpus": 3})
    assert said(made, Pool(nodes))["all roles"] == (False, "no place found for 1 x train")
    assert never(made, Pool(nodes)) == []  # a heuristic refuses nobody
    assert said(made, Pool((*nodes, Node("c", {"CPU": 3}, {}))))["all roles"][0]


def test_more_than_there_can_be_of_a_resource_never_schedules() -> None:
    made = config(search={"replicas": 2, "cpus": 4}, reward={"cpus": 4}, train={"cpus": 4})
    assert never(made, Pool((Node("a", {"CPU": 16}, {}),))) == [
        "all roles will never schedule: 17 CPU needed, 1 of it free for Ray Data; the most there can be is 16"
    ]
    assert never(made, Pool((Node("a", {"CPU": 17}, {}),))) == []


def test_roles_that_take_turns_need_not_fit_together() -> None:
    pool = Pool((Node("a", {"CPU": 16, "GPU": 1}, {}),))
    together = config(search={"gpus": 1}, train={"gpus": 1})
    turns = config(search={"gpus": 1, "idle_s": 0}, train={"gpus": 1, "lifetime": "round"})
    assert never(together, pool) == ["all roles will never schedule: 2 GPU needed; the most there can be is 1"]
    assert never(turns, pool) == []
    assert [name for name, _ in phases(turns)] == ["all roles while searching", "all roles while training"]
    assert said(turns, pool)["all roles while training"] == (True, "fit now, and 1 CPU free for Ray Data")


def test_a_reward_that_is_released_leaves_its_gpu_to_the_ranks() -> None:
    one = Pool((Node("a", {"CPU": 8, "GPU": 1}, {}),))
    search, train = {"gpus": 0.5, "idle_s": 0}, {"gpus": 1, "lifetime": "round"}
    assert never(config(search=search, reward={"gpus": 0.5, "idle_s": 0}, train=train), one) == []
    (line,) = never(config(search=search, reward={"gpus": 0.5}, train=train), one)
    assert line.startswith("all roles while training will never schedule: 1.5 GPU needed")


def test_one_replica_of_a_reward_is_enough_to_start_with() -> None:
    three = Pool((Node("a", {"CPU": 16, "GPU": 3}, {}),))
    assert never(config(reward={"replicas": 4, "gpus": 1}), three) == []
    assert never(config(reward={"replicas": 4, "gpus": 4}), three) != []


def test_idle_nodes_of_another_type_make_room() -> None:
    """They count against the cluster's limit, but the autoscaler ends them."""
    kinds = NodeType("cpu", {"CPU": 8}, {}, 4), NodeType("gpu", {"CPU": 8, "GPU": 1}, {}, 4)
    up = tuple(Node(f"n{i}", {"CPU": 8}, {}, "cpu") for i in range(4))
    assert never(config(search={"gpus": 1}), scaled(*kinds, nodes=(HEAD, *up), most=4)) == []
    assert never(config(search={"gpus": 2}), scaled(*kinds, nodes=(HEAD, *up), most=4)) != []


def test_drawing_samples_needs_no_cpu_for_the_buffer() -> None:
    two = Pool((Node("a", {"CPU": 2}, {}),))
    assert never(config(), two, train=False) == []
    assert "1 of it free" in never(config(), two)[0]


def test_ranks_are_left_out_where_nothing_is_trained() -> None:
    pool = Pool((Node("a", {"CPU": 16, "GPU": 1}, {}),))
    made = config(search={"gpus": 1}, train={"gpus": 1})
    assert never(made, pool, train=False) == []
    assert (
        len(never(config(train={"gpus": 2}), pool)) == 1 and never(config(train={"gpus": 2}), pool, train=False) == []
    )


def test_a_pool_at_zero_fits_when_scaled() -> None:
    pool = scaled(
        NodeType("l4", {"CPU": 8, "GPU": 1}, {"role": "search"}, 3),
        NodeType("a100", {"CPU": 96, "GPU": 8}, {"role": "search"}, 2),
        NodeType("cpu", {"CPU": 4}, {}, 5),
    )
    roles = {"search": {"replicas": 4, "gpus": 1, "cpus": 4, "labels": {"role": "search"}}, "train": {"cpus": 2}}
    made = config(**roles)
    words = said(made, pool)
    assert words["role search"][1].endswith("fits when scaled: 3 nodes of type l4, 1 node of type a100")
    assert words["role train"][1].endswith("fits when scaled: 1 node of type cpu")
    assert words["role reward"][1].endswith("fits 1 of 1 nodes")
    # what needs no GPU goes where GPUs were started anyway
    assert words["all roles"][1].startswith("fit when scaled: 3 nodes of type l4, 1 node of type a100, and")
    assert all(ok for ok, _ in words.values()) and never(made, pool) == []


def test_nodes_that_are_up_count_against_their_type_and_the_whole() -> None:
    l4 = NodeType("l4", {"CPU": 8, "GPU": 1}, {}, 3)
    up = (HEAD, Node("x", l4.resources, {}, "l4"), Node("y", l4.resources, {}, "l4"))
    made = config(search={"replicas": 4, "gpus": 1})
    assert scaled(l4, nodes=up).startable(l4) == 1 and scaled(l4, nodes=up, most=2).startable(l4) == 0
    (line,) = never(made, scaled(l4, nodes=up))
    assert "there is room for 3 of 4" in line
    assert never(config(search={"replicas": 3, "gpus": 1}), scaled(l4, nodes=up)) == []
    assert "room for 2 of 3" in never(config(search={"replicas": 3, "gpus": 1}), scaled(l4, nodes=up, most=2))[0]


def test_a_type_without_bound_is_not_counted_out() -> None:
    pool = scaled(NodeType("cpu", {"CPU": 2}, {}, 2**31 - 1))
    assert never(config(search={"replicas": 1000, "cpus": 2}), pool) == []
    assert never(config(search={"cpus": 3}), pool)


def test_what_is_unknown_is_not_never() -> None:
    made = config(search={"gpus": 8, "labels": {"role": "x"}})
    unknown = Pool((HEAD,), "unknown", why="the head gave no answer in 30 s")
    assert never(made, Pool((HEAD,))) and never(made, unknown) == []
    ok, text = said(made, unknown)["role search"]
    assert not ok and "what could be started is unknown (the head gave no answer in 30 s)" in text


def test_what_types_leave_unsaid_does_not_count_against_them() -> None:
    pool = scaled(NodeType("gpu", {"CPU": 8, "GPU": 1}, {}, 1))
    said_nothing = {"accelerator": "L4", "gpus": 1, "memory_gb": 4, "labels": {"ray.io/market-type": "spot"}}
    assert never(config(search=said_nothing), pool) == []
    small = scaled(NodeType("gpu", {"CPU": 8, "GPU": 1, "memory": 1e9}, {}, 1))
    assert "memory: 4e+09 needed" in never(config(search=said_nothing), small)[0]


def test_what_fits_in_fewest_places_is_packed_first() -> None:
    nodes = (Node("any", {"CPU": 4}, {}), Node("special", {"CPU": 4}, {"disk": "ssd"}))
    packed = pack(Pool(nodes), [want("big", 1, CPU=4), want("picky", 1, {"disk": "ssd"}, CPU=1)])
    assert packed.without == {} and packed.started == {}


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_mixed_recipe_fits_each_cluster_file_at_zero(name: str) -> None:
    types = node_types(name)
    known = parse({"available_node_types": types, "head_node_type": "head", "max_workers": 30})
    assert known.types is not None and "head" not in {kind.name for kind in known.types}
    made = load("cluster/mixed.yaml", []).config
    pool = Pool((Node("head", {"CPU": 1}, {"role": "head"}, "head"),), "types", known.types, known.most)
    assert never(made, pool) == []
    assert all(ok for ok, _ in said(made, pool).values())
    nowhere = made.model_copy(update={"roles": load("cluster/mixed.yaml", ["roles.train.gpus=16"]).config.roles})
    assert [line.split(":")[0] for line in never(nowhere, pool)] == ["role train"]


def test_a_type_that_the_cloud_fills_in_is_unknown() -> None:
    with pytest.raises(LookupError, match="node type big does not say what it has"):
        parse({"available_node_types": {"big": {"max_workers": 2}}, "max_workers": 2})


def test_a_type_without_a_bound_of_its_own_has_the_clusters() -> None:
    (kind,) = parse({"available_node_types": {"a": {"resources": {"CPU": 2}}}, "max_workers": 7}).types or ()
    assert (kind.most, kind.resources, kind.labels) == (7, {"CPU": 2.0}, {})


def test_kuberay_is_read_as_its_autoscaler_reads_it() -> None:
    cluster = {**cluster_file("kuberay-cluster.yaml"), "metadata": {"name": "dav-ray", "namespace": "default"}}
    types = {kind.name: kind for kind in parse_ray_cluster(cluster).types or ()}
    assert set(types) == {"a100", "l4", "reward", "cpu"}
    assert types["a100"].most == 4 and types["a100"].resources["GPU"] == 1
    assert types["l4"].labels["market"] == "spot" and types["l4"].resources["memory"] > 10**9
    alone = {**cluster, "spec": {**cluster["spec"], "enableInTreeAutoscaling": False}}
    assert parse_ray_cluster(alone).types is None


def test_without_an_autoscaler_process_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(LookupError, match="the head runs no autoscaler of Ray's own"):
        read_scaling("1")


def test_an_embedded_ray_is_shown_with_the_cores_that_are_there() -> None:
    """Ray is told of 29, so that every role finds a place."""
    from dav_ray.runtime.doctor.examine import _places

    told = Pool((Node("vm", {"CPU": 29.0, "GPU": 1.0}, {}),))
    assert next(_places(told, cores=2)).text == "2 CPU, 1 GPU"
    assert next(_places(told, cores=64)).text == "29 CPU, 1 GPU"
    assert next(_places(told, None)).text == "29 CPU, 1 GPU"  # a cluster's node
