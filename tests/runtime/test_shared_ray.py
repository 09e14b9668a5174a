"""The Ray that test files share: what they leave in it is seen, and workers come without importing torch again."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ray

from tests.support import shared_ray as shared
from tests.support.processes import command, end
from tests.support.sleepers import Sleeper


def test_an_actor_and_a_process_that_are_left_are_seen(shared_ray: None) -> None:
    assert shared.is_up() and shared.left_in_it() == []
    actor: Any = ray.remote(Sleeper).options(num_cpus=0).remote("a", 0.0)
    ray.get(actor.ready.remote(""))
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    told = [command(left) for left in shared.left_in_it(grace_s=0.1)]
    assert len(told) == 2 and any(" ray::Sleeper" in line for line in told), told
    assert any(line.startswith(f"{process.pid} ") for line in told), told
    end(lambda: [left for left in shared.left_in_it(grace_s=0.1) if left.pid == process.pid])
    process.wait()
    del actor
    assert shared.left_in_it() == []


def test_its_workers_are_forks_that_have_torch(shared_ray: None) -> None:
    @ray.remote(num_cpus=0)
    def loaded() -> bool:
        return "torch" in sys.modules

    assert ray.get(loaded.remote())


def test_what_it_offers(shared_ray: None) -> None:
    offered = ray.cluster_resources()
    assert (offered["CPU"], offered["GPU"], offered["accelerator_type:A100"]) == (4, 1, 1)
