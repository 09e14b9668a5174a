"""The mailbox as an actor that is gone, or does not answer: named errors, never a silent wait."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from dav_ray.errors import RunError
from dav_ray.mstep import mailbox
from dav_ray.mstep.mailbox import Mailbox, ask


class Box(Mailbox):
    async def pid(self) -> int:
        return os.getpid()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def box(cluster: None) -> Any:
    return ray.remote(Box).options(num_cpus=0).remote()


def test_who_asks_a_dead_mailbox_is_told_what_is_gone(box: Any) -> None:
    pid = ask("driver", "its pid", box.pid.remote())
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RunError, match="driver: the mailbox, .* is gone .the new policy: .*the same command goes on"):
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
