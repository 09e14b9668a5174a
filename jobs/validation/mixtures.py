"""DAS' test problems (arXiv 2501.05803) with an exact score: searches against the exact posterior.

Rounds of EM on the same problems are in `mixtures_em.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dav_ray.search.base import Search
from dav_ray.search.best_of_n import BestOfN
from dav_ray.search.dav import Dav
from dav_ray.search.plain import NoSearch
from dav_ray.search.smc import Smc
from dav_ray.search.svdd import Svdd
from dav_ray.search.weighting.resampling import systematic
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.distances import emd, mmd, mode_shares, modes_kept, moments, sliced_emd, total_variation
from dav_ray.testing.mixture import Mixture, MixtureDiffusion, Problem, circle, nine_modes, sampler_line, swiss_roll
from jobs.tables import Table, save
from jobs.validation.options import Options

GAMMA = 0.95  # over 100 steps: earlier guesses say little
SAMPLES, PLAIN = 1000, 10_000


def run(options: Options) -> list[Table]:
    """A table and a scatter plot per problem."""
    problems = [nine_modes(), circle(), swiss_roll()]
    tables = [laws_table(problems, options)]
    for problem in problems:
        table, shown = search_table(problem, options)
        tables.append(table)
        draw_samples(problem, shown, options)
    return tables


# ---- searches ----


@dataclass(frozen=True)
class Yardstick:
    """The exact posterior, and a sample of it [N, d] to be compared with."""

    problem: Problem
    sample: Tensor
    shares: Tensor | None  # [K] of the modes
    seed: int

    @classmethod
    def of(cls, problem: Problem, num: int, seed: int) -> Yardstick:
        draws = torch.Generator().manual_seed(seed)
        many, centres = problem.posterior.sample(100_000, draws), problem.centres
        return cls(problem, many[:num], None if centres is None else mode_shares(many, centres), seed)

    def distances(self, x: Tensor) -> tuple[str, ...]:
        sliced = sliced_emd(x, self.sample, torch.Generator().manual_seed(self.seed))
        return f"{emd(x, self.sample):.3f}", f"{sliced:.3f}", f"{mmd(x, self.sample):+.4f}", *self.modes(x)

    def modes(self, x: Tensor) -> tuple[str, str]:
        if self.shares is None or self.problem.centres is None:
            return "", ""
        found = mode_shares(x, self.problem.centres)
        kept, there = modes_kept(found, self.shares)
        return f"{kept} of {there}", f"{total_variation(found, self.shares):.3f}"


def searches(alpha: float) -> dict[str, Search]:
    def dav(candidates: int, gradient: bool) -> Dav:
        return Dav(candidates, alpha, GAMMA, gradient, 0.0)

    return {
        "pretrained": NoSearch(alpha, 0.0),
        "best of 4": BestOfN(4),
        "svdd, M = 4": Svdd(4, alpha),
        "dav, M = 4": dav(4, False),
        "dav, M = 4, gradient": dav(4, True),
        "smc, M = 1, gradient": Smc(dav(1, True)),
        "smc, M = 1, gradient, adaptive(0.9)": Smc(dav(1, True), tempering="adaptive(0.9)"),
        "smc, M = 4, gradient": Smc(dav(4, True)),
    }


PUBLISHED = {"pretrained": "pretrained", "exact posterior": "posterior", "smc, M = 1, gradient": "smc"}


def search_table(problem: Problem, options: Options) -> tuple[Table, dict[str, Tensor]]:
    """The table, and samples to be shown."""
    num = options.samples(SAMPLES)
    exact = Yardstick.of(problem, num, options.seed)
    other = problem.posterior.sample(num, torch.Generator().manual_seed(options.seed + 1))
    rows = [("exact posterior", *reward_cell(problem, other), *exact.distances(other), "", "")]
    shown = {"exact posterior": exact.sample}
    for name, search in searches(problem.alpha).items():
        for row, sample in search_rows(name, search, exact, options.seed):
            rows.append(row)
            shown[row[0]] = sample
    rows = [(*row, published(problem, PUBLISHED.get(row[0], ""))) for row in rows]
    others = [name for name in ("RL", "backpropagation") if name in problem.published]
    rows += [(f"DAS: {name}", *[""] * 8, published(problem, name)) for name in others]
    header = (
        "search",
        "mean reward",
        "EMD",
        "sliced EMD",
        "MMD²",
        "modes",
        "TV",
        "effective",
        "network evaluations",
        "DAS",
    )
    note = (
        f"{num} samples each, and as many exact draws of the posterior to compare them with; its mean reward is "
        f"{problem.posterior.mean_reward(problem.reward):.4f}. First row: another exact sample. EMD: Euclidean, by the "
        "best assignment. MMD²: RBF kernel, unbiased. modes: of those with a hundredth of the posterior or more, how "
        "many hold half of their share; TV: between mode shares. weighted: mean reward by the trajectory weights, and "
        "distances of a sample drawn by them, so with copies. effective: as how many exact draws the weighted ones "
        "count for the mean. DAS: the mean reward that it prints for a learned score."
    )
    return Table(f"{problem.name}: searches on the pretrained model", header, tuple(rows), note), shown


def search_rows(name: str, search: Search, exact: Yardstick, seed: int) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """What was accepted, each counted once, and where there are trajectory weights what they make of it."""
    problem, num = exact.problem, len(exact.sample)
    noise: Any = BulkNoise(seed + 1, num)
    found = search(MixtureDiffusion(problem.data), scorer(problem.reward), [""] * num, noise)
    x, spent = found.sample, f"{found.cost.network / num:.0f}"
    yield (name, *reward_cell(problem, x), *exact.distances(x), "", spent), x
    if found.log_weight is not None and not isinstance(search, Smc):  # one population: its weights are all the same
        u = torch.rand(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        again = x[systematic(torch.softmax(found.log_weight, 0), num, u)]
        share = f"{100 * moments(x, found.log_weight).effective:.0f} %"
        reward = reward_cell(problem, x, found.log_weight)
        yield (f"{name}, weighted", *reward, *exact.distances(again), share, spent), again


def reward_cell(problem: Problem, x: Tensor, log_weight: Tensor | None = None) -> tuple[str]:
    found = moments(problem.reward(x).unsqueeze(1), log_weight)
    return (f"{float(found.mean):.3f} ± {float(found.mean_error):.3f}",)


def published(problem: Problem, name: str) -> str:
    return f"{problem.published[name]:.2f}" if name in problem.published else ""


def laws_table(problems: list[Problem], options: Options) -> Table:
    """What 100 steps make of the data law: the search tilts the sampler's law."""
    reward, log_z = exact_nine_modes()
    header = (
        "problem", "mean reward, data", "sampler", "EMD", "sliced EMD", "posterior mean reward, data", "sampler",
        "log Z, data", "sampler",
    )  # fmt: skip
    note = (
        f"sampler: {options.samples(PLAIN)} plain samples, for the posterior weighted by exp(r / alpha). EMD: between "
        f"{options.samples(SAMPLES)} of them and as many draws of the data law, in brackets between two such draws. "
        "Nine modes are a product of lines, on which the sampler's law is known by quadrature: posterior mean reward "
        f"{reward:.4f}, log Z {log_z:.4f}."
    )
    rows = tuple(laws_row(problem, options) for problem in problems)
    return Table("The sampler's law and the data's", header, rows, note)


def laws_row(problem: Problem, options: Options) -> tuple[str, ...]:
    num, many = options.samples(SAMPLES), options.samples(PLAIN)
    noise: Any = BulkNoise(options.seed, many)
    plain = NoSearch(problem.alpha, 0.0)(MixtureDiffusion(problem.data), scorer(problem.reward), [""] * many, noise)
    draws = torch.Generator().manual_seed(options.seed)
    a, b = problem.data.sample(num, draws), problem.data.sample(num, draws)
    x = plain.sample[:num]
    sliced = [sliced_emd(y, a, torch.Generator().manual_seed(options.seed)) for y in (x, b)]
    tilted, log_z = problem.data.tilted(problem.reward, problem.alpha)
    z = moments(plain.sample, plain.log_weight)
    return (
        problem.name,
        f"{problem.data.mean_reward(problem.reward):.3f}",
        *reward_cell(problem, plain.sample),
        f"{emd(x, a):.3f} ({emd(b, a):.3f})",
        f"{sliced[0]:.3f} ({sliced[1]:.3f})",
        f"{tilted.mean_reward(problem.reward):.4f}",
        *reward_cell(problem, plain.sample, plain.log_weight),
        f"{log_z:.4f}",
        f"{z.log_z:.4f} ± {z.log_z_error:.4f}",
    )


def exact_nine_modes() -> tuple[float, float]:
    """Posterior mean reward and log Z of nine modes under the sampler's law: x and y are independent."""
    line = sampler_line(MixtureDiffusion(Mixture.even(torch.tensor([[-4.0], [0.0], [4.0]]), 0.3)))
    found = {weight: line.tilted(weight, 1.0) for weight in (0.01, 1.0)}
    reward = -sum(weight * tilted.mean_square() for weight, (tilted, _) in found.items())
    return reward, sum(log_z for _, log_z in found.values())


# ---- figures ----

SHOWN = (
    "exact posterior",
    "pretrained",
    "dav, M = 4, gradient",
    "dav, M = 4, gradient, weighted",
    "smc, M = 1, gradient",
)


def draw_samples(problem: Problem, samples: dict[str, Tensor], options: Options) -> None:
    figure = Figure(figsize=(9, 2.2), dpi=100, layout="constrained")
    first, second = 0, problem.data.means.shape[1] - 1
    least, most = problem.data.means.amin(0) - 1.2, problem.data.means.amax(0) + 1.2
    for axis, name in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
        x = samples[name][:600]
        reward = float(problem.reward(samples[name]).mean())
        axis.scatter(x[:, first], x[:, second], s=2, color="C0", linewidths=0)
        axis.set_title(f"{name.replace(', M', chr(10) + 'M', 1)}\nreward {reward:.2f}", fontsize=8)
        axis.set(xlim=(least[first], most[first]), ylim=(least[second], most[second]))
        axis.tick_params(labelsize=7)
    save(figure, options.out / f"{problem.name.lower().replace(' ', '_')}.png")
