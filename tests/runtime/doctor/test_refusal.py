"""When a run is refused before it starts, where nobody scales the cluster: at once, or after nodes had time to join."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from ray.cluster_utils import Cluster

from dav_ray.config.schema import Config
from dav_ray.errors import UserError
from dav_ray.runtime.doctor.cluster import look
from dav_ray.runtime.doctor.refusal import refuse_misfits
from tests.support.clusters import add_node, cluster_of
from tests.support.deadlines import hung, until

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head of four CPUs, without an autoscaler."""
    with cluster_of(num_cpus=4) as nodes:
        yield nodes


def needing(resource: str) -> Config:
    return Config.model_validate(
        {
            "model": {"path": "x/y"},
            "prompts": ["a"],
            "reward": {"kind": "jpeg_compressibility"},
            "roles": {"search": {"resources": {resource: 1}}},
        }
    )


def test_nobody_scales_this_cluster(cluster: Cluster) -> None:
    until(lambda: look().scaling == "none", "the head's monitor never came up", 180)  # it starts after the head
    pool = look()
    assert (pool.types, pool.most) == ((), None)


def test_what_no_node_has_is_refused_when_none_has_joined_in_time(cluster: Cluster) -> None:
    start = time.monotonic()
    with pytest.raises(UserError) as refused:
        refuse_misfits(needing("nothing"), joining_s=2)
    assert time.monotonic() - start >= 2
    assert refused.value.lines == [
        "role search: 1 x 1 CPU, 1 nothing will never schedule: nothing: 1 needed, the largest node has 0; "
        "see dav-ray doctor"
    ]


def test_a_run_waits_for_nodes_that_are_joining(cluster: Cluster) -> None:
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(refuse_misfits, needing("late"), joining_s=hung(60))
        assert wait([waiting], timeout=2).not_done
        add_node(cluster, num_cpus=1, resources={"late": 1})
        assert waiting.result(hung(60)) is None
