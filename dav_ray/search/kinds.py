"""The kinds of searches: what each that ships with dav_ray says of itself, and how one is built. No torch at import.

A new kind is one file, with a class that meets `base.Search` and says its `Facts`, and a line in SEARCHES.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

from dav_ray.errors import UserError
from dav_ray.registry import Entry, Registry, Unregistered, load
from dav_ray.search.facts import Facts, Spent
from dav_ray.search.weighting.temperature import magnitude

if TYPE_CHECKING:
    from dav_ray.search import base
    from dav_ray.search.options import Search


def unscored(search: Search) -> frozenset[int]:
    """The t in 1..T-1 whose states x_t no reward sees. x_0 is always scored.

    A state that nobody scores has V := 0, and is drawn as the model draws it: log W stays proper, whatever is skipped;
    only the law without weights changes.
    """
    walked = search.walked  # one candidate is no choice
    skipped = (
        t
        for t in range(1, search.steps)
        if t % search.score_every or change(search, t) < search.negligible or t + 1 in walked
    )
    return frozenset(skipped)


def change(search: Search, t: int) -> float:
    """The most by which scoring x_t changes the choice among its candidates, in total variation, where their rewards
    differ by `search.spread` at most: two softmax whose log weights differ by delta in range are at most tanh(delta/4)
    apart, and delta = gamma^t spread / alpha, both in the same unit. 1 where no spread is given."""
    return math.tanh(search.gamma**t * search.spread / magnitude(search.alpha) / 4) if search.spread else 1.0


def counts(search: Search) -> tuple[int, int, int]:
    """(network evaluations, those with backward, reward calls) per accepted sample of a `dav` search.

    A scored state costs its M candidates' evaluations (none at t = 0); the step to it costs its parent's with backward
    where the proposal is tilted, and its parent's own only where nobody has evaluated it yet.
    """
    skipped, network, backward, rewards = unscored(search), 0, 0, 0
    for t in range(search.steps):
        parent_known = t + 1 < search.steps and t + 1 not in skipped
        tilted = search.gradient and t not in skipped
        network += tilted or not parent_known
        backward += tilted
        if t not in skipped:
            network += search.candidates if t > 0 else 0
            rewards += search.candidates + search.gradient
    return network, backward, rewards


def weighed(search: Search, lengths: list[int]) -> Spent:
    """Of searches of these lengths, each of which weighs M candidates at every step. Where the proposal is tilted, each
    parent is evaluated again, with backward; where the anchor holds the pretrained model, by that too."""
    m, steps = search.candidates, sum(lengths)
    parents = steps if search.gradient else len(lengths)
    return Spent(
        parents + sum((n - 1) * m for n in lengths),
        steps if search.gradient else 0,
        steps if search.beta > 0 else 0,
        steps * (m + search.gradient),
    )


class DavFacts(Facts):
    uses = frozenset({"gradient", "anchor", "ratio", "choice", "score_every", "negligible"})
    keeps_candidates = completes = True
    chooses = "candidates"

    @property
    def unscored(self) -> frozenset[int]:
        return unscored(self.search)

    def change(self, t: int) -> float:
        return change(self.search, t)

    def spent(self, *, warm: bool = False) -> Spent:
        network, backward, reward = counts(self.search)
        return Spent(network, backward, self.search.steps if self.search.beta > 0 else 0, reward)


class WithinDav(Facts):
    """Of a search that takes the steps of `Dav`: its constructor can have that by the name `dav`."""

    def settings(self, alpha: float, *, blend: bool, complete: bool) -> dict[str, Any]:
        from dav_ray.search.dav import Dav

        given = super().settings(alpha, blend=blend, complete=complete)
        return {**given, "dav": Dav(**_by_name(Dav, given))}


class SmcFacts(WithinDav):
    uses = frozenset({"gradient", "anchor", "particles", "resampling", "resample_below", "tempering"})
    together = True
    chooses = "particles"

    def spent(self, *, warm: bool = False) -> Spent:
        return weighed(self.search, [self.search.steps] * self.search.particles)

    def settings(self, alpha: float, *, blend: bool, complete: bool) -> dict[str, Any]:
        given = super().settings(alpha, blend=blend, complete=complete)
        return {**given, "below": self.search.resample_below}


class SvddFacts(Facts):
    uses = frozenset({"choice"})
    chooses = "candidates"

    def spent(self, *, warm: bool = False) -> Spent:
        return weighed(self.search, [self.search.steps])


class RefineFacts(WithinDav):
    uses = frozenset({"gradient", "anchor", "ratio", "choice", "warm_start"})
    chooses = "candidates"

    @property
    def weightless(self) -> str:
        return "chooses among whole samples"

    @property
    def starts(self) -> bool:
        return self.search.warm_start != "off"

    def spent(self, *, warm: bool = False) -> Spent:
        first = [] if warm else [self.search.steps]
        again = max(1, round(self.search.depth * self.search.steps))
        return weighed(self.search, first + [again] * self.search.repeats)


class BestOfNFacts(Facts):
    uses = frozenset({"anchor"})

    @property
    def weightless(self) -> str:
        return "keeps the argmax"

    def spent(self, *, warm: bool = False) -> Spent:
        return Spent(self.search.candidates * self.search.steps, reward=self.search.candidates)

    def settings(self, alpha: float, *, blend: bool, complete: bool) -> dict[str, Any]:
        return {**super().settings(alpha, blend=blend, complete=complete), "num": self.search.candidates}


class PlainFacts(Facts):
    uses = frozenset({"anchor"})
    stochastic = False

    @property
    def weightless(self) -> str:
        if self.search.beta > 0:
            return f"samples the current model, not search.anchor = {self.search.anchor},"
        return super().weightless

    @property
    def states(self) -> int:
        return 1

    def spent(self, *, warm: bool = False) -> Spent:
        return Spent(self.search.steps, reward=1)


_HERE = "dav_ray.search.kinds"
SEARCHES = Registry(
    "dav_ray.searches",
    "search",
    {
        "dav": Entry(
            "dav_ray.search.dav:Dav",
            "M candidates a step, one kept by its weight: the E-step of DAV",
            f"{_HERE}:DavFacts",
        ),
        "smc": Entry(
            "dav_ray.search.smc:Smc", "dav with resampling across the particles of a prompt", f"{_HERE}:SmcFacts"
        ),
        "svdd": Entry("dav_ray.search.svdd:Svdd", "dav without tilt, ratio and discount", f"{_HERE}:SvddFacts"),
        "refine": Entry(
            "dav_ray.search.refine:Refine",
            "re-noise what was found, search again from there",
            f"{_HERE}:RefineFacts",
        ),
        "best_of_n": Entry(
            "dav_ray.search.best_of_n:BestOfN",
            "N plain samples, the one with the highest reward",
            f"{_HERE}:BestOfNFacts",
        ),
        "none": Entry("dav_ray.search.plain:NoSearch", "plain samples, every one accepted", f"{_HERE}:PlainFacts"),
    },
)


def ships(kind: str) -> bool:
    """Whether a kind is a part of dav_ray: what it says of itself is then known without importing other people's
    code."""
    return kind in SEARCHES.builtin


def using(key: str) -> list[str]:
    """The kinds that ship with dav_ray and use a key of the section."""
    return [kind for kind in SEARCHES.builtin if key in facts_class(kind).uses]


def facts_class(kind: str) -> type[Facts]:
    """Of any kind; imports the class where it does not ship with dav_ray. UserError where that fails."""
    try:
        if ships(kind) and (options := SEARCHES[kind].options):
            return load(options)
        return getattr(SEARCHES.load(kind), "facts", Facts)
    except Unregistered as error:
        raise UserError(f"search.kind = {kind}: {error}") from None
    except Exception as error:  # a module of the user's own may raise anything
        raise UserError(f"search.kind = {kind}: can't be imported ({type(error).__name__}: {error})") from error


def build(search: Search, alpha: float, *, blend: bool = False, complete: bool = False) -> base.Search:
    """The configured search. alpha: in the reward's unit. Each parameter of its constructor gets the setting of that
    name (`Facts.settings`), or what `search.args` says."""
    made = SEARCHES.load(search.kind)
    settings = search.facts.settings(alpha, blend=blend, complete=complete)
    return made(**{**_by_name(made, settings), **search.args})


def _by_name(made: Any, settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in inspect.signature(made).parameters if name in settings}
