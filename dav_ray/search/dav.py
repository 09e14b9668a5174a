"""The E-step of DAV (arXiv 2510.00502, algorithm 1): at every step draw M candidates, keep one by its weight.

    log w_m = V(x_m) + log p_anchor(x_m | x_t) - log q(x_m | x_t),   keep m ~ softmax(log w)
    log W   = sum_{t=1..T} logmeanexp_m(log w_m at t) - sum_{t=1..T-1} V(x_t)

log W makes the accepted trajectories properly weighted for anchor(tau) exp(r(x_0) / alpha), at any M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dav_ray.diffusion.base import Diffusion, Kernel, Prediction
from dav_ray.noise import KeyedNoise
from dav_ray.search.base import Scorer
from dav_ray.search.weights import choose, effective_size, logmeanexp, probabilities, value
from dav_ray.types import Cost, Trajectories


@dataclass(frozen=True)
class Dav:
    """candidates M >= 1; alpha > 0; gamma in (0, 1]; gradient: tilt the proposal; beta: share of the pretrained model
    in the anchor p_theta^(1-beta) p_theta0^beta (0 current, 1 pretrained); blend: return targets that carry all
    candidates to the M-step.

    Network evaluations per trajectory: 1 + (T-1) M without gradient (the winner's prediction serves the next step),
    T + (T-1) M with it; T reference evaluations more where beta > 0.
    """

    candidates: int
    alpha: float
    gamma: float
    gradient: bool
    beta: float
    blend: bool = False

    @torch.no_grad()
    def __call__(
        self, diffusion: Diffusion, scorer: Scorer, conditions: Sequence[str], noise: KeyedNoise
    ) -> Trajectories:
        before, calls, batch = diffusion.cost, 0, len(conditions)
        x = diffusion.prior(conditions, noise.at(diffusion.steps))
        states, targets, sizes = [x], [], []
        prediction: Prediction | None = None
        log_weight = torch.zeros(batch, dtype=torch.float64)
        kept = torch.zeros(batch, dtype=torch.float64)  # V(x_t) of the state that was kept; V(x_T) := 0
        sample = reward = torch.empty(0)
        for t in range(diffusion.steps, 0, -1):
            rng = noise.at(t - 1)
            num = 1 if diffusion.deterministic(t) else self.candidates
            prediction, q, scored = self._propose(diffusion, scorer, x, t, conditions, prediction)
            candidates = q.sample(num, rng)
            log_ratio = self._log_ratio(diffusion, prediction.kernel, q, candidates, x, t, conditions)
            children, decoded, rewards = self._score(diffusion, scorer, candidates, t - 1, conditions)
            calls += batch * num + scored

            v = value(rewards, self.alpha, self.gamma, t - 1).reshape(batch, num)
            log_w = v + log_ratio
            row = torch.arange(batch) * num + choose(log_w, rng.uniform(()))
            log_weight += logmeanexp(log_w) - kept
            kept, reward = v.flatten()[row], rewards[row]
            if not diffusion.deterministic(t):
                sizes.append(effective_size(log_w))
            if self.blend:
                targets.append(q.blend(candidates, probabilities(log_w)) if num > 1 else candidates[:, 0])
            row = row.to(x.device)
            x, sample = candidates.flatten(0, 1)[row], decoded[row]
            prediction = children.take(row) if children else None
            states.append(x)
        return Trajectories(
            torch.stack(states),
            torch.stack(targets) if targets else None,
            sample,
            reward,
            log_weight,
            torch.stack(sizes).mean(0),
            diffusion.cost - before + Cost(reward=calls),
        )

    def _propose(
        self,
        diffusion: Diffusion,
        scorer: Scorer,
        x: Tensor,
        t: int,
        conditions: Sequence[str],
        known: Prediction | None,
    ) -> tuple[Prediction, Kernel, int]:
        """The prediction at x_t, the proposal q, and the number of reward calls this took."""
        if not self.gradient or diffusion.deterministic(t):
            prediction = known or diffusion.predict(x, t, conditions)
            return prediction, prediction.kernel, 0
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            prediction = diffusion.predict(leaf, t, conditions)
            decoded = diffusion.decode(prediction.x0_hat)
        # dr/dsample may come from another process; the chain rule through decode and network is finished here.
        _, slope = scorer.score_and_grad(decoded.detach(), conditions)
        scale = self.gamma ** (t - 1) / self.alpha
        (g,) = torch.autograd.grad(decoded, leaf, grad_outputs=(scale * slope).to(decoded))
        prediction = prediction.detach()
        return prediction, prediction.kernel.tilt(g), len(conditions)

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
        return (anchor - q.log_prob(candidates)).cpu()

    def _score(
        self, diffusion: Diffusion, scorer: Scorer, candidates: Tensor, t: int, conditions: Sequence[str]
    ) -> tuple[Prediction | None, Tensor, Tensor]:
        """Predictions at the candidates x_t (none at t = 0), what was decoded, and its rewards, all [B * M]."""
        num = candidates.shape[1]
        flat = candidates.flatten(0, 1)
        repeated = [c for c in conditions for _ in range(num)]
        children = diffusion.predict(flat, t, repeated) if t > 0 else None
        decoded = diffusion.decode(children.x0_hat if children else flat)
        return children, decoded, scorer.score(decoded, repeated)
