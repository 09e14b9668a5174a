"""The mailbox without Ray around it: a plain class whose answers come at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dav_ray.errors import RunError
from dav_ray.run_dir.manifest import Shard
from dav_ray.runtime.train import rank
from dav_ray.runtime.train.mailbox import Group, Job, Mailbox, Place, Share
from dav_ray.runtime.train.troubles import Trouble

JOB = Job(round=1, base=0, groups=2, rows=6)
SHARDS = (Shard("buffer/round=0001/chunk-00000-aa.parquet", "aa", 0, 6, 0),)
HERE, THERE = Place("n0", "first"), Place("n1", "first")


def group(*datasets: str) -> Group:
    edges = tuple(round(i * 6 / len(datasets)) for i in range(len(datasets) + 1))
    return Group(list(datasets), SHARDS, edges, {5: 1.0})


def answer(call: Any) -> Any:
    return asyncio.run(call)


def test_a_round_goes_through() -> None:
    box = Mailbox()
    assert answer(box.job(0, HERE)) is None and answer(box.ranks()) == {0: HERE}
    answer(box.post_job(JOB))
    assert answer(box.job(0, HERE)) == answer(box.job(1, THERE)) == JOB and answer(box.ranks()) == {0: HERE, 1: THERE}
    assert answer(box.group(1, 0, 1)) is None
    answer(box.post_group(0, group("rows of 0", "rows of 1")))
    assert answer(box.group(1, 0, 1)) == Share("rows of 1", SHARDS, 3, 6, {5: 1.0})
    assert answer(box.group(2, 0, 1)) is None  # of another round
    assert answer(box.result(1)) is None
    answer(box.hand_in(1, {"mstep/rows": 6.0}, 1, ["weights"]))
    assert answer(box.result(1)) == {"mstep/rows": 6.0} and answer(box.result(2)) is None
    assert answer(box.job(0, HERE)) is None  # done: nobody fits it twice
    assert answer(box.weights(1)) == ["weights"] and answer(box.weights(0)) == []


def test_posting_a_job_again_keeps_its_groups_and_another_drops_them() -> None:
    box = Mailbox()
    answer(box.post_job(JOB))
    answer(box.post_group(0, group("a")))
    answer(box.post_job(JOB))
    assert answer(box.group(1, 0, 0)) == Share("a", SHARDS, 0, 6, {5: 1.0})
    answer(box.post_job(Job(round=2, base=1, groups=2, rows=6)))
    assert answer(box.group(2, 0, 0)) is None


def test_a_late_result_of_another_round_is_dropped() -> None:
    box = Mailbox()
    answer(box.post_job(Job(round=2, base=1, groups=1, rows=6)))
    answer(box.hand_in(1, {"mstep/rows": 6.0}, 1, ["old"]))
    assert answer(box.result(2)) is None and answer(box.weights(1)) == []


def test_troubles_count_until_a_result_and_a_failure_is_final() -> None:
    box = Mailbox()
    answer(box.post_job(JOB))
    disk = Trouble(0, "OSError: disk")
    answer(box.trouble(disk))
    assert answer(box.troubles()) == [disk]
    answer(box.hand_in(1, {}, 1, []))
    assert answer(box.troubles()) == []
    missing = Trouble(1, "RunError: train: rows are missing", final=True)
    answer(box.fail(RunError("train", "rows are missing"), missing))
    assert str(answer(box.result(1))) == "train: rows are missing"
    assert answer(box.unread()) == [disk, missing] and answer(box.unread()) == []  # each is given once


def test_stop() -> None:
    box = Mailbox()
    answer(box.post_job(JOB))
    answer(box.stop())
    assert answer(box.job(0, HERE)) == "stop"


def test_another_trainer_finds_the_job_and_none_of_the_ranks_before() -> None:
    box = Mailbox()
    answer(box.post_job(JOB))
    assert answer(box.job(0, HERE)) == JOB
    answer(box.trouble(Trouble(0, "OSError: disk")))
    answer(box.stop())
    answer(box.reopen())
    assert answer(box.ranks()) == {} and answer(box.troubles()) == []
    assert answer(box.job(1, THERE)) == JOB and answer(box.ranks()) == {1: THERE}


def test_the_newest_policies_are_kept() -> None:
    box = Mailbox(keep=2)
    for round in (1, 2, 3):
        answer(box.post_job(Job(round, round - 1, groups=1, rows=6)))
        answer(box.hand_in(round, {}, round, [f"weights {round}"]))
    assert [answer(box.weights(version)) for version in (1, 2, 3)] == [[], ["weights 2"], ["weights 3"]]


def test_a_rank_that_was_started_again_has_another_life() -> None:
    box = Mailbox()
    answer(box.job(0, HERE))
    answer(box.job(0, Place("n0", "second")))
    assert answer(box.ranks()) == {0: Place("n0", "second")} != {0: HERE}


def test_what_ranks_lost_is_told_once() -> None:
    box = Mailbox()
    answer(box.lose(1, 3, 0, "ObjectLostError"))
    assert answer(box.lost()) == [{"rank": 1, "round": 3, "group": 0, "cause": "ObjectLostError"}]
    assert answer(box.lost()) == []


def test_memory_that_runs_out_halves_the_micro_batch_of_all_ranks_once() -> None:
    """Both ranks told of the same one; what their peers raised before counts no more."""
    box = Mailbox()
    closed = Trouble(0, "RuntimeError: connection closed")
    assert answer(box.micro_batch(16)) == 16
    answer(box.trouble(closed))
    answer(box.halve(1, 16, "1 GB", "OutOfMemoryError: 16"))
    assert answer(box.troubles()) == []
    answer(box.trouble(closed))
    answer(box.halve(0, 16, "1 GB", "OutOfMemoryError: 16"))
    assert answer(box.micro_batch(16)) == 8 and answer(box.micro_batch(4)) == 4
    assert answer(box.troubles()) == [closed]
    answer(box.halve(0, 8, "1 GB", "OutOfMemoryError: 8"))
    told = [{"rank": 1, "micro_batch": 8, "took": "1 GB", "cause": "OutOfMemoryError: 16"}]
    told += [{"rank": 0, "micro_batch": 4, "took": "1 GB", "cause": "OutOfMemoryError: 8"}]
    assert answer(box.halved()) == told and answer(box.halved()) == []
    answer(box.stop())
    answer(box.reopen())
    assert answer(box.micro_batch(16)) == 4  # another trainer has no more memory


class Near:
    """The mailbox as a handle whose calls are done at once."""

    def __init__(self, box: Mailbox) -> None:
        self._box = box

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *words: answer(getattr(self._box, name)(*words)))


def test_a_rank_without_memory_tells_the_mailbox_until_it_has_one_transition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "ask", lambda role, what, found: found)
    box = Mailbox()
    while (size := answer(box.micro_batch(6))) > 1:
        with pytest.raises(rank.Halved), rank.within_memory(Near(box), 0, size):
            raise torch.OutOfMemoryError(f"room for {size}")
    assert [one["micro_batch"] for one in answer(box.halved())] == [3, 1]
    words = r"train: out of memory, .* taken, with mstep.micro_batch = 1: OutOfMemoryError: room for 1$"
    with pytest.raises(RunError, match=words), rank.within_memory(Near(box), 0, 1):
        raise torch.OutOfMemoryError("room for 1")
    with pytest.raises(RunError, match="with mstep.micro_batch = 6"), rank.within_memory(Near(box), 0, 6, halve=False):
        raise MemoryError  # of the model, not of what goes through it
    with pytest.raises(RuntimeError, match="other"), rank.within_memory(Near(box), 0, 6):
        raise RuntimeError("other")
    assert answer(box.halved()) == []
