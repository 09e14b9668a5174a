"""The mailbox as an actor that is gone, or does not answer: named errors, never a silent wait."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from dav_ray.config.schema import Config
from dav_ray.errors import RunError, UserError
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.train import mailbox
from dav_ray.runtime.train.job import TrainJob
from dav_ray.runtime.train.mailbox import Job, Mailbox, ask
from dav_ray.runtime.train.rank import TrainSpec
from dav_ray.runtime.train.ranks import MAILBOX, Ranks
from dav_ray.runtime.train.troubles import trouble_of
from tests.support.runs import events


class Box(Mailbox):
    async def pid(self) -> int:
        return os.getpid()

    async def holds(self) -> list[str]:
        return [type(one).__name__ for held in self._weights.values() for one in held]


@pytest.fixture
def box(shared_ray: None) -> Iterator[Any]:
    """It ends here: an idle worker may hold on to an actor that one of its tasks was given."""
    actor: Any = ray.remote(Box).options(num_cpus=0).remote()
    yield actor
    ray.kill(actor)


def test_who_asks_a_dead_mailbox_is_told_what_is_gone(box: Any) -> None:
    pid = ask("driver", "its pid", box.pid.remote())
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(
        RunError, match="driver: the mailbox, .* is gone .the new policy: .*type the same command again"
    ):
        ask("driver", "the new policy", box.result.remote(1))


def test_who_asks_a_mailbox_that_hangs_is_told_for_how_long(box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = ask("train", "its pid", box.pid.remote())
    monkeypatch.setattr(mailbox, "ANSWER_S", 1.0)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(RunError, match="^train: the mailbox gave no answer in 1 s .the next round.$"):
            ask("train", "the next round", box.result.remote(1))
    finally:
        os.kill(pid, signal.SIGKILL)


@ray.remote(num_cpus=0)
class Rank:
    def hand_in(self, box: Any, size: int) -> None:
        weights = {"adapter": np.arange(size, dtype=np.float32)}
        ray.get(box.hand_in.remote(1, {"mstep/rows": 1.0}, 1, [ray.put(weights)]))


def test_weights_go_by_reference(box: Any) -> None:
    """The mailbox holds none of the bytes."""
    ray.get(box.post_job.remote(Job(1, 0, groups=1, rows=1)))
    rank = Rank.remote()
    ray.get(rank.hand_in.remote(box, 1_000_000))
    assert ask("driver", "what it holds", box.holds.remote()) == ["ObjectRef"]
    (held,) = ask("driver", "the weights", box.weights.remote(1))
    assert ray.get(held, timeout=60)["adapter"][-1] == 999_999.0


@ray.remote(num_cpus=0, max_retries=0)
def fail_as_a_rank(box: Any, error: Exception) -> None:
    try:
        raise error
    except UserError as mistake:
        ray.get(box.fail.remote(mistake, trouble_of(0, mistake, final=True)))
    except Exception as fault:
        ray.get(box.trouble.remote(trouble_of(0, fault, final=False)))


def test_what_a_rank_raises_is_told_while_the_search_goes_on(
    box: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dav_ray.runtime.train.ranks.LOOK_EVERY_S", 0.0)
    values = {"model": {"kind": "masked", "path": "x"}, "reward": {"kind": "gc_content"}}
    said: list[str] = []
    config, log = Config.model_validate(values), RunLog(open_storage(str(tmp_path)), 1)
    ranks = Ranks(TrainSpec(config, str(tmp_path), "tests", MAILBOX), box, log, say=said.append)
    job = TrainJob(config, ranks, log, lambda _: [])
    ray.get(fail_as_a_rank.remote(box, OSError("Cannot load model x")))
    job.look()
    job.look()  # nothing is told twice
    (line,) = said
    first, *trace = line.splitlines()
    assert first.startswith("train: rank 0 failed and is started again: OSError: Cannot load model x (log on node ")
    assert "in fail_as_a_rank" in trace[-2] and trace[-1].strip() == "raise error"

    ray.get(fail_as_a_rank.remote(box, OSError("Cannot load model x")))
    with pytest.raises(RunError, match="train: rank 0 failed twice with the same OSError: Cannot load model x"):
        job.look()
    ray.get(fail_as_a_rank.remote(box, UserError("model.path = x: no such file")))
    with pytest.raises(UserError, match="model.path = x: no such file"):
        job.look()
    told = events(tmp_path)
    assert [(event["event"], event["rank"], event["cause"].partition(":")[0]) for event in told] == [
        *2 * [("rank_failed", 0, "OSError")],
        ("rank_failed", 0, "UserError"),
    ]
    assert "raise error" in told[0]["traceback"]
    assert "Cannot load model x" in Path(told[0]["log"]).read_text()
    assert len(said) == 1
