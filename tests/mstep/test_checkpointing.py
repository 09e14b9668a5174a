"""Gradient checkpointing: the same gradients for less memory, and when it is on by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dav_ray.config.build import for_training
from dav_ray.config.recipe.load import load
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.diffusion.pipelines.stable_diffusion import Parts, StableDiffusion
from dav_ray.errors import UserError
from dav_ray.mstep.memory import Saved, exceeds, saved_per_transition
from dav_ray.types import Transitions

T = 4


def images(folder: str) -> Any:
    diffusion = StableDiffusion(Parts.load(folder), steps=T, guidance_scale=3.0)
    diffusion.add_adapters(2, 2.0, ("to_q", "to_v"), seed=0)
    return diffusion


def sequences(folder: str) -> Any:
    torch.manual_seed(0)
    backbone = DilatedCNN(5, hidden=8, stacks=2, kernel=3, classes=2)
    options: dict[str, Any] = {"alphabet": Alphabet.of("dna"), "length": 12, "classes": 2, "steps": T}
    diffusion = MaskedDiffusion(backbone, guidance_scale=3.0, **options)
    diffusion.add_adapters(2, 2.0, ("convs", "final_conv"), seed=0)
    return diffusion


MODELS = {"images": (images, "one"), "sequences": (sequences, "class=1")}


def gradients(diffusion: Any, condition: str) -> tuple[int, dict[str, Tensor]]:
    """Bytes that the loss of 3 transitions saved, and what it teaches adapters that were moved before."""
    generator = torch.Generator().manual_seed(1)
    trained = {name: p for name, p in diffusion.trainable().named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    noise = KeyedNoise(0, 1, range(3))
    x_t = diffusion.prior([condition] * 3, noise.at(T))
    t = torch.tensor([T, 2, T])
    with torch.no_grad():
        x_prev = diffusion.predict(x_t, t, [condition] * 3).kernel.sample(1, noise.at(1))[:, 0]
    with Saved(diffusion.trainable()) as saved:
        loss = diffusion.step_loss(Transitions(x_t, x_prev, t, [condition] * 3), reference=True)
    (loss.nll + 0.1 * loss.kl).sum().backward()
    return saved.bytes, {name: p.grad for name, p in trained.items() if p.grad is not None}


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_the_same_bits_for_less_memory(kind: str, tiny_folder: str) -> None:
    make, condition = MODELS[kind]
    plain, again = make(tiny_folder), make(tiny_folder)
    again.checkpoint()
    bytes_plain, grads_plain = gradients(plain, condition)
    bytes_again, grads_again = gradients(again, condition)

    assert grads_plain.keys() == grads_again.keys() and len(grads_plain) > 3
    assert all(torch.equal(grads_plain[name], grads_again[name]) for name in grads_plain)
    assert any(grad.abs().max() > 0 for grad in grads_plain.values())
    assert bytes_again < 0.5 * bytes_plain, (bytes_again, bytes_plain)


def test_without_gradient_nothing_is_computed_again() -> None:
    diffusion = sequences("")
    diffusion.checkpoint()
    calls: list[int] = []
    diffusion.trainable().convs[0].register_forward_hook(lambda *_: calls.append(1))
    x = diffusion.prior(["class=1"], KeyedNoise(0, 1, [0]).at(T))
    with torch.no_grad():
        diffusion.predict(x, T, ["class=1"])
    assert len(calls) == 2  # with class and without
    diffusion.predict(x, T, ["class=1"]).kernel.nll(torch.zeros_like(x)).sum().backward()
    assert len(calls) == 6


def test_auto_is_on_where_the_graph_would_not_fit(tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusion = images(tiny_folder)
    each = saved_per_transition(diffusion, "one")
    assert each > 100_000
    assert exceeds(diffusion, "one", 4, 4 * each - 1) and not exceeds(diffusion, "one", 4, 4 * each)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("not one transition fits")

    monkeypatch.setattr(diffusion, "step_loss", full)
    assert exceeds(diffusion, "one", 4, 1e12)
    monkeypatch.setattr(diffusion, "step_loss", lambda *_, **__: [][0])
    with pytest.raises(IndexError):
        exceeds(diffusion, "one", 4, 1e12)


@pytest.mark.parametrize(("typed", "on"), [("auto", False), ("off", False), ("on", True)])
def test_on_the_host_it_is_on_where_it_is_asked_for(typed: str, on: bool) -> None:
    config = load("digits", [f"mstep.checkpointing={typed}"]).config
    assert config.mstep.checkpointing == typed
    unet: Any = for_training(config, micro_batch=2).trainable()
    assert unet.is_gradient_checkpointing is on
    assert load("digits", []).config.identity() == config.identity()


def test_a_network_that_knows_no_checkpointing_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("dna_ehrlich", ["mstep.checkpointing=on"]).config
    monkeypatch.delattr(DilatedCNN, "enable_gradient_checkpointing")
    with pytest.raises(UserError, match="mstep.checkpointing = on: DilatedCNN has no enable_gradient.*; allowed: off"):
        for_training(config)
    assert isinstance(for_training(load("dna_ehrlich", []).config).trainable(), nn.Module)
