"""The Gaussian and the mixtures as flows: x_s = (1 - s) x_0 + s eps, from s = 1, where the state is pure noise.

With data N(m, S), S = s0^2 I, at levels alpha = 1 - s and sigma = s, and v = alpha^2 s0^2 + sigma^2:

    x0_hat = m + k (x - alpha m)        k = s0^2 alpha / v      the posterior mean, which a flow's network learns
                                        k = s0 / sqrt(v)        the end of its ODE, which a consistency model's learns
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dav_ray.diffusion.base import Prediction
from dav_ray.diffusion.gaussian import GaussianKernel, GaussianSteps
from dav_ray.diffusion.noise_rules import Level
from dav_ray.testing.gaussian import ExactDiffusion, Shifted, Shifts
from dav_ray.testing.mixture import Correction, Mixture


def even(steps: int, first: float = 1.0) -> list[Level]:
    """T + 1 levels, s = first, ..., 0 in even steps, [0] the clean one's."""
    return [Level(1 - first * k / steps, first * k / steps) for k in range(steps + 1)]


class ExactFlow(ExactDiffusion):
    """Steps by a noise rule over the levels of a flow."""

    def __init__(
        self, levels: Sequence[Level], rule: str, eta: float | Sequence[float], dim: int, module: torch.nn.Module
    ):
        times = torch.tensor([1000 * level.sigma for level in levels])
        steps = GaussianSteps.of(times, levels, rule, eta, prediction="flow_prediction")
        super().__init__(steps, dim, module)

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma [B, 1] of steps [B]."""
        return self.schedule.alpha[t].unsqueeze(1), self.schedule.sigma[t].unsqueeze(1)

    def kernel(self, x_t: Tensor, x0_hat: Tensor, t: Tensor) -> GaussianKernel:
        """The step where x0_hat [B, dim] is predicted, by the velocity eps_hat - x0_hat."""
        alpha, sigma = self.level(t)
        return self.schedule.kernel(x_t, (x_t - alpha * x0_hat) / sigma - x0_hat, t)[0]


class LinearFlow(Shifted, ExactFlow):
    """Data N(m, std^2 I) in `dim` dimensions, the condition being m as text. consistent: x0_hat is the end of the ODE.
    std = 0: the data are one point."""

    def __init__(
        self,
        levels: Sequence[Level],
        rule: str = "ddim",
        eta: float | Sequence[float] = 1.0,
        *,
        dim: int = 2,
        std: float = 0.8,
        consistent: bool = False,
    ) -> None:
        super().__init__(levels, rule, eta, dim, Shifts(len(levels) - 1, dim))
        self.std, self.consistent = std, consistent

    def gain(self, level: Level) -> float:
        """d x0_hat / d x_t."""
        v = (level.alpha * self.std) ** 2 + level.sigma**2
        return self.std / math.sqrt(v) if self.consistent else self.std**2 * level.alpha / v

    def _predict(self, x_t: Tensor, t: Tensor, conditions: Sequence[str], policy: bool) -> Prediction:
        centre = torch.tensor([float(c) for c in conditions]).unsqueeze(1)
        gain = torch.tensor([self.gain(level) if level.sigma else 1.0 for level in self.schedule.levels])
        alpha, _ = self.level(t)
        x0_hat = centre + gain[t].unsqueeze(1) * (x_t - alpha * centre)
        kernel = self.kernel(x_t, x0_hat, t)
        if policy:
            kernel = GaussianKernel(kernel.mean + self._policy(t), kernel.std)
        return Prediction(kernel, x0_hat)

    def law(self, condition: str, beta: float = 0.0) -> tuple[Tensor, float]:
        return self.laws(condition, beta)[0]

    def laws(self, condition: str, beta: float = 0.0, variance: float = 1.0) -> list[tuple[Tensor, float]]:
        """Mean [d] and variance of x_t for t = 0..T, in float64: each step is linear in the state before it. Only the
        tables carried and std are those of the code under test. variance: of x_T, whose mean is 0."""
        levels, m = self.schedule.levels, float(condition)
        mean = torch.zeros(self.dim, dtype=torch.float64)
        found = [(mean, variance)]
        for t in range(self.steps, 0, -1):
            now, then = levels[t], levels[t - 1]
            k, carried = self.gain(now), float(self.schedule.carried[t])
            slope = then.alpha * k + carried * (1 - now.alpha * k) / now.sigma
            x0_hat = m + k * (mean - now.alpha * m)
            mean = then.alpha * x0_hat + carried * (mean - now.alpha * x0_hat) / now.sigma
            mean = mean + (1 - beta) * self.shift[t].detach().double()
            variance = slope**2 * variance + float(self.schedule.std[t]) ** 2
            found.append((mean, variance))
        return found[::-1]

    def marginal(self, condition: str, t: int) -> tuple[float, float]:
        """Mean and variance that x_t = alpha x_0 + sigma eps has."""
        level = self.schedule.levels[t]
        return level.alpha * float(condition), (level.alpha * self.std) ** 2 + level.sigma**2


class MixtureFlow(ExactFlow):
    """A mixture, covariance s0^2 I, with its posterior mean. The policy adds to x0_hat, in units of sigma^2.
    Conditions do not matter."""

    def __init__(self, data: Mixture, levels: Sequence[Level], rule: str = "ddim", eta: float = 1.0) -> None:
        dim = data.means.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            policy = Correction(dim, len(levels) - 1)
        super().__init__(levels, rule, eta, dim, policy)
        self.data = data

    def _predict(self, x_t: Tensor, t: Tensor, conditions: Sequence[str], policy: bool) -> Prediction:
        alpha, sigma = self.level(t)
        x0_hat = self.posterior_mean(x_t, alpha, sigma)
        if policy:
            x0_hat = x0_hat + sigma.square() * self._policy(x_t, t)
        return Prediction(self.kernel(x_t, x0_hat, t), x0_hat)

    def posterior_mean(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t] [B, d] at levels [B, 1]."""
        means, variance = self.data.means.float(), float(self.data.covariance[0, 0])
        v = alpha.square() * variance + sigma.square()
        # |x_t|^2 is the same for all components
        logits = (alpha * x_t @ means.T - 0.5 * alpha.square() * means.square().sum(1)) / v
        nearby = torch.softmax(self.data.log_share.float() + logits, 1) @ means
        return nearby + variance * alpha / v * (x_t - alpha * nearby)
