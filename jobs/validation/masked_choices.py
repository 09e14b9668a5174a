"""What the paper and its released code chose, against the choices here, one by one, on the enumerable masked model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.search.dav import Dav
from dav_ray.testing.enumerable import (
    LENGTH,
    LETTERS,
    MASK,
    SEQUENCES,
    STATES,
    carried,
    completions,
    distance,
    floor,
    frequencies,
    law,
    share_variance,
    state_index,
)
from dav_ray.testing.soft_values import accepted_chain, guessed_values, soft_values
from jobs.tables import Table
from jobs.validation.masked_problem import GAMMA, MANY, Found, Problem, accept, number
from jobs.validation.options import Options

MOVED, BETA = 0.5, 0.3  # of the anchors: how far the policy has moved, and the share of the pretrained model


def run(options: Options) -> list[Table]:
    return [selection_table(options), anchor_table(options), target_table(options), blend_table(options)]


# ---- the E-step ----


def selection_table(options: Options) -> Table:
    problem, num, few = Problem.of(), options.samples(15_000), options.samples(4000)
    plain = Dav(MANY, problem.alpha, GAMMA, False, 0.0)
    tilt = replace(plain, gradient=True)
    settings = {
        "no gradient, gamma 0.9": plain,
        "gamma 1": replace(plain, gamma=1.0),
        "gamma 0.7": replace(plain, gamma=0.7),
        "greedy choice": replace(plain, choice="best"),
        "gradient, gamma 0.9": tilt,
        "gradient, gamma 0.7": replace(tilt, gamma=0.7),
        "gradient, mean ratio": replace(tilt, ratio="mean"),
        "gradient, mean ratio, gamma 0.7": replace(tilt, ratio="mean", gamma=0.7),
        "gradient, greedy choice": replace(tilt, choice="best"),
        "gradient, mean ratio, greedy choice": replace(tilt, ratio="mean", choice="best"),
    }
    rows, seed = [], 500 + options.seed
    for name, search in settings.items():
        found = accept(search, problem.diffusion, problem.reward, num, seed)
        more = accept(replace(search, candidates=32), problem.diffusion, problem.reward, few, seed)
        distances = number(found.distance(problem.target)), number(more.distance(problem.target))
        rows.append((name, distances[0], *_weighted(found, problem.target), distances[1]))
    noise = [floor(share_variance(problem.target, n))[0] for n in (num, few)]
    return Table(
        f"Choices of the E-step: total variation to the tilted law, at M = {MANY} and 32",
        ("setting", f"M {MANY}", "weighted", "its noise alone", "effective", "M 32"),
        tuple(rows),
        f"{num} samples (noise alone {noise[0]:.3f}), {few} at M 32 ({noise[1]:.3f}). Greedy: the candidate of largest "
        "weight is kept. Mean ratio: log p - log q divided by the number of tokens, as in the released code; its law "
        "depends on how strong the tilt happens to be, and may lie nearer or farther, with no weights to correct it.",
    )


def _weighted(found: Found, target: Tensor) -> tuple[str, ...]:
    if found.log_weight is None:
        return ("none valid", "", "")
    return (*map(number, found.weighted(target)), f"{found.effective / len(found.sample):.2f} N")


def anchor_table(options: Options) -> Table:
    """Accepted samples against the tilted law of every anchor; only with the weights is the own one met."""
    betas, num = {"current": 0.0, f"geometric({BETA})": BETA, "pretrained": 1.0}, options.samples(20_000)
    problems = {name: Problem.of(MOVED, beta) for name, beta in betas.items()}
    rows = []
    for name, problem in problems.items():
        search = Dav(MANY, problem.alpha, GAMMA, False, betas[name])
        found = accept(search, problem.diffusion, problem.reward, num, 600 + options.seed)
        shares, noise = frequencies(found.sample, found.weights), found.weighted(problem.target)[1]
        cells = [number(distance(shares, other.target)) for other in problems.values()]
        z = found.weights / problem.z
        ratio = f"{float(z.mean()):.3f} ± {float(z.std()) / num**0.5:.3f}"
        rows.append((name, number(found.distance(problem.target)), *cells, number(noise), ratio))
    return Table(
        "Anchors: which tilted law the accepted samples have",
        ("anchor", "unweighted, to its own", *[f"weighted, to {name}" for name in betas], "noise alone", "mean W / Z"),
        tuple(rows),
        f"A policy that has moved by {MOVED} of the scale of its logits; {num} samples, M = {MANY}, gamma {GAMMA}. Z "
        "of the geometric anchor includes the anchor's own normaliser.",
    )


# ---- the M-step ----


def target_table(options: Options) -> Table:
    """The model that fits one round's accepted trajectories best, which is known: the nll is linear in the counts of
    letters per state, so its minimiser are their shares."""
    problem, num = Problem.of(), options.samples(60_000)
    diffusion, target = problem.diffusion, problem.target
    guesses = guessed_values(diffusion, problem.reward, problem.alpha, GAMMA)
    chain = accepted_chain(diffusion, guesses, MANY)
    ideal = accepted_chain(diffusion, soft_values(diffusion, problem.reward, problem.alpha), float("inf"))
    search = Dav(MANY, problem.alpha, GAMMA, False, 0.0, complete=True)
    found = accept(search, diffusion, problem.reward, num, 700 + options.seed)
    assert found.targets is not None
    one, unmasked = torch.ones(num, dtype=torch.float64), found.states[1:]
    settings = [  # name, targets, weights, chain and kind of target in expectation
        ("unmasked, W = 1", unmasked, one, chain, False),
        ("completed, W = 1", found.targets, one, chain, True),
        ("unmasked, trajectory weights", unmasked, found.weights, ideal, False),
        ("completed, trajectory weights", found.targets, found.weights, ideal, True),
    ]
    rows = [
        ("nothing is fitted", "", *_described(law(diffusion), problem)),
        ("the accepted samples", number(found.distance(target)), *_described(carried(diffusion, chain), problem)),
    ]
    for name, targets, weights, steps, complete in settings:
        sampled = law(fitted(problem, counted(found.states, targets, weights)))
        exact = law(fitted(problem, expected(diffusion, steps, complete)))
        rows.append((name, number(distance(sampled, target)), *_described(exact, problem)))
    rows.append(("the tilted law itself", "", *_described(target, problem)))
    return Table(
        "Targets of the M-step: the best fit to one round, against the tilted law",
        ("target", "sampled", "enumerated", "mean reward", "entropy"),
        tuple(rows),
        f"Total variation of the fitted model's law to the tilted law, fitted to {num} trajectories (M = {MANY}, gamma "
        f"{GAMMA}) and in expectation; mean reward and entropy (nats) of the latter. The tilted law is out of reach of "
        "a model whose tokens are independent within a step.",
    )


def _described(p: Tensor, problem: Problem) -> tuple[str, str, str]:
    """Distance to the target, mean reward, entropy in nats."""
    entropy = -float(torch.xlogy(p, p).sum())
    return number(distance(p, problem.target)), number(float(p @ problem.reward.table.double())), number(entropy)


def onehot(tokens: Tensor) -> Tensor:
    """[..., L] -> [..., L, letters]; zeros for a mask."""
    return nn.functional.one_hot(tokens, LETTERS + 1)[..., :LETTERS].double()


def counted(states: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted letters of the targets [T, N, L] where the state [T+1, N, L] before has a mask, by state [256, L, V]."""
    counts = torch.zeros(len(STATES), LENGTH, LETTERS, dtype=torch.float64)
    for x, target in zip(states[:-1], targets, strict=True):
        letters = onehot(target) * (x == MASK).unsqueeze(-1) * weights.reshape(-1, 1, 1)
        counts.index_add_(0, state_index(x), letters)
    return counts


def expected(diffusion: MaskedDiffusion, chain: list[Tensor], complete: bool) -> Tensor:
    """The same in expectation, when the steps of `chain` are taken."""
    states = torch.tensor(STATES)
    reached = torch.tensor(SEQUENCES)[completions(diffusion)] if complete else states
    mass = torch.zeros(len(STATES), dtype=torch.float64)
    mass[-1] = 1
    counts = torch.zeros(len(STATES), LENGTH, LETTERS, dtype=torch.float64)
    for step in chain:
        counts += torch.einsum("s,sn,nlv->slv", mass, step, onehot(reached))
        mass = mass @ step
    return counts * (states == MASK).unsqueeze(-1)


def fitted(problem: Problem, counts: Tensor) -> MaskedDiffusion:
    """The model whose letters have these shares; where nothing was seen, as it was."""
    diffusion = copy.deepcopy(problem.diffusion)
    table: Any = diffusion.trainable()
    seen = counts.sum(-1, keepdim=True) > 0
    with torch.no_grad():  # exp(-80) stands for a letter that was never fitted
        logits = torch.where(seen, counts.log().clamp_min(-80), table.linear[..., :LETTERS])
        table.linear[..., :LETTERS] = logits
    return diffusion


def blend_table(options: Options) -> Table:
    """Winner or all candidates: the letters that a step is fitted to, their mean and variance given x_t."""
    problem, num = Problem.of(), options.samples(60_000)
    search = Dav(MANY, problem.alpha, GAMMA, False, 0.0, blend=True)
    found = accept(search, problem.diffusion, problem.reward, num, 800 + options.seed)
    assert found.targets is not None
    rows = []
    for step, (x, after, blend) in enumerate(zip(found.states[:-1], found.states[1:], found.targets, strict=True)):
        place = state_index(x)
        size = torch.bincount(place, minlength=len(STATES)).reshape(-1, 1, 1)
        both = [t.double() * (x == MASK).unsqueeze(-1) for t in (onehot(after), blend)]
        (mean, _), (gap, variance) = _moments(both[1], place, size), _moments(both[0] - both[1], place, size)
        z = (gap / (variance / size).sqrt())[size * mean * (1 - mean) > 20]  # letters that were drawn often enough
        noise = [float((size * _moments(t, place, size)[1]).nansum()) / num for t in both]
        fit = f"{float(z.square().mean()):.2f} ± {(2 / len(z)) ** 0.5:.2f}" if len(z) else ""
        rows.append((str(len(found.targets) - step), fit, *map(number, noise), f"{noise[1] / noise[0]:.3f}"))
    return Table(
        f"Candidates of the M-step: the winner alone, or all M = {MANY}",
        ("t", "mean z^2 of the difference", "variance, winner", "variance, all", "ratio"),
        tuple(rows),
        "Letters that a step is fitted to, at every state x_t. z: the mean difference between winner and blend at a "
        "state, place and letter, in standard errors; mean z^2 is 1 where both have one mean. Variance: given x_t, "
        "summed over places and letters: the noise of the gradient, which is linear in these letters.",
    )


def _moments(values: Tensor, place: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of values [N, L, V] by state [256, L, V]."""
    first = torch.zeros(len(STATES), *values.shape[1:], dtype=torch.float64).index_add(0, place, values) / size
    second = torch.zeros_like(first).index_add(0, place, values.square()) / size
    return first, (second - first.square()) * size / (size - 1)
