"""The driver's side of the fleet of rewards: it is started, awaited, and its events are written down."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dav_ray.config.schema import Config
from dav_ray.errors import DavRayError
from dav_ray.run_dir.records import RunLog
from dav_ray.runtime.cluster.deadlines import Deadline, Ticker, wait_until
from dav_ray.runtime.cluster.failures import start_failure
from dav_ray.runtime.cluster.nodes import log_place
from dav_ray.runtime.cluster.placement import actor_options
from dav_ray.runtime.reward.replicas import CALLS
from dav_ray.runtime.reward.router import Fleet
from dav_ray.runtime.reward.spec import PoolState, RewardSpec

FLEET = "rewards"
EVENTS_EVERY_S = 1.0
ANSWER_S = 60.0  # longest wait for the fleet's own words


def reward_specs(config: Config, namespace: str, where: str = "pool") -> list[RewardSpec]:
    """Of the rewards that run there. Made in the driver: what actors find, and relative paths, are those of its
    folder."""
    specs = []
    for number, reward in enumerate(config.reward):
        if reward.where != where:
            continue
        role = config.reward_role(reward)
        options = actor_options(role, "", namespace, reward.python)
        golden = None if reward.golden is None else os.path.abspath(os.path.expanduser(reward.golden))
        checked = dict(reward.tolerance), golden, reward.golden_check
        shared = role, options, *checked, config.modules, config.prompts.columns
        specs.append(RewardSpec(number, reward.label, reward.kind, dict(reward.args), *shared))
    return specs


def start_fleet(specs: Sequence[RewardSpec], run_dir: str, namespace: str) -> Any:
    """The fleet's actor, on this node. Ray restarts it if it dies; its replicas end with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"name": FLEET, "namespace": namespace, "num_cpus": 0, "scheduling_strategy": here}
    options |= {"enable_task_events": False}  # Ray would keep a record of every call
    return ray.remote(Fleet).options(**options, max_restarts=-1).remote(list(specs), run_dir)


class FleetStart:
    """Watches a fleet come up. say: prints a line for the user."""

    def __init__(self, fleet: Any, config: Config, say: Callable[[str], None] = lambda _: None) -> None:
        self._fleet, self._config, self._say = fleet, config, say
        limits = {reward.label: config.reward_role(reward).start_timeout_s for reward in config.pooled}
        self._deadlines = {label: Deadline("reward", limit_s) for label, limit_s in limits.items()}
        self._awaited = set(limits)

    def look(self) -> bool:
        """Whether a replica of each reward is admitted. Raises what keeps one from it."""
        missing = _missing(self._fleet, list(self._deadlines))
        for label in sorted(self._awaited - set(missing)):
            self._say(f"reward {label} is ready")
        self._awaited &= set(missing)
        late = [label for label in missing if self._deadlines[label].passed]
        if late:
            raise self._deadlines[late[0]].error(f"{', '.join(late)} found no place", _pythons(self._config))
        return not missing

    def wait(self) -> None:
        """Until a replica of each reward is admitted."""
        wait_until(self.look)


class FleetView:
    """What the driver sees of the fleet; nothing while that is being restarted."""

    def __init__(self, fleet: Any, log: RunLog) -> None:
        self._fleet, self._log = fleet, log
        self._ticker = Ticker(EVENTS_EVERY_S, at_once=True)

    def tick(self) -> None:
        """`flush`, at most once in a while: the search calls this after every answer of a worker."""
        if self._ticker.due:
            self.flush()

    def flush(self) -> None:
        """Write down the events since the last call."""
        self._ticker.restart()
        for event, fields in self._ask(self._fleet.events.remote(), ()):
            if event == "actor_placed":
                log_place(self._log, **fields)
            else:
                self._log.event(event, **fields)
        self._log.live("workers", sum(pool.admitted for pool in self.state()), role="reward")

    def state(self) -> list[PoolState]:
        """Of each reward."""
        return self._ask(self._fleet.state.remote(), [])

    def seconds(self) -> tuple[float, float]:
        """Seconds that all replicas worked, and that they were there to."""
        found = self.state()
        return sum(pool.busy_s for pool in found), sum(pool.admitted_s for pool in found)

    def deviations(self) -> dict[str, float]:
        """By how much replicas that serve miss golden scores, as metrics; none where all reproduce them."""
        return {f"golden/deviation/{pool.reward}": pool.deviation for pool in self.state() if pool.deviation > 0}

    def _ask(self, answer: Any, otherwise: Any) -> Any:
        try:
            return ray.get(answer, timeout=ANSWER_S)
        except (exceptions.RayActorError, exceptions.GetTimeoutError):
            return otherwise


def client_timeout(config: Config) -> float:
    """Seconds after which a search worker gives a request up: the fleet has long answered or failed it."""
    roles, callers = [config.reward_role(reward) for reward in config.pooled], config.roles.search.replicas
    waits = [CALLS * role.call_timeout_s * math.ceil(callers / role.least) for role in roles]  # each behind the others
    longest = (role.start_timeout_s + role.retry_s + wait for role, wait in zip(roles, waits, strict=True))
    return max(longest, default=0.0) + ANSWER_S


def _missing(fleet: Any, labels: list[str]) -> list[str]:
    """Those of the rewards that wait for their first replica: all where the fleet is not there to tell."""
    try:
        found = ray.get(fleet.missing.remote(), timeout=ANSWER_S)
    except exceptions.GetTimeoutError:
        return labels
    except exceptions.RayError as error:
        raise start_failure("reward", "the fleet of rewards", error) from error
    if isinstance(found, DavRayError):
        raise found
    return found


def _pythons(config: Config) -> str:
    """Another reason why a reward may not come up: Ray reports an interpreter that does not start as no place."""
    own = sorted({reward.python for reward in config.pooled if reward.python is not None})
    return f", or {', '.join(own)} (reward.python) has not this Python and ray" if own else ""
