"""Sequential Monte Carlo over the particles of a prompt, each of which takes the steps of `Dav`.

    log W += logmeanexp_m(log w_m) - V(x_t),   V(x_T) := 0;   target after step t: anchor(x_{t-1..T}) exp(V(x_{t-1}))

Particles that carry little weight are replaced by copies of others (DAS, arXiv 2501.05803, resamples like this); all of
a population then take the log of its mean weight. The mean of the final weights, Z_hat, is an unbiased estimate of Z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.search.base import Scorer
from dav_ray.search.dav import Dav
from dav_ray.search.options import ADAPTIVE
from dav_ray.search.states import Expansion, Front
from dav_ray.search.weighting import tempering
from dav_ray.search.weighting.choices import ladder
from dav_ray.search.weighting.resampling import SCHEMES
from dav_ray.search.weighting.weights import by_condition, choose, effective_size, logmeanexp, probabilities, value
from dav_ray.types import Cost, Trajectories


@dataclass(frozen=True)
class Smc:
    """dav: what a particle does at each step (M = 1: plain SMC); particles P >= 1 per accepted trajectory; resampling:
    a key of `SCHEMES`; below: resample where less than this share of a population is effective (1: every step);
    tempering: discount, linear or adaptive(SHARE), which leaves Z_hat consistent, no longer unbiased.

    A population is all particles of a call with the same condition: P for each of its trajectories, which are drawn
    from it by its final weights. Each carries log Z_hat as its log W. P times the network evaluations of `dav`.
    """

    dav: Dav
    particles: int = 1
    resampling: str = "systematic"
    below: float = 0.5
    tempering: str = "discount"

    @torch.no_grad()
    def __call__(
        self, diffusion: Diffusion, scorer: Scorer, conditions: Sequence[str], noise: KeyedNoise
    ) -> Trajectories:
        before, calls = diffusion.cost, 0
        names = [c for c in conditions for _ in range(self.particles)]
        populations, draws = ([torch.tensor(r) for r in by_condition(c).values()] for c in (names, conditions))
        if self.particles > 1:
            noise = noise.copies(self.particles)
        front = Front.start(diffusion.prior(names, noise.at(diffusion.steps)))
        log_weight = torch.zeros(len(names), dtype=torch.float64)
        temper = torch.zeros(len(names), 1, dtype=torch.float64)
        states, lineage, sizes, ladders = [front.x], [], [], []
        for t in range(diffusion.steps, 0, -1):
            rng = noise.at(t - 1)
            ahead = self._fixed(temper, t - 1, diffusion.steps)
            step = self.dav.expand(diffusion, scorer, front, t, names, rng, ahead)
            temper = self._temper(step, front, log_weight, ahead, populations, t - 1)
            v = value(step.reward, self.dav.alpha, temper, t - 1)
            log_w = v + step.log_ratio
            log_weight = log_weight + logmeanexp(log_w) - front.value
            front, calls = step.keep(choose(log_w, rng.uniform(())), v), calls + step.calls
            states.append(front.x)
            sizes.append(_each(populations, draws, log_weight, effective_size))
            ladders.append([_each(populations, draws, each, ladder) for each in (front.value, log_weight)])
            num = draws if t == 1 else populations
            ancestors, log_weight = self._resample(log_weight, populations, num, rng.uniform(()), always=t == 1)
            lineage.append(ancestors)
            front = front.take(ancestors)
        choices = torch.stack([torch.stack(both, dim=1) for both in ladders]).mean(0)
        return Trajectories(
            trace(states, lineage),
            None,
            front.decoded,
            front.reward,
            log_weight,
            torch.stack(sizes).mean(0),
            diffusion.cost - before + Cost(reward=calls),
            torch.stack(sizes),
            each=front.each,
            choices=None if ADAPTIVE.fullmatch(self.tempering) else choices,
        )

    def _fixed(self, temper: Tensor, t: int, steps: int) -> Tensor:
        """[N, 1]: the temper of x_t; where it adapts, the one before, until the candidates are there to tell."""
        if ADAPTIVE.fullmatch(self.tempering):
            return temper
        return torch.full_like(temper, tempering.fixed(self.tempering, self.dav.gamma, t, steps))

    def _temper(
        self, step: Expansion, front: Front, log_weight: Tensor, ahead: Tensor, populations: list[Tensor], t: int
    ) -> Tensor:
        match = ADAPTIVE.fullmatch(self.tempering)
        if match is None:
            return ahead
        if t == 0:
            return torch.ones_like(ahead)
        temper = ahead.clone()
        for rows in populations:

            def increment(level: float, rows: Tensor = rows) -> Tensor:
                v = value(step.reward[rows], self.dav.alpha, level, t)
                return logmeanexp(v + step.log_ratio[rows]) - front.value[rows]

            temper[rows] = tempering.adaptive(float(match[1]), log_weight[rows], increment, float(ahead[rows[0]]))
        return temper

    def _resample(
        self, log_weight: Tensor, populations: list[Tensor], draws: list[Tensor], u: Tensor, always: bool
    ) -> tuple[Tensor, Tensor]:
        """Ancestors, and the weights after: draws[k] are the places that population k fills."""
        size = sum(len(places) for places in draws)
        ancestors = torch.empty(size, dtype=torch.int64)
        after = torch.empty(size, dtype=torch.float64)
        for rows, places in zip(populations, draws, strict=True):
            weights = log_weight[rows].unsqueeze(0)
            if always or float(effective_size(weights)) < self.below * len(rows):
                picked = SCHEMES[self.resampling](probabilities(weights)[0], len(places), u[rows])
                ancestors[places], after[places] = rows[picked], logmeanexp(weights)
            else:
                ancestors[places], after[places] = rows, log_weight[rows]
        return ancestors, after


def trace(states: list[Tensor], lineage: list[Tensor]) -> Tensor:
    """The paths that lead to the last ancestors: states [T+1] of [N, *event], lineage [T] of rows of the states that
    each step ended with -> [T+1, B, *event]."""
    rows, path = lineage[-1], []
    for step in range(len(lineage), 0, -1):
        path.append(states[step][rows.to(states[step].device)])
        rows = lineage[step - 2][rows] if step > 1 else rows
    path.append(states[0][rows.to(states[0].device)])
    return torch.stack(path[::-1])


def _each(
    populations: list[Tensor], draws: list[Tensor], values: Tensor, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """For every accepted trajectory what `measure` [1, P] -> [1, ...] says of the values of its population."""
    found = [measure(values[rows].unsqueeze(0))[0] for rows in populations]
    each = found[0].new_empty(sum(map(len, draws)), *found[0].shape)
    for one, places in zip(found, draws, strict=True):
        each[places] = one
    return each
