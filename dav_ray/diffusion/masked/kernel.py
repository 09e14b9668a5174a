"""Kernels of masked diffusion (MDLM, Sahoo et al. 2024, arXiv 2406.07524), independent of any network.

Tokens are 0..V-1, the mask is V. A masked position of x_t is unmasked with probability 1 - s/t (log-linear noise), to a
letter drawn from log p(x_0 | x_t); an unmasked one never changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dav_ray.diffusion.noise import Draws

NEVER = -1e6  # a log-probability that stands for zero and keeps gradients finite
END = 1e-5  # the continuous time at which sampling stops
NOISE_EPS = 1e-3  # of log-linear noise: sigma(t) = -log(1 - (1 - eps) t)


class MaskedSchedule:
    """T ancestral steps through continuous time, from 1 (all masked) to 1e-5. Tables are indexed by t = 0..T."""

    def __init__(self, steps: int) -> None:
        time = END + (1 - END) * torch.arange(steps + 1, dtype=torch.float64) / steps
        self.sigma = sigma_at(time)  # what a time-conditioned network is given
        # (chance(t) - chance(s)) / chance(t), chance(t) = (1 - eps) t: how likely a mask of x_t is gone in x_{t-1}
        self.unmask = torch.cat([time.new_zeros(1), 1 - time[:-1] / time[1:]])
        self._time = time

    def renoise(self, x: Tensor, mask: int, start: int, end: int, rng: Draws) -> Tensor:
        """x_end given x_start [B, L]: the process that the kernels reverse, in which a token is masked by time t with
        probability t (1 - eps cancels in their 1 - s/t), so that nothing is left of x_0 at T."""
        stood, stands = (1 - float(self._time[t]) for t in (start, end))
        hide = rng.uniform((x.shape[1],)).to(x.device) >= stands / stood
        return torch.where(hide, mask, x)


def sigma_at(time: Tensor) -> Tensor:
    """Log-linear noise at continuous times in [0, 1]."""
    return -torch.log1p(-(1 - NOISE_EPS) * time)


def substitute(logits: Tensor, x: Tensor) -> Tensor:
    """SUBS: network output [B, L, V+1] at x [B, L] -> log p(x_0 | x): never a mask, unmasked positions carried over."""
    mask = logits.shape[-1] - 1
    letters = torch.log_softmax(logits[..., :mask].float(), dim=-1)
    log_p = torch.cat([letters, torch.full_like(letters[..., :1], NEVER)], dim=-1)
    carried = torch.full_like(log_p, NEVER).scatter(-1, x.unsqueeze(-1), 0.0)
    return torch.where((x == mask).unsqueeze(-1), log_p, carried)


def completed(x: Tensor, log_p: Tensor) -> Tensor:
    """Masked positions of x [B, L] filled with the most likely letters."""
    mask = log_p.shape[-1] - 1
    return torch.where(x == mask, log_p[..., :mask].argmax(-1), x)


def completed_relaxed(x_t: Tensor, log_p: Tensor) -> Tensor:
    """The same for x_t [B, L, V+1] one-hot, [B, L, V]: linear in x_t, x_t[v] + x_t[MASK] e(v), with e the most likely
    letter going forward and its probabilities going backward."""
    p = log_p[..., :-1].exp()
    hard = torch.nn.functional.one_hot(p.argmax(-1), p.shape[-1]).to(p)
    return x_t[..., :-1] + x_t[..., -1:] * (hard + p - p.detach())


@dataclass(frozen=True)
class MaskedKernel:
    """The law of x_{t-1} given x_t [B, L]: positions independent, V+1 outcomes each.

    log_p [B, L, V+1]: log p(x_0 | x_t) as `substitute` gives it; unmask [B] float64: probability that a mask goes;
    slope [B, L, V+1]: the tilt, added to the log-probabilities of masked positions before they are normalised.
    """

    x: Tensor
    log_p: Tensor
    unmask: Tensor
    slope: Tensor | None = None

    @property
    def deterministic(self) -> bool:
        return False

    @property
    def mask(self) -> int:
        return self.log_p.shape[-1] - 1

    def outcomes(self) -> Tensor:
        """log p(x_{t-1,l} = v | x_t), [B, L, V+1] float64; minus infinity where v is impossible."""
        unmask = self.unmask.double().reshape(-1, 1, 1)
        letters = self.log_p[..., :-1].double() + unmask.log()
        stay = torch.log1p(-unmask).expand_as(letters[..., :1])
        log_q = torch.cat([letters, stay], dim=-1)
        if self.slope is not None:
            log_q = torch.log_softmax(log_q + self.slope.double(), dim=-1)
        carried = torch.full_like(log_q, -torch.inf).scatter(-1, self.x.unsqueeze(-1), 0.0)
        return torch.where((self.x == self.mask).unsqueeze(-1), log_q, carried)

    def sample(self, num: int, rng: Draws) -> Tensor:
        """[B, num, L] by inversion in float64: the law is exact, where Gumbel noise in float32 is not."""
        cumulative = self.outcomes().exp().cumsum(-1).unsqueeze(1)
        u = rng.uniform((num, self.x.shape[1])).to(self.x.device)
        # scaled by the last entry, so that rounding can never choose past the end
        return (u.unsqueeze(-1) * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1)

    def log_prob(self, x_prev: Tensor) -> Tensor:
        """x_prev [B, M, L] -> [B, M] float64, summed over positions, unmasked and still masked ones."""
        outcomes = self.outcomes().unsqueeze(1).expand(-1, x_prev.shape[1], -1, -1)
        return outcomes.gather(-1, x_prev.unsqueeze(-1)).squeeze(-1).sum(-1)

    def tilt(self, grad: Tensor) -> MaskedKernel:
        """Outcomes times exp(grad[l, v]), MASK included, renormalised per position."""
        return replace(self, slope=grad if self.slope is None else self.slope + grad)

    def nll(self, x_prev: Tensor) -> Tensor:
        """-log p of the letters that this step unmasked, [B]; when masks go is the schedule's and not learned.

        x_prev [B, L] tokens, or [B, L, V] expected counts of letters (`blend`).
        """
        assert self.slope is None, "a tilted kernel is a proposal, which is never fitted"
        masked = self.x == self.mask
        letters = self.log_p[..., :-1]
        if x_prev.ndim == 3:
            counts = x_prev.to(letters)
        else:
            counts = torch.nn.functional.one_hot(x_prev.long(), self.mask + 1)[..., :-1].to(letters)
        return -(torch.where(masked.unsqueeze(-1), letters * counts, 0.0)).sum((1, 2))

    def kl(self, other: MaskedKernel) -> Tensor:
        """KL(self || other) [B]: both unmask alike, so it is unmask * sum_l KL(p_l || p'_l) over masked positions."""
        assert self.slope is None and other.slope is None, "a tilted kernel is a proposal, which is never fitted"
        p, q = self.log_p[..., :-1], other.log_p[..., :-1]
        per_position = (p.exp() * (p - q)).sum(-1)
        return self.unmask.to(p) * torch.where(self.x == self.mask, per_position, 0.0).sum(-1)

    def blend(self, candidates: Tensor, weights: Tensor) -> Tensor:
        """Expected counts of letters [B, L, V] float32: pi + sum_m (w_m - 1/M) onehot(x_m). The nll is linear in the
        one-hot outcome, so the weighted mean stands for all candidates; sum_m onehot(x_m) / M - pi, zero in
        expectation, is taken out of it (a control variate)."""
        excess = (weights - 1 / weights.shape[1]).to(candidates.device)
        onehot = torch.nn.functional.one_hot(candidates, self.mask + 1)[..., :-1].double()
        counts = self.outcomes().exp()[..., :-1] + torch.einsum("bm,bmlv->blv", excess, onehot)
        return torch.where((self.x == self.mask).unsqueeze(-1), counts, 0.0).float()

    def join(self, other: MaskedKernel) -> MaskedKernel:
        assert self.slope is None and other.slope is None, "tilted kernels are proposals, which are never joined"
        return MaskedKernel(*(torch.cat([getattr(k, f) for k in (self, other)]) for f in ("x", "log_p", "unmask")))

    def detach(self) -> MaskedKernel:
        return replace(self, log_p=self.log_p.detach())

    def take(self, rows: Tensor) -> MaskedKernel:
        slope = None if self.slope is None else self.slope[rows]
        return MaskedKernel(self.x[rows], self.log_p[rows], self.unmask[rows], slope)
