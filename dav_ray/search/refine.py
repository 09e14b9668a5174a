"""Refine: search, then re-noise what was found to an earlier step and search again from there.

After each repeat one of the two samples is kept, drawn from softmax(r / alpha). For rewards that a guess x0_hat says
little of until most of a sample stands: the search then works on whole samples. A round can go on from samples of the
last one (`Starts`), so that rounds build on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.search.base import Scorer
from dav_ray.search.dav import Dav
from dav_ray.search.warm_start import Starts
from dav_ray.search.weighting.weights import choose
from dav_ray.types import Cost, Trajectories


@dataclass(frozen=True)
class Refine:
    """repeats R >= 1; depth in (0, 1]: how far back to go, as a share of T (s = depth T steps).

    Network evaluations per trajectory: those of `dav`, unless it has a start, and R (1 + (s-1) M). The choice between
    whole samples leaves no valid trajectory weight.
    """

    dav: Dav
    repeats: int
    depth: float

    @torch.no_grad()
    def __call__(
        self,
        diffusion: Diffusion,
        scorer: Scorer,
        conditions: Sequence[str],
        noise: KeyedNoise,
        starts: Starts | None = None,
    ) -> Trajectories:
        found = self._begin(diffusion, scorer, conditions, noise, starts)
        steps = max(1, round(self.depth * diffusion.steps))
        states, sample, reward, ess, cost = found.states, found.sample, found.reward, found.ess, found.cost
        each, choices = found.each, []
        for repeat in range(1, self.repeats + 1):
            rng = noise.nth(repeat)
            back = diffusion.renoise(states[-1], 0, steps, conditions, rng.at(diffusion.steps + 1))
            again = self.dav.descend(diffusion, scorer, back, steps, conditions, rng)
            pair = torch.stack([reward, again.reward], dim=1) / self.dav.alpha
            new = choose(pair, rng.at(diffusion.steps + 2).uniform(())).bool()
            path = self._whole(diffusion, again.states, conditions, rng)
            states, sample = _where(new, path, states, dim=1), _where(new, again.sample, sample, dim=0)
            reward, ess = torch.where(new, again.reward, reward), torch.where(new, again.ess, ess)
            each = _where(new, _given(again.each), _given(each), dim=0)
            cost = cost + again.cost
            choices += [again.choices] if again.choices is not None else []
        chosen = torch.stack(choices).mean(0) if choices else None
        return Trajectories(states, None, sample, reward, None, ess, cost, each=each, choices=chosen)

    def _begin(
        self,
        diffusion: Diffusion,
        scorer: Scorer,
        conditions: Sequence[str],
        noise: KeyedNoise,
        starts: Starts | None,
    ) -> Trajectories:
        """The starts, under paths that the forward process drew, and for the other trajectories a search from x_T."""
        if starts is None:
            return self.dav(diffusion, scorer, conditions, noise)
        path = self._whole(
            diffusion, starts.x_0.unsqueeze(0), [conditions[i] for i in starts.rows], noise.take(starts.rows)
        )
        known = Trajectories(path, None, starts.sample, starts.reward, None, starts.ess, Cost(), each=starts.each)
        others = [i for i in range(len(conditions)) if i not in starts.rows]
        if not others:
            return known
        found = self.dav(diffusion, scorer, [conditions[i] for i in others], noise.take(others))
        return _joined(known, found, torch.tensor([*starts.rows, *others]).argsort().tolist())

    def _whole(self, diffusion: Diffusion, states: Tensor, conditions: Sequence[str], noise: KeyedNoise) -> Tensor:
        """[s+1, B, *event] -> [T+1, B, *event]: the forward process leads from x_s on to x_T."""
        path = list(states)
        for t in range(len(states) - 1, diffusion.steps):
            path.insert(0, diffusion.renoise(path[0], t, t + 1, conditions, noise.at(t + 1)))
        return torch.stack(path)


def _joined(a: Trajectories, b: Trajectories, order: list[int]) -> Trajectories:
    """The trajectories of a and b together, taken in an order."""
    return Trajectories(
        torch.cat([a.states, b.states], dim=1)[:, order],
        None,
        torch.cat([a.sample, b.sample])[order],
        torch.cat([a.reward, b.reward])[order],
        None,
        torch.cat([a.ess, b.ess])[order],
        a.cost + b.cost,
        each=torch.cat([_given(a.each), _given(b.each)])[order],
    )


def _given(each: Tensor | None) -> Tensor:
    assert each is not None, "every search says what each reward said"
    return each


def _where(new: Tensor, a: Tensor, b: Tensor, dim: int) -> Tensor:
    """a where new [B], else b; trajectories are along `dim`."""
    shape = [1] * a.ndim
    shape[dim] = len(new)
    return torch.where(new.to(a.device).reshape(shape), a, b)
