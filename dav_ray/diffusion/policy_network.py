"""The policy's mechanics, which all families share: a pretrained network, and adapters or full weights trained on it.

The policy is the network with LoRA adapters (the reference: the same network, adapters off) or with all its weights
trained (the reference: a frozen copy). A family that inherits this provides what is its own: prior, predict, move,
deterministic, renoise, relax, harden, decode.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dav_ray.diffusion import adapters
from dav_ray.diffusion.base import Prediction, Room
from dav_ray.diffusion.device import DTYPES
from dav_ray.diffusion.exact import in_float32, rounds
from dav_ray.types import Cost, StepLoss, Transitions

POLICY = "policy.safetensors"


class PolicyNetwork(ABC):
    """Not thread-safe; counts its network evaluations in `cost`."""

    fixed: ClassVar[Sequence[str]] = ()  # parameters that are never trained, by name
    rooms: tuple[Room, ...] = ()

    def __init__(self, network: Any, *, device: str | torch.device = "cpu", autocast: str = "float32") -> None:
        """network: the pretrained torch module, on the device; autocast: precision of its calls, a name of `DTYPES`."""
        self.cost = Cost()
        self.adapted = False
        self.graphs = Room(sys.maxsize, name="gradient")
        self._network = network
        self._policy: Any = network  # what is called with gradients: the network, or its DDP wrapper
        self._folded: Any = None  # the network with its adapters in its weights, for predictions alone
        self._frozen: Any = None  # a copy of the pretrained network, for full weights only
        self._device, self._autocast = torch.device(device), DTYPES[autocast]
        self._exact = False  # whether calls are in float32 for now

    @abstractmethod
    def predict(
        self, x_t: Tensor, t: int | Tensor, conditions: Sequence[str], *, reference: bool = False
    ) -> Prediction:
        """As `Diffusion.predict`."""

    # -- what is trained ------------------------------------------------------------------------------------------

    def add_adapters(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """LoRA adapters, zero at the start: every worker builds the same ones from the seed."""
        adapters.add(self._network, rank, alpha, targets, seed)
        self._network.to(self._device)
        self.adapted = True

    def train_all_weights(self) -> None:
        """All but the `fixed` ones."""
        self._frozen = copy.deepcopy(self._network).requires_grad_(False)
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(name not in self.fixed)

    def trainable(self) -> Any:
        return self._network

    def parallelise(self, wrap: Callable[[Any], Any]) -> Any:
        """Call the policy through `wrap(module)` from now on (DistributedDataParallel); returns the wrapper."""
        self._policy = wrap(self._network if self._folded is None else self._folded)
        return self._policy

    def release(self, prompts: Sequence[str], *, decodes: bool = True) -> None:  # noqa: B027 - most models hold nothing that could go
        """As `Diffusion.release`."""

    def checkpoint(self) -> None:
        """From now on hold the inputs of the network's blocks alone for the backward pass, which computes the rest
        again: the same gradients. ValueError where the network knows no such thing."""
        enable = getattr(self._network, "enable_gradient_checkpointing", None)
        if enable is None:
            raise ValueError(f"{type(self._network).__name__} has no enable_gradient_checkpointing")
        enable()

    def merge(self) -> None:
        """From now on predict by a network in whose weights the adapters are, which is quicker and rounds differently.
        For a model that is not trained; nothing happens where the policy has no adapters."""
        if self.adapted:
            self._policy = self._folded = adapters.folded(self._network).eval()

    def compile(self) -> None:
        """Compile what searches call most; the first calls take minutes."""
        self.parallelise(torch.compile)

    # -- its parameters -------------------------------------------------------------------------------------------

    @property
    def policy_file(self) -> str:
        return POLICY

    @property
    def policy_prefix(self) -> str:
        return ""

    def policy_state(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._network.named_parameters() if p.requires_grad}

    def load_policy_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(state[name])
        self._merge_again()

    def _merge_again(self) -> None:
        """The policy has other adapters now."""
        if self._folded is not None:
            adapters.fold(self._network, self._folded)

    def write_policy(self, folder: Path) -> None:
        """The trained parameters by name, in one safetensors file."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.cpu().contiguous() for name, p in self.policy_state().items()}, folder / self.policy_file)

    # -- calls ----------------------------------------------------------------------------------------------------

    def step_loss(self, batch: Transitions, *, reference: bool) -> StepLoss:
        """NLL of each transition under the policy and, with `reference`, the policy's KL to the pretrained model."""
        pretrained = None
        if reference:
            with torch.no_grad():
                pretrained = self.predict(batch.x_t, batch.t, batch.conditions, reference=True).kernel
        kernel = self.predict(batch.x_t, batch.t, batch.conditions).kernel
        nll = kernel.nll(batch.x_prev.to(self._device))
        return StepLoss(nll, torch.zeros_like(nll) if pretrained is None else kernel.kl(pretrained))

    @property
    def rounded(self) -> bool:
        """Whether predictions are rounded more coarsely than float32's: two of them then differ by that, too."""
        return self._autocast != torch.float32 or rounds(self._network)

    @contextlib.contextmanager
    def exactly(self) -> Iterator[None]:
        """Within it predictions are in float32, of the weights as they are held; nothing changes where they are anyway.
        Without autograd."""
        if not self.rounded:
            yield
            return
        with in_float32(self._network), in_float32(self._frozen) if self._frozen else contextlib.nullcontext():
            self._exact = True
            try:
                yield
            finally:
                self._exact = False

    def called(self, *, reference: bool) -> Any:
        """The module that predictions call: the policy, or the one that the reference is (adapters still on)."""
        if not reference:
            return self._network if self._exact else self._policy  # what is compiled has its own ways to round
        return self._network if self._frozen is None else self._frozen

    def _evaluated(self, states: int, room: Room, call: Callable[[Any, slice], Tensor], *, reference: bool) -> Tensor:
        """call(network, rows) of all states, joined: counted, and as many rows at a time as there is room for. Where
        graphs are held, smaller calls hold no less: whoever bounds the states mends that."""
        self._count(states, reference=reference)
        network = self.called(reference=reference)
        with self._reference() if reference else contextlib.nullcontext():
            if torch.is_grad_enabled():
                return torch.cat([call(network, rows) for rows in room.calls(states)])
            return torch.cat(list(room.each(states, lambda rows: call(network, rows))))

    def _reference(self) -> contextlib.AbstractContextManager[Any]:
        """Within it the network is the pretrained one: adapters are off, bit-equal to the base. A frozen copy needs
        nothing."""
        return adapters.disabled(self._network) if self.adapted else contextlib.nullcontext()

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._exact or self._autocast == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, self._autocast)

    def _count(self, states: int, *, reference: bool) -> None:
        backward = states if torch.is_grad_enabled() and not reference else 0
        self.cost += Cost(reference=states) if reference else Cost(network=states, backward=backward)
