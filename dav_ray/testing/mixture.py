"""Test problems of DAS (arXiv 2501.05803): mixtures of Gaussians with an exact score, whose tilted laws are known.

    p(x_0) = sum_k pi_k N(m_k, S),   p(x_0) exp(r(x_0) / alpha) / Z = sum_k pi'_k N(m'_k, S')   for quadratic r

With S = s^2 I and v = a s^2 + 1 - a at alpha_bar_t = a, the prediction is the posterior mean of x_0:

    w_k proportional to pi_k exp(-|x_t - sqrt(a) m_k|^2 / (2 v)),   k = s^2 sqrt(a) / v
    x0_hat = sum_k w_k (m_k + k (x_t - sqrt(a) m_k))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dav_ray.diffusion.base import Prediction
from dav_ray.diffusion.gaussian import GaussianKernel
from dav_ray.testing.gaussian import ByTable, ExactDiffusion, Quadratic, ddim

STEPS, TRAIN_STEPS = 100, 1000
SCALE = 0.2546  # of the Swiss roll


@dataclass(frozen=True)
class Mixture:
    """sum_k exp(log_share_k) N(means_k, covariance): one covariance for all, as noise and quadratic tilts leave it."""

    log_share: Tensor  # [K] float64, log pi_k
    means: Tensor  # [K, d] float64
    covariance: Tensor  # [d, d] float64

    @classmethod
    def even(cls, means: Tensor, variance: float) -> Mixture:
        """Equal shares, covariance variance * I."""
        num, dim = means.shape
        share = torch.full((num,), -math.log(num), dtype=torch.float64)
        return cls(share, means.double(), variance * torch.eye(dim, dtype=torch.float64))

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """[num, d] float32."""
        k = torch.multinomial(self.log_share.exp(), num, replacement=True, generator=generator)
        z = torch.randn(num, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[k] + z @ torch.linalg.cholesky(self.covariance).T).float()

    def log_prob(self, x: Tensor) -> Tensor:
        """[N, d] -> [N] float64."""
        root = torch.linalg.cholesky(self.covariance)
        gap = (x.double().unsqueeze(1) - self.means) @ torch.linalg.inv(root).T
        normal = -0.5 * gap.square().sum(-1) - root.diagonal().log().sum() - 0.5 * x.shape[1] * math.log(2 * math.pi)
        return torch.logsumexp(self.log_share + normal, 1)

    def noised(self, a: float) -> Mixture:
        """The law of x_t = sqrt(a) x_0 + sqrt(1 - a) z."""
        eye = torch.eye(self.means.shape[1], dtype=torch.float64)
        return Mixture(self.log_share, a**0.5 * self.means, a * self.covariance + (1 - a) * eye)

    def tilted(self, reward: Quadratic, alpha: float) -> tuple[Mixture, float]:
        """The law p exp(r / alpha) / Z, and log Z: a component's share grows by the exp(log_z) of its own tilt."""
        found = reward.tilt(self.means, self.covariance, alpha)
        log_share = self.log_share + found.log_z
        log_z = torch.logsumexp(log_share, 0)
        return Mixture(log_share - log_z, found.means, found.covariance), float(log_z)

    def mean_reward(self, reward: Quadratic) -> float:
        return float(self.log_share.exp() @ reward.expected(self.means, self.covariance))


class Correction(nn.Module):
    """The policy: what is added to x0_hat, in units of 1 - alpha_bar, as a function of x_t [B, d] and t [B]. Zero at
    the start. In these units the correction that a smooth reward asks for is bounded at every noise level."""

    def __init__(self, dim: int, steps: int, width: int = 64) -> None:
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(
            nn.Linear(dim + 4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim)
        )
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        time = (t / self.steps).unsqueeze(1)
        waves = [torch.cos(math.pi * k * time) for k in (1, 2, 4)]
        return self.net(torch.cat([x_t, time, *waves], 1))


class MixtureDiffusion(ByTable):
    """DDIM, eta = 1, over 100 of 1000 training steps with linear betas, as DAS samples its mixtures. data: covariance
    s^2 I. seed: of the policy's first weights. Conditions do not matter."""

    def __init__(self, data: Mixture, steps: int = STEPS, seed: int = 0) -> None:
        betas = torch.linspace(1e-4, 0.02, TRAIN_STEPS, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = Correction(data.means.shape[1], steps)
        super().__init__(ddim((1 - betas).cumprod(0), TRAIN_STEPS // steps, 1.0), data.means.shape[1], policy)
        self.data = data
        self._means, self._log_share = data.means.float(), data.log_share.float()
        self._variance = float(data.covariance[0, 0])

    def _predict(self, x_t: Tensor, t: Tensor, conditions: Sequence[str], policy: bool) -> Prediction:
        a = self.alpha_bar(t)
        x0_hat = self.posterior_mean(x_t, a)
        if policy:
            x0_hat = x0_hat + (1 - a) * self._policy(x_t, t)
        return Prediction(self.kernel(x_t, x0_hat, t), x0_hat)

    def posterior_mean(self, x_t: Tensor, a: Tensor) -> Tensor:
        """E[x_0 | x_t] [B, d] at alpha_bar a [B, 1]."""
        v = a * self._variance + 1 - a
        # |x_t|^2 is the same for all components
        logits = (a.sqrt() * x_t @ self._means.T - 0.5 * a * self._means.square().sum(1)) / v
        nearby = torch.softmax(self._log_share + logits, 1) @ self._means
        return nearby + self._variance * a.sqrt() / v * (x_t - a.sqrt() * nearby)


@dataclass(frozen=True)
class Line:
    """A law of one number, by quadrature."""

    points: Tensor  # [n] float64
    mass: Tensor  # [n] float64, sums to 1

    def tilted(self, weight: float, alpha: float) -> tuple[Line, float]:
        """The law tilted by exp(-weight x^2 / alpha), and log Z."""
        mass = self.mass * (-weight * self.points.square() / alpha).exp()
        return Line(self.points, mass / mass.sum()), float(mass.sum().log())

    def mean_square(self) -> float:
        return float(self.mass @ self.points.square())


@torch.no_grad()
def sampler_line(diffusion: ExactDiffusion, reach: float = 6.8, spacing: float = 0.0125) -> Line:
    """The law that the pretrained model's T steps have in one dimension, which its data law is only close to: what the
    search tilts. The density is carried from step to step on a grid about as fine as the narrowest kernel (std 0.01);
    the last step has no variance."""
    grid = torch.arange(-reach, reach, spacing)
    mass = torch.exp(-0.5 * grid.double().square())

    def kernel(t: int) -> GaussianKernel:
        found = diffusion.predict(grid.unsqueeze(1), t, [""] * len(grid), reference=True).kernel
        assert isinstance(found, GaussianKernel)
        return found

    for t in range(diffusion.steps, 1, -1):
        step = kernel(t)
        z = (grid.double() - step.mean.double()) / step.std.double()
        mass = (mass / mass.sum()) @ torch.exp(-0.5 * z.square())
    return Line(kernel(1).mean.double().squeeze(1), mass / mass.sum())


@dataclass(frozen=True)
class Problem:
    """data: the pretrained model's law; reward and alpha: its tilt; centres [K, d]: modes to be counted (None: none);
    published: mean rewards that DAS prints for its own, learned model of this law."""

    name: str
    data: Mixture
    reward: Quadratic
    centres: Tensor | None
    published: dict[str, float]
    alpha: float = 1.0

    @property
    def posterior(self) -> Mixture:
        return self.data.tilted(self.reward, self.alpha)[0]


def nine_modes() -> Problem:
    """Means {-4, 0, 4}^2, covariance 0.3 I, r = -x^2 / 100 - y^2."""
    axis = torch.tensor([-4.0, 0.0, 4.0])
    centres = torch.cartesian_prod(axis, axis)
    published = {"pretrained": -10.40, "posterior": -0.29, "smc": -0.21, "RL": -0.07, "backpropagation": -0.96}
    return Problem(
        "nine modes", Mixture.even(centres, 0.3), Quadratic.diagonal((0.0, 0.0), (0.01, 1.0)), centres, published
    )


def circle() -> Problem:
    """Eight means on a circle of radius 4, covariance 0.3 I, r = -x^2 - (y - 1)^2 / 10."""
    angle = torch.arange(8) * math.pi / 4
    centres = 4 * torch.stack([angle.cos(), angle.sin()], 1)
    reward = Quadratic.diagonal((0.0, 1.0), (1.0, 0.1))
    return Problem("circle", Mixture.even(centres, 0.3), reward, centres, {"posterior": -1.34})


def swiss_roll(num: int = 1000) -> Problem:
    """The roll t = 1.5 pi (1 + 2 u), (t cos t, 21 v, t sin t), u and v uniform, noise 0.3, all times `SCALE`, as a
    mixture of `num` Gaussians evenly spread over (u, v); r = -x^2 / 100 - y^2 / 100 - z^2.

    The scale is inferred from the pretrained mean reward that DAS prints, -3.26. The posterior's is then -0.70, where
    DAS prints -0.72; with centred coordinates it would be -0.64.
    """
    row = torch.arange(num, dtype=torch.float64)
    u, v = (row + 0.5) / num, (row * (math.sqrt(5) - 1) / 2 + 0.5) % 1  # a golden-ratio lattice
    t = 1.5 * math.pi * (1 + 2 * u)
    means = SCALE * torch.stack([t * t.cos(), 21 * v, t * t.sin()], 1)
    reward = Quadratic.diagonal((0.0, 0.0, 0.0), (0.01, 0.01, 1.0))
    published = {"pretrained": -3.26, "posterior": -0.72, "smc": -0.50}
    return Problem("Swiss roll", Mixture.even(means, (0.3 * SCALE) ** 2), reward, None, published)
