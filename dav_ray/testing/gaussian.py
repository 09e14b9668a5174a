"""Problems whose laws are Gaussian: a diffusion without a network, and rewards that keep its tilted law Gaussian.

Data N(m, s^2 I), at alpha_bar_t = a, has the exact prediction

    x0_hat = m + k (x_t - sqrt(a) m),   k = s^2 sqrt(a) / (a s^2 + 1 - a)

It is linear in x_t: every state of the sampler is Gaussian, and x_0 stays so when tilted by a quadratic reward.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from dav_ray.diffusion.base import Prediction
from dav_ray.diffusion.gaussian import ContinuousStates, GaussianKernel, GaussianSteps
from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.pipelines.ddim import DDIMSchedule
from dav_ray.diffusion.policy_network import PolicyNetwork


def ddim(alphas_cumprod: Tensor, stride: int, final: float) -> DDIMSchedule:
    """DDIM with eta = 1 over every `stride`-th of the training steps, whose alpha_bar are given [S], clean end first.
    final: alpha_bar of x_0; 1 makes step 1 deterministic, as set_alpha_to_one does."""
    num, steps = len(alphas_cumprod), len(alphas_cumprod) // stride
    scheduler = SimpleNamespace(
        set_timesteps=lambda _: None,
        config=SimpleNamespace(prediction_type="epsilon", clip_sample=False, num_train_timesteps=num),
        timesteps=torch.arange(0, num, stride).flip(0),
        alphas_cumprod=alphas_cumprod,
        final_alpha_cumprod=torch.tensor(final),
    )
    return DDIMSchedule(scheduler, steps, eta=1.0)


class ExactDiffusion(ContinuousStates, PolicyNetwork):
    """A Gaussian diffusion in R^dim with predictions in closed form, the identity for decoder, and a small policy on
    top. A subclass says what it predicts, and where the policy enters."""

    timeless = False

    def __init__(self, schedule: GaussianSteps, dim: int, module: nn.Module) -> None:
        super().__init__(module)
        self.schedule, self.dim, self.steps = schedule, dim, len(schedule.std) - 1

    @abstractmethod
    def _predict(self, x_t: Tensor, t: Tensor, conditions: Sequence[str], policy: bool) -> Prediction:
        """At states x_t [B, dim] and steps t [B]; policy: with what was learned."""

    def predict(
        self, x_t: Tensor, t: int | Tensor, conditions: Sequence[str], *, reference: bool = False
    ) -> Prediction:
        steps = t if isinstance(t, Tensor) else torch.full((len(x_t),), t)
        self._count(len(x_t), reference=reference)
        return self._predict(x_t, steps, conditions, policy=not reference)

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        return rng.normal((self.dim,))

    def decode(self, x_0: Tensor, conditions: Sequence[str], t: int = 0) -> Tensor:
        return x_0


class ByTable(ExactDiffusion):
    """Steps of DDIM over a table of alpha_bar."""

    schedule: DDIMSchedule

    def kernel(self, x_t: Tensor, x0_hat: Tensor, t: Tensor) -> GaussianKernel:
        """DDIM's step where x0_hat [B, dim] is predicted."""
        a = self.alpha_bar(t)
        return self.schedule.kernel(x_t, (x_t - a.sqrt() * x0_hat) / (1 - a).sqrt(), t)[0]

    def alpha_bar(self, t: Tensor) -> Tensor:
        """[B] -> [B, 1]."""
        return self.schedule.alpha_bar[t].float().unsqueeze(1)


def populations(condition: str, num: int, size: int) -> list[str]:
    """Conditions of num * size trajectories: as many populations, told apart by blanks that float() does not see."""
    names = [condition + format(k, "b").replace("0", " ").replace("1", "\t") for k in range(num)]
    return [name for name in names for _ in range(size)]


class Shifts(nn.Module):
    """The policy: shift[t] [d], added to the mean of step t."""

    def __init__(self, steps: int, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(steps + 1, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.shift[t]


class Shifted(ExactDiffusion):
    """Data N(m, std^2 I), the condition being m as text; the policy's steps have other means than the reference's."""

    @property
    def shift(self) -> Tensor:
        return self.trainable().get_parameter("shift")

    def shifted(self, scale: float) -> Self:
        """The same model after an M-step that moved it: by about `scale` standard deviations, each step another way."""
        ways = torch.cos(torch.arange(float(self.shift.numel()))).reshape(self.shift.shape)
        with torch.no_grad():
            self.shift.copy_(scale * self.schedule.std.float().unsqueeze(1) * ways)
        return self

    @abstractmethod
    def law(self, condition: str, beta: float = 0.0) -> tuple[Tensor, float]:
        """Mean [d] and variance of x_0 under the anchor p_theta^(1-beta) p_theta0^beta: the chain whose shifts are
        (1 - beta) times the policy's. It is the sampler's law, which that of the data is only close to."""

    def log_normaliser(self, beta: float) -> float:
        """log of the integral of p_theta(tau)^(1-beta) p_theta0(tau)^beta: each step of two Gaussians of one variance
        gives -beta (1 - beta) |shift|^2 / (2 sigma^2)."""
        moved = self.schedule.std > 0
        shift2 = self.shift.detach().double().square().sum(1)[moved]
        return float(-0.5 * beta * (1 - beta) * (shift2 / self.schedule.std[moved].square()).sum())

    def tilted(self, reward: Quadratic, alpha: float, condition: str, beta: float = 0.0) -> Tilted:
        """anchor(x_0) exp(r(x_0) / alpha) / Z, one component; log Z includes the anchor's own normaliser."""
        mean, variance = self.law(condition, beta)
        found = reward.tilt(mean.unsqueeze(0), variance * torch.eye(self.dim, dtype=torch.float64), alpha)
        return Tilted(found.means, found.covariance, found.log_z + self.log_normaliser(beta))


class LinearGaussian(Shifted, ByTable):
    """Data N(m, std^2 I) in `dim` dimensions, the condition being m as text. The reference has no shifts."""

    def __init__(self, steps: int = 3, dim: int = 2, std: float = 0.8, last_alpha: float = 0.97) -> None:
        self.std = std
        schedule = ddim(torch.linspace(0.9, 0.15, steps), 1, last_alpha)
        super().__init__(schedule, dim, Shifts(steps, dim))

    def _predict(self, x_t: Tensor, t: Tensor, conditions: Sequence[str], policy: bool) -> Prediction:
        a = self.alpha_bar(t)
        centre = torch.tensor([float(c) for c in conditions]).unsqueeze(1)
        x0_hat = centre + self.gain(a) * (x_t - a.sqrt() * centre)
        kernel = self.kernel(x_t, x0_hat, t)
        if policy:
            kernel = GaussianKernel(kernel.mean + self._policy(t), kernel.std)
        return Prediction(kernel, x0_hat)

    def gain(self, a: Any) -> Any:
        """d x0_hat / d x_t at alpha_bar = a: the posterior mean of Gaussian data is linear in x_t."""
        return self.std**2 * a**0.5 / (a * self.std**2 + 1 - a)

    def law(self, condition: str, beta: float = 0.0) -> tuple[Tensor, float]:
        """Written out from DDIM's equations 12 and 16, in float64 and without the code under test."""
        m, bar, prev = float(condition), self.schedule.alpha_bar.tolist(), self.schedule.alpha_bar_prev.tolist()
        mean, variance = torch.zeros(self.dim, dtype=torch.float64), 1.0
        for t in range(self.steps, 0, -1):
            a, b = bar[t], prev[t]
            sigma2 = (1 - b) / (1 - a) * (1 - a / b)
            k = self.gain(a)
            x0_hat = m + k * (mean - math.sqrt(a) * m)
            eps = (mean - math.sqrt(a) * x0_hat) / math.sqrt(1 - a)
            slope = math.sqrt(b) * k + math.sqrt(1 - b - sigma2) * (1 - math.sqrt(a) * k) / math.sqrt(1 - a)
            mean = math.sqrt(b) * x0_hat + math.sqrt(1 - b - sigma2) * eps
            mean = mean + (1 - beta) * self.shift[t].detach().double()
            variance = slope**2 * variance + sigma2
        return mean, variance


@dataclass(frozen=True)
class Tilted:
    """K Gaussians N(means_k, covariance), each tilted by exp(r / alpha)."""

    means: Tensor  # [K, d] float64
    covariance: Tensor  # [d, d] float64
    log_z: Tensor  # [K] float64, log E[exp(r / alpha)] under each


@dataclass(frozen=True)
class Quadratic:
    """r(x) = offset - (x - c)^T A (x - c) / 2, A [d, d] symmetric and positive semidefinite."""

    centre: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    offset: float = 0.0
    differentiable = True

    @classmethod
    def diagonal(cls, centre: Sequence[float], weights: Sequence[float]) -> Quadratic:
        """r(x) = - sum_i weights_i (x_i - c_i)^2."""
        matrix = torch.diag(2 * torch.tensor(weights, dtype=torch.float64)).tolist()
        return cls(tuple(centre), tuple(tuple(row) for row in matrix))

    def __call__(self, samples: Tensor, conditions: Sequence[str] = ()) -> Tensor:
        gap = samples - samples.new_tensor(self.centre)
        return self.offset - 0.5 * (gap @ samples.new_tensor(self.matrix) * gap).sum(1)

    def expected(self, means: Tensor, covariance: Tensor) -> Tensor:
        """E[r] under N(means_k, covariance), [K]: r(means_k) - tr(A S) / 2."""
        return self(means) - 0.5 * (means.new_tensor(self.matrix) * covariance).sum()

    def tilt(self, means: Tensor, covariance: Tensor, alpha: float) -> Tilted:
        """With B = A / alpha and G = (I + S B)^-1: covariance G S, means G (m + S B c), and
        log Z = offset / alpha - log det(I + S B) / 2 - (m - c)^T B G (m - c) / 2. means [K, d], S [d, d], float64."""
        b, centre = means.new_tensor(self.matrix) / alpha, means.new_tensor(self.centre)
        spread = torch.eye(len(centre), dtype=means.dtype) + covariance @ b
        g = torch.linalg.inv(spread)
        gap = means - centre
        log_z = self.offset / alpha - 0.5 * torch.logdet(spread) - 0.5 * (gap @ (b @ g) * gap).sum(1)
        return Tilted((means + (covariance @ b) @ centre) @ g.T, g @ covariance, log_z)


class Linear:
    """r(x) = <slope, x> + offset."""

    differentiable = True

    def __init__(self, slope: Sequence[float], offset: float = 0.0) -> None:
        self.slope, self.offset = tuple(slope), offset

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return samples @ samples.new_tensor(self.slope) + self.offset


class Bowl:
    """r(x) = offset - |x - centre|^2, the centre being 1 + the condition: a reward that reads its prompt."""

    differentiable = True

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        centre = torch.tensor([1 + float(c) for c in conditions]).unsqueeze(1)
        return self.offset - (samples - centre).square().sum(1)


class HalfSpace:
    """0 where x_1 < edge, minus infinity elsewhere: a hard constraint."""

    differentiable = False

    def __init__(self, edge: float) -> None:
        self.edge = edge

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return torch.where(samples[:, 0] < self.edge, 0.0, -math.inf)
