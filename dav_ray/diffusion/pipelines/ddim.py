"""The steps of pipelines that diffusers samples by a table of alpha_bar: DDIM (Song et al. 2021, eq. 12 and 16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion import noise_rules
from dav_ray.diffusion.gaussian import GaussianSteps
from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.noise_rules import Level


class DDIMSchedule(GaussianSteps):
    """T of a diffusers scheduler's steps, as `DDIMScheduler.step` takes them; alpha_t = sqrt(alpha_bar_t).

    scheduler: a `DDIMScheduler`; steps = T; eta in [0, 1], one or one for each step (`noise_rules.schedule`); rule: a
    noise rule. Step t in T..1 starts at `timesteps[t]`. alpha_bar, alpha_bar_prev [T+1] float64: before the step, and
    after it, which need not be the one before the next step.
    """

    def __init__(self, scheduler: Any, steps: int, eta: float | Sequence[float], rule: str = "ddim") -> None:
        scheduler.set_timesteps(steps)
        config = scheduler.config
        stride = config.num_train_timesteps // steps
        # descending: tau[0] belongs to t = T; cut, since rounding gives some trailing schedules one entry too many, -1
        tau = scheduler.timesteps.tolist()[:steps]
        alphas = scheduler.alphas_cumprod.double()
        bar = [float(alphas[s]) for s in tau]
        prev = [float(alphas[s - stride] if s >= stride else scheduler.final_alpha_cumprod) for s in tau]
        # index 0 is unused, so that a table is indexed by t itself
        self.alpha_bar = torch.tensor([1.0, *reversed(bar)], dtype=torch.float64)
        self.alpha_bar_prev = torch.tensor([1.0, *reversed(prev)], dtype=torch.float64)
        before, after = self.alpha_bar.float(), self.alpha_bar_prev.float()
        std, carried = self._drawn(rule, eta, steps)
        super().__init__(
            torch.tensor([0, *reversed(tau)]),
            [Level(a**0.5, (1 - a) ** 0.5) for a in (prev[-1], *reversed(bar))],
            (before.sqrt(), (1 - before).sqrt(), after.sqrt(), carried, std),
            prediction=config.prediction_type,
            clip=config.clip_sample_range if config.clip_sample else None,
        )

    def _drawn(self, rule: str, eta: float | Sequence[float], steps: int) -> tuple[Tensor, Tensor]:
        """std and carried, [T+1] float32. DDIM's are computed in the order that gave the bits of earlier runs."""
        a, after = self.alpha_bar, self.alpha_bar_prev
        if rule == "ddim":
            shares = torch.tensor([0.0, *reversed(noise_rules.schedule(eta, steps))], dtype=torch.float64)
            variance = (1 - after) / (1 - a).clamp_min(1e-38) * (1 - a / after)
            std = (shares * variance.clamp_min(0).sqrt()).float()
            return std, (1 - after.float() - std.square()).clamp_min(0).sqrt()
        apply, shares = noise_rules.NOISE_RULES.load(rule), list(reversed(noise_rules.schedule(eta, steps)))
        levels = [
            (Level(b**0.5, (1 - b) ** 0.5), Level(n**0.5, (1 - n) ** 0.5))
            for b, n in zip(a.tolist(), after.tolist(), strict=True)
        ]
        found = [apply(now, then, share) for (now, then), share in zip(levels[1:], shares, strict=True)]
        std, carried = ([0.0, *(getattr(step, name) for step in found)] for name in ("std", "carried"))
        return torch.tensor(std, dtype=torch.float64).float(), torch.tensor(carried, dtype=torch.float64).float()

    def renoise(self, x: Tensor, start: int, end: int, rng: Draws) -> Tensor:
        """x_end = sqrt(a) x_start + sqrt(1 - a) z, a the ratio of their alpha_bar (start = 0: the clean state's)."""
        bar = float(self.alpha_bar_prev[1]) if start == 0 else float(self.alpha_bar[start])
        a = float(self.alpha_bar[end]) / bar
        return a**0.5 * x + (1 - a) ** 0.5 * rng.normal(tuple(x.shape[1:])).to(x)
