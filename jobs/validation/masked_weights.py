"""What the weights do on the enumerable masked model: the bias of the guesses goes away, and Z_hat is unbiased."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dav_ray.search.dav import Dav
from dav_ray.search.smc import Smc
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.enumerable import distance, floor, frequencies, share_variance
from jobs.tables import Table
from jobs.validation.masked_problem import GAMMA, MANY, Problem, accept, number
from jobs.validation.options import Options


@dataclass(frozen=True)
class Growth:
    """Per number of trajectories, or of particles: distances to the tilted law."""

    weights: list[tuple[int, float, float, float, float]]  # N, unweighted, weighted, noise alone, effective
    particles: list[tuple[int, int, float, float, float]]  # N, populations, distance, noise alone, effective

    @classmethod
    def of(cls, problem: Problem, options: Options) -> Growth:
        target, dav = problem.target, Dav(MANY, problem.alpha, GAMMA, False, 0.0)
        weights, particles = [], []
        for num in (options.samples(n) for n in (250, 1000, 4000, 16_000, 64_000)):
            found = accept(dav, problem.diffusion, problem.reward, num, 200 + options.seed)
            weights.append((num, found.distance(target), *found.weighted(target), found.effective))
            populations = max(1, min(32, options.samples(32_000) // num))
            particles.append((num, populations, *_population(problem, dav, num, populations, options.seed)))
        return cls(weights, particles)

    def table(self) -> Table:
        rows = []
        for (num, plain, weighted, noise, effective), (_, _, smc, smc_noise, size) in zip(
            self.weights, self.particles, strict=True
        ):
            left = (str(num), *map(number, (plain, weighted, noise)), f"{effective:.0f}")
            rows.append((*left, number(smc), number(smc_noise), f"{size:.0f}"))
        return Table(
            f"The bias of the guesses goes away with trajectories, at M = {MANY} (gamma {GAMMA})",
            ("N", "dav", "dav, weighted", "noise", "effective", "smc of N particles", "noise", "effective"),
            tuple(rows),
            "Total variation to the tilted law. Noise: what is expected of these weights if nothing else were wrong "
            "(delta method), for smc of as many exact draws as its last weights are effective. The unweighted distance "
            "tends to its bias. smc: mean over up to 32 populations, each by itself.",
        )


def _population(problem: Problem, dav: Dav, size: int, populations: int, seed: int) -> tuple[float, float, float]:
    """Mean distance of one population's draws, noise alone, effective size of the last weights."""
    conditions = [" " * k for k in range(populations) for _ in range(size)]
    search: Any = Smc(dav)
    noise = BulkNoise(300 + seed, len(conditions))
    found = search(problem.diffusion, scorer(problem.reward), conditions, noise)
    distances = [distance(frequencies(part), problem.target) for part in found.sample.split(size)]
    assert found.step_ess is not None
    effective = float(found.step_ess[-1].mean())
    return sum(distances) / populations, floor(share_variance(problem.target, effective))[0], effective


# ---- the normaliser ----


def normaliser_table(problem: Problem, options: Options) -> Table:
    """Z_hat of many independent populations: unbiased, whenever and however they are resampled."""
    alpha, rows = problem.alpha, []
    dav, plain = Dav(MANY, alpha, GAMMA, False, 0.0), Dav(1, alpha, GAMMA, False, 0.0)
    settings: list[tuple[str, Any, int, int]] = [  # name, search, trajectories of a population, populations
        ("dav, M 4 (one trajectory each)", dav, 1, 60_000),
        ("smc, M 4", Smc(dav), 32, 1000),
        ("smc, M 1", Smc(plain), 32, 1500),
        ("smc, M 1, stratified", Smc(plain, resampling="stratified"), 32, 1500),
        ("smc, M 1, ssp", Smc(plain, resampling="ssp"), 32, 1000),
        ("smc, M 1, resampled at every step", Smc(plain, below=1.0), 32, 1500),
        ("smc, M 1, linear tempering", Smc(plain, tempering="linear"), 32, 1500),
        ("smc, M 1, 8 particles for each of 4 trajectories", Smc(plain, particles=8), 4, 1500),
        ("smc, M 1, 8 particles in all", Smc(plain), 8, 4000),
        ("smc, M 1, adaptive tempering", Smc(plain, tempering="adaptive(0.7)"), 32, 400),
        ("smc, M 1, adaptive tempering, 8 particles in all", Smc(plain, tempering="adaptive(0.7)"), 8, 600),
    ]
    for seed, (name, search, trajectories, populations) in enumerate(settings, start=400 + options.seed):
        log_z = _log_z(search, problem, trajectories, options.samples(populations), seed) - math.log(problem.z)
        z, error = float(log_z.exp().mean()), float(log_z.exp().std()) / len(log_z) ** 0.5
        down, spread = float(log_z.mean()), float(log_z.std()) / len(log_z) ** 0.5
        cells = (f"{z:.4f} ± {error:.4f}", f"{(z - 1) / error:.1f}", f"{down:.3f} ± {spread:.3f}")
        rows.append((name, str(len(log_z)), *cells))
    return Table(
        "Z_hat of independent populations of 32 particles (where not said otherwise), against the enumerated Z",
        ("search", "populations", "mean Z_hat / Z", "z-score", "mean log Z_hat - log Z"),
        tuple(rows),
        "Systematic resampling below half the effective size, tempering by discount. In theory mean Z_hat / Z is 1 and "
        "the mean of log Z_hat below log Z in every row but the adaptive ones, which are consistent only.",
    )


def _log_z(search: Any, problem: Problem, trajectories: int, populations: int, seed: int) -> Tensor:
    """log Z_hat of every population; a condition of blanks says nothing to the model and names a population."""
    if trajectories == 1:
        found = accept(search, problem.diffusion, problem.reward, populations, seed).log_weight
    else:
        names = [" " * k for k in range(populations) for _ in range(trajectories)]
        found = search(problem.diffusion, scorer(problem.reward), names, BulkNoise(seed, len(names))).log_weight
    assert found is not None
    return found[::trajectories]
