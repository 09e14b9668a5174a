"""The likelihood bound of masked diffusion (MDLM, Sahoo et al. 2024, eq. 10), for pretraining and for evaluation.

-log p(x_0) <= integral over t in (0, 1) of 1/t E[ sum over masked positions of -log p(x_0,l | x_t) ]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TIME_MIN = 1e-3  # the integrand is not evaluated below: 1/t would let single draws dominate

LogProbs = Callable[[Tensor, Tensor], Tensor]  # (x_t [N, L], time [N]) -> log p(x_0 | x_t) [N, L, V+1]


def antithetic_times(u: Tensor, num: int) -> Tensor:
    """num stratified times for each of B uniforms u [B] in [0, 1): [B, num] in [TIME_MIN, 1]. Each is uniform on
    its own stratum; together they cover the interval evenly: a mean over them is one over uniform times, less noisy."""
    strata = (u.unsqueeze(1) + torch.arange(num, dtype=u.dtype)) / num
    return TIME_MIN + (1 - TIME_MIN) * strata


def nelbo(
    log_probs: LogProbs, tokens: Tensor, times: Tensor, u: Tensor, mask: int, fixed: Tensor | None = None
) -> Tensor:
    """One term of the bound per row: nats per sequence, [N], an unbiased estimate where times are uniform.

    tokens [N, L]; times [N]; u [N, L] uniform: position l is masked where u < t; fixed [N, L] bool: never masked.
    """
    hide = u.to(tokens.device) < times.to(tokens.device).unsqueeze(1)
    if fixed is not None:
        hide &= ~fixed
    log_p = log_probs(torch.where(hide, mask, tokens), times)
    picked = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return -torch.where(hide, picked, 0.0).sum(1) / times.to(picked)
