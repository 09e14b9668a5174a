"""Options that are off by default: what each saves on the workloads, and by how much it moves the law of what is
accepted, enumerated on the masked model that is small enough for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dav_ray.config.families.table import family_of
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.search.kinds import change, counts, unscored
from dav_ray.search.options import Search
from dav_ray.search.weighting.weights import value
from dav_ray.testing.enumerable import Scores, distance, model, tilted
from dav_ray.testing.soft_values import accepted_law, guessed_values
from jobs.performance.options import Found, Options
from jobs.performance.parts.draft import draft_vae
from jobs.performance.parts.search import search
from jobs.performance.timing import Series, in_turn, seconds
from jobs.performance.workloads import Workload, workload
from jobs.tables import Table

ALPHA, GAMMA, STEPS, CANDIDATES = 1.0, 0.7, 12, 4
MASKED = {
    "score every 2nd step": ["search.score_every=2"],
    "score every 4th step": ["search.score_every=4"],
    "bfloat16": ["search.precision=bfloat16"],
    "torch.compile": ["search.compile=true"],
}
IMAGES = {"channels-last": ["model.channels_last=true"]}


@dataclass(frozen=True)
class Saving:
    """Series: seconds per accepted sample; gap: total variation between the choices of a step with the option and
    without it, among the same candidates, mean over steps and trajectories."""

    workload: str
    option: str
    evaluations: float
    plain: Series
    times: Series
    gap: float

    def row(self) -> tuple[str, ...]:
        saved = self.plain.over(self.times).show()
        return self.workload, self.option, f"{self.evaluations:.0f}", saved, f"{self.gap:.2g}"


@dataclass(frozen=True)
class Error:
    """On the enumerable problem: unscored steps, evaluations per sample, total variation of the accepted law to that
    without the option (`bound`: what it can be at most) and to the target."""

    option: str
    skipped: int
    evaluations: int
    moved: float
    bound: float | None
    target: float

    def row(self) -> tuple[str, ...]:
        bound = "" if self.bound is None else f"{self.bound:.3f}"
        words = self.option, str(self.skipped), str(self.evaluations)
        return *words, f"{self.moved:.4f}", bound, f"{self.target:.3f}"


def run(options: Options) -> Found:
    savings = [saving for name in options.workloads for saving in _savings(name, options)]
    header = ("workload", "option", "network evaluations", "without / with, s per sample", "a step's choice moved, TV")
    saved = Table("Options: what they save", header, tuple(each.row() for each in savings))
    errors = laws()
    return Found([saved, enumerated(errors)], [*savings, *errors])


def enumerated(errors: Sequence[Error]) -> Table:
    header = ("option", "steps not scored", "network evaluations", "TV to without", "bound", "TV to the target")
    return Table("Options: the law of accepted samples, enumerated", header, tuple(each.row() for each in errors))


def _savings(name: str, options: Options) -> list[Saving]:
    plain = workload(name, options.out, options.device)
    words = dict(MASKED)
    if not family_of(plain.config.model).discrete:
        draft = [f"model.draft_vae={draft_vae(plain, options.out)}", "model.draft_above=0"]
        words |= {**IMAGES, "draft VAE": draft}
    works = {option: workload(name, options.out, options.device, given) for option, given in words.items()}
    evaluations = {option: search(work).cost.network / work.batch for option, work in works.items()}
    contenders = {
        option: lambda work=work: seconds(lambda: search(work), work.device) / work.batch
        for option, work in {"": plain, **works}.items()
    }
    times = in_turn(contenders, options.turns)
    return [
        Saving(name, option, evaluations[option], times[""], times[option], choice_gap(plain, work))
        for option, work in works.items()
    ]


@torch.no_grad()
def choice_gap(plain: Workload, work: Workload) -> float:
    """Mean total variation, over the steps t > 1 of plain's own search of the chunk."""
    settings, conditions, gaps = plain.config.search, plain.chunk.conditions, []
    noise = KeyedNoise(1, 0, plain.chunk.trajectories)
    for t, x in zip(range(settings.steps, 1, -1), search(plain).states, strict=False):
        drawn = plain.diffusion.predict(x, t, conditions).kernel.sample(settings.candidates, noise.at(t - 1))
        first, second = (torch.softmax(_values(w, drawn, t - 1), 1) for w in (plain, work))
        gaps.append(0.5 * (first - second).abs().sum(1).mean())
    return float(torch.stack(gaps).mean())


def _values(work: Workload, candidates: Tensor, t: int) -> Tensor:
    """V of candidates x_t [B, M, *event] as the workload's search has it, [B, M] float64."""
    settings = work.config.search
    if t in unscored(settings):
        return torch.zeros(candidates.shape[:2], dtype=torch.float64)
    names = [c for c in work.chunk.conditions for _ in range(candidates.shape[1])]
    guess = work.diffusion.predict(candidates.flatten(0, 1), t, names).x0_hat
    rewards = work.scorer.score(work.diffusion.decode(guess, names, t), names)
    return value(rewards.reshape(candidates.shape[:2]), settings.alpha, settings.gamma**t, t)


def laws() -> list[Error]:
    """Of every option, by enumeration."""
    diffusion, reward = model(1, steps=STEPS), Scores(1)
    target, values = tilted(diffusion, reward, ALPHA)[0], guessed_values(diffusion, reward, ALPHA, GAMMA)
    whole = accepted_law(diffusion, values, CANDIDATES)
    spread = float(reward.table.max() - reward.table.min())
    found = []
    for name, words in {
        "all off": {},
        "score every 2nd step": {"score_every": 2},
        "score every 4th step": {"score_every": 4},
        "skip below .05": {"negligible": 0.05, "spread": spread},
        "skip below .1": {"negligible": 0.1, "spread": spread},
        "skip below .3": {"negligible": 0.3, "spread": spread},
    }.items():
        settings = Search(steps=STEPS, candidates=CANDIDATES, alpha=ALPHA, gamma=GAMMA, **words)
        skipped = unscored(settings)
        accepted = accepted_law(diffusion, values, CANDIDATES, unscored=skipped)
        bound = sum(change(settings, t) for t in skipped) if "spread" in words else None
        found.append(
            Error(name, len(skipped), counts(settings)[0], distance(accepted, whole), bound, distance(accepted, target))
        )
    return [*found, _rounded(whole, target, reward)]


def _rounded(whole: torch.Tensor, target: torch.Tensor, reward: Scores) -> Error:
    """The network's logits in bfloat16: other probabilities, and here and there another guess."""
    half = model(1, steps=STEPS)
    table = half.trainable().linear
    with torch.no_grad():
        table.copy_(table.bfloat16().float())
    accepted = accepted_law(half, guessed_values(half, reward, ALPHA, GAMMA), CANDIDATES)
    evaluations = counts(Search(steps=STEPS, candidates=CANDIDATES))[0]
    return Error("bfloat16", 0, evaluations, distance(accepted, whole), None, distance(accepted, target))
