"""How far samples are from a law that is known: by moments, by transport, by kernels, by modes. Float64 throughout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of weighted samples; `..._error` is one standard error of the number before it.

    log_z estimates log E[W], with the delta method's error. effective: how many independent exact draws would give the
    mean's error, as a share of the N samples.
    """

    mean: Tensor  # [d]
    mean_error: Tensor  # [d]
    covariance: Tensor  # [d, d]
    covariance_error: Tensor  # [d, d]
    log_z: float
    log_z_error: float
    effective: float


def moments(samples: Tensor, log_weight: Tensor | None = None, population: Tensor | None = None) -> Moments:
    """samples [N, d]; log_weight [N], equal where None; population [N] int64: samples of one population depend on each
    other, so that errors come from the spread between populations (between samples where None)."""
    x, num = samples.double(), len(samples)
    log_w = x.new_zeros(num) if log_weight is None else log_weight.double()
    of = torch.arange(num) if population is None else population
    share = torch.softmax(log_w, 0)
    mean = share @ x
    gap = x - mean
    outer = torch.einsum("ni,nj->nij", gap, gap)
    covariance = torch.einsum("n,nij->ij", share, outer)
    mean_error = _spread(share.unsqueeze(1) * gap, of)
    covariance_error = _spread(share.reshape(-1, 1, 1) * (outer - covariance), of)
    return Moments(
        mean,
        mean_error,
        covariance,
        covariance_error,
        float(torch.logsumexp(log_w, 0)) - float(np.log(num)),
        float(_spread(share - 1 / num, of)),
        float(covariance.trace() / mean_error.square().sum()) / num,
    )


def _spread(parts: Tensor, of: Tensor) -> Tensor:
    """Standard deviation of the sum of `parts` [N, ...], whose sum is expected to be 0: sqrt(sum over populations of
    (the population's sum)^2)."""
    sums = parts.new_zeros(int(of.max()) + 1, *parts.shape[1:]).index_add(0, of, parts)
    return sums.square().sum(0).sqrt()


def emd(a: Tensor, b: Tensor) -> float:
    """Earth mover's distance W_1 between two sets of equal size, a and b [N, d]: the cheapest assignment's mean length.
    O(N^3); about 0.1 s at N = 1000."""
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(a.double(), b.double()).numpy()
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean())


def sliced_emd(a: Tensor, b: Tensor, generator: torch.Generator, directions: int = 100) -> float:
    """Mean over random directions of the W_1 of the projections, a and b [N, d]; on a line the sorted are matched."""
    ways = torch.randn(a.shape[1], directions, generator=generator, dtype=torch.float64)
    ways = ways / ways.norm(dim=0)
    return float(((a.double() @ ways).sort(0).values - (b.double() @ ways).sort(0).values).abs().mean())


def mmd(a: Tensor, b: Tensor) -> float:
    """MMD^2 = E k(a, a') + E k(b, b') - 2 E k(a, b), k(x, y) = exp(-|x - y|^2 / (2 h^2)), h the median distance between
    points of a and b together (Gretton et al. 2012, eq. 3: unbiased, so it may be below 0). a [N, d], b [N', d]."""
    both = torch.cat([a, b]).double()
    distance = torch.cdist(both, both)
    h = torch.pdist(both).median()
    kernel = torch.exp(-0.5 * (distance / h).square()).fill_diagonal_(0.0)
    n, m = len(a), len(b)
    within = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return float(within - 2 * kernel[:n, n:].mean())


def mode_shares(samples: Tensor, centres: Tensor) -> Tensor:
    """[K]: the share of samples [N, d] that are nearest to each centre [K, d]."""
    nearest = torch.cdist(samples.double(), centres.double()).argmin(1)
    return torch.bincount(nearest, minlength=len(centres)).double() / len(samples)


def modes_kept(found: Tensor, true: Tensor, least: float = 0.01) -> tuple[int, int]:
    """Of the modes that hold at least `least` of the true law, how many hold half of their true share or more among
    what was found, and how many there are. found, true [K]."""
    real = true >= least
    return int((found >= 0.5 * true)[real].sum()), int(real.sum())


def total_variation(p: Tensor, q: Tensor) -> float:
    """sum |p - q| / 2."""
    return 0.5 * float((p - q).abs().sum())
