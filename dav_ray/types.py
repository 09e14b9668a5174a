"""The records that travel between stages. B trajectories, M candidates, T steps; t runs from T (noise) to 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """A work item of the E-step: the unit of scheduling, retry and durability, the same whoever does it."""

    seed: int  # of the run
    round: int
    index: int  # within the round
    policy_version: int
    trajectories: tuple[int, ...]  # numbers within the round
    conditions: tuple[str, ...]  # one per trajectory
    alpha: float | None = None  # temperature of its search; None: the number that the configuration has

    @property
    def name(self) -> str:
        return f"{self.index} of round {self.round}"

    def parts(self, num: int, *, together: bool) -> list[Chunk]:
        """The chunk cut into at most `num` of nearly equal size; together: never between trajectories of one condition
        that stand side by side."""
        size = len(self.conditions)
        edges = {round(i * size / num) for i in range(num + 1)}
        if together:
            edges = {e for e in edges if e in (0, size) or self.conditions[e - 1] != self.conditions[e]}
        ends = sorted(edges)
        return [
            replace(self, trajectories=self.trajectories[a:b], conditions=self.conditions[a:b])
            for a, b in zip(ends, ends[1:], strict=False)
        ]


@dataclass(frozen=True)
class EvaluationChunk:
    """Fresh samples without search: sample i draws what diffusers draws with the generator of seeds[i]."""

    round: int
    index: int
    policy_version: int
    samples: tuple[int, ...]  # numbers within the evaluation
    seeds: tuple[int, ...]
    conditions: tuple[str, ...]
    kl: bool  # measure the KL to the pretrained model too (one reference evaluation more per step)

    @property
    def name(self) -> str:
        return f"{self.index} of the evaluation after round {self.round}"


@dataclass(frozen=True)
class Cost:
    """Evaluations spent, each of one state: `network` counts all of the policy (`backward` of them with gradient),
    `reference` those of the pretrained model, `reward` the reward's."""

    network: int = 0
    backward: int = 0
    reference: int = 0
    reward: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.network + other.network,
            self.backward + other.backward,
            self.reference + other.reference,
            self.reward + other.reward,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.network - other.network,
            self.backward - other.backward,
            self.reference - other.reference,
            self.reward - other.reward,
        )


@dataclass(frozen=True)
class Trajectories:
    """What a search returns for B trajectories."""

    states: Tensor  # [T+1, B, *event], x_T first
    targets: Tensor | None  # [T, B, *event], what the M-step fits at x_T, ..., x_1 in place of the next state
    sample: Tensor  # [B, ...] decoded x_0
    reward: Tensor  # [B] float64, r(x_0); may be -inf, never NaN
    log_weight: Tensor | None  # [B] float64, log W; None where the selection carries no valid weight
    ess: Tensor  # [B] float64, effective number of candidates (smc: of particles), mean over steps
    cost: Cost  # of all B together
    step_ess: Tensor | None = None  # [S, B] float64, the same at each step that chooses, from t = T down
    each: Tensor | None = None  # [B, R] float64, what each of R rewards said of x_0, unweighted; NaN: not known
    choices: Tensor | None = None  # [B, 2, K] float64, what it would be at other alphas (`search.choices`)

    def on_host(self) -> Trajectories:
        """The same, in the host's memory."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: value.cpu() for name, value in values.items() if hasattr(value, "cpu")})


@dataclass(frozen=True)
class Transitions:
    """N pairs (x_t, x_{t-1}) for the M-step, time steps mixed."""

    x_t: Tensor  # [N, *event]
    x_prev: Tensor  # [N, *event], or the blend of all candidates in its place
    t: Tensor  # [N] int64 in 1..T
    conditions: Sequence[str]  # N

    def __len__(self) -> int:
        return len(self.conditions)


@dataclass(frozen=True)
class StepLoss:
    """Per transition, summed over the event's dimensions. Zero for steps without variance: they have no likelihood."""

    nll: Tensor  # [N] float32, -log p_theta(x_{t-1} | x_t, c)
    kl: Tensor  # [N] float32, KL(p_theta(. | x_t, c) || p_theta0(. | x_t, c)); zeros where no reference was asked for
