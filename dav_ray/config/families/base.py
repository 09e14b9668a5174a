"""What a model family answers about itself: everything that differs between kinds of models outside of `diffusion`.

Nothing here, nor in the files of the families that ship with dav_ray, imports torch at its top: a configuration is
read, checked and planned before torch is needed. What builds the model imports it inside the method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dav_ray.config.families.sizes import Sizes
from dav_ray.config.networks.held import Held

if TYPE_CHECKING:
    from dav_ray.config.schema import Config
    from dav_ray.config.sections.model import Model
    from dav_ray.diffusion.base import Adaptable

Samples = Literal["images", "sequences"]


@dataclass(frozen=True)
class Runtime:
    """How a process holds the model: states per network call, device, autocast precision (a name of
    `diffusion.device.DTYPES`)."""

    micro_batch: int
    device: str = "cpu"
    autocast: str = "float32"


@dataclass(frozen=True)
class Flops:
    """Floating-point operations; a multiplication and an addition are two. network: of one pass of one state; decoder:
    of one decoded sample, None where that is not known."""

    network: float
    decoder: float | None


class Family(ABC):
    """One kind of model. Objects hold nothing: every answer is a function of the configuration."""

    samples: ClassVar[Samples]  # what the model draws
    unused: ClassVar[tuple[str, ...]] = ()  # keys of `model` that must keep their default
    conditional: ClassVar[bool] = True  # a recipe must give prompts; False: without prompts the one empty condition
    lora_targets: ClassVar[tuple[str, ...]]  # the layers that get adapters where a recipe names none
    completes: ClassVar[bool] = False  # mstep.target = completed has a meaning: states are partly masked
    flow: ClassVar[bool] = False  # states are a rectified flow's: x_t = (1 - sigma) x_0 + sigma eps
    discrete: ClassVar[bool] = False  # states are tokens: equal ones are evaluated once, and blends have counts < 0
    whole_policy: ClassVar[bool] = False  # a stored policy is the whole model: it loads without the pretrained one
    imports: ClassVar[tuple[str, ...]] = ()  # MODULE or MODULE:NAME that workers need: imported once, while Ray starts
    start: ClassVar[str] = "usually 15 s, as they import torch"  # how long workers take, on two free cores

    def at(self, path: str, pipeline: str | None = None) -> Family:
        """The family of the model that lies at this path (`model.path`), where the kind has several; pipeline: the
        class that the recipe names (`model.pipeline`)."""
        return self

    def preload(self, model: Model) -> tuple[str, ...]:
        """`imports`, and what this very model needs beside."""
        return self.imports

    def own_values(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """Keys of the section `model`, as it is typed, that are filled in from the model's files: what reads a run
        later may not have the model."""
        return {}

    @abstractmethod
    def mistakes(self, config: Config, path: str) -> Iterator[str]:
        """One line per reason why the model can't be searched. path: of the model on this machine, or a hub id."""

    def check_here(self, config: Config) -> None:
        """UserError if the model's files are not on this machine and can't be downloaded."""
        return

    def pinned(self, config: Config) -> Config:
        """The configuration that names the very files, where its model's path says only where they are now: what every
        node loads. Asks who has them."""
        return config

    def check_weights(self, config: Config, path: str) -> None:
        """UserError with what only the weights tell. May import torch: it is called when all else was found right."""
        return

    @abstractmethod
    def passes(self, config: Config) -> int:
        """Network passes per evaluation: 2 with classifier-free guidance."""

    @abstractmethod
    def shape(self, config: Config) -> tuple[int, int]:
        """(height, width) of images in pixels, or (letters of the alphabet, length) of sequences. Usual values where
        the model's files are not on this machine."""

    def sizes(self, config: Config, folder: Path) -> Sizes:
        """The networks' tensors from their files' headers, for what `dav-ray doctor` says of memory. OSError or
        ValueError, in words, where they do not tell."""
        raise ValueError("this family says nothing of its networks' sizes")

    def described(self, config: Config) -> Sizes:
        """The same from configurations alone, also where the model's files are elsewhere. ValueError, in words, where
        they do not tell."""
        raise ValueError("this family says nothing of its networks' sizes")

    def activations(self, sizes: Sizes, *, back: bool) -> tuple[float, float]:
        """Elements that are held per row of the policy's network, and per decoded sample; back: with autograd.
        ValueError where there is no estimate."""
        raise ValueError("nothing is known of the activations of such a network")

    def training(self, sizes: Sizes, *, half: bool, autocast: bool, checkpointing: bool) -> Held:
        """What is held per row of the policy's network for the backward pass. half: weights are of half precision;
        autocast: calls are, whatever the weights. ValueError where there is no estimate."""
        return Held(self.activations(sizes, back=True)[0])

    def flops(self, config: Config) -> Flops | None:
        """The work of the networks, from their configurations; None where these are not at hand, or not understood."""
        return None

    def sample_bytes(self, config: Config) -> int | None:
        """Of one sample as it goes to a reward, uncompressed; None where its shape is not known here."""
        return None

    @abstractmethod
    def build(self, config: Config, held: Runtime) -> Adaptable:
        """The pretrained model, its policy not yet made. UserError if its files do not fit."""

    @abstractmethod
    def pretrained(self, config: Config) -> Any:
        """What users sample from, before any alignment."""

    @abstractmethod
    def aligned(self, config: Config, folder: Path) -> Any:
        """The same with the policy that lies in `folder`."""

    def with_policy(self, config: Config, folder: Path) -> Adaptable:
        """The model on the CPU with the policy that lies in `folder`, for `aligned`."""
        from safetensors.torch import load_file

        model = self.with_new_policy(config, Runtime(config.search.micro_batch))
        model.load_policy_state(load_file(folder / model.policy_file))
        return model

    def with_new_policy(self, config: Config, held: Runtime) -> Adaptable:
        """The model with a policy that is still the pretrained one. UserError if its files do not fit."""
        model, lora = self.build(config, held), config.mstep.lora
        if config.mstep.parameters == "lora":
            model.add_adapters(lora.rank, lora.alpha, lora.targets or self.lora_targets, config.seed)
        else:
            model.train_all_weights()
        return model
