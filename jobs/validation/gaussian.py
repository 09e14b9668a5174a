"""Searches on a Gaussian model with a quadratic reward, where the tilted law is a Gaussian that can be written down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dav_ray.search.base import Search
from dav_ray.search.best_of_n import BestOfN
from dav_ray.search.dav import Dav
from dav_ray.search.plain import NoSearch
from dav_ray.search.refine import Refine
from dav_ray.search.smc import Smc
from dav_ray.search.svdd import Svdd
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.distances import Moments, moments
from dav_ray.testing.gaussian import LinearGaussian, Quadratic, populations
from dav_ray.types import Trajectories
from jobs.tables import Table, save
from jobs.validation.options import Options

CONDITION, ALPHA, GAMMA = "0.3", 0.25, 0.9
REWARD = Quadratic(centre=(1.0, -0.5), matrix=((2.0, 0.8), (0.8, 0.6)))  # eigenvalues 2.36 and 0.24
STEPS, MOVED = 10, 0.3  # how far the policy is from the pretrained model, in standard deviations of a step
TRAJECTORIES, POPULATION, LARGE = 20_000, 20, 100


@dataclass(frozen=True)
class Entry:
    name: str
    search: Search
    beta: float = 0.0  # share of the pretrained model in the anchor
    population: int = 1  # particles that resample together


@dataclass(frozen=True)
class Measured:
    """What a search returned against the law it aims at, [d] and [d, d]."""

    entry: Entry
    found: Trajectories
    goal_mean: Tensor
    goal_covariance: Tensor
    log_z: float
    weighted: Moments | None  # None where the search gives no weights
    accepted: Moments


def dav(candidates: int, gradient: bool, beta: float = 0.0) -> Dav:
    return Dav(candidates, ALPHA, GAMMA, gradient, beta)


def current() -> list[Entry]:
    """Anchor: the policy itself."""
    entries = [Entry("none", NoSearch(ALPHA, 0.0)), Entry("svdd M = 4", Svdd(4, ALPHA))]
    for gradient in (False, True):
        entries += [Entry(f"dav M = {m}{_tilt(gradient)}", dav(m, gradient)) for m in (1, 4, 16)]
    for gradient in (False, True):
        entries.append(Entry(f"smc M = 1{_tilt(gradient)}", Smc(dav(1, gradient)), population=POPULATION))
    entries.append(Entry("smc M = 4, gradient", Smc(dav(4, True)), population=POPULATION))
    for tempering in ("linear", "adaptive(0.7)"):
        search = Smc(dav(1, True), tempering=tempering)
        entries.append(Entry(f"smc M = 1, gradient, {tempering}", search, population=LARGE))
    entries.append(Entry("refine, dav M = 4", Refine(dav(4, False), repeats=4, depth=0.5)))
    return [*entries, Entry("best of 16", BestOfN(16))]


def anchored() -> list[Entry]:
    """Anchors that need the pretrained model."""
    entries = []
    for name, beta in (("pretrained", 1.0), ("geometric(0.3)", 0.3)):
        for gradient in (False, True):
            entries.append(Entry(f"{name}: dav M = 4{_tilt(gradient)}", dav(4, gradient, beta), beta))
        entries.append(Entry(f"{name}: smc M = 1, gradient", Smc(dav(1, True, beta)), beta, POPULATION))
    return entries


def _tilt(gradient: bool) -> str:
    return ", gradient" if gradient else ""


def measure(entry: Entry, trajectories: int, seed: int) -> Measured:
    toy = LinearGaussian(STEPS).shifted(MOVED)
    goal = toy.tilted(REWARD, ALPHA, CONDITION, entry.beta)
    num = max(2, trajectories // entry.population)
    conditions = populations(CONDITION, num, entry.population)
    noise: Any = BulkNoise(seed, len(conditions))
    found = entry.search(toy, scorer(REWARD), conditions, noise)
    of = torch.arange(num).repeat_interleave(entry.population)
    weighted = None if found.log_weight is None else moments(found.sample, found.log_weight, of)
    return Measured(
        entry, found, goal.means[0], goal.covariance, float(goal.log_z), weighted, moments(found.sample, None, of)
    )


def cells(measured: Measured) -> tuple[str, ...]:
    num, cost, w = len(measured.found.reward), measured.found.cost, measured.weighted
    spent = f"{cost.network / num:.0f}" + (f" + {cost.reference / num:.0f}" if cost.reference else "")
    proper = ("",) * 4
    if w is not None:
        log_z = f"{w.log_z - measured.log_z:+.4f} ± {w.log_z_error:.4f}"
        proper = (*errors(w, measured), log_z, f"{100 * w.effective:.0f} %")
    return (measured.entry.name, *proper, *errors(measured.accepted, measured), spent)


def errors(found: Moments, measured: Measured) -> tuple[str, str]:
    """|mean - mean'| and |covariance - covariance'| / |covariance'| (Frobenius), with what chance alone would give."""
    size = measured.goal_covariance.norm()
    mean, covariance = found.mean - measured.goal_mean, (found.covariance - measured.goal_covariance) / size
    return (
        f"{mean.norm():.3f} ± {found.mean_error.norm():.3f}",
        f"{covariance.norm():.3f} ± {found.covariance_error.norm() / size:.3f}",
    )


HEADER = (
    "search", "mean", "covariance", "log Z", "effective",
    "mean, no weights", "covariance, no weights", "network evaluations",
)  # fmt: skip


def run(options: Options) -> list[Table]:
    """Tables by anchor, and `gaussian.png`."""
    num = options.samples(TRAJECTORIES)
    ours, theirs = ([measure(entry, num, options.seed) for entry in entries] for entries in (current(), anchored()))
    draw(options, ours)
    goal = ours[0]
    note = (
        f"{num} trajectories of {STEPS} steps; smc in populations of {POPULATION}, {LARGE} for linear and adaptive. "
        "Errors against the closed form: mean |m - m*|, covariance |S - S*| / |S*| (Frobenius), log Z_hat - log Z; "
        "after ± the length of one standard error. effective: as how many exact draws the weighted ones count for the "
        "mean. no weights: the same trajectories, each counted once: what is left is the bias of the local choice. "
        "network evaluations: of the policy per accepted trajectory, + of the reference. The tilted law has standard "
        f"deviations {_deviations(goal)}, log Z {goal.log_z:.3f}; the policy's own mean is off by {_untilted():.2f}."
    )
    return [
        Table("Gaussian model, quadratic reward, current anchor", HEADER, tuple(cells(m) for m in ours), note),
        Table("Gaussian model, quadratic reward, other anchors", HEADER, tuple(cells(m) for m in theirs)),
    ]


def _deviations(measured: Measured) -> str:
    return " and ".join(f"{d:.2f}" for d in torch.linalg.eigvalsh(measured.goal_covariance).sqrt().tolist())


def _untilted() -> float:
    toy = LinearGaussian(STEPS).shifted(MOVED)
    return float((toy.law(CONDITION)[0] - toy.tilted(REWARD, ALPHA, CONDITION).means[0]).norm())


def draw(options: Options, measured: list[Measured]) -> None:
    """Left: one-deviation ellipses of law, accepted and weighted samples; right: errors of the mean by search."""
    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    toy = LinearGaussian(STEPS).shifted(MOVED)
    mean, variance = toy.law(CONDITION)
    dav4 = next(m for m in measured if m.entry.name == "dav M = 4")
    assert dav4.weighted is not None
    shown = {
        "model": (mean, variance * torch.eye(2, dtype=torch.float64), "0.6", "-"),
        "tilted law": (dav4.goal_mean, dav4.goal_covariance, "k", "-"),
        "dav M = 4, no weights": (dav4.accepted.mean, dav4.accepted.covariance, "C1", "--"),
        "dav M = 4, weighted": (dav4.weighted.mean, dav4.weighted.covariance, "C0", "--"),
    }
    for name, (centre, covariance, colour, style) in shown.items():
        left.plot(*_ellipse(centre, covariance).tolist(), style, color=colour, label=name)
    left.set(aspect="equal", title="one standard deviation", xlabel="x₁", ylabel="x₂")
    left.legend(fontsize=7, frameon=False)
    for place, m in enumerate(reversed(measured)):
        for found, colour in ((m.accepted, "C1"), (m.weighted, "C0")):
            if found is not None:
                error = float((found.mean - m.goal_mean).norm())
                right.errorbar(error, place, xerr=2 * float(found.mean_error.norm()), fmt="o", color=colour, ms=4)
    right.set_yticks(range(len(measured)), [m.entry.name for m in reversed(measured)], fontsize=7)
    right.set(
        xlabel="error of the mean ± 2 standard errors", xlim=(0, None), title="blue: weighted, orange: no weights"
    )
    save(figure, options.out / "gaussian.png")


def _ellipse(centre: Tensor, covariance: Tensor) -> Tensor:
    """[2, 100]."""
    angle = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)
    return centre.unsqueeze(1) + torch.linalg.cholesky(covariance) @ torch.stack([angle.cos(), angle.sin()])
