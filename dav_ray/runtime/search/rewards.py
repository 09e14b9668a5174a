"""The rewards of a run as a search worker asks them: those of the pool through the fleet, the others in this process
(`reward.where: search`), where no sample has to be sent."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dav_ray.config.recipe.load import from_yaml
from dav_ray.config.schema import Config
from dav_ray.errors import DeviceError, RunError
from dav_ray.rewards.base import Calls, Scored
from dav_ray.rewards.golden import Golden, coarsest, decode, encode, golden_path, precision_of, some_rows, usable
from dav_ray.rewards.registry import build
from dav_ray.rewards.samples.pixels import wants_of
from dav_ray.run_dir.storage.interface import AlreadyExists, Storage
from dav_ray.runtime.reward.fleet import reward_specs
from dav_ray.runtime.reward.golden_scores import judge, known_golden
from dav_ray.runtime.reward.replica import Facts, FleetClient, hardware_here
from dav_ray.runtime.reward.spec import RewardSpec

Events = tuple[tuple[str, dict[str, Any]], ...]


def with_stored_columns(config: Config, storage: Storage) -> Config:
    """With the columns of the prompts that the run's `config.yaml` has; without prompts, of which there are many."""
    stored = from_yaml(storage.read("config.yaml").decode(), f"{storage.uri}/config.yaml").config
    return config.model_copy(update={"prompts": stored.prompts.replaced(())})


class WorkerRewards:
    """fleet: of the pool's rewards."""

    def __init__(self, config: Config, fleet: FleetClient, storage: Storage, device: str) -> None:
        self._fleet, self._count = fleet, len(config.reward)
        specs = reward_specs(config, "", where="search")
        self._here = {spec.number: RewardHere(spec, storage, device) for spec in specs}

    def __call__(self, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> list[Scored]:
        """One `Scored` per reward, in the configuration's order. Raises what the fleet does; DeviceError, and RunError
        where golden scores are not reproduced, of those in this process."""
        started = {number: here.ask(samples, conditions, grad) for number, here in self._here.items()}
        others = iter(self._fleet(samples, conditions, grad) if len(started) < self._count else ())
        return [started[n].result() if n in started else next(others) for n in range(self._count)]

    def pixels(self) -> bool:
        """Whether all of them want images as uint8."""
        if any(here.facts.wants != "uint8" for here in self._here.values()):
            return False
        return len(self._here) == self._count or self._fleet.pixels()

    @property
    def sent_bytes(self) -> int:
        """Of samples, to rewards in other processes."""
        return self._fleet.sent_bytes

    def events(self) -> Events:
        """(name, fields) of what happened to the rewards of this process since this was asked last."""
        return tuple(event for here in self._here.values() for event in here.events())

    def deviations(self) -> dict[str, float]:
        """By how much golden scores are missed all the same, by reward."""
        return {here.label: here.deviation for here in self._here.values() if here.deviation > 0}


class RewardHere:
    """One reward in this process, with a thread of its own: nobody asks it twice at a time."""

    def __init__(self, spec: RewardSpec, storage: Storage, device: str) -> None:
        self.label, self.deviation = spec.label, 0.0
        self._spec, self._storage = spec, storage
        reward = build(spec.kind, dict(spec.args), device if spec.role.gpus else "cpu", spec.columns)
        by_row = getattr(reward, "by_row", False) is True
        self.facts = Facts(
            hardware_here() if spec.role.gpus else "cpu", "", precision_of(reward), by_row, wants_of(reward)
        )
        self._calls = Calls(reward, spec.role.most, spec.role.retry_s)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"reward-{spec.number}")
        self._told: list[tuple[str, dict[str, Any]]] = []
        self._admitted = spec.golden_check == "off"

    def ask(self, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> Any:
        """A future of its answer."""
        return self._thread.submit(self._score, samples, conditions, grad)

    def events(self) -> Events:
        told, self._told = self._told, []
        return tuple((name, {"reward": self.label, **fields}) for name, fields in [*told, *self._calls.events()])

    def _score(self, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> Scored:
        golden = None if self._admitted else known_golden(self._spec, self._storage)
        if golden is not None:
            self._reproduce(golden)
        scored = self._calls(samples, conditions, grad)
        if scored.fault == "device":
            raise DeviceError("search", f"{self.label}: {scored.error}")
        if not self._admitted and scored.error is None:
            self._make_golden(samples, conditions, grad)
        return scored

    def _reproduce(self, golden: Golden) -> None:
        """RunError where the golden scores are others and have to be met."""
        scored = self._calls(golden.samples, golden.conditions, golden.grad)
        if scored.fault == "device":
            raise DeviceError("search", f"{self.label}: {scored.error}")
        verdict = judge(self._spec, golden, self.facts, scored)
        if not verdict.admitted:
            raise RunError("reward", f"{verdict.words}; it runs in a search worker (reward.where)")
        if verdict.differs:
            self._told.append(("golden_differs", verdict.differs))
        self._admitted, self.deviation = True, verdict.gap

    def _make_golden(self, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> None:
        """Store the first scores, unless another worker was faster: then its own are to be met."""
        rows, texts = some_rows(samples, conditions)
        scored = self._calls(rows, texts, grad)
        if scored.values is None or scored.error is not None or not usable(scored.values, len(texts)):
            return
        precision = coarsest(self.facts.precision, scored.dtype)
        path = golden_path(self.label)
        try:
            self._storage.create(path, encode(Golden(rows, texts, scored.values, grad, precision)))
        except AlreadyExists:
            self._reproduce(decode(self._storage.read(path)))
            return
        self._admitted = True
        fields = {"path": path, "samples": len(texts), "hardware": self.facts.hardware, "precision": precision}
        self._told.append(("golden_stored", fields))
