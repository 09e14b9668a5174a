"""A reward on its own node, GPU or environment: a thin actor that builds it there and forwards calls.

This file imports the standard library, numpy and ray only, so that a reward can live beside other library versions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray import exceptions

POLL_S = 0.5


class RewardActor:
    """Built from a light description: (kind, keyword arguments, torch threads)."""

    def __init__(self, kind: str, args: dict[str, Any], threads: int) -> None:
        import torch

        from dav_ray.rewards.registry import build

        torch.set_num_threads(threads)
        self._reward = build(kind, args, "cuda" if ray.get_gpu_ids() else "cpu")  # what Ray gave, not what there is
        self._busy_s = 0.0

    def ready(self, run_dir: str) -> str:
        """The node's id, once the reward stands and the run directory is reachable."""
        from dav_ray.run_files import check_marker
        from dav_ray.storage import open_storage

        node = ray.get_runtime_context().get_node_id()
        check_marker(open_storage(run_dir), node)
        return node

    def score(self, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> Any:
        """`rewards.base.Scored` for samples [B, ...] float32."""
        from dav_ray.rewards.base import evaluate

        start = time.monotonic()
        try:
            return evaluate(self._reward, samples, conditions, grad)
        finally:
            self._busy_s += time.monotonic() - start

    def busy_s(self) -> float:
        """Seconds spent scoring so far."""
        return self._busy_s


class RewardPools:
    """Calls every reward's pool at once and waits for all. pools: one list of actor names per reward.

    Actors are looked up by name: a handle would not survive the restart of its holder.
    """

    def __init__(self, pools: Sequence[Sequence[str]], namespace: str, timeout_s: float) -> None:
        self._pools, self._namespace, self._timeout_s = [list(p) for p in pools], namespace, timeout_s
        self._next = [0] * len(pools)
        self._lock = threading.Lock()
        self._handles: dict[str, Any] = {}

    def __call__(self, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> list[Any]:
        deadline = time.monotonic() + self._timeout_s
        refs = [self._send(i, samples, conditions, grad) for i in range(len(self._pools))]
        return [self._answer(i, ref, deadline, samples, conditions, grad) for i, ref in enumerate(refs)]

    def _send(self, pool: int, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> Any:
        with self._lock:
            name = self._pools[pool][self._next[pool] % len(self._pools[pool])]
            self._next[pool] += 1
        if name not in self._handles:
            self._handles[name] = ray.get_actor(name, namespace=self._namespace)
        return self._handles[name].score.remote(samples, list(conditions), grad)

    def _answer(
        self, pool: int, ref: Any, deadline: float, samples: np.ndarray, conditions: Sequence[str], grad: bool
    ) -> Any:
        """Infrastructure failures are retried until the deadline; then TimeoutError."""
        while True:
            try:
                return ray.get(ref, timeout=max(0.0, deadline - time.monotonic()))
            except exceptions.GetTimeoutError as error:
                raise TimeoutError(
                    f"no answer from reward actors {self._pools[pool]} in {self._timeout_s} s"
                ) from error
            except exceptions.RayActorError as error:
                # dead or restarting: back off, then ask the next replica
                if time.monotonic() + POLL_S > deadline:
                    raise TimeoutError(f"reward actors {self._pools[pool]} stayed unavailable") from error
                time.sleep(POLL_S)
                ref = self._send(pool, samples, conditions, grad)
