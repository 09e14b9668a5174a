"""Reward after each round of EM by enumeration, with the E-step on the newest policy or on the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dav_ray.search.options import Search
from dav_ray.testing import exact_em
from dav_ray.testing.chain import START, StateScores, chain, likeliest

ALPHA, CANDIDATES = 1.0, 4


@dataclass(frozen=True)
class Setting:
    """step: how far an M-step goes, from the policy (0) to what fits the accepted trajectories best (1)."""

    anchor: str
    kl: float
    step: float

    @property
    def title(self) -> str:
        kl = f", lambda {self.kl:g}" if self.kl else ""
        return f"anchor {self.anchor}{kl}, step {self.step:g}"


SETTINGS = (
    Setting("current", 1.0, 1.0),
    Setting("current", 1.0, 0.2),
    Setting("pretrained", 0.0, 1.0),
    Setting("pretrained", 0.0, 0.2),
)


def rewards(setting: Setting, lag: int, rounds: int) -> list[float]:
    """E[r(x_0)] of the policy before the first round and after each; round k is searched with policy k - 1 - lag.

    Current anchor: an exact E-step. Pretrained anchor: a search with few candidates, which in the first rounds finds
    less than the tilted law has.
    """
    diffusion, _ = chain()
    start, table = diffusion.matrices(), StateScores.random(diffusion.states).table
    values = (table / ALPHA)[likeliest(start)]
    policies: list[Sequence[Tensor]] = [start]
    for number in range(1, rounds + 1):
        searched = policies[max(0, number - 1 - lag)]
        fitted = _found(setting, searched, start, values)
        policies.append([_toward(old, new, setting.step) for old, new in zip(policies[-1], fitted, strict=True)])
    return [float(exact_em.law(policy, START) @ table) for policy in policies]


def _found(setting: Setting, policy: Sequence[Tensor], start: Sequence[Tensor], values: Tensor) -> Sequence[Tensor]:
    beta = Search(anchor=setting.anchor).beta
    if setting.anchor == "pretrained":
        return exact_em.unweighted_round(policy, start, values, beta, CANDIDATES)
    return exact_em.em_round(policy, start, values[0], beta, setting.kl)


def _toward(old: Tensor, new: Tensor, step: float) -> Tensor:
    """Rows old^(1-step) new^step, normalised: where gradient steps on logits that end early leave a policy."""
    mixed = old.clamp_min(1e-300) ** (1 - step) * new.clamp_min(1e-300) ** step
    return mixed / mixed.sum(dim=1, keepdim=True)
