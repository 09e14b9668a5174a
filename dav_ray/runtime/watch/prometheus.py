"""The run's metrics on Ray's Prometheus endpoints: the records of metrics.jsonl and a few live numbers.

`reward/mean` becomes `ray_dav_reward_mean` (Ray puts `ray_` in front); of a family of measures the last word becomes a
tag. Everything has the tag `run`. What is in no table below is not exported; a value that is not finite withdraws its
series. Ray keeps a gauge's value for two reports (20 s) only, so a thread says everything again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from ray.util.metrics import Counter, Gauge

REPEAT_S = 1.0  # as often as Ray can be set to report
RECORDS = {
    "reward/mean": "Reward of the round's accepted samples, mean of the finite ones.",
    "reward/std": "Reward of the round's accepted samples, standard deviation.",
    "search/ess": "Effective number of candidates per step.",
    "search/nfe_per_sample": "Network evaluations per accepted sample.",
    "search/samples_per_s": "Accepted samples per second of search.",
    "search/reward_wait_share": "Share of the search workers' time with chunks in which they wait for rewards.",
    "search/decode_share": "Share of the search workers' time with chunks in which they decode samples.",
    "search/tflops": "TFLOPS of a search worker while it computes, network and decoding, mean over all.",
    "mstep/nll": "Negative log-likelihood per trajectory, in nats.",
    "mstep/kl": "KL to the pretrained model per trajectory, in nats.",
    "mstep/grad_norm": "Gradient norm before clipping, mean over the round.",
    "time/estep_s": "Seconds of the round's search.",
    "time/mstep_s": "Seconds of the round's training.",
}
FAMILIES = {  # record's first word -> tag for its last, meaning
    "reward": (
        "reward",
        "Each of several rewards of accepted samples, unweighted, mean of the finite ones.",
    ),
    "util": ("role", "Busy share of the role's actors; of search workers, what they compute."),
    "chunk_s": ("device", "Seconds that a search worker takes for a chunk, median by kind of device."),
    "group_chunk_s": ("group", "Seconds that a search worker takes for a chunk, median by group of nodes."),
    "peak_share": ("device", "Share of a known GPU's peak that a search worker reaches while it computes."),
    "diversity": ("measure", "Diversity of fresh samples without search."),
    "heldout": ("measure", "Held-out measures of fresh samples without search."),
}
LIVE = {  # name -> tags, meaning
    "round": ((), "Round of the last committed chunk."),
    "chunks_outstanding": ((), "Chunks handed out and not back."),
    "workers": (("role",), "Actors that work or could."),
}
COMMITTED = "dav_chunks_committed"  # Ray adds `_total` to counters
TABLES: dict[str, tuple[tuple[str, ...], str]] = {
    **{f"dav_{record.replace('/', '_')}": ((), text) for record, text in RECORDS.items()},
    **{f"dav_{family}": ((tag,), text) for family, (tag, text) in FAMILIES.items()},
    **{f"dav_{name}": entry for name, entry in LIVE.items()},
}


class Prometheus:
    """What a run exports, as long as the context lasts. run: the value of the tag."""

    def __init__(self, run: str) -> None:
        own: dict[str, str] = {"run": run}
        self._gauges = {
            name: Gauge(name, text, ("run", *tags)).set_default_tags(own) for name, (tags, text) in TABLES.items()
        }
        self._committed = Counter(COMMITTED, "Chunks committed since the driver started.", ("run",))
        self._committed.set_default_tags(own)
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="prometheus", daemon=True)

    def __enter__(self) -> Prometheus:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()

    def record(self, values: Mapping[str, float]) -> None:
        """A record of metrics.jsonl."""
        for record, value in values.items():
            family, _, last = record.partition("/")
            if record in RECORDS:
                self._set(f"dav_{record.replace('/', '_')}", value, {})
            elif family in FAMILIES and record != "reward/infeasible":  # a count, no reward
                self._set(f"dav_{family}", value, {FAMILIES[family][0]: last})

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """An event of events.jsonl: some tell how far the run is."""
        if name == "chunk_committed":
            self._committed.inc()
        if name in ("driver_started", "chunk_committed"):
            self.live("round", fields["round"])

    def live(self, name: str, value: float, **tags: str) -> None:
        """A number of the moment, one of `LIVE`."""
        self._set(f"dav_{name}", value, tags)

    def _set(self, name: str, value: float, tags: dict[str, str]) -> None:
        series = name, tuple(sorted(tags.items()))
        with self._lock:
            if not math.isfinite(value):
                self._values.pop(series, None)
                return
            self._values[series] = value
        self._gauges[name].set(value, tags)

    def _repeat(self) -> None:
        while not self._end.wait(REPEAT_S):
            with self._lock:
                values = list(self._values.items())
            for (name, tags), value in values:
                self._gauges[name].set(value, dict(tags))
