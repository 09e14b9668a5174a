"""TFLOPS and memory of the bare UNet and of the VAE's decoder, by batch, memory format and form of the adapters.

merged: the network without adapters, which has the shape of one whose adapters are added into its weights. Operations
are those of the bare network, so that what adapters cost shows as fewer TFLOPS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dav_ray.config.build import build
from dav_ray.config.networks.counted import Inputs
from dav_ray.config.networks.unet import unet as described_unet
from dav_ray.config.networks.vae_kl import vae_kl
from dav_ray.diffusion.device import free_memory
from jobs.gpu_hour.cards import share
from jobs.gpu_hour.record import Result
from jobs.gpu_hour.setting import Setting
from jobs.gpu_hour.steps.base import Measure, Step, cells
from jobs.performance.timing import now
from jobs.tables import Table

BATCHES, COMPILED_BATCHES = (64, 8, 16, 32, 128), (64, 16)
TINY_BATCHES, TINY_COMPILED = (2, 4), (2,)
ADAPTERS = ("merged", "float32", "bfloat16")
EAGER, COMPILED = ("NCHW", "channels-last"), ("compiled",)  # compiled: channels-last too
LEAST_S, LEAST_CALLS = 0.5, 3


@dataclass(frozen=True)
class Case:
    """rows: that go through the network at once; with guidance a state is two of them."""

    network: str
    adapters: str
    layout: str
    rows: int

    @property
    def name(self) -> str:
        return ", ".join([self.network, self.adapters, self.layout, str(self.rows)])

    @classmethod
    def of(cls, name: str) -> Case:
        network, adapters, layout, rows = name.split(", ")
        return cls(network, adapters, layout, int(rows))


def named(network: str, adapters: Sequence[str], layouts: Sequence[str], batches: Sequence[int]) -> list[str]:
    return [Case(network, a, layout, b).name for a in adapters for layout in layouts for b in batches]


class Networks:
    """The network of the last case, in its form; another form is made anew."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._config = setting, setting.config()
        self._form: tuple[str, str, str] | None = None
        self._call: Callable[[int], Callable[[], Any]] = lambda rows: lambda: None
        self.flops = 0.0

    def measure(self, name: str) -> Result:
        case, device = Case.of(name), self._setting.device
        if self._form != (form := (case.network, case.adapters, case.layout)):
            self._form, self._call = None, lambda rows: lambda: None
            free_memory()
            torch.compiler.reset()
            self._call, self._form = self._made(case), form
        return self._timed(self._call(case.rows), device, case.rows)

    def _timed(self, call: Callable[[], Any], device: str, rows: int) -> Result:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            call(), call()  # what is compiled or tuned at first
            start, calls = now(device), 0
            while calls < LEAST_CALLS or now(device) - start < LEAST_S:
                call()
                calls += 1
            seconds = (now(device) - start) / calls
        tflops = self.flops * rows / seconds / 1e12
        memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
        of_peak = share(self._setting.card, tflops, self._setting.dtype)
        return {"ms": 1000 * seconds, "tflops": tflops, "gb": memory, "share": of_peak}

    def _made(self, case: Case) -> Callable[[int], Callable[[], Any]]:
        setting, dtype = self._setting, getattr(torch, self._setting.dtype)
        diffusion: Any = build(self._config, device=setting.device)
        unet, vae = diffusion.trainable(), diffusion._parts.vae
        if case.adapters == "merged":
            unet.unload_lora()
        elif case.adapters == "bfloat16":
            for parameter in unet.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
        module = unet if case.network == "UNet" else vae
        if case.layout != "NCHW":
            module.to(memory_format=torch.channels_last)
        side = unet.config.sample_size
        latents = (unet.config.in_channels, side, side)
        if case.network == "UNet":
            self.flops = described_unet(unet.config, Inputs(side, side, setting.sizes.length)).flops
            work = self._compiled(unet) if case.layout == "compiled" else unet
            return lambda rows: _pass(work, unet, latents, setting.sizes.length, rows, setting.device, dtype)
        self.flops = vae_kl(vae.config, Inputs(side, side)).flops
        if case.layout == "compiled":
            vae.decoder = self._compiled(vae.decoder)
        return lambda rows: _decoding(vae, latents, rows, setting.device, dtype)

    def _compiled(self, module: Any) -> Any:
        """Tiny networks are captured and not compiled, which would take longer than all the rest."""
        return torch.compile(module, dynamic=False, backend="eager" if self._setting.tiny else "inductor")


def _pass(
    work: Any, unet: Any, latents: tuple[int, ...], length: int, rows: int, device: str, dtype: torch.dtype
) -> Callable[[], Any]:
    x = torch.randn(rows, *latents, device=device, dtype=dtype)
    text = torch.randn(rows, length, unet.config.cross_attention_dim, device=device, dtype=dtype)
    steps = torch.randint(0, 1000, (rows,), device=device)
    return lambda: work(x, steps, encoder_hidden_states=text).sample


def _decoding(vae: Any, latents: tuple[int, ...], rows: int, device: str, dtype: torch.dtype) -> Callable[[], Any]:
    x = torch.randn(rows, *latents, device=device, dtype=dtype)
    return lambda: vae.decode(x).sample


@contextlib.contextmanager
def opened(setting: Setting) -> Iterator[Measure]:
    yield Networks(setting).measure


def table(title: str) -> Callable[[Mapping[str, Result]], Table]:
    def made(results: Mapping[str, Result]) -> Table:
        header = ("network", "adapters", "layout", "rows", "TFLOPS", "share of peak", "ms per call", "GB")
        rows = tuple((*name.split(", "), *cells(each, "tflops", "share", "ms", "gb")) for name, each in results.items())
        return Table(title, header, rows)

    return made


def _unet(setting: Setting) -> list[str]:
    return named("UNet", ADAPTERS, EAGER, TINY_BATCHES if setting.tiny else BATCHES)


def _compiled(setting: Setting) -> list[str]:
    adapters = ADAPTERS[:1] if setting.tiny else ADAPTERS
    return named("UNet", adapters, COMPILED, TINY_COMPILED if setting.tiny else COMPILED_BATCHES)


def _decoder(setting: Setting) -> list[str]:
    eager = named("decoder", ADAPTERS[:1], EAGER, TINY_BATCHES if setting.tiny else sorted(BATCHES))
    return eager + named("decoder", ADAPTERS[:1], COMPILED, TINY_COMPILED if setting.tiny else (8, 32))


UNET = Step("unet", _unet, opened, table("UNet"))
UNET_COMPILED = Step("unet-compiled", _compiled, opened, table("UNet, compiled"))
DECODER = Step("decoder", _decoder, opened, table("Decoder"))
