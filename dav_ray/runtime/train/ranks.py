"""The ranks' processes as the driver has them: Ray Train starts and ends them, the mailbox says what became of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dav_ray.errors import RunError
from dav_ray.redact import hide
from dav_ray.run_dir.records import RunLog
from dav_ray.runtime.cluster.deadlines import Ticker
from dav_ray.runtime.cluster.failures import end_process
from dav_ray.runtime.cluster.nodes import log_place
from dav_ray.runtime.cluster.placement import demand, runtime_env
from dav_ray.runtime.cluster.ray_private import keep_data_actors_here, without_cleaner
from dav_ray.runtime.interrupt import TRAINER_THREAD
from dav_ray.runtime.train.mailbox import Mailbox, Place, ask
from dav_ray.runtime.train.rank import TrainSpec, train_loop
from dav_ray.runtime.train.troubles import Trouble, hopeless, in_words

MAILBOX = "mailbox"
END_S = 120.0  # longest wait for ranks that are to end
LOOK_EVERY_S = 2.0


def start_mailbox(namespace: str, rounds: int) -> Any:
    """The mailbox's actor, on the driver's node. rounds: how many it holds."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"name": MAILBOX, "namespace": namespace, "num_cpus": 0, "scheduling_strategy": here}
    # who polls it makes calls by the hundred thousand: Ray would keep a record of each
    options |= {"max_concurrency": 100, "enable_task_events": False}
    return ray.remote(Mailbox).options(**options).remote(rounds)


@dataclass
class Ranks:
    """All ranks of a run.

    spec: what each of them is built from; scratch: a folder of the driver's node, for Ray Train's own files; embedded:
    on a Ray that ends with the driver; say: prints a line for the user; stage: the same, with the time since the start.
    """

    spec: TrainSpec
    mailbox: Any
    log: RunLog
    scratch: str = ""
    embedded: bool = False
    say: Callable[[str], None] = lambda _: None
    stage: Callable[[str], None] = lambda _: None
    restarts: int = 0  # of single ranks, since the last policy
    _trainer: Trainer | None = None
    _places: dict[int, Place] = field(default_factory=dict)  # by rank, as the events have it
    _said: set[tuple[int, str]] = field(default_factory=set)  # ranks and classes of errors that the user knows of
    _ticker: Ticker = field(default_factory=lambda: Ticker(LOOK_EVERY_S))

    @property
    def count(self) -> int:
        return self.spec.config.roles.train.replicas

    @property
    def numbers(self) -> list[int]:
        """Of the ranks that have come up."""
        return sorted(self._places)

    # -- start and end --------------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Start the ranks that live as long as the run, unless they were started before."""
        if self._trainer is None and self.spec.config.roles.train.lifetime == "run":
            ranks = f"{self.count} training rank{'s' * (self.count > 1)}"
            self.stage(f"starting {ranks}: usually 15 s, as Ray Train starts with them")
            self.start("run")

    def start(self, job: str) -> None:
        """job: a name that no ranks of this run have had."""
        self._trainer = Trainer(replace(self.spec, job=job), self.scratch, embedded=self.embedded)
        self.log.event("actors_started", role="train", actors=self.count)

    def end(self) -> None:
        """End the ranks and wait until they are gone. RunError if they don't go."""
        if self._trainer is not None:
            ask("driver", "to end the ranks", self.mailbox.stop.remote())
            if not self._trainer.join(END_S):
                raise RunError("train", f"its ranks did not end in {END_S:.0f} s")
            self._trainer = None
            ask("driver", "to open again", self.mailbox.reopen.remote())
            self.log.event("released", role="train", actors=self.count)
        self._places.clear()

    def join(self, timeout_s: float) -> None:
        """Wait for ranks that are to end, at most so long."""
        if self._trainer is not None:
            self._trainer.join(timeout_s)

    def kill(self) -> None:
        """End the ranks' processes, which Ray Train starts again."""
        for place in self._places.values():
            end_process(place.node, place.pid)

    # -- what became of them --------------------------------------------------------------------------------------

    @property
    def overdue(self) -> bool:
        """Whether nobody has looked for LOOK_EVERY_S seconds."""
        return self._ticker.due

    def look(self) -> int:
        """How many ranks are up. Events tell where each of them is, which were started again, what they lost."""
        self._ticker.restart()
        places: dict[int, Place] = ask("driver", "the ranks", self.mailbox.ranks.remote())
        for rank, place in sorted(places.items()):
            before = self._places.get(rank)
            if before is not None and before.process != place.process:
                self.restarts += 1
                self.log.event("train_restarted", rank=rank, node=place.node)
            if before is None or before.node != place.node:
                log_place(self.log, "train", f"train-{rank}", place.node)
        self._places |= places
        for fields in ask("driver", "what ranks lost", self.mailbox.lost.remote()):
            self.log.event("tables_lost", **fields)
        for fields in ask("driver", "whose memory ran out", self.mailbox.halved.remote()):
            self.log.event("out_of_memory", role="train", **fields)
            self.restarts = 0  # it ends at one transition, however often ranks are started again until then
        for trouble in ask("driver", "what ranks raised", self.mailbox.unread.remote()):
            self._report(trouble)
        self.log.live("workers", len(places), role="train")
        return len(places)

    def check(self) -> None:
        """RunError if Ray Train has ended, or the ranks failed too often."""
        if self._trainer is not None and self._trainer.failure is not None:
            raise RunError("train", self._trainer.failure)
        troubles = ask("driver", "the ranks' troubles", self.mailbox.troubles.remote())
        if cause := hopeless(troubles, self.count):
            raise RunError("train", cause)

    def _report(self, trouble: Trouble) -> None:
        """To the events, and to the user where it is the first of its kind and the run goes on."""
        fields = {"rank": trouble.rank, "node": trouble.node, "cause": trouble.cause}
        self.log.event("rank_failed", **fields, traceback=trouble.trace, log=trouble.log)
        kind = (trouble.rank, trouble.cause.partition(":")[0])
        if not trouble.final and kind not in self._said:
            self._said.add(kind)
            self.say(hide(in_words(trouble)))


class Trainer:
    """Runs `TorchTrainer.fit` in a thread of the driver; `failure` is set if it ended with an error."""

    def __init__(self, spec: TrainSpec, storage_path: str, *, embedded: bool = False) -> None:
        """embedded: on a Ray that ends with the driver."""
        self.failure: str | None = None
        self._spec, self._storage_path, self._embedded = spec, storage_path, embedded
        self._thread = threading.Thread(target=self._fit, name=TRAINER_THREAD, daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """True if the job has ended in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _fit(self) -> None:
        from dav_ray.runtime.train import datasets

        try:
            datasets.loaded()
            keep_data_actors_here()  # before the ranks ask for them
            self._trainer().fit()
        except Exception as error:
            # a thread's exception would be lost: the driver reads it from here
            self.failure = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"

    def _trainer(self) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        role = self._spec.config.roles.train
        resources = {name: amount for name, amount in demand(role).items() if not name.startswith("accelerator_type:")}
        trainer = without_cleaner(TorchTrainer) if self._embedded else TorchTrainer
        return trainer(
            train_loop,
            train_loop_config={"spec": self._spec},
            torch_config=TorchConfig(backend="nccl" if role.gpus >= 1 else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=role.replicas,
                use_gpu=role.gpus > 0,
                resources_per_worker=resources,
                accelerator_type=role.accelerator,
                label_selector=role.labels or None,
            ),
            run_config=RunConfig(
                name=f"{self._spec.namespace}-{self._spec.job}",
                storage_path=self._storage_path,
                failure_config=FailureConfig(max_failures=-1),
                worker_runtime_env=runtime_env(role) or None,
            ),
        )
