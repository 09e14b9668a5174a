"""E[log W] is a lower bound of log Z: by candidates, by what the value knows, by EM rounds."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from dav_ray.testing.chain import START, Foresight, StateScores, TabularChain, chain, likeliest
from dav_ray.testing.exact_em import bound, log_h
from dav_ray.types import Trajectories
from jobs.tables import Table, save
from jobs.validation.em import ALPHA, KL, SampledEM, effective
from jobs.validation.options import Options

CANDIDATES = (1, 2, 4, 8, 16, 32)
TRAJECTORIES, ROUND_TRAJECTORIES, ROUNDS = 40_000, 20_000, 4


def run(options: Options) -> list[Table]:
    by_candidates, curves = candidates_table(options)
    by_round, rounds = rounds_table(options)
    draw(options, curves, rounds)
    return [by_candidates, by_round]


def mean_and_error(log_weight: Tensor | None) -> tuple[float, float]:
    assert log_weight is not None
    return float(log_weight.mean()), float(log_weight.std()) / math.sqrt(len(log_weight))


def share_by_step(found: Trajectories, candidates: int) -> str:
    """Effective candidates over M at t = T, .., 1, mean over trajectories."""
    assert found.step_ess is not None
    return " ".join(f"{float(size) / candidates:.2f}" for size in found.step_ess.mean(1))


def knowing(model: TabularChain, value: Tensor, alpha: float) -> tuple[Foresight, StateScores, Tensor]:
    """The chain and a reward whose guesses are the exact soft values alpha log h_t(x), and log h [T+1, S]."""
    exact = log_h(model.matrices(), value)
    return Foresight(model.matrices()), StateScores(alpha * exact.flatten()), exact


def candidates_table(options: Options) -> tuple[Table, dict[str, list[float]]]:
    """The table, and gaps log Z - E[log W] by M."""
    model, reward = chain()[0], StateScores.random(12)
    kernels, value, num = model.matrices(), reward.table / ALPHA, options.samples(TRAJECTORIES)
    foresight, soft, exact = knowing(model, value, ALPHA)
    log_z = float(exact[-1, START])
    kinds: list[tuple[str, Any, Any, Tensor]] = [
        ("guess", model, reward, value[likeliest(kernels)]),
        ("exact", foresight, soft, exact),
    ]
    rows, curves = [], {name: [] for name, *_ in kinds}
    for number, candidates in enumerate((*CANDIDATES, math.inf)):
        row = [f"{candidates:g}"]
        for name, diffusion, scores, values in kinds:
            expected = bound(kernels, kernels, values, candidates, START)
            curves[name].append(log_z - expected)
            cells = ["", f"{expected:.4f}", f"{log_z - expected:.4f}", ""]
            if not math.isinf(candidates):
                em = SampledEM(diffusion, scores, ALPHA, "current", int(candidates), num, True, seed=options.seed)
                found = em.search(10 + number)
                cells[0] = "{:.4f} ± {:.4f}".format(*mean_and_error(found.log_weight))
                cells[3] = share_by_step(found, int(candidates))
            row += cells
        rows.append(tuple(row))
    parts = ("E[log W]", "enumerated", "gap", "ESS / M, t = T..1")
    header = ("M", *(f"{part}, {name}" for name, *_ in kinds for part in parts))
    note = (
        f"log Z = {log_z:.4f}; {num} trajectories each, ± one standard error. guess: V = r(x0_hat) / alpha as DAV has "
        "it; exact: V = log h, the exact soft value. With those the bound closes in proportion to 1/M; with guesses "
        "more candidates bring the accepted law nearer, but hardly the bound: its limit, M infinite, stays below "
        "log Z. For M = 1 the gap is KL(p_0 || posterior)."
    )
    return Table("The bound E[log W] <= log Z by candidates", header, tuple(rows), note), curves


def rounds_of(
    options: Options, candidates: int, num: int, kl: float
) -> tuple[list[tuple[str, ...]], list[tuple[float, float]]]:
    """Rows of the table, and (gap, standard error) by round, with the anchor `pretrained`."""
    model, reward = chain()[0], StateScores.random(12)
    pretrained, value = model.matrices(reference=True), reward.table / ALPHA
    log_z = float(log_h(pretrained, value)[-1, START])
    em = SampledEM(model, reward, ALPHA, "pretrained", candidates, num, True, kl, options.seed)
    free = (model.states - 1) * (1 + (model.steps - 1) * model.states)  # free numbers in the kernels that are reached
    rows, curve, predicted = [], [], ""
    for number in range(1, ROUNDS + 1):
        policy = model.matrices()
        expected = bound(policy, pretrained, value[likeliest(policy)], candidates, START)
        found, weights = em.round(number)
        mean, error = mean_and_error(found.log_weight)
        curve.append((log_z - mean, error))
        cells = [f"{mean:.4f} ± {error:.4f}", f"{expected:.4f}", f"{log_z - expected:.4f}", predicted]
        share = f"{effective(weights) / num:.3f}"
        rows.append(
            (f"{candidates}", f"{num}", f"{kl:g}", f"{number - 1}", *cells, share_by_step(found, candidates), share)
        )
        predicted = f"{free / (2 * effective(weights)):.4f}" if candidates == 1 and kl == 0 else ""
    return rows, curve


def rounds_table(options: Options) -> tuple[Table, dict[str, list[tuple[float, float]]]]:
    """The table, and (gap, standard error) by round of each run."""
    many, few = options.samples(ROUND_TRAJECTORIES), options.samples(ROUND_TRAJECTORIES // 20)
    rows, curves = [], {}
    for candidates, num, kl in ((1, many, 0.0), (8, many, 0.0), (1, few, 0.0), (1, few, KL)):
        found, curve = rounds_of(options, candidates, num, kl)
        rows += found
        curves[f"M = {candidates}, N = {num}" + (f", lambda = {kl:g}" if kl else "")] = curve
    header = ("M", "N", "lambda", "rounds before", "E[log W]", "enumerated", "gap", "n / (2 ESS)")
    note = (
        "Anchor `pretrained`, so that log Z is the same in every round; N trajectories a round, fitted until nothing "
        "moves. With many draws the first M-step closes nearly all of the gap, and later ones cannot do more. "
        "n / (2 ESS): at M = 1 the gap is KL(policy || posterior), and this is what a fit of n free numbers to so many "
        "effective draws leaves. With few draws the policy forgets what it did not see and the weights grow from round "
        "to round; lambda leaves an unseen outcome about exp(-1 / lambda) of its pretrained probability, which holds "
        "them. At M > 1 guesses steer the search away from a policy near the posterior: that gap is theirs."
    )
    header = (*header, "ESS / M, t = T..1", "ESS of W / N")
    return Table("The bound over EM rounds", header, tuple(rows), note), curves


def draw(options: Options, curves: dict[str, list[float]], rounds: dict[str, list[tuple[float, float]]]) -> None:
    """bound.png: the gap log Z - E[log W] by M (enumerated) and by EM round (sampled)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, gaps in curves.items():
        (line,) = left.loglog(CANDIDATES, gaps[:-1], marker="o", markersize=3, label=f"V = {name}")
        if gaps[-1] > 1e-6:
            left.axhline(gaps[-1], color=line.get_color(), linestyle=":", label=f"V = {name}, M infinite")
    left.set_xticks(CANDIDATES, labels=[f"{m}" for m in CANDIDATES])
    left.set(xlabel="candidates M", ylabel="log Z - E[log W] (nats)")
    left.legend(fontsize=8, frameon=False)
    for name, curve in rounds.items():
        gaps, errors = zip(*curve, strict=True)
        right.errorbar(range(len(gaps)), gaps, yerr=errors, marker="o", markersize=3, capsize=2, label=name)
    right.set(xlabel="EM rounds before (anchor pretrained)", ylabel="log Z - E[log W] (nats)", ylim=(0, None))
    right.set_xticks(range(ROUNDS))
    right.legend(fontsize=8, frameon=False)
    save(figure, options.out / "bound.png")
