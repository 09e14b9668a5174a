"""A diffusion without a network whose laws are all known: Gaussian data, exact predictions, linear-Gaussian steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dav_ray.diffusion.base import Prediction
from dav_ray.diffusion.gaussian import DDIMSchedule, GaussianKernel
from dav_ray.noise import Draws
from dav_ray.types import Cost, StepLoss, Transitions


class Shifts(nn.Module):
    """The policy: shift[t] [d], added to the mean of step t."""

    def __init__(self, steps: int, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(steps + 1, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.shift[t]


class LinearGaussian:
    """Data N(m, std^2 I) in `dim` dimensions, the condition being m as text. The reference has no shifts.

    last_alpha = 1 makes step 1 deterministic, as set_alpha_to_one does.
    """

    def __init__(self, steps: int = 3, dim: int = 2, std: float = 0.8, last_alpha: float = 0.97) -> None:
        self.steps, self.dim, self.std, self.cost = steps, dim, std, Cost()
        alphas = torch.linspace(0.9, 0.15, steps)  # from t = 1 to t = T
        scheduler = SimpleNamespace(
            set_timesteps=lambda _: None,
            config=SimpleNamespace(prediction_type="epsilon", clip_sample=False, num_train_timesteps=steps),
            timesteps=torch.arange(steps).flip(0),
            alphas_cumprod=alphas,
            final_alpha_cumprod=torch.tensor(last_alpha),
        )
        self.schedule = DDIMSchedule(scheduler, steps, eta=1.0)
        self._module = Shifts(steps, dim)
        self._policy: Any = self._module

    @property
    def shift(self) -> Tensor:
        return self._module.shift

    def shifted(self, scale: float) -> LinearGaussian:
        """The same model after an M-step that moved it: by about `scale` standard deviations, each step another way."""
        ways = torch.cos(torch.arange(float(self.shift.numel()))).reshape(self.shift.shape)
        with torch.no_grad():
            self.shift.copy_(scale * self.schedule.std.float().unsqueeze(1) * ways)
        return self

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        return rng.normal((self.dim,))

    def deterministic(self, t: int) -> bool:
        return float(self.schedule.std[t]) == 0.0

    def predict(
        self, x_t: Tensor, t: int | Tensor, conditions: Sequence[str], *, reference: bool = False
    ) -> Prediction:
        steps = t if isinstance(t, Tensor) else torch.full((len(x_t),), t)
        backward = len(x_t) if torch.is_grad_enabled() and not reference else 0
        spent = Cost(reference=len(x_t)) if reference else Cost(network=len(x_t), backward=backward)
        self.cost = self.cost + spent
        a = self.schedule.alpha_bar[steps].float().unsqueeze(1)
        centre = torch.tensor([float(c) for c in conditions]).unsqueeze(1)
        x0_hat = centre + self.gain(a) * (x_t - a.sqrt() * centre)
        kernel, x0_hat = self.schedule.kernel(x_t, (x_t - a.sqrt() * x0_hat) / (1 - a).sqrt(), steps)
        if not reference:
            kernel = GaussianKernel(kernel.mean + self._policy(steps), kernel.std)
        return Prediction(kernel, x0_hat)

    timeless = False

    def renoise(self, x: Tensor, start: int, end: int, conditions: Sequence[str], rng: Draws) -> Tensor:
        return self.schedule.renoise(x, start, end, rng)

    def relax(self, x_t: Tensor) -> Tensor:
        return x_t

    def harden(self, x0_hat: Tensor) -> Tensor:
        return x0_hat

    def decode(self, x_0: Tensor, conditions: Sequence[str]) -> Tensor:
        return x_0

    def step_loss(self, batch: Transitions, *, reference: bool) -> StepLoss:
        kernel = self.predict(batch.x_t, batch.t, batch.conditions).kernel
        nll = kernel.nll(batch.x_prev)
        if not reference:
            return StepLoss(nll, torch.zeros_like(nll))
        with torch.no_grad():
            pretrained = self.predict(batch.x_t, batch.t, batch.conditions, reference=True).kernel
        return StepLoss(nll, kernel.kl(pretrained))

    def trainable(self) -> nn.Module:
        return self._module

    def parallelise(self, wrap: Callable[[Any], Any]) -> Any:
        self._policy = wrap(self._module)
        return self._policy

    def gain(self, a: Any) -> Any:
        """d x0_hat / d x_t at alpha_bar = a: the posterior mean of Gaussian data is linear in x_t."""
        return self.std**2 * a**0.5 / (a * self.std**2 + 1 - a)

    def law(self, condition: str, beta: float = 0.0) -> tuple[Tensor, float]:
        """Mean [d] and variance of x_0 under the chain whose shifts are (1 - beta) times the policy's.

        Written out from DDIM's equations 12 and 16, in float64 and without the code under test.
        """
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

    def log_normaliser(self, beta: float) -> float:
        """log of the integral of p_theta(tau)^(1-beta) p_theta0(tau)^beta: each step of two Gaussians of one variance
        gives -beta (1 - beta) |shift|^2 / (2 sigma^2)."""
        moved = self.schedule.std > 0
        shift2 = self.shift.detach().double().square().sum(1)[moved]
        return float(-0.5 * beta * (1 - beta) * (shift2 / self.schedule.std[moved].square()).sum())


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
