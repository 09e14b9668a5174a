"""What a diffusion model provides to search and M-step. A new one is a file with a subclass of `PolicyNetwork`.

x_t has shape [B, *event]; t = T..1; `Kernel` is p(x_{t-1} | x_t, c), guidance and schedule included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from dav_ray.diffusion.device import free_memory, in_a_line, out_of_memory
from dav_ray.diffusion.noise import Draws
from dav_ray.types import Cost, StepLoss, Transitions

Called = TypeVar("Called")


class Kernel(Protocol):
    """The law of x_{t-1} given x_t, for B states."""

    @property
    def deterministic(self) -> bool:
        """True where the step has no variance: one outcome, no density."""
        ...

    def sample(self, num: int, rng: Draws) -> Tensor:
        """[B, num, *event], independent draws."""
        ...

    def log_prob(self, x_prev: Tensor) -> Tensor:
        """x_prev [B, M, *event] -> [B, M] float64: log-density, SUMMED over the event. ValueError if deterministic."""
        ...

    def tilt(self, grad: Tensor) -> Kernel:
        """The kernel tilted by exp(<grad, x_prev>), grad [B, *event]; tilt(0) is the identity."""
        ...

    def nll(self, x_prev: Tensor) -> Tensor:
        """-log p of one outcome each, x_prev [B, *event] -> [B] float32; 0 where there is no variance."""
        ...

    def kl(self, other: Kernel) -> Tensor:
        """KL(self || other) [B] float32, summed over the event; 0 where there is no variance."""
        ...

    def blend(self, candidates: Tensor, weights: Tensor) -> Tensor:
        """One outcome [B, *event] whose nll has, in expectation over the candidates, the gradient of the weighted mean
        of theirs, with less noise. candidates [B, M, *event] drawn from this kernel; weights [B, M] sum to 1."""
        ...

    def join(self, other: Kernel) -> Kernel:
        """The kernel of this one's states, then the other's: same family, step and event."""
        ...

    def detach(self) -> Kernel:
        """The same kernel without its autograd graph."""
        ...

    def take(self, rows: Tensor) -> Kernel:
        """The kernel of the chosen states; rows [B'] int64."""
        ...


@dataclass(frozen=True)
class Prediction:
    """One guided network evaluation at (x_t, t)."""

    kernel: Kernel
    x0_hat: Tensor  # [B, *event], the prediction of the clean state (Tweedie)

    def join(self, other: Prediction) -> Prediction:
        """The prediction of this one's states, then the other's, at the same step."""
        return Prediction(self.kernel.join(other.kernel), torch.cat([self.x0_hat, other.x0_hat]))

    def detach(self) -> Prediction:
        return Prediction(self.kernel.detach(), self.x0_hat.detach())

    def take(self, rows: Tensor) -> Prediction:
        """The prediction of the chosen states; rows [B'] int64."""
        return Prediction(self.kernel.take(rows), self.x0_hat[rows])


class Diffusion(Protocol):
    """A pretrained diffusion model with a trainable policy on top; `reference=True` is the pretrained model itself."""

    steps: int  # T
    cost: Cost  # evaluations so far; only ever grows
    timeless: bool  # what the network says is a function of x_t alone: equal states need one evaluation, whatever t
    adapted: bool  # the policy is adapters on the pretrained weights
    rooms: tuple[Room, ...]  # of its networks: what goes through each at once
    graphs: Room  # states whose autograd graph, of all networks, is held at the same time

    @property
    def policy_file(self) -> str:
        """Where `write_policy` puts the policy's parameters, inside its folder."""
        ...

    @property
    def policy_prefix(self) -> str:
        """What that file's names have before those of `policy_state`."""
        ...

    def policy_state(self) -> dict[str, Tensor]:
        """The policy's parameters by name."""
        ...

    def load_policy_state(self, state: dict[str, Tensor]) -> None:
        """Takes at least the names of `policy_state`."""
        ...

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        """x_T [B, *event]."""
        ...

    def predict(
        self, x_t: Tensor, t: int | Tensor, conditions: Sequence[str], *, reference: bool = False
    ) -> Prediction:
        """One guided evaluation; differentiable in x_t and in the policy's parameters when autograd is on."""
        ...

    @property
    def rounded(self) -> bool:
        """Whether predictions are rounded more coarsely than float32's."""
        ...

    def exactly(self) -> contextlib.AbstractContextManager[None]:
        """Within it predictions are in float32, without autograd (`exact.against_reference`)."""
        ...

    def deterministic(self, t: int) -> bool:
        """True where step t (x_t -> x_{t-1}) has no variance."""
        ...

    def move(self, prediction: Prediction, t: int) -> Prediction:
        """The same network output as the prediction of the same states at step t; for timeless models only."""
        ...

    def renoise(self, x: Tensor, start: int, end: int, conditions: Sequence[str], rng: Draws) -> Tensor:
        """The forward process: x_end given x_start, 0 <= start < end <= T."""
        ...

    def relax(self, x_t: Tensor) -> Tensor:
        """x_t as a tensor in which predictions can be differentiated: itself, or one-hot for tokens."""
        ...

    def harden(self, x0_hat: Tensor) -> Tensor:
        """What was predicted for a relaxed state as it is predicted for the state itself."""
        ...

    def decode(self, x_0: Tensor, conditions: Sequence[str], t: int = 0) -> Tensor:
        """What the reward sees: images [B, 3, H, W] in [0, 1], or tokens [B, L] (one-hot where x_0 is relaxed).
        Differentiable where it can be. t: 0 for x_0 itself, else the step at which it was guessed."""
        ...

    def step_loss(self, batch: Transitions, *, reference: bool) -> StepLoss:
        """NLL and, with `reference`, KL to the pretrained model, per transition."""
        ...

    def trainable(self) -> Any:
        """The torch module that holds the policy's parameters."""
        ...

    def parallelise(self, wrap: Callable[[Any], Any]) -> Any:
        """Call the policy through `wrap(module)` from now on (DistributedDataParallel); returns the wrapper."""
        ...

    def release(self, prompts: Sequence[str], *, decodes: bool = True) -> None:
        """From now on only these prompts are asked for, and without `decodes` no sample is decoded: what only others
        need may leave memory. Results are the same to the last bit."""
        ...

    def checkpoint(self) -> None:
        """From now on hold less for the backward pass, which computes the rest again: the same gradients. ValueError
        where the network can't."""
        ...

    def merge(self) -> None:
        """From now on predict by a network in whose weights the adapters are: quicker, and not trained any more."""
        ...

    def compile(self) -> None:
        """Compile what searches call most."""
        ...

    def write_policy(self, folder: Path) -> None:
        """The policy as users load it, in a folder of its own. The same weights give the same bytes."""
        ...


class Adaptable(Diffusion, Protocol):
    """A model before its policy is made: one of these two is called, once."""

    def add_adapters(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """Adapters that are zero at first, the same for one seed. ValueError for a target that names no layer."""
        ...

    def train_all_weights(self) -> None:
        """The policy is the network itself, the reference a frozen copy."""
        ...


class NoRoom(MemoryError):
    """One state at a time does not fit in memory."""


@dataclass
class Room:
    """How many states go through a network at once: `limit` at most, less once memory ran out (`halve`)."""

    limit: int
    most: int = 0  # that did so far
    name: str = "network"
    # told(room, cause) once a call ran out of memory and is made again in halves; None: the caller mends it
    told: Callable[[Room, str], None] | None = None

    def calls(self, total: int) -> Sequence[slice]:
        self.most = max(self.most, min(total, self.limit))
        return rows_per_call(total, self.limit)

    def halve(self) -> bool:
        """Half of what went through at most. False where that was one state."""
        if self.most <= 1:
            return False
        self.limit = self.most = self.most // 2
        return True

    def each(self, total: int, call: Callable[[slice], Called]) -> Iterator[Called]:
        """call(rows) for all rows in order. One that runs out of memory is made again in halves, and later ones take no
        more: what was computed before stays. NoRoom where one state is too many; what `call` raised where nobody is
        told."""
        pieces = list(reversed(self.calls(total)))
        while pieces:
            rows = pieces.pop()
            try:
                found = call(rows)
            except (MemoryError, RuntimeError) as error:
                if self.told is None or not out_of_memory(error):
                    raise
                cause = in_a_line(error)
            else:
                yield found
                del found  # not to be held during the next call
                continue
            free_memory()  # what the frames held, now that they are gone
            self.most = rows.stop - rows.start
            if not self.halve():
                raise NoRoom(cause)
            self.told(self, cause)
            pieces = [
                slice(wide.start + part.start, wide.start + part.stop)
                for wide in (*pieces, rows)
                for part in reversed(self.calls(wide.stop - wide.start))
            ]


def rows_per_call(total: int, limit: int) -> Sequence[slice]:
    """Slices of at most `limit` rows that cover `total`, as equal in size as they can be."""
    calls = -(-total // limit)
    edges = [round(i * total / calls) for i in range(calls + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


@contextlib.contextmanager
def uncounted_if_failed(diffusion: Diffusion) -> Iterator[None]:
    """What is evaluated in the block counts only where it ends well: it may be done again."""
    spent = diffusion.cost
    try:
        yield
    except BaseException:
        diffusion.cost = spent
        raise


def joined(total: int, pieces: Iterator[Tensor]) -> Tensor:
    """The pieces in one tensor of `total` rows, one piece at a time beside it. At least one piece."""
    first = next(pieces)
    if len(first) == total:
        return first
    whole = first.new_empty((total, *first.shape[1:]))
    end = len(first)
    whole[:end] = first
    del first
    for piece in pieces:
        whole[end : end + len(piece)] = piece
        end += len(piece)
        del piece
    return whole
