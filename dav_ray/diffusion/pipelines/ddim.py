"""Gaussian kernels and the DDIM schedule (Song et al. 2021, eq. 12 and 16), independent of any network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.noise import Draws


@dataclass(frozen=True)
class GaussianKernel:
    """N(mean, diag(std^2)). mean [B, *event]; std broadcasts against it (a number per state, or one per dimension)."""

    mean: Tensor
    std: Tensor

    @property
    def deterministic(self) -> bool:
        return not bool((self.std > 0).any())

    def sample(self, num: int, rng: Draws) -> Tensor:
        """mean + std * z, [B, num, *event]."""
        z = rng.normal((num, *self.mean.shape[1:])).to(self.mean)
        return self.mean.unsqueeze(1) + self.std.unsqueeze(1) * z

    def log_prob(self, x_prev: Tensor) -> Tensor:
        """log N(x_prev; mean, std^2) for x_prev [B, M, *event] -> [B, M] float64, summed over the event."""
        if self.deterministic:
            raise ValueError("a step without variance has no density")
        std = self.std.double().expand_as(self.mean).unsqueeze(1)
        z = (x_prev.double() - self.mean.double().unsqueeze(1)) / std
        density = -0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)
        return density.flatten(2).sum(-1)

    def tilt(self, grad: Tensor) -> GaussianKernel:
        """N(m, s^2) exp(<g, x>) is proportional to N(m + s^2 g, s^2)."""
        return GaussianKernel(self.mean + self.std.square() * grad, self.std)

    def blend(self, candidates: Tensor, weights: Tensor) -> Tensor:
        """mean + sum_m (w_m - 1/M) x_m. The nll's gradient is linear in the outcome, so the weighted mean stands for
        all; sum_m x_m / M - mean, zero in expectation whatever is fitted, is taken out of it (a control variate)."""
        excess = (weights - 1 / weights.shape[1]).to(candidates)
        return self.mean + torch.einsum("bm,bm...->b...", excess, candidates)

    def join(self, other: GaussianKernel) -> GaussianKernel:
        stds = [k.std.expand(len(k.mean), *k.std.shape[1:]) for k in (self, other)]
        return GaussianKernel(torch.cat([self.mean, other.mean]), torch.cat(stds))

    def detach(self) -> GaussianKernel:
        return GaussianKernel(self.mean.detach(), self.std)

    def take(self, rows: Tensor) -> GaussianKernel:
        std = self.std[rows] if self.std.shape[0] == self.mean.shape[0] else self.std
        return GaussianKernel(self.mean[rows], std)

    def kl(self, other: GaussianKernel) -> Tensor:
        """KL(self || other) of kernels with the same variance, [B]: |m - m'|^2 / (2 s^2) summed; 0 where s = 0."""
        z = (self.mean.float() - other.mean.float()) / _positive(self.std)
        return 0.5 * torch.where(self.std > 0, z.square(), 0.0).flatten(1).sum(-1)

    def nll(self, x_prev: Tensor) -> Tensor:
        """-log_prob of one outcome per state, x_prev [B, *event] -> [B] float32; 0 where s = 0. Differentiable."""
        std = _positive(self.std).expand_as(self.mean)
        z = (x_prev.float() - self.mean.float()) / std
        density = 0.5 * z.square() + std.log() + 0.5 * math.log(2 * math.pi)
        return torch.where(self.std > 0, density, 0.0).flatten(1).sum(-1)


def _positive(std: Tensor) -> Tensor:
    # where() evaluates both branches: a zero would turn the gradient of the untaken one into NaN.
    return torch.where(std > 0, std, torch.ones_like(std)).float()


class ContinuousStates:
    """What a `Diffusion` with a DDIM schedule does not ask its network for: states x_t [B, *event] are real numbers."""

    schedule: DDIMSchedule

    def deterministic(self, t: int) -> bool:
        return float(self.schedule.std[t]) == 0.0

    def renoise(self, x: Tensor, start: int, end: int, conditions: Sequence[str], rng: Draws) -> Tensor:
        return self.schedule.renoise(x, start, end, rng)

    def relax(self, x_t: Tensor) -> Tensor:
        return x_t

    def harden(self, x0_hat: Tensor) -> Tensor:
        return x0_hat


class DDIMSchedule:
    """DDIM's reverse kernel for T of a diffusers scheduler's steps, as `DDIMScheduler.step` takes them.

    scheduler: a `DDIMScheduler`; steps = T; eta in [0, 1]. Step t in T..1 starts at `timesteps[t]`.
    """

    def __init__(self, scheduler: Any, steps: int, eta: float) -> None:
        scheduler.set_timesteps(steps)
        config = scheduler.config
        self.prediction_type: str = config.prediction_type
        self.clip: float | None = config.clip_sample_range if config.clip_sample else None
        stride = config.num_train_timesteps // steps
        # descending: tau[0] belongs to t = T; cut, since rounding gives some trailing schedules one entry too many, -1
        tau = scheduler.timesteps.tolist()[:steps]
        alphas = scheduler.alphas_cumprod.double()
        bar = [float(alphas[s]) for s in tau]
        prev = [float(alphas[s - stride] if s >= stride else scheduler.final_alpha_cumprod) for s in tau]
        # index 0 is unused, so that a table is indexed by t itself
        self.timesteps = torch.tensor([0, *reversed(tau)])
        self.alpha_bar = torch.tensor([1.0, *reversed(bar)], dtype=torch.float64)
        self.alpha_bar_prev = torch.tensor([1.0, *reversed(prev)], dtype=torch.float64)
        ratio = (1 - self.alpha_bar_prev) / (1 - self.alpha_bar).clamp_min(1e-38)
        variance = ratio * (1 - self.alpha_bar / self.alpha_bar_prev)
        self.std = eta * variance.clamp_min(0).sqrt()
        self.std[0] = 0.0

    def kernel(self, x_t: Tensor, output: Tensor, t: Tensor) -> tuple[GaussianKernel, Tensor]:
        """Network output [B, *event] at states x_t [B, *event] and steps t [B] -> p(x_{t-1} | x_t) and x0_hat.

        With a = alpha_bar_t, a' = alpha_bar_{t-1}: mean = sqrt(a') x0_hat + sqrt(1 - a' - sigma^2) eps.
        """
        a, a_prev, std = (self._column(table, t, x_t) for table in (self.alpha_bar, self.alpha_bar_prev, self.std))
        x, out = x_t.float(), output.float()
        if self.prediction_type == "epsilon":
            x0, eps = (x - (1 - a).sqrt() * out) / a.sqrt(), out
        else:  # v_prediction
            x0, eps = a.sqrt() * x - (1 - a).sqrt() * out, a.sqrt() * out + (1 - a).sqrt() * x
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        mean = a_prev.sqrt() * x0 + (1 - a_prev - std.square()).clamp_min(0).sqrt() * eps
        return GaussianKernel(mean, std), x0

    def renoise(self, x: Tensor, start: int, end: int, rng: Draws) -> Tensor:
        """x_end = sqrt(a) x_start + sqrt(1 - a) z, a the ratio of their alpha_bar (start = 0: the clean state's)."""
        bar = float(self.alpha_bar_prev[1]) if start == 0 else float(self.alpha_bar[start])
        a = float(self.alpha_bar[end]) / bar
        return a**0.5 * x + (1 - a) ** 0.5 * rng.normal(tuple(x.shape[1:])).to(x)

    def _column(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        values = table.to(like.device)[t].float()
        return values.reshape(-1, *[1] * (like.ndim - 1))
