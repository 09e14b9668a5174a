"""Rules that span sections: what a section may not be, given those before it.

One table, in the order in which a user reads the mistakes. A section's own rules stand in the section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dav_ray.config.families.table import family_of
from dav_ray.config.sections.roles import override
from dav_ray.diffusion.noise_rules import FLOWS_ALONE
from dav_ray.search import kinds
from dav_ray.search.weighting.temperature import in_sd


class Given:
    """The sections that are valid so far, as attributes by their keys. `facts`: what the kind of search says."""

    def __init__(self, sections: Mapping[str, Any]) -> None:
        self.sections = sections

    def __getattr__(self, key: str) -> Any:
        return self.sections["search"].facts if key == "facts" else self.sections[key]

    def has(self, key: str) -> bool:
        """Whether a rule can look at it. What a search of the user's own says is known once its code is announced."""
        if key == "facts":
            return self.has("search") and kinds.ships(self.search.kind)
        return key in self.sections


@dataclass(frozen=True)
class Rule:
    """of: the section at fault, with which the rule is looked at; needs: what else it looks at; where it is not valid,
    the rule is silent."""

    of: str
    needs: tuple[str, ...]
    broken: Callable[[Given], Any]
    message: Callable[[Given], str]


def _unfit_role(g: Given) -> str:
    """What is wrong with the first reward's own role that does not fit to the roles; nothing where all do."""
    for i, reward in enumerate(g.reward):
        try:
            override(g.roles.reward, reward.role)
        except ValidationError as error:
            return f"reward[{i}].role.{error.errors()[0]['msg'].partition(', ')[2]}"
    return ""


def _at_a_time(g: Given) -> int:
    """Trajectories that the trainer gets at a time, at least."""
    if g.sections.get("batches") == "probed":  # the chunk is made large enough
        return g.search.trajectories
    return min(g.search.trajectories, g.mstep.group * g.search.chunk)


RULES = (
    Rule(
        "search",
        ("model",),
        lambda g: g.search.noise in FLOWS_ALONE and not family_of(g.model).flow,
        lambda g: f"search.noise = {g.search.noise}: is a rule for flows; allowed: ddim, cps or renoise",
    ),
    Rule(
        "search",
        ("model",),
        lambda g: g.search.noise is not None and family_of(g.model).samples == "sequences",
        lambda g: f"search.noise = {g.search.noise}: tokens have no Gaussian noise; allowed: null",
    ),
    Rule(
        "mstep",
        ("search",),
        lambda g: g.mstep.steps is not None and g.mstep.steps > g.search.steps,
        lambda g: f"mstep.steps = {g.mstep.steps}: a trajectory has {g.search.steps}; allowed: 1 to {g.search.steps}",
    ),
    Rule(
        "mstep",
        ("search", "facts"),
        lambda g: g.mstep.weights == "trajectory" and g.facts.weightless,
        lambda g: f"mstep.weights = trajectory: {g.search.kind} {g.facts.weightless} and has no weights; allowed: none",
    ),
    Rule(
        "mstep",
        ("search", "facts"),
        lambda g: g.mstep.candidates == "all" and not g.facts.keeps_candidates,
        lambda g: f"mstep.candidates = all: {g.search.kind} keeps no candidates; allowed: winner",
    ),
    Rule(
        "mstep",
        ("search",),
        lambda g: g.mstep.candidates == "all" and g.search.candidates < 2,
        lambda g: "mstep.candidates = all: one candidate says nothing; allowed: search.candidates >= 2",
    ),
    Rule(
        "mstep",
        (),
        lambda g: g.mstep.candidates == "all" and g.mstep.target == "completed",
        lambda g: "mstep.target = completed: fits the winner's x_0; allowed: mstep.candidates = winner",
    ),
    Rule(
        "mstep",
        ("search",),
        lambda g: g.mstep.target == "completed" and (g.search.score_every > 1 or g.search.negligible > 0),
        lambda g: (
            "mstep.target = completed: steps without a score have no guess to be fitted; allowed: unmasked, or "
            "search.score_every = 1 and search.negligible = 0"
        ),
    ),
    Rule(
        "mstep",
        ("search", "facts"),
        lambda g: g.mstep.target == "completed" and not g.facts.completes,
        lambda g: f"mstep.target = completed: {g.search.kind} completes no states; allowed: unmasked",
    ),
    Rule(
        "mstep",
        (),
        lambda g: g.mstep.candidates == "all" and g.mstep.weights == "trajectory",
        lambda g: (
            "mstep.candidates = all: the weight of a trajectory depends on its winners; "
            "allowed: winner, or mstep.weights = none"
        ),
    ),
    Rule(  # counts of letters may be negative: fair in expectation, but not something to be fitted to the end
        "mstep",
        ("model",),
        lambda g: g.mstep.candidates == "all" and g.mstep.epochs > 1 and family_of(g.model).discrete,
        lambda g: f"mstep.epochs = {g.mstep.epochs}: with mstep.candidates = all a masked model; allowed: 1",
    ),
    Rule(
        "mstep",
        ("model",),
        lambda g: g.mstep.target == "completed" and not family_of(g.model).completes,
        lambda g: f"mstep.target = completed: is for masked models, not {g.model.kind}; allowed: unmasked",
    ),
    Rule("roles", ("reward",), _unfit_role, _unfit_role),
    Rule(
        "roles",
        ("search", "mstep"),
        lambda g: _at_a_time(g) < g.roles.train.replicas,
        lambda g: (
            f"roles.train.replicas = {g.roles.train.replicas}: the trainer gets {_at_a_time(g)} trajectories at a "
            f"time; allowed: at most {_at_a_time(g)}, or larger search.trajectories, search.chunk or mstep.group"
        ),
    ),
    Rule(
        "evaluate",
        ("search",),
        lambda g: in_sd(g.search.alpha) and g.evaluate.samples < 2,
        lambda g: (
            f"evaluate.samples = {g.evaluate.samples}: one sample has no standard deviation, and search.alpha = "
            f"{g.search.alpha} is measured on them; allowed: at least 2, or a number as search.alpha"
        ),
    ),
    Rule(
        "overlap",
        ("search", "facts"),
        lambda g: g.overlap == "round" and g.facts.starts,
        lambda g: (
            f"search kind {g.search.kind} starts from the last round, which is not closed by then; "
            "allowed: none, stream, or search.warm_start = off"
        ),
    ),
    Rule(
        "overlap",
        ("roles",),
        lambda g: g.overlap != "none" and g.roles.train.lifetime == "round",
        lambda g: (
            "with roles.train.lifetime = round there are no ranks during the search; allowed: none, or "
            "roles.train.lifetime = run"
        ),
    ),
)


def first_broken(of: str, value: Any, before: Mapping[str, Any]) -> str:
    """The message of the first rule that a section breaks, given the valid ones before it; nothing where it breaks
    none."""
    given = Given({**before, of: value})
    for rule in RULES:
        if rule.of == of and all(map(given.has, rule.needs)) and rule.broken(given):
            return rule.message(given)
    return ""


def broken_by_kind(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(section, message) of the rules about what the kind of search says, where a whole configuration breaks them."""
    given = Given(config)
    for rule in RULES:
        if "facts" in rule.needs and rule.broken(given):
            yield rule.of, rule.message(given)
