"""The policy of a masked model: adapters or full weights, and the reference beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dav_ray.diffusion import adapters
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.types import Transitions
from tests.support.dilated import TARGETS, cnn, log_p, tokens, train


def test_adapters_start_as_the_base() -> None:
    diffusion = cnn()
    base = log_p(diffusion, tokens(3), [""] * 3)
    diffusion.add_adapters(4, 4.0, TARGETS, seed=0)

    assert torch.equal(log_p(diffusion, tokens(3), [""] * 3), base)
    assert diffusion.adapted and all(".lora_" in name for name in diffusion.policy_state())
    assert {name.split(".")[0] for name in diffusion.policy_state()} == set(TARGETS)


def test_the_reference_is_the_base_after_training() -> None:
    base, diffusion = log_p(cnn(), tokens(3), [""] * 3), cnn(adapted=True)

    assert torch.equal(log_p(diffusion, tokens(3), [""] * 3, reference=True), base)
    assert (log_p(diffusion, tokens(3), [""] * 3) - base).abs().max() > 0.1
    loss = diffusion.step_loss(Transitions(tokens(3), tokens(3) % 4, torch.tensor([1, 2, 3]), [""] * 3), reference=True)
    (loss.nll + loss.kl).sum().backward()
    grads = {name: p.grad for name, p in diffusion.trainable().named_parameters()}
    assert {name for name, grad in grads.items() if grad is not None} == set(diffusion.policy_state())


def test_the_same_seed_builds_the_same_adapters() -> None:
    before = torch.get_rng_state()
    first, same, other = cnn(), cnn(), cnn()
    before = torch.get_rng_state()
    for diffusion, seed in ((first, 3), (same, 3), (other, 4)):
        diffusion.add_adapters(2, 2.0, TARGETS, seed)

    assert torch.equal(torch.get_rng_state(), before)
    moved = [name for name in first.policy_state() if ".lora_A" in name]
    assert all(torch.equal(first.policy_state()[n], same.policy_state()[n]) for n in first.policy_state())
    assert all(not torch.equal(first.policy_state()[n], other.policy_state()[n]) for n in moved)


def test_merged_weights_say_what_the_adapters_say() -> None:
    diffusion = cnn(adapted=True, time_conditioned=True)
    state, again = adapters.merged(diffusion.trainable()), adapters.merged(diffusion.trainable())
    plain = cnn(time_conditioned=True)
    base = {name: tensor.clone() for name, tensor in plain.trainable().state_dict().items()}
    plain.trainable().load_state_dict(state, strict=True)

    torch.testing.assert_close(
        log_p(plain, tokens(4), [""] * 4), log_p(diffusion, tokens(4), [""] * 4), rtol=1e-5, atol=1e-5
    )
    assert all(torch.equal(state[name], again[name]) for name in state)
    moved = {name.split(".")[0] for name in state if not torch.equal(state[name], base[name])}
    assert moved == set(TARGETS)


def test_adapters_are_as_dilated_as_their_layers() -> None:
    """peft builds an adapter's convolution with its layer's padding, but leaves out the dilation: the output would be
    longer than the layer's own. It is put back."""
    diffusion = cnn(adapted=True)
    convs: Any = diffusion.trainable().convs
    assert [conv.lora_A["default"].dilation for conv in convs] == [(d,) for d in (1, 1, 4, 16, 64)]
    assert [conv.lora_A["default"].padding for conv in convs] == [(d,) for d in (1, 1, 4, 16, 64)]
    convs[4].lora_A["default"].dilation = (1,)
    with pytest.raises(RuntimeError):
        log_p(diffusion, tokens(1), [""])


def test_targets_are_layers_and_what_lies_below() -> None:
    backbone: Any = cnn(classes=2).trainable()
    every = [name for name, part in backbone.named_modules() if isinstance(part, nn.Linear | nn.Conv1d)]

    assert adapters.layers(backbone, ["convs"]) == [f"convs.{i}" for i in range(5)]
    assert adapters.layers(backbone, ["final_conv.0", "final_conv"]) == ["final_conv.0", "final_conv.2"]
    assert adapters.layers(backbone, ["time_layers.1"]) == ["time_layers.1.dense"]
    assert adapters.layers(backbone, ["linear"]) == ["linear"]
    tops = ["linear", "time_embedder", "convs", "time_layers", "final_conv", "cls_layers"]
    assert sorted(adapters.layers(backbone, tops)) == sorted(every)
    for target in ("conv", "norms", "cls_embedder", "time_embedder.0", "to_q"):
        with pytest.raises(ValueError, match=f"mstep.lora.targets: no layer is named {target}; allowed: cls_layers, "):
            adapters.layers(backbone, ["convs", target])


def test_full_weights() -> None:
    """The reference is a copy that training leaves alone; the Fourier frequencies are never trained."""
    diffusion, x = cnn(time_conditioned=True), tokens(3)
    base, frequencies = log_p(diffusion, x, [""] * 3), diffusion.trainable().get_parameter("time_embedder.0.W").clone()
    diffusion.train_all_weights()
    assert torch.equal(log_p(diffusion, x, [""] * 3), base)
    train(diffusion)

    assert torch.equal(log_p(diffusion, x, [""] * 3, reference=True), base)
    assert (log_p(diffusion, x, [""] * 3) - base).abs().max() > 0.1
    names = {name for name, _ in diffusion.trainable().named_parameters()}
    assert names - set(diffusion.policy_state()) == {"time_embedder.0.W"}
    assert torch.equal(diffusion.trainable().get_parameter("time_embedder.0.W"), frequencies)
    loss = diffusion.step_loss(Transitions(x, x % 4, torch.tensor([1, 2, 3]), [""] * 3), reference=True)
    (loss.nll + loss.kl).sum().backward()
    assert diffusion.trainable().get_parameter("time_embedder.0.W").grad is None
    assert {n for n, p in diffusion.trainable().named_parameters() if p.grad is not None} == set(
        diffusion.policy_state()
    )


def test_a_wrapped_policy_is_what_is_called() -> None:
    """DistributedDataParallel sees the policy's passes alone, not those of the reference."""
    diffusion, calls = cnn(adapted=True), []

    def wrap(module: Any) -> Any:
        def call(*args: Any) -> Tensor:
            calls.append(len(args[0]))
            return module(*args)

        return call

    diffusion.parallelise(wrap)
    batch = Transitions(tokens(3), tokens(3) % 4, torch.tensor([1, 2, 3]), [""] * 3)
    diffusion.step_loss(batch, reference=True)
    assert calls == [3]
    assert isinstance(diffusion.trainable(), DilatedCNN)
