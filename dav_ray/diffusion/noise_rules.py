"""How much noise a step draws, in models whose states are x_t = alpha_t x_0 + sigma_t eps. Imports no torch.

A step from (alpha, sigma) to (alpha', sigma') is N(alpha' x0_hat + c eps_hat, q^2). A rule gives c and q:

    ddim(eta)      q = eta (sigma'/sigma) sqrt(sigma^2 - (alpha sigma'/alpha')^2)      c = sqrt(sigma'^2 - q^2)
    cps(eta)       q = sigma' sin(eta pi/2)                                            c = sqrt(sigma'^2 - q^2)
    renoise        q = sigma'                                                          c = 0
    flow_sde(eta)  q = g sqrt(-dt), g = eta sqrt(sigma/(1 - sigma)), dt = sigma'-sigma c = sigma' + g^2 dt/(2 sigma)
    dance(eta)     q = eta sqrt(-dt)                                                   c = sigma' + eta^2 dt/(2 sigma)

ddim: Song et al. 2021 (eq. 16), whose form holds for any alpha and sigma, flows (alpha = 1 - sigma) too, and is finite
at alpha = 0. cps: arXiv 2509.05952. renoise: samplers of LCM, DMD2 and few-step flows. These three keep the level of
the noise at sigma' exactly. flow_sde (arXiv 2505.05470) and dance (arXiv 2505.07818) keep it to first order in dt, and
are here to compare with others' runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dav_ray.registry import Entry, Registry
from dav_ray.strict import number


@dataclass(frozen=True)
class Level:
    """x_t = alpha x_0 + sigma eps."""

    alpha: float
    sigma: float


@dataclass(frozen=True)
class Step:
    """x_{t-1} = alpha' x0_hat + carried eps_hat + std z."""

    carried: float
    std: float


Rule = Callable[[Level, Level, float], Step]
Eta = float | tuple[float, ...]  # as `parsed` gives it
MOST_ETA = 10.0  # of rules whose share is no share of the level
ALLOWED = "a number >= 0 and <= 1 (flow_sde, dance: <= 10), or a list of at most T of them"
_SHARE: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": MOST_ETA}
SCHEMA: list[Any] = [_SHARE, {"type": "array", "items": _SHARE, "minItems": 1}]


def _keeping(level: float, std: float) -> Step:
    """The step after which the noise has this level."""
    return Step(math.sqrt(max(0.0, level**2 - std**2)), std)


def ddim(now: Level, then: Level, eta: float) -> Step:
    if then.sigma == 0:
        return Step(0.0, 0.0)
    left = now.sigma**2 - (now.alpha * then.sigma / then.alpha) ** 2
    return _keeping(then.sigma, eta * then.sigma / now.sigma * math.sqrt(max(0.0, left)))


def cps(now: Level, then: Level, eta: float) -> Step:
    return _keeping(then.sigma, then.sigma * math.sin(eta * math.pi / 2))


def renoise(now: Level, then: Level, eta: float) -> Step:
    """eta only says whether: 0 makes the step deterministic."""
    return Step(0.0, then.sigma) if eta > 0 else Step(then.sigma, 0.0)


def flow_sde(now: Level, then: Level, eta: float) -> Step:
    """At sigma = 1 the denominator is that of the next step, as the authors take it."""
    dt = then.sigma - now.sigma
    g2 = eta**2 * now.sigma / (now.alpha or then.alpha)
    return Step(then.sigma + g2 * dt / (2 * now.sigma), math.sqrt(-g2 * dt))


def dance(now: Level, then: Level, eta: float) -> Step:
    dt = then.sigma - now.sigma
    return Step(then.sigma + eta**2 * dt / (2 * now.sigma), eta * math.sqrt(-dt))


NOISE_RULES = Registry(
    "dav_ray.noise_rules",
    "noise rule",
    {
        name: Entry(f"dav_ray.diffusion.noise_rules:{name}", about)
        for name, about in {
            "ddim": "DDIM with eta, for any Gaussian model, flows too",
            "cps": "coefficients-preserving sampling: q = sigma' sin(eta pi/2)",
            "renoise": "all noise is drawn anew, as few-step models sample",
            "flow_sde": "Flow-GRPO's SDE with a = eta, right to first order in the step",
            "dance": "DanceGRPO's SDE with eta, right to first order in the step",
        }.items()
    },
)
FLOWS_ALONE = frozenset({"flow_sde", "dance"})  # whose formulas need alpha = 1 - sigma


def schedule(eta: float | Sequence[float], steps: int) -> list[float]:
    """eta of each of T steps, the first for the step from x_T. A list may be shorter: the other steps draw nothing."""
    if isinstance(eta, (int, float)):
        return [float(eta)] * steps
    return [*map(float, eta), *[0.0] * (steps - len(eta))]


def steps(levels: Sequence[Level], rule: str, eta: float | Sequence[float]) -> list[Step]:
    """The steps to levels 0..T-1, of T + 1 levels of which [0] is the clean one's: [t - 1] is the one from x_t."""
    apply: Rule = NOISE_RULES.load(rule)
    each = reversed(schedule(eta, len(levels) - 1))
    return [apply(now, then, share) for then, now, share in zip(levels, levels[1:], each, strict=False)]


def draws(eta: Eta) -> bool:
    """Whether some step draws noise."""
    return any(share > 0 for share in (eta if isinstance(eta, tuple) else [eta]))


def parsed(value: object, noise: str | None, steps: int | None) -> Eta:
    """A share for all steps, or one for each. ValueError saying what is wrong. noise: the rule, steps: T, where these
    are valid."""
    listed = isinstance(value, list | tuple)
    shares = [number(share) for share in (value if isinstance(value, list | tuple) else [value])]
    for share in shares:
        if not 0 <= share <= (MOST_ETA if noise in FLOWS_ALONE else 1):
            raise ValueError("out of range")
    if listed and (not shares or (steps is not None and len(shares) > steps)):
        raise ValueError(f"has {len(shares)} numbers; allowed: 1 to search.steps = {steps}")
    return tuple(shares) if listed else shares[0]
