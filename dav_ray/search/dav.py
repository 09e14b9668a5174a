"""The E-step of DAV (arXiv 2510.00502, algorithm 1): at every step draw M candidates, keep one by its weight.

    log w_m = V(x_m) + log p_anchor(x_m | x_t) - log q(x_m | x_t),   keep m ~ softmax(log w)
    log W   = sum_{t=1..T} logmeanexp_m(log w_m at t) - sum_{t=1..T-1} V(x_t)

log W makes the accepted trajectories properly weighted for anchor(tau) exp(r(x_0) / alpha), at any M.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dav_ray.diffusion.base import Diffusion, Kernel, Prediction, uncounted_if_failed
from dav_ray.diffusion.noise import Draws, KeyedNoise
from dav_ray.search.base import Scorer
from dav_ray.search.states import Expansion, Front, Known, Parents, Reuse
from dav_ray.search.weighting.choices import Choices
from dav_ray.search.weighting.weights import choose, effective_size, logmeanexp, value
from dav_ray.types import Cost, Trajectories


@dataclass(frozen=True)
class Dav:
    """candidates M >= 1; alpha > 0; gamma in (0, 1]; gradient: tilt the proposal; beta: share of the pretrained model
    in the anchor p_theta^(1-beta) p_theta0^beta (0 current, 1 pretrained); blend: return targets that carry all
    candidates to the M-step; complete: return each winner's x0_hat as the target of its step.

    unscored: steps t whose states nobody scores (`kinds.unscored`): they are drawn as the model draws them, V := 0.

    ratio: log p_anchor - log q summed over dimensions, or their mean, as the authors' released code takes it; choice:
    draw the candidate to keep, or take the best. With `mean` and `best` trajectories carry no weight.

    Network evaluations per trajectory: 1 + (T-1) M without gradient (the winner's prediction serves the next step),
    T + (T-1) M with it; T reference evaluations more where beta > 0. Fewer with a timeless network (`Reuse`).
    """

    candidates: int
    alpha: float
    gamma: float
    gradient: bool
    beta: float
    blend: bool = False
    complete: bool = False
    ratio: Literal["sum", "mean"] = "sum"
    choice: Literal["draw", "best"] = "draw"
    unscored: frozenset[int] = frozenset()

    @torch.no_grad()
    def __call__(
        self, diffusion: Diffusion, scorer: Scorer, conditions: Sequence[str], noise: KeyedNoise
    ) -> Trajectories:
        x = diffusion.prior(conditions, noise.at(diffusion.steps))
        return self.descend(diffusion, scorer, x, diffusion.steps, conditions, noise)

    @torch.no_grad()
    def descend(
        self, diffusion: Diffusion, scorer: Scorer, x: Tensor, start: int, conditions: Sequence[str], noise: KeyedNoise
    ) -> Trajectories:
        """Search from the states x at step `start` on; the trajectories begin there, and so do their weights."""
        before, calls = diffusion.cost, 0
        front = Front.start(x)
        states, targets, sizes, choices = [x], [], [], Choices()
        log_weight = torch.zeros(len(conditions), dtype=torch.float64)
        for t in range(start, 0, -1):
            rng = noise.at(t - 1)
            if t - 1 in self.unscored:
                log_weight -= front.value
                front = self._walk(diffusion, front, t, conditions, rng)
                states.append(front.x)
                if self.blend:
                    targets.append(front.x)
                continue
            step = self.expand(diffusion, scorer, front, t, conditions, rng, self.gamma ** (t - 1))
            v = value(step.reward, self.alpha, self.gamma ** (t - 1), t - 1)
            log_w = v + step.log_ratio
            column = log_w.argmax(1) if self.choice == "best" else choose(log_w, rng.uniform(()))
            log_weight += logmeanexp(log_w) - front.value
            front, calls = step.keep(column, v), calls + step.calls
            if not diffusion.deterministic(t):
                sizes.append(effective_size(log_w))
                choices.add(v, step.log_ratio, tilted=self.gradient)
            if self.blend:
                targets.append(step.blend(log_w))
            elif self.complete:
                targets.append(front.decoded)
            states.append(front.x)
        step_ess = torch.stack(sizes) if sizes else None
        return Trajectories(
            torch.stack(states),
            torch.stack(targets) if targets else None,
            front.decoded,
            front.reward,
            log_weight if self.ratio == "sum" and self.choice == "draw" else None,
            torch.ones_like(log_weight) if step_ess is None else step_ess.mean(0),
            diffusion.cost - before + Cost(reward=calls),
            step_ess,
            each=front.each,
            choices=choices.mean() if self.choice == "draw" else None,
        )

    def _walk(self, diffusion: Diffusion, front: Front, t: int, conditions: Sequence[str], rng: Draws) -> Front:
        """x_{t-1} as the model draws it: nobody has evaluated or scored it."""
        prediction = front.prediction or diffusion.predict(front.x, t, conditions)
        return Front.start(prediction.kernel.sample(1, rng)[:, 0])

    def expand(
        self,
        diffusion: Diffusion,
        scorer: Scorer,
        front: Front,
        t: int,
        conditions: Sequence[str],
        rng: Draws,
        temper: float | Tensor,
    ) -> Expansion:
        """The candidates x_{t-1} of the states x_t, and what the choice among them needs. temper: of the gradient."""
        prediction, q, asked = self._propose(diffusion, scorer, front, t, conditions, temper)
        candidates = q.sample(1 if diffusion.deterministic(t) else self.candidates, rng)
        log_ratio = self._log_ratio(diffusion, prediction.kernel, q, candidates, front.x, t, conditions)
        score = self._score_distinct if diffusion.timeless else self._score
        parents = Parents(front.x, prediction, front.known, conditions)
        children, known, calls = score(diffusion, scorer, parents, candidates, t - 1)
        return Expansion(candidates, q, log_ratio, children, known, asked + calls)

    def _propose(
        self,
        diffusion: Diffusion,
        scorer: Scorer,
        front: Front,
        t: int,
        conditions: Sequence[str],
        temper: float | Tensor,
    ) -> tuple[Prediction, Kernel, int]:
        """The prediction at x_t, the proposal q, and the number of reward calls this took."""
        if not self.gradient or diffusion.deterministic(t):
            prediction = front.prediction or diffusion.predict(front.x, t, conditions)
            return prediction, prediction.kernel, 0
        scale = torch.as_tensor(temper / self.alpha, dtype=torch.float64).reshape(-1, 1).expand(len(front.x), 1)

        def slope(rows: slice) -> tuple[Prediction, Tensor]:
            with uncounted_if_failed(diffusion):
                return self._slope(diffusion, scorer, front.x[rows], t, conditions[rows], scale[rows])

        parts = list(diffusion.graphs.each(len(front.x), slope))
        prediction = functools.reduce(Prediction.join, (part for part, _ in parts))
        return prediction, prediction.kernel.tilt(torch.cat([g for _, g in parts])), len(conditions)

    def _slope(
        self, diffusion: Diffusion, scorer: Scorer, x: Tensor, t: int, conditions: Sequence[str], scale: Tensor
    ) -> tuple[Prediction, Tensor]:
        """The prediction at x, and the gradient of scale [B, 1] times the reward of its x0_hat."""
        with torch.enable_grad():
            leaf = diffusion.relax(x).detach().requires_grad_()
            prediction = diffusion.predict(leaf, t, conditions)
            decoded = diffusion.decode(prediction.x0_hat, conditions, t)
        # dr/dsample may come from another process; the chain rule through decode and network is finished here.
        _, slope = scorer.score_and_grad(decoded.detach(), conditions)
        each = scale.to(slope.dtype).reshape(-1, *[1] * (slope.ndim - 1))
        (g,) = torch.autograd.grad(decoded, leaf, grad_outputs=(each * slope).to(decoded))
        return Prediction(prediction.kernel.detach(), diffusion.harden(prediction.x0_hat.detach())), g

    def _log_ratio(
        self,
        diffusion: Diffusion,
        kernel: Kernel,
        q: Kernel,
        candidates: Tensor,
        x: Tensor,
        t: int,
        conditions: Sequence[str],
    ) -> Tensor:
        """log p_anchor(x_m | x_t) - log q(x_m | x_t), [B, M] float64; zero where the step has no density."""
        if diffusion.deterministic(t) or (q is kernel and self.beta == 0):
            return torch.zeros(candidates.shape[:2], dtype=torch.float64)
        anchor = torch.zeros(candidates.shape[:2], dtype=torch.float64, device=candidates.device)
        if self.beta < 1:
            anchor += (1 - self.beta) * kernel.log_prob(candidates)
        if self.beta > 0:
            pretrained = diffusion.predict(x, t, conditions, reference=True).kernel
            anchor += self.beta * pretrained.log_prob(candidates)
        log_ratio = (anchor - q.log_prob(candidates)).cpu()
        return log_ratio if self.ratio == "sum" else log_ratio / x[0].numel()

    def _score(
        self, diffusion: Diffusion, scorer: Scorer, parents: Parents, candidates: Tensor, t: int
    ) -> tuple[Prediction | None, Known, int]:
        """Predictions at the candidates x_t (none at t = 0), what was decoded of them and its rewards, all [B * M]; the
        number of reward calls."""
        num = candidates.shape[1]
        flat = candidates.flatten(0, 1)
        repeated = [c for c in parents.conditions for _ in range(num)]
        children = diffusion.predict(flat, t, repeated) if t > 0 else None
        decoded = diffusion.decode(children.x0_hat if children else flat, repeated, t)
        return children, Known(decoded, *scorer.score_each(decoded, repeated)), len(flat)

    def _score_distinct(
        self, diffusion: Diffusion, scorer: Scorer, parents: Parents, candidates: Tensor, t: int
    ) -> tuple[Prediction | None, Known, int]:
        """The same where equal states are evaluated once, network and reward. x0_hat does not depend on t either, so
        what is known of a parent holds for the children that equal it."""
        num, conditions, known = candidates.shape[1], parents.conditions, parents.known
        reuse = Reuse.of(parents.x, candidates)
        fresh = candidates.flatten(0, 1)[reuse.rows.to(candidates.device)]
        names = [conditions[int(i)] for i in reuse.rows // num]
        children, calls = None, len(fresh)
        if t > 0:
            pool = diffusion.move(parents.prediction, t)
            if len(fresh):
                pool = pool.join(diffusion.predict(fresh, t, names))
            children, fresh = pool.take(reuse.source.to(candidates.device)), pool.x0_hat[len(conditions) :]
        if known is None:
            known, calls = self._parents(diffusion, scorer, parents, reuse.parents, t + 1), calls + len(reuse.parents)
        if len(fresh):
            decoded = diffusion.decode(fresh, names, t)
            known = known.join(Known(decoded, *scorer.score_each(decoded, names)))
        return children, known.take(reuse.source), calls

    def _parents(self, diffusion: Diffusion, scorer: Scorer, parents: Parents, rows: Tensor, t: int) -> Known:
        """What is known of parents x_t that no step has scored: rewards of the chosen rows [K] alone are asked for."""
        decoded = diffusion.decode(parents.prediction.x0_hat, parents.conditions, t)
        if not len(rows):
            return Known.of_none(decoded)
        names = [parents.conditions[int(i)] for i in rows]
        return Known.of_some(decoded, rows, *scorer.score_each(decoded[rows.to(decoded.device)], names))
