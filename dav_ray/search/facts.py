"""What a kind of search says of itself before anything of it runs: its cost, its weights, the keys that it uses.

Torch-free. A search of one's own says so by the attribute `facts` of its class, a class derived from `Facts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from dav_ray.search.options import Search


@dataclass(frozen=True)
class Spent:
    """Evaluations per accepted sample. network: of the policy, without its decoder; backward: how many of these run
    backward too; reference: of the pretrained model, beside them; reward: calls of each reward."""

    network: int
    backward: int = 0
    reference: int = 0
    reward: int = 0


@dataclass(frozen=True)
class Facts:
    """The facts of one configured search; `search` is its section. What stands here holds for a search that says
    nothing else."""

    search: Search

    # of the keys that only some kinds use (`options.SOME_USE`, and gradient); the parameters of its constructor count
    uses: ClassVar[frozenset[str]] = frozenset()
    stochastic: ClassVar[bool] = True  # it needs steps that draw: search.eta > 0
    together: ClassVar[bool] = False  # the trajectories of a prompt depend on each other: a chunk keeps them together
    keeps_candidates: ClassVar[bool] = False  # returns targets that carry all candidates: mstep.candidates = all
    completes: ClassVar[bool] = False  # returns the winners' completed x_0 as targets: mstep.target = completed
    chooses: ClassVar[str] = ""  # among what each step chooses by weight: candidates, particles, or nothing

    @property
    def weightless(self) -> str:
        """Why accepted trajectories carry no valid weight, in words that follow the kind; nothing where they do."""
        if self.search.choice == "best":
            return "keeps the best candidate (search.choice)"
        return "averages log ratios (search.ratio)" if self.search.ratio == "mean" else ""

    @property
    def starts(self) -> bool:
        """Whether trajectories go on from samples of the last round, given as `starts` (`warm_start.Starts`)."""
        return False

    @property
    def states(self) -> int:
        """States of an accepted trajectory that go through the network together."""
        return self.search.candidates * self.search.particles

    @property
    def unscored(self) -> frozenset[int]:
        """The t in 1..T-1 whose states x_t no reward sees."""
        return frozenset()

    def change(self, t: int) -> float:
        """The most by which scoring x_t changes the choice of a step, in total variation."""
        return 1.0

    def spent(self, *, warm: bool = False) -> Spent:
        """What an accepted sample costs, at most; warm: one that goes on from a sample of the last round."""
        every = self.search.steps * self.states
        return Spent(every, reward=every)

    def settings(self, alpha: float, *, blend: bool, complete: bool) -> dict[str, Any]:
        """What the search's constructor can have by a parameter's name: the keys of the section, `alpha` in the
        reward's unit, `beta` (share of the pretrained model in the anchor), `unscored`, and what the M-step wants
        (blend: targets that carry all candidates; complete: completed x_0)."""
        section = {name: getattr(self.search, name) for name in type(self.search).model_fields}
        derived = {"beta": self.search.beta, "unscored": self.unscored, "blend": blend, "complete": complete}
        return {**section, **derived, "alpha": alpha}
