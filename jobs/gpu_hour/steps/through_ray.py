"""A few chunks through a search worker, rewards, dispatcher, shards and manifest on Ray; the reward on the host, or of
CLIP's size on the same card."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping

import torch

from jobs.gpu_hour.record import Result
from jobs.gpu_hour.setting import Setting, chunk_of
from jobs.gpu_hour.steps.base import Measure, Step, cells
from jobs.performance.pipeline import pipeline
from jobs.tables import Table

CHUNKS = 3
SHARES = ("roles.search.gpus=0.8", "roles.reward.gpus=0.2")
CASES = ["JPEG, parts 1", "JPEG, parts 2", "CLIP, parts 1"]


class Utilisation:
    """Percent of the time in which the card worked, as nvidia-smi sees it every half second; None without it."""

    def __init__(self) -> None:
        self._over, self._seen = threading.Event(), []
        self._command = shutil.which("nvidia-smi")

    def __enter__(self) -> Utilisation:
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()

    @property
    def mean(self) -> float | None:
        return sum(self._seen) / len(self._seen) / 100 if self._seen else None

    def _watch(self) -> None:
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while self._command and not self._over.wait(0.5):
            done = subprocess.run([self._command, *query], capture_output=True, text=True)
            if done.stdout.strip().isdecimal():
                self._seen.append(float(done.stdout))


@contextlib.contextmanager
def opened(setting: Setting) -> Iterator[Measure]:
    def measure(case: str) -> Result:
        reward, _, parts = case.partition(", parts ")
        on_card = reward == "CLIP"
        words = [setting.clip()] if on_card else []
        if setting.device == "cuda":
            words += SHARES if on_card else SHARES[:1]
        else:
            words += ["roles.search.gpus=0", *(f"roles.{role}.cpus=0.5" for role in ("search", "reward", "train"))]
        config = setting.config(f"search.parts={parts}", *words, "roles.train.gpus=0")
        chunk = chunk_of(config)
        with torch.no_grad(), pipeline(config, "gpu-hour", setting.out) as through:
            through.seconds(chunk, 1)
            with Utilisation() as card:
                took = through.seconds(chunk, CHUNKS) / CHUNKS
        return {"seconds": took, "samples_per_s": len(chunk.conditions) / took, "utilisation": card.mean}

    yield measure


def table(results: Mapping[str, Result]) -> Table:
    header = ("reward", "s per chunk", "samples/s", "card busy (nvidia-smi)")
    rows = tuple((case, *cells(each, "seconds", "samples_per_s", "utilisation")) for case, each in results.items())
    return Table("Through Ray", header, rows)


STEP = Step("pipeline", lambda setting: CASES[:1] + CASES[2:] if setting.tiny else CASES, opened, table)
