"""Where the time of one chunk's search goes: network, decoder, copies to the host, rewards, noise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dav_ray.config.build import strategy
from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.noise import Draws, KeyedNoise
from dav_ray.rewards.base import Scorer
from dav_ray.search.turns import Turns, in_turns, join
from dav_ray.types import Chunk, Trajectories
from jobs.gpu_hour.record import Result
from jobs.gpu_hour.setting import Setting, chunk_of
from jobs.gpu_hour.spans import Span, Spans, covered
from jobs.gpu_hour.steps.base import Measure, Step, cells
from jobs.tables import Table

WORK = ("network", "decoder")
SEEN = ("network", "decoder", "copies", "reward", "noise")


class TimedNoise(KeyedNoise):
    """The same numbers."""

    def __init__(self, chunk: Chunk, spans: Spans) -> None:
        super().__init__(chunk.seed, chunk.round, chunk.trajectories)
        self._spans = spans

    def at(self, t: int) -> Draws:
        draws: Any = super().at(t)
        draws.normal = self._spans.timed("noise", draws.normal)
        return draws


class Timeline:
    """The model, whose calls leave spans."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._spans = setting, Spans(setting.device)
        self._diffusion: Any = setting.diffusion(setting.config())
        self._diffusion.predict = self._spans.timed("network", self._diffusion.predict)
        self._diffusion.decode = self._spans.timed("decoder", self._diffusion.decode)

    def measure(self, case: str) -> Result:
        """Of one chunk; another one before it warms up."""
        reward, _, parts = case.partition(", parts ")
        words = [self._setting.clip()] if reward == "CLIP" else []
        config = self._setting.config(f"search.parts={parts}", *words)
        scorer, chunk = self._scorer(self._setting.scorer(config)), chunk_of(config)
        self._search(config, scorer, chunk)
        self._spans.begin()
        with self._spans.span("chunk"):
            found = self._search(config, scorer, chunk)
        return {**summary(self._spans.read()), "images": found.cost.reward, "evaluations": found.cost.network}

    def _search(self, config: Any, scorer: Scorer, chunk: Chunk) -> Trajectories:
        """As a search worker does it."""
        search = strategy(config.search)

        def part(chunk: Chunk, turns: Turns) -> Trajectories:
            own: Any = scorer.of(chunk.name, turns.waiting)
            own.score_each = self._spans.timed("scores", own.score_each)
            with torch.no_grad():
                return search(self._diffusion, own, chunk.conditions, TimedNoise(chunk, self._spans))

        parts = chunk.parts(config.search.parts, together=config.search.facts.together)
        diffusion: Diffusion = self._diffusion
        return join(in_turns(Turns(diffusion), parts, part))

    def _scorer(self, scorer: Any) -> Scorer:
        return Scorer(scorer.names, [1.0] * len(scorer.names), self._spans.timed("reward", scorer._call))


def summary(spans: list[Span]) -> Result:
    """Shares of the chunk's seconds. busy: in which network or decoder worked. Copies are what asking for scores takes
    beyond the reward and beyond what else works meanwhile."""
    (whole,) = [end - start for name, start, end in spans if name == "chunk"]
    times = {name: covered(spans, [name]) for name in SEEN if name != "copies"}
    waits = ("reward", *WORK)
    times["copies"] = covered(spans, ("scores", *waits)) - covered(spans, waits)
    shares = {f"{name}_share": times[name] / whole for name in SEEN}
    return {"seconds": whole, "busy": covered(spans, WORK) / whole, **shares}


@contextlib.contextmanager
def opened(setting: Setting) -> Iterator[Measure]:
    yield Timeline(setting).measure


def table(results: Mapping[str, Result]) -> Table:
    keys = ("seconds", "images", "busy", *(f"{name}_share" for name in SEEN))
    header = ("reward", "s per chunk", "images", "network or decoder busy", *SEEN)
    return Table(
        "One chunk, shares of its time", header, tuple((case, *cells(r, *keys)) for case, r in results.items())
    )


CASES = ["JPEG, parts 1", "JPEG, parts 2", "CLIP, parts 1", "CLIP, parts 2"]
STEP = Step("timeline", lambda setting: CASES, opened, table)
