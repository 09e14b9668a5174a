"""Telling the user, once, that a search chooses idly or blindly, and which alpha to try."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dav_ray.config.partition import spans
from dav_ray.report.table import read_metrics
from dav_ray.runtime.accepted import Accepted
from dav_ray.search.options import Search
from dav_ray.search.weighting.choices import Verdict, judge
from dav_ray.search.weighting.temperature import in_sd, magnitude
from dav_ray.strict import parse_object

if TYPE_CHECKING:
    from dav_ray.run_dir.records import RunLog
    from dav_ray.run_dir.storage.interface import Storage
    from dav_ray.runtime.watch.progress import Progress

EVENT = "search_choice"
START = 0.1  # standard deviations of the pretrained reward: an alpha to begin with
_FAULT = {
    "idle": "search.alpha = {} is so large that the reward decides nothing",
    "blind": "search.alpha = {} is so small that one of them decides alone",
}


def alternatives(search: Search, conditions: Sequence[str]) -> float:
    """Among how many a step chooses: M candidates (smc: the particles of a population, mean over trajectories; their
    number is that of the condition's in the chunk). 1 where nothing is chosen by weight. conditions: of the round."""
    chooses = search.facts.chooses
    if chooses != "particles":
        return float(search.candidates) if chooses else 1.0
    chunks = [[conditions[i] for i in span] for span in spans(len(conditions), search.chunk)]
    return float(np.mean([search.particles * chunk.count(name) for chunk in chunks for name in chunk]))


def look(found: Sequence[Accepted], most: float, alpha: float) -> Verdict | None:
    """What is wrong with a round's choices; nothing where none of its chunks was searched by this driver."""
    measured = [
        (np.array(s.choices), len(s.rewards)) for s in (chunk.scores for chunk in found) if s.choices is not None
    ]
    if not measured:
        return None
    sizes, rows = zip(*measured, strict=True)
    by_value, by_weight = np.average(np.stack(sizes), axis=0, weights=rows).tolist()
    return judge(by_value, by_weight, most, alpha)


def astray(blind: Verdict, alpha: float, deviation: float) -> Verdict:
    """The verdict on a blind search whose proposal is tilted by the gradient. A tilt so strong leads to states whose
    candidates say nothing of another alpha's; the one to try is START standard deviations of the pretrained reward."""
    return replace(blind, alpha=START * deviation) if alpha < START * deviation else blind


def in_words(verdict: Verdict, search: Search, alpha: float) -> str:
    """One line. alpha: the run's, in the reward's unit; search.alpha as it is typed may be in standard deviations."""
    what = search.facts.chooses
    fault = _FAULT[verdict.kind].format(search.alpha if in_sd(search.alpha) else f"{alpha:.4g}")
    advice = f"try search.alpha={typed(verdict.alpha, search, alpha)}" if verdict.alpha else "no other would change it"
    return f"search: {verdict.ess:.4g} of {verdict.most:.4g} {what} count in a step: {fault}; {advice}"


def typed(suggested: float, search: Search, alpha: float) -> str:
    """As it is to be typed, in the unit of search.alpha, two digits."""
    if not in_sd(search.alpha):
        return f"{suggested:.2g}"
    return f"{suggested / alpha * magnitude(search.alpha):.2g}sd"


class ChoiceHints:
    """Says each kind of fault once in a run, also if the driver is another by then."""

    def __init__(self, search: Search, storage: Storage, log: RunLog, progress: Progress) -> None:
        self._search, self._storage, self._log, self._progress = search, storage, log, progress
        self._told: set[str] = set()

    def tell(self, round: int, found: Sequence[Accepted], most: float, alpha: float) -> None:
        verdict = look(found, most, alpha)
        if verdict is None or verdict.kind in self._told:
            return
        if not self._told:
            self._told = self._earlier()
        if verdict.kind not in self._told:
            if verdict.kind == "blind" and self._search.gradient:
                deviation = read_metrics(self._storage).get((0, "evaluate"), {}).get("evaluate/reward_std", 0.0)
                verdict = astray(verdict, alpha, deviation)
            suggested = {"suggested": typed(verdict.alpha, self._search, alpha)} if verdict.alpha else {}
            fields = {"kind": verdict.kind, "ess": verdict.ess, "of": verdict.most, "alpha": alpha, **suggested}
            self._log.event(EVENT, round=round, **fields)
            self._progress.say(in_words(verdict, self._search, alpha))
            self._told.add(verdict.kind)

    def _earlier(self) -> set[str]:
        found = set[str]()
        for line in self._storage.read_lines("events.jsonl"):
            if f'"{EVENT}"' in line:
                with contextlib.suppress(ValueError):  # a torn line
                    found.add(str(parse_object(line).get("kind")))
        return found
