"""Models whose noised states are Gaussian: x_t = alpha_t x_0 + sigma_t eps, with eps standard normal.

Whatever the network is trained to say (`PREDICTIONS`), it says x0_hat and eps_hat. A step to the next level is

    p(x_{t-1} | x_t) = N(alpha' x0_hat + c eps_hat, q^2)

where a noise rule (`noise_rules`) gives c and q. DDIM, its form for flows, CPS and LCM's renoising are this one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dav_ray.diffusion import noise_rules
from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.noise_rules import Level
from dav_ray.moved import names_of

__getattr__ = names_of("diffusion.gaussian")


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
    """What a Gaussian `Diffusion` does not ask its network for: states x_t [B, *event] are real numbers."""

    schedule: GaussianSteps

    def deterministic(self, t: int) -> bool:
        return float(self.schedule.std[t]) == 0.0

    def renoise(self, x: Tensor, start: int, end: int, conditions: Sequence[str], rng: Draws) -> Tensor:
        return self.schedule.renoise(x, start, end, rng)

    def relax(self, x_t: Tensor) -> Tensor:
        return x_t

    def harden(self, x0_hat: Tensor) -> Tensor:
        return x0_hat


def _epsilon(x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    return (x - sigma * out) / alpha, out


def _v_prediction(x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """out = alpha eps - sigma x_0, where alpha^2 + sigma^2 = 1 (Salimans & Ho 2022)."""
    return alpha * x - sigma * out, alpha * out + sigma * x


def _flow_prediction(x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """out = eps - x_0 (rectified flow, Liu et al. 2022, where alpha + sigma = 1; any other levels do, too)."""
    return (x - sigma * out) / (alpha + sigma), (x + alpha * out) / (alpha + sigma)


def _sample(x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    return out, (x - alpha * out) / sigma


# what the network's output says of x_t [B, *event] at levels alpha, sigma that broadcast against it: x0_hat, eps_hat
PREDICTIONS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "epsilon": _epsilon,
    "v_prediction": _v_prediction,
    "flow_prediction": _flow_prediction,
    "sample": _sample,
}


class GaussianSteps:
    """The T steps of a sampler by tables over t: index 0 is unused, so that a table is indexed by t itself.

    timesteps [T+1]: what the network is told at t. alpha, sigma [T+1] float32: the level of x_t; kept, carried, std
    [T+1] float32: what x_{t-1} has of x0_hat and of eps_hat, and its standard deviation. skip, output [T+1] float32, if
    given: x0_hat becomes output x0_hat + skip x_t (the boundary condition of consistency models). prediction: a name of
    `PREDICTIONS`; clip: x0_hat is held within [-clip, clip].
    """

    def __init__(
        self,
        timesteps: Tensor,
        levels: Sequence[Level],
        coefficients: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        *,
        prediction: str,
        clip: float | None = None,
        boundary: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """levels: of the states that the steps start from, [0] the clean one's; coefficients: alpha, sigma, kept,
        carried and std."""
        self.timesteps, self.levels = timesteps, levels
        self.alpha, self.sigma, self.kept, self.carried, self.std = coefficients
        self.prediction, self.clip, self._boundary = prediction, clip, boundary

    @classmethod
    def of(
        cls,
        timesteps: Tensor,
        levels: Sequence[Level],
        rule: str,
        eta: float | Sequence[float],
        *,
        prediction: str,
        boundary: tuple[Tensor, Tensor] | None = None,
    ) -> GaussianSteps:
        """The steps from level t to level t-1, t = T..1, by a noise rule's name and its eta (one, or T: the first for
        the step from x_T)."""
        found = noise_rules.steps(levels, rule, eta)
        tables = (
            [level.alpha for level in levels],
            [level.sigma for level in levels],
            [1.0, *(level.alpha for level in levels[:-1])],
            [0.0, *(step.carried for step in found)],
            [0.0, *(step.std for step in found)],
        )
        alpha, sigma, kept, carried, std = (torch.tensor(table, dtype=torch.float64).float() for table in tables)
        return cls(timesteps, levels, (alpha, sigma, kept, carried, std), prediction=prediction, boundary=boundary)

    def kernel(self, x_t: Tensor, output: Tensor, t: Tensor) -> tuple[GaussianKernel, Tensor]:
        """Network output [B, *event] at states x_t [B, *event] and steps t [B] -> p(x_{t-1} | x_t) and x0_hat."""
        tables = (self.alpha, self.sigma, self.kept, self.carried, self.std)
        alpha, sigma, kept, carried, std = (self._column(table, t, x_t) for table in tables)
        x = x_t.float()
        x0, eps = PREDICTIONS[self.prediction](x, output.float(), alpha, sigma)
        if self._boundary is not None:
            skip, scale = (self._column(table, t, x_t) for table in self._boundary)
            x0 = scale * x0 + skip * x
            eps = (x - alpha * x0) / sigma
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        return GaussianKernel(kept * x0 + carried * eps, std), x0

    def renoise(self, x: Tensor, start: int, end: int, rng: Draws) -> Tensor:
        """The forward process: x_end given x_start (start = 0: the clean state), 0 <= start < end <= T."""
        a = self.levels[end].alpha / self.levels[start].alpha
        variance = self.levels[end].sigma ** 2 - (a * self.levels[start].sigma) ** 2
        return a * x + max(0.0, variance) ** 0.5 * rng.normal(tuple(x.shape[1:])).to(x)

    def _column(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        values = table.to(like.device)[t]
        return values.reshape(-1, *[1] * (like.ndim - 1))
