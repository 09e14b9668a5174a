"""DAV's E-step on a masked model that can be enumerated: which law the accepted samples have, against what is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dav_ray.search.best_of_n import BestOfN
from dav_ray.search.dav import Dav
from dav_ray.search.plain import NoSearch
from dav_ray.search.refine import Refine
from dav_ray.search.smc import Smc
from dav_ray.search.svdd import Svdd
from dav_ray.testing.enumerable import LENGTH, distance, floor, frequencies, law, misfit, share_variance
from dav_ray.testing.soft_values import (
    ExactValues,
    accepted_chain,
    accepted_law,
    guessed_values,
    largest,
    refined_law,
    soft_values,
)
from jobs.tables import Table, save
from jobs.validation import masked_choices
from jobs.validation.masked_problem import GAMMA, MANY, Problem, accept, number
from jobs.validation.masked_weights import Growth, normaliser_table
from jobs.validation.options import Options

CANDIDATES = (1, 2, 4, 8, 16, 32)
FITTED = 4  # the slope is fitted from here on: with fewer candidates the distance is near its largest value
GAMMAS = (1.0, 0.9, 0.7)


@dataclass(frozen=True)
class Point:
    """Accepted samples of one setting."""

    candidates: int
    num: int  # samples
    measured: float  # their distance to the target, noise included
    exact: float  # of the enumerated law
    share: float  # share of samples where that law exceeds the target, less the target's: unbiased for `exact`
    error: float  # standard error of `share`
    misfit: float  # to the enumerated law, a standard normal number


def run(options: Options) -> list[Table]:
    problem = Problem.of()
    points = {"exact": curve(problem, None, options.samples(40_000), options.seed)}
    points |= {f"{g:g}": curve(problem, g, options.samples(10_000), options.seed) for g in GAMMAS}
    growth = Growth.of(problem, options)
    draw(problem, points, growth, options)
    return [
        candidates_table(problem, points),
        strategies_table(problem, options),
        growth.table(),
        normaliser_table(problem, options),
        *masked_choices.run(options),
    ]


# ---- total variation against M ----


def curve(problem: Problem, gamma: float | None, num: int, seed: int) -> list[Point]:
    """gamma None: exact soft values; else guesses with that discount."""
    diffusion, reward, alpha = problem.diffusion, problem.reward, problem.alpha
    if gamma is None:
        values, seen = soft_values(diffusion, reward, alpha), ExactValues(diffusion, reward, alpha)
    else:
        values, seen = guessed_values(diffusion, reward, alpha, gamma), None
    points = []
    for candidates in CANDIDATES:
        search = Dav(candidates, alpha, gamma or 1.0, False, 0.0)
        found = accept(search, seen or diffusion, seen or reward, num, seed + candidates)
        points.append(
            _point(problem, candidates, found.sample[:, :LENGTH], accepted_law(diffusion, values, candidates))
        )
    return points


def _point(problem: Problem, candidates: int, sample: Tensor, expected: Tensor) -> Point:
    found, more = frequencies(sample), expected > problem.target
    part = float(found[more].sum())
    return Point(
        candidates,
        len(sample),
        distance(found, problem.target),
        distance(expected, problem.target),
        part - float(problem.target[more].sum()),
        math.sqrt(part * (1 - part) / len(sample)),
        misfit(sample, expected),
    )


def slope(candidates: Sequence[float], distances: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Least squares of log TV over log M, weighted by the errors of log TV, and its standard error."""
    x = torch.tensor(candidates, dtype=torch.float64).log()
    y = torch.tensor(distances, dtype=torch.float64)
    w = (y / torch.tensor(errors, dtype=torch.float64)).square()
    x = x - (w * x).sum() / w.sum()
    return float((w * x * y.log()).sum() / (w * x.square()).sum()), float((w * x.square()).sum() ** -0.5)


def candidates_table(problem: Problem, points: dict[str, list[Point]]) -> Table:
    rows = []
    for i, point in enumerate(points["exact"]):
        guesses = [points[f"{g:g}"][i] for g in GAMMAS]
        cells = [f"{p.measured:.3f} / {p.exact:.3f}" for p in (point, *guesses)]
        rows.append((str(point.candidates), cells[0], f"{point.share:.4f} ± {point.error:.4f}", *cells[1:]))
    limits = [
        accepted_law(problem.diffusion, guessed_values(problem.diffusion, problem.reward, problem.alpha, g), math.inf)
        for g in GAMMAS
    ]
    rows.append(("infinite", "0", "0", *[f"{distance(limit, problem.target):.3f}" for limit in limits]))
    late = [p for p in points["exact"] if p.candidates >= FITTED and p.share > p.error]
    sampled = slope([p.candidates for p in late], [p.share for p in late], [p.error for p in late])
    exact = slope([p.candidates for p in late], [p.exact for p in late], [p.exact for p in late])
    worst = max(abs(p.misfit) for curve in points.values() for p in curve)
    first = points["exact"][0].num, points["1"][0].num
    floors = [floor(share_variance(problem.target, n))[0] for n in first]
    return Table(
        "Total variation between accepted samples and the tilted law, against the number of candidates M",
        ("M", "exact soft values", "the same less noise", *[f"guesses, gamma {g:g}" for g in GAMMAS]),
        tuple(rows),
        f"Measured / enumerated. Noise alone is {floors[0]:.3f} for the {first[0]} samples with exact values, "
        f"{floors[1]:.3f} for the {first[1]} of the others. Less noise: the share of samples where the enumerated "
        "law exceeds the target, less the target's, which is unbiased. "
        f"Slope of log TV over log M from M = {FITTED} on: {sampled[0]:.2f} ± {sampled[1]:.2f} measured, "
        f"{exact[0]:.2f} enumerated, -1 as M grows. With guesses the distance stays, however many candidates there "
        "are. "
        f"Samples against enumerated laws: the largest of {sum(map(len, points.values()))} standard normal numbers is "
        f"{worst:.1f}.",
    )


# ---- other strategies ----


def strategies_table(problem: Problem, options: Options) -> Table:
    """Every strategy with about the same number of candidates; the law each should have is enumerated."""
    diffusion, reward, alpha, num = problem.diffusion, problem.reward, problem.alpha, options.samples(20_000)
    plain, table = law(diffusion), reward.table.double().unsqueeze(0)
    guesses = {g: guessed_values(diffusion, reward, alpha, g) for g in (1.0, GAMMA)}
    chain = accepted_chain(diffusion, guesses[GAMMA], MANY)
    dav = Dav(MANY, alpha, GAMMA, False, 0.0)
    settings = [
        ("none", NoSearch(alpha, 0.0), plain),
        ("best_of_n, 8", BestOfN(8), largest(plain.unsqueeze(0), table, 8)[0]),
        ("svdd, M 8", Svdd(8, alpha), accepted_law(diffusion, guesses[1.0], 8)),
        ("svdd, M 8, best", Svdd(8, alpha, choice="best"), accepted_law(diffusion, guesses[1.0], 8, best=True)),
        ("dav, M 4", dav, accepted_law(diffusion, guesses[GAMMA], MANY)),
        ("refine, M 4, 4 repeats", Refine(dav, 4, 0.5), refined_law(diffusion, reward, alpha, chain, 4, 3)),
        ("smc, one population, M 4", Smc(dav), problem.target),
    ]
    rows = []
    for seed, (name, search, expected) in enumerate(settings, start=100 + options.seed):
        found = accept(search, diffusion, reward, num, seed)
        fit, weighted = f"{misfit(found.sample, expected):.1f}", "none valid"
        if isinstance(search, Smc):
            fit, weighted = "", "all alike"  # its samples share ancestors, and so they fit less well
        elif found.log_weight is not None:
            weighted = "{:.3f} / {:.3f}".format(*found.weighted(problem.target))
        should = distance(expected, problem.target)
        rows.append((name, number(found.distance(problem.target)), number(should), fit, weighted))
    return Table(
        "Total variation to the tilted law by strategy",
        ("strategy", "measured", "enumerated", "misfit", "with weights / noise alone"),
        tuple(rows),
        f"{num} samples; noise alone is {floor(share_variance(problem.target, num))[0]:.3f}. Misfit: of the samples to "
        "the enumerated law, a standard normal number. best_of_n knows no alpha; refine has a fixed point of its own.",
    )


def draw(problem: Problem, points: dict[str, list[Point]], growth: Growth, options: Options) -> None:
    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (name, curve) in zip(("C0", "C1", "C2", "C3"), points.items(), strict=True):
        label = "exact soft values" if name == "exact" else f"guesses, gamma {name}"
        left.plot(CANDIDATES, [p.exact for p in curve], color=colour, label=label)
        shown = [p.share if name == "exact" else p.measured for p in curve]
        left.plot(CANDIDATES, shown, "o", color=colour, markersize=4)
    left.plot(CANDIDATES, [points["exact"][0].exact / m for m in CANDIDATES], ":", color="grey", label="1 / M")
    left.set(xscale="log", yscale="log", xlabel="candidates M", ylabel="total variation to the tilted law")
    left.set_xticks(CANDIDATES, [str(m) for m in CANDIDATES])
    num = [row[0] for row in growth.weights]
    right.plot(num, [row[1] for row in growth.weights], "o-", markersize=4, label="dav, unweighted")
    right.plot(num, [row[2] for row in growth.weights], "o", markersize=4, color="C1", label="dav, weighted")
    right.plot(num, [row[3] for row in growth.weights], "-", color="C1", linewidth=1, label="its noise alone")
    right.plot(num, [row[2] for row in growth.particles], "s", markersize=4, color="C2", label="smc")
    right.plot(num, [row[3] for row in growth.particles], "-", color="C2", linewidth=1, label="its noise alone")
    right.set(xscale="log", yscale="log", xlabel="trajectories, or particles of one population")
    for axes, title in ((left, "lines: enumerated; points: measured"), (right, f"M = {MANY}, gamma {GAMMA}")):
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8, frameon=False)
    save(figure, options.out / "masked.png")
