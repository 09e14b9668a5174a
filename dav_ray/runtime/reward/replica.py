"""A reward on its own node, GPU or environment: a thin actor that builds it there, and how search workers ask for it.

This file imports the standard library, numpy and ray only, so that a reward can live beside other library versions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray import exceptions

POLL_S = 0.5
ASK_S = 10.0  # longest wait for what rewards want
INLINE_BYTES = 50_000  # samples up to this size travel inside the call; Ray takes 100 kB
PIECE_BYTES = 16_000_000  # larger samples travel in pieces of about this size, of which a replica fetches its own


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a replica says of itself. hardware: "cpu", or the GPU's type as Ray names it, or "gpu" where Ray knows none;
    worker: the process, by Ray's id; precision: the coarsest type of number that it computes with; by_row: a value is
    the same to the last bit however many samples are scored in one call; wants: `rewards.samples.pixels`."""

    hardware: str = ""
    worker: str = ""
    precision: str = ""
    by_row: bool = False
    wants: str = "float32"


@dataclasses.dataclass(frozen=True)
class Replied:
    """A `rewards.base.Scored` for each of several requests, None where its samples are lost; events: (name, fields) of
    what happened meanwhile."""

    scored: list[Any]
    events: list[tuple[str, dict[str, Any]]]


class RewardActor:
    """One replica. Built from a light description: (kind, keyword arguments, torch threads, most samples per call,
    folders of the user's own modules, columns of the prompts by prompt)."""

    def __init__(
        self,
        kind: str,
        args: dict[str, Any],
        threads: int,
        batch: int | None = None,
        modules: Sequence[str] = (),
        columns: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        import torch

        from dav_ray.registry import on_path
        from dav_ray.rewards.base import Calls
        from dav_ray.rewards.registry import build
        from dav_ray.runtime.cluster.device import given_device

        on_path(modules)
        torch.set_num_threads(threads)
        self._calls = Calls(build(kind, args, given_device(), columns), batch)

    def ready(self, run_dir: str) -> str:
        """The node's id, once the reward stands and the run directory is reachable."""
        from dav_ray.run_dir.marker import check_marker
        from dav_ray.run_dir.storage.uri import open_storage

        node = ray.get_runtime_context().get_node_id()
        check_marker(open_storage(run_dir), node)
        return node

    def facts(self) -> Facts:
        from dav_ray.rewards.golden import precision_of
        from dav_ray.rewards.samples.pixels import wants_of

        reward, process = self._calls.reward, ray.get_runtime_context().get_worker_id()
        by_row = getattr(reward, "by_row", False) is True
        return Facts(hardware_here(), process, precision_of(reward), by_row, wants_of(reward))

    def ping(self) -> None:
        """That it answers."""

    def score(
        self,
        samples: Sequence[Sequence[tuple[Any, int, int]]],
        conditions: Sequence[Sequence[str]],
        grad: bool,
        most: int | None = None,
    ) -> Any:
        """`Replied`.

        samples: for each request arrays, or references to them, each with the rows that are meant, from and to;
        conditions: B of each request. With `grad` the answers come without gradients, which are further results, one
        for each request. most: samples of a call, where memory did not suffice for more.
        """
        held = [_fetch(spans) for spans in samples]
        there = [i for i, array in enumerate(held) if array is not None]
        found: list[Any] = [None] * len(held)
        answers = self._together([held[i] for i in there], [conditions[i] for i in there], grad, most)
        for i, scored in zip(there, answers, strict=True):
            found[i] = scored
        if not grad:
            return Replied(found, self._calls.events())
        bare = [None if scored is None else dataclasses.replace(scored, grads=None) for scored in found]
        return Replied(bare, self._calls.events()), *(None if scored is None else scored.grads for scored in found)

    def golden(self, samples: Sequence[tuple[Any, int, int]], conditions: Sequence[str], grad: bool) -> Any:
        """A few of the samples, their conditions and what `reproduce` gives for them; None if the samples are lost."""
        from dav_ray.rewards.golden import some_rows

        array = _fetch(samples)
        if array is None:
            return None
        rows = some_rows(array, conditions)
        return *rows, self.reproduce(*rows, grad)

    def reproduce(self, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> Any:
        """`Scored` without gradients."""
        return dataclasses.replace(self._calls(samples, conditions, grad), grads=None)

    def _together(self, arrays: list[Any], conditions: list[Sequence[str]], grad: bool, most: int | None) -> list[Any]:
        """All requests in one call of the reward. If that fails each is scored alone, so that the error is the
        right one's."""
        if len(arrays) > 1:
            whole = self._calls(np.concatenate(arrays), [text for texts in conditions for text in texts], grad, most)
            if whole.fault is not None:  # each alone would meet the same
                return [dataclasses.replace(whole, values=None, grads=None)] * len(arrays)
            edges = np.cumsum([len(array) for array in arrays])
            if whole.error is None and whole.values is not None and whole.values.shape == (edges[-1],):
                values = np.split(whole.values, edges[:-1])
                grads = [None] * len(arrays) if whole.grads is None else np.split(whole.grads, edges[:-1])
                return [dataclasses.replace(whole, values=v, grads=g) for v, g in zip(values, grads, strict=True)]
        return [self._calls(array, texts, grad, most) for array, texts in zip(arrays, conditions, strict=True)]


class FleetClient:
    """Asks for every reward at once and waits for all; what search workers hold.

    The fleet is looked up by name: a handle would not survive the restart of its holder. Samples, unless small, and
    gradients pass it as references.
    """

    def __init__(self, fleet: str, namespace: str, timeout_s: float) -> None:
        self._fleet, self._namespace, self._timeout_s = fleet, namespace, timeout_s
        self._handle: Any = None
        self._pixels: bool | None = None
        self._lock = threading.Lock()
        self.sent_bytes = 0  # of samples, to each of the rewards

    def pixels(self) -> bool:
        """Whether all rewards want images as uint8; no, until each has a replica that says so."""
        if self._pixels is None:
            with contextlib.suppress(exceptions.RayError):
                wants = ray.get(self._actor().wants.remote(), timeout=ASK_S)
                self._pixels = None if None in wants else set(wants) == {"uint8"}
        return bool(self._pixels)

    def __call__(self, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> list[Any]:
        """One `Scored` per reward. Raises the RunError that the fleet gives as its answer, RewardTimeout in the end."""
        from dav_ray.errors import DavRayError, RewardTimeout

        deadline = time.monotonic() + self._timeout_s
        held = _pieces(samples)
        alike = (samples.dtype.str, samples.shape[1:], grad)
        while True:
            try:
                reply = self._ask(held, len(samples), alike, list(conditions), grad, deadline)
                if isinstance(reply, DavRayError):
                    raise reply
                if reply is not None:
                    with self._lock:  # parts of a chunk ask from threads of their own
                        self.sent_bytes += samples.nbytes * len(reply)
                    return reply
                held = _pieces(samples)  # they were lost
            except exceptions.GetTimeoutError:
                pass
            except (exceptions.RayActorError, exceptions.ObjectLostError):
                self._handle = None  # the fleet is restarted, or gradients went with their node: ask again
            if time.monotonic() + POLL_S > deadline:
                raise RewardTimeout("reward", f"no answer from the fleet of rewards in {self._timeout_s:.0f} s")
            time.sleep(POLL_S)

    def _ask(
        self, held: list[Any], num: int, alike: tuple[Any, ...], conditions: list[str], grad: bool, deadline: float
    ) -> Any:
        """One Scored per reward, a DavRayError, or None where the samples were lost."""
        answer = self._actor().score.remote(held, num, alike, conditions, grad)
        reply = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        if not grad or not isinstance(reply, list):
            return reply
        return [
            scored if scored.error is not None else dataclasses.replace(scored, grads=_gathered(refs, deadline))
            for scored, refs in reply
        ]

    def _actor(self) -> Any:
        if self._handle is None:
            self._handle = _actor(self._fleet, self._namespace)
        return self._handle


def _actor(name: str, namespace: str) -> Any:
    from dav_ray.errors import RunError

    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError as error:
        raise RunError("reward", "the fleet of rewards is gone") from error


def _pieces(samples: np.ndarray) -> list[tuple[Any, int]]:
    """The samples in order, each piece with its number of rows; as references unless they are small."""
    if samples.nbytes <= INLINE_BYTES:
        return [(samples, len(samples))]
    rows = max(1, PIECE_BYTES * len(samples) // samples.nbytes)
    parts = [samples[at : at + rows] for at in range(0, len(samples), rows)]
    return [(ray.put(part), len(part)) for part in parts]


def _gathered(grads: Sequence[Any], deadline: float) -> np.ndarray:
    found = ray.get(list(grads), timeout=max(0.0, deadline - time.monotonic()))
    return found[0] if len(found) == 1 else np.concatenate(found)


def _fetch(spans: Sequence[tuple[Any, int, int]]) -> np.ndarray | None:
    """The rows that are meant; None if the process that holds them is gone."""
    try:
        found = [(ray.get(held) if isinstance(held, ray.ObjectRef) else held)[a:b] for held, a, b in spans]
    except exceptions.ObjectLostError:
        return None
    return found[0] if len(found) == 1 else np.concatenate(found)


def hardware_here() -> str:
    """As `Facts` has it."""
    if not ray.get_gpu_ids():
        return "cpu"
    here = ray.get_runtime_context().get_node_id()
    return hardware_of(next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {}))


def hardware_of(resources: Mapping[str, float]) -> str:
    """The type of a node's GPUs, as Ray names it; "gpu" where it knows none."""
    mark = "accelerator_type:"
    return next((name.removeprefix(mark) for name in sorted(resources) if name.startswith(mark)), "gpu")
