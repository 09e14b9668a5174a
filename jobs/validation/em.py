"""Rounds of EM against theory, on models whose laws can be enumerated.

Exact rounds first, then the production search and M-step on the same models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dav_ray.config.build import strategy
from dav_ray.mstep.fit import Fitter
from dav_ray.mstep.objective import Rows
from dav_ray.mstep.options import MStep
from dav_ray.search.options import Search
from dav_ray.search.weighting.weights import normalise
from dav_ray.testing import enumerable as masked
from dav_ray.testing import exact_em as theory
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.chain import START, StateScores, TabularChain, chain, likeliest
from dav_ray.testing.enumerable import distance, floor, indexed_share_variance
from dav_ray.types import Trajectories
from jobs.tables import Table, save
from jobs.validation.options import Options

ANCHORS = ("current", "geometric(0.5)", "pretrained")
ALPHA, MASKED_ALPHA = 1.0, 2.0
CANDIDATES, KL = 2, 1.0
ROUNDS, MASKED_ROUNDS = 5, 3
LATE = 20  # rounds after which an exact run is taken to have settled
TRAJECTORIES, MASKED_TRAJECTORIES = 12_000, 10_000


@dataclass(frozen=True)
class SampledEM:
    """EM as it is run: the production search, and the production M-step fitted until nothing moves."""

    diffusion: Any
    reward: Any
    alpha: float
    anchor: str
    candidates: int
    trajectories: int
    weighted: bool  # mstep.weights = trajectory, or none
    kl: float = 0.0
    seed: int = 0
    epochs: int = 60
    learning_rate: float = 0.1

    @cached_property
    def fitter(self) -> Fitter:
        whole = self.trajectories * self.diffusion.steps  # one batch: the error that is left is the sample's
        batch: dict[str, Any] = {"batch_size": whole, "micro_batch": whole, "max_grad_norm": 1e9}
        config = MStep(kl=self.kl, learning_rate=self.learning_rate, epochs=self.epochs, **batch)
        return Fitter(self.diffusion, config, self.seed)

    def search(self, round: int) -> Trajectories:
        config = Search(alpha=self.alpha, gamma=1.0, anchor=self.anchor, candidates=self.candidates)
        noise: Any = BulkNoise(100 * self.seed + round, self.trajectories)
        return strategy(config)(self.diffusion, scorer(self.reward), [""] * self.trajectories, noise)

    def round(self, number: int) -> tuple[Trajectories, Tensor]:
        """Search and fit; what was found, and its weights W_i [N]."""
        found = self.search(number)
        names = ("",) * self.trajectories
        weights = torch.ones(self.trajectories, dtype=torch.float64)
        if self.weighted:
            assert found.log_weight is not None
            weights = torch.tensor(normalise(found.log_weight.tolist(), names), dtype=torch.float64)
        real = torch.ones(self.trajectories, dtype=torch.bool)
        self.fitter.fit(number, [Rows(found.states.transpose(0, 1), None, names, weights, real)])
        return found, weights


def beta_of(anchor: str) -> float:
    return Search(anchor=anchor).beta


def effective(weights: Tensor) -> float:
    """(sum W)^2 / sum W^2: as how many draws the weighted ones count."""
    return float(weights.sum() ** 2 / weights.square().sum())


def noise(p: Tensor, index: Tensor, weights: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the TV between the law p [S] and the weighted shares of its draws, index [N]."""
    return floor(indexed_share_variance(p, index, weights))


def run(options: Options) -> list[Table]:
    torch.set_num_threads(1)
    exact, entropies = exact_table()
    sampled, paths = sampled_table(options)
    draw(options, entropies, paths)
    return [exact, sampled, masked_table(options)]


# ---- exact rounds ----


def exact_rounds(start: theory.Kernels, value: Tensor, beta: float, rounds: int, kl: float = 0.0) -> list[list[Tensor]]:
    """The policies after 0, 1, .. rounds."""
    out = [list(start)]
    for _ in range(rounds):
        out.append(theory.em_round(out[-1], start, value, beta, kl))
    return out


def largest_error(start: theory.Kernels, value: Tensor, beta: float, x_t: int, rounds: int) -> float:
    """max over rounds k and states of |p_k - p_0 exp(c_k r / alpha) / Z_k|."""
    first, worst = theory.law(start, x_t), 0.0
    for k, policy in enumerate(exact_rounds(start, value, beta, rounds)):
        expected = theory.tilt(first, theory.exponent(k, beta) * value)
        worst = max(worst, float((theory.law(policy, x_t) - expected).abs().max()))
    return worst


def exact_table() -> tuple[Table, dict[str, list[float]]]:
    """The table, and the entropy after 0, 1, .. rounds by anchor."""
    start, value = chain()[0].matrices(), StateScores.random(12).table / ALPHA
    diffusion, all_masked = masked.model(), masked.INDEX[(masked.MASK,) * masked.LENGTH]
    joint = masked.matrices(diffusion)
    joint_value = masked.Scores().table.double()[masked.completions(diffusion)] / MASKED_ALPHA
    rows, entropies = [], {}
    for name in (*ANCHORS, f"current, lambda = {KL:g}"):
        kl = KL if "lambda" in name else 0.0
        beta = beta_of(name.split(",")[0])
        laws = [theory.law(policy, START) for policy in exact_rounds(start, value, beta, 2 * LATE, kl)]
        entropies[name] = [theory.entropy(p) for p in laws[: LATE + 1]]
        goal = laws[-1] if kl else theory.tilt(laws[0], value * (1 / beta if beta else 1e4))
        errors = ["", ""] if kl else [
            f"{largest_error(start, value, beta, START, 8):.0e}",
            f"{largest_error(joint, joint_value, beta, all_masked, 4):.0e}",
        ]  # fmt: skip
        gaps = [f"{distance(laws[k], goal):.3f}" for k in (0, 1, 2, 3, 5, LATE)]
        rows.append((name, *errors, *(f"{entropies[name][k]:.3f}" for k in (0, 1, 2, 5, LATE)), *gaps))
    header = ("anchor", "error, chain", "error, masked", *(f"entropy after {k}" for k in (0, 1, 2, 5, LATE)))
    note = (
        "error: the largest |p_k - p_0 exp(c_k r / alpha) / Z_k| over states and rounds (chain: 12 states, 5 steps, "
        "rounds 0 to 8; masked: all 256 joint states, rounds 0 to 4), c_k = 1 + (1 - beta) + ... + (1 - beta)^(k-1). "
        "TV: to the fixed point, which is the best state alone for `current`, p_0 exp(r / (alpha beta)) else; with "
        "lambda no law is known in closed form, and the fixed point is that of many rounds. Entropy in nats."
    )
    gaps = tuple(f"TV after {k}" for k in (0, 1, 2, 3, 5, LATE))
    return Table("Exact EM rounds do what theory says", (*header, *gaps), tuple(rows), note), entropies


# ---- rounds by sampling and gradient ----


def sampled_rounds(em: SampledEM, value: Tensor, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """By round: TV of the fitted law to the exact one, TV to one exact round from the last fit, what as many draws
    leave of that."""
    model: TabularChain = em.diffusion
    start = exact = model.matrices(reference=True)
    beta, gaps, steps, floors = beta_of(em.anchor), [], [], []
    for number in range(1, rounds + 1):
        once = theory.law(theory.em_round(model.matrices(), start, value, beta, em.kl), START)
        exact = theory.em_round(exact, start, value, beta, em.kl)
        found, weights = em.round(number)
        fitted = theory.law(model.matrices(), START)
        gaps.append(distance(fitted, theory.law(exact, START)))
        steps.append(distance(fitted, once))
        floors.append(noise(once, found.sample.squeeze(1), weights)[0])
    return gaps, steps, floors


def exact_bias(value: Tensor, beta: float, rounds: int, candidates: int) -> float:
    """TV between exact rounds without weights at M candidates and exact EM."""
    start = right = biased = chain()[0].matrices()
    for _ in range(rounds):
        biased = theory.unweighted_round(biased, start, value[likeliest(biased)], beta, candidates)
        right = theory.em_round(right, start, value, beta)
    return distance(theory.law(biased, START), theory.law(right, START))


def sampled_table(options: Options) -> tuple[Table, dict[str, list[float]]]:
    """The table, and the TV by round of each run."""
    reward, rows, paths = StateScores.random(12), [], {}
    num = options.samples(TRAJECTORIES)
    plans = [(name, weighted, 0.0) for name in ANCHORS for weighted in (True, False)] + [("current", True, KL)]
    for name, weighted, kl in plans:
        em = SampledEM(chain()[0], reward, ALPHA, name, CANDIDATES, num, weighted, kl, options.seed)
        gaps, steps, floors = sampled_rounds(em, reward.table / ALPHA, ROUNDS)
        label = name + (f", lambda = {kl:g}" if kl else "")
        weights = "trajectory" if weighted else "none"
        paths[f"{label}, {weights}"] = gaps
        bias = 0.0 if weighted else exact_bias(reward.table / ALPHA, beta_of(name), ROUNDS, CANDIDATES)
        mean = [f"{sum(values) / ROUNDS:.4f}" for values in (steps, floors)]
        rows.append((label, weights, *(f"{gap:.4f}" for gap in gaps), f"{bias:.4f}", *mean))
    header = ("anchor", "weights", *(f"TV after {k}" for k in range(1, ROUNDS + 1)))
    note = (
        f"Production search (M = {CANDIDATES}, gamma = 1, {num} trajectories a round) and M-step on the chain of 12 "
        "states. TV: of the fitted model's exact law to the law of exact EM after as many rounds. bias: what dropping "
        f"the weights costs after {ROUNDS} rounds by enumeration of the search, without sampling. one round: TV to one "
        "exact round from the last fitted model, mean over rounds; draws: the noise of the weighted samples themselves."
    )
    header = (*header, "bias", "one round", "draws")
    return Table("EM by sampling and gradient, free kernels", header, tuple(rows), note), paths


def masked_goals(value: Tensor, beta: float, weighted: bool) -> list[Tensor]:
    """The law [81] after each exact round: the E-step's trajectories by enumeration (unweighted: those that a search
    with M candidates accepts), then where the factorised M-step ends."""
    diffusion, pretrained, out = masked.model(), masked.matrices(masked.model()), []
    for _ in range(MASKED_ROUNDS):
        policy, reached = masked.matrices(diffusion), value[masked.completions(diffusion)]
        if weighted:
            fitted = theory.posterior(theory.anchor(policy, pretrained, beta), reached)
        else:
            fitted = theory.unweighted_round(policy, pretrained, reached.expand(masked.STEPS + 1, -1), beta, CANDIDATES)
        before = torch.tensor(masked.letters(diffusion), dtype=torch.float64)
        theory.set_letters(diffusion, theory.projection(fitted, before))
        out.append(masked.law(diffusion))
    return out


def masked_table(options: Options) -> Table:
    num, reward, rows = options.samples(MASKED_TRAJECTORIES), masked.Scores(), []
    value, first = reward.table.double() / MASKED_ALPHA, masked.law(masked.model())
    for name in ("current", "pretrained"):
        beta = beta_of(name)
        goals, biased = (masked_goals(value, beta, weighted) for weighted in (True, False))
        for weighted in (True, False):
            model: Any = masked.model(micro_batch=num * masked.STEPS)
            em = SampledEM(model, reward, MASKED_ALPHA, name, CANDIDATES, num, weighted, 0.0, options.seed, 40, 0.2)
            gaps, drawn = [], []
            for number, goal in enumerate(goals, start=1):
                found, weights = em.round(number)
                gaps.append(distance(masked.law(model), goal))
                drawn.append(noise(goal, masked.sequence_index(found.sample), weights)[0])
            bias = [0.0 if weighted else distance(a, b) for a, b in zip(biased, goals, strict=True)]
            tilts = [theory.tilt(first, theory.exponent(k + 1, beta) * value) for k in range(MASKED_ROUNDS)]
            free = [distance(goal, free) for goal, free in zip(goals, tilts, strict=True)]
            cells = [f"{number:.3f}" for number in (*gaps, *bias, *drawn, *free)]
            rows.append((name, "trajectory" if weighted else "none", *cells))
    whats = ("fitted to projection", "bias", "draws", "projection to free")
    columns = [f"{what}, {k}" for what in whats for k in range(1, MASKED_ROUNDS + 1)]
    note = (
        f"TV on the masked model of 3 letters and length 4 ({num} trajectories a round, M = {CANDIDATES}), by round. A "
        "factorised kernel cannot reach the tilted law, only a projection: p'(v | x, l) in proportion to the tilted "
        "mass of the transitions from x that put v at l. bias: of the projection without weights, by enumeration. "
        "draws: noise of the weighted samples themselves. free: unrestricted EM, p_0 exp(c_k r / alpha)."
    )
    return Table("EM by sampling and gradient, factorised kernels", ("anchor", "weights", *columns), tuple(rows), note)


def draw(options: Options, entropies: dict[str, list[float]], paths: dict[str, list[float]]) -> None:
    """em.png: entropy by exact round, and TV of the fitted chains by round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in entropies.items():
        left.plot(values[:11], marker="o", markersize=3, label=name)
    left.set(xlabel="exact EM round", ylabel="entropy of x_0 (nats)", ylim=(0, None))
    left.legend(fontsize=8, frameon=False)
    for name, values in paths.items():
        style = "--" if name.endswith("none") else "-"
        colour = f"C{[*entropies].index(name.rpartition(', ')[0])}"
        right.plot(range(1, len(values) + 1), values, style, color=colour, marker="o", markersize=3)
    right.plot([], [], "k-", label="weights: trajectory")
    right.plot([], [], "k--", label="weights: none")
    right.set(xlabel="EM round by sampling and gradient", ylabel="TV to exact EM", ylim=(0, None))
    right.set_xticks(range(1, ROUNDS + 1))
    right.legend(fontsize=8, frameon=False)
    save(figure, options.out / "em.png")
