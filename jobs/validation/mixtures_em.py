"""Rounds of EM on DAS' mixtures, production search and M-step, against the exact posterior and exact EM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dav_ray.diffusion.sampling import ancestral
from dav_ray.mstep.fit import Fitter
from dav_ray.mstep.objective import Rows
from dav_ray.mstep.options import MStep
from dav_ray.search.dav import Dav
from dav_ray.search.weighting.weights import normalise
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.distances import emd
from dav_ray.testing.mixture import MixtureDiffusion, Problem, circle, nine_modes
from jobs.tables import Table, save
from jobs.validation.mixtures import GAMMA, Yardstick
from jobs.validation.options import Options

ROUNDS, TRAJECTORIES, SAMPLES = 6, 512, 500  # fewer rounds too at scales below a quarter


def run(options: Options) -> list[Table]:
    """A table per problem, and `mixtures_em.png`."""
    problems = [nine_modes(), circle()]
    courses = [[course(problem, plan, options) for plan in PLANS] for problem in problems]
    draw(problems, courses, options)
    return [em_table(problem, found, options) for problem, found in zip(problems, courses, strict=True)]


@dataclass(frozen=True)
class Plan:
    name: str
    beta: float  # of the anchor: 0 current, 1 pretrained
    kl: float
    weighted: bool  # mstep.weights = trajectory, or none


PLANS = (
    Plan("current", 0.0, 0.0, False),
    Plan("current, lambda = 0.3", 0.0, 0.3, False),
    Plan("current, weights", 0.0, 0.0, True),
    Plan("pretrained, weights", 1.0, 0.0, True),
)


def em(problem: Problem, plan: Plan, options: Options) -> Iterator[MixtureDiffusion]:
    """The model before round 1, and after each: production search, production M-step."""
    num, seed = options.samples(TRAJECTORIES), options.seed
    diffusion = MixtureDiffusion(problem.data, seed=seed)
    config = MStep(kl=plan.kl, learning_rate=1e-2, epochs=4, batch_size=1024, micro_batch=1024)
    fitter, search = Fitter(diffusion, config, seed), Dav(4, problem.alpha, GAMMA, True, plan.beta)
    names = ("",) * num
    yield diffusion
    for number in range(1, min(ROUNDS, 1 + options.samples(20)) + 1):
        noise: Any = BulkNoise(1000 * seed + number, num)
        found = search(diffusion, scorer(problem.reward), names, noise)
        weights = torch.ones(num, dtype=torch.float64)
        if plan.weighted:
            assert found.log_weight is not None
            weights = torch.tensor(normalise(found.log_weight.tolist(), names), dtype=torch.float64)
        real = torch.ones(num, dtype=torch.bool)
        fitter.fit(number, [Rows(found.states.transpose(0, 1), None, names, weights, real)])
        yield diffusion


@dataclass(frozen=True)
class Course:
    """Plain samples of the fitted model, round by round from 0."""

    plan: Plan
    reward: list[float]
    emd: list[float]
    last: Tensor


def course(problem: Problem, plan: Plan, options: Options) -> Course:
    num = options.samples(SAMPLES)
    exact = Yardstick.of(problem, num, options.seed)
    rewards, distances, x = [], [], exact.sample
    for number, model in enumerate(em(problem, plan, options)):
        x = ancestral(model, [""] * num, BulkNoise(1000 * options.seed + 500 + number, num))[-1]
        rewards.append(float(problem.reward(x).mean()))
        distances.append(emd(x, exact.sample))
    return Course(plan, rewards, distances, x)


def theory(problem: Problem, plan: Plan, number: int) -> float:
    """Mean reward of the data law as exact EM without lambda has tilted it after round `number` >= 1: by
    exp(k r / alpha) where the anchor is the current model, by exp(r / alpha) where it is the pretrained one."""
    alpha = problem.alpha if plan.beta else problem.alpha / number
    return problem.data.tilted(problem.reward, alpha)[0].mean_reward(problem.reward)


def em_table(problem: Problem, courses: list[Course], options: Options) -> Table:
    num, rounds = options.samples(SAMPLES), len(courses[0].reward) - 1
    exact, rows = Yardstick.of(problem, num, options.seed), []
    for found in courses:
        ends = [f"{theory(problem, found.plan, k):.2f}" for k in (1, rounds)]
        rows.append((
            found.plan.name,
            *(f"{value:.2f}" for value in found.reward),
            "" if found.plan.kl else " to ".join(ends),
            f"{min(found.emd):.2f}",
            f"{found.emd[-1]:.2f}",
            *exact.modes(found.last),
        ))  # fmt: skip
    header = (
        "anchor", *(f"reward {k}" for k in range(rounds + 1)), "exact EM", "least EMD", "EMD", "modes", "TV",
    )  # fmt: skip
    note = (
        f"Production search (dav, M = 4, gradient) and M-step, {options.samples(TRAJECTORIES)} trajectories a round. "
        f"reward k: mean of {num} plain samples after round k. exact EM: mean reward of p_0 exp(k r / alpha) after the "
        "first and the last round (current), of p_0 exp(r / alpha) (pretrained). EMD, modes, TV: to the posterior, as "
        "above; least: over rounds. weights: mstep.weights = trajectory, else none."
    )
    return Table(f"{problem.name}: rounds of EM", header, tuple(rows), note)


def draw(problems: list[Problem], courses: list[list[Course]], options: Options) -> None:
    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    axes = figure.subplots(2, len(problems), sharex=True)
    for problem, found, (reward, distance) in zip(problems, courses, axes.T, strict=True):
        for number, each in enumerate(found):
            reward.plot([-r for r in each.reward], color=f"C{number}", marker="o", ms=3, label=each.plan.name)
            distance.plot(each.emd, color=f"C{number}", marker="o", ms=3)
        for plan, style in ((PLANS[2], ":"), (PLANS[3], "--")):
            rounds, label = range(1, len(found[0].reward)), f"exact EM, {plan.name.split(',')[0]}"
            reward.plot(rounds, [-theory(problem, plan, k) for k in rounds], style, color="k", lw=1, label=label)
        reward.set(title=problem.name, ylabel="- mean reward", yscale="log")
        distance.set(xlabel="EM round", ylabel="EMD to posterior", ylim=(0, None))
    axes[1, 0].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=6.5, frameon=False)
    save(figure, options.out / "mixtures_em.png")
