"""Noise rules on a Gaussian as a flow from s = 1, in closed form: what is left of the data's variance."""

from __future__ import annotations

from dav_ray.testing.flow import LinearFlow, even
from jobs.tables import Table
from jobs.validation.options import Options

STEPS = (5, 10, 20, 40, 80, 160)
RULES = (
    *(("ddim", eta) for eta in (0.0, 0.6, 1.0)),
    *(("cps", 0.5), ("renoise", 1.0)),
    *(("flow_sde", eta) for eta in (0.3, 0.7)),
    *(("dance", eta) for eta in (0.3, 0.7)),
)
NOISY = 2


def run(options: Options) -> list[Table]:
    """By rule, against the number of steps; nothing is drawn."""
    rows = [(rule, f"{eta:g} at all steps", error(rule, eta)) for rule, eta in RULES]
    rows += [(rule, f"{eta:g} at {NOISY} steps", error(rule, (eta,) * NOISY)) for rule, eta in RULES if eta]
    cells = tuple((rule, eta, *(f"{100 * value:+.1f} %" for value in values)) for rule, eta, values in rows)
    note = (
        "Error of the variance of x_0, relative to the data's (standard deviation 0.8); steps are even in s, the guess "
        "is the posterior mean. Means are exact. ddim: noise falls with the step, and so does the error. cps and "
        "renoise draw the same share at every step, which a posterior mean does not bear: their error stays, unless "
        "few steps draw."
    )
    return [Table("Flow: variance kept by the noise rules", ("rule", "eta", *map(str, STEPS)), cells, note)]


def error(rule: str, eta: float | tuple[float, ...]) -> list[float]:
    """Relative, for each number of steps."""
    models = [LinearFlow(even(steps), rule, eta) for steps in STEPS]
    return [model.law("0")[1] / model.marginal("0", 0)[1] - 1 for model in models]
