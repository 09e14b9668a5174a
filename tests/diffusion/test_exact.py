"""Half precision against float32: KL, anchors and weights of the shipped digits, whose adapters hardly moved."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from dav_ray.config.build import build
from dav_ray.config.recipe.load import load
from dav_ray.diffusion.exact import against_reference, in_float32
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.diffusion.sampling import ancestral
from dav_ray.search.dav import Dav
from dav_ray.testing.base import scorer
from dav_ray.testing.gaussian import LinearGaussian

DTYPES = ("float32", "bfloat16", "float16")
NAMES = ["zero", "seven"]
STEPS, TIMES = 8, (8, 5, 3, 1)
GUIDANCE = 5.0


def digits(dtype: str = "float32", autocast: str = "float32", moved: float = 1.2e-5) -> Any:
    """moved: by how much every parameter of the adapters is, at random, the same in every precision."""
    settings = [f"model.dtype={dtype}", f"search.guidance_scale={GUIDANCE}", f"search.steps={STEPS}"]
    diffusion: Any = build(load("digits", settings).config, autocast=autocast)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in diffusion.trainable().parameters():
            if parameter.requires_grad:
                parameter += moved * torch.randn(parameter.shape, generator=generator)
    return diffusion


@functools.cache
def states() -> torch.Tensor:
    """[T+1, B, ...], sampled in float32."""
    return ancestral(digits(), NAMES, KeyedNoise(0, 1, range(len(NAMES))))


def path_kl(diffusion: Any, exact: bool = True) -> float:
    """KL of the policy's path to the pretrained model's over TIMES, nats per trajectory, at the same states for all."""
    total, x = 0.0, states()
    for t in TIMES:
        x_t = x[diffusion.steps - t]
        if exact:
            policy, pretrained = against_reference(diffusion, x_t, t, NAMES)
        else:
            with torch.no_grad():
                policy, pretrained = (diffusion.predict(x_t, t, NAMES, reference=r).kernel for r in (False, True))
        total += float(policy.kl(pretrained).mean())
    return total


@functools.cache
def true_kl() -> float:
    return path_kl(digits())


@pytest.mark.parametrize(
    ("dtype", "autocast"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "bfloat16")]
)
def test_the_kl_is_float32s_in_every_precision(dtype: str, autocast: str) -> None:
    diffusion = digits(dtype, autocast)
    found, noise = path_kl(diffusion), path_kl(diffusion, exact=False)
    assert found == pytest.approx(true_kl(), rel=0.1)
    assert noise > 1000 * found  # what two rounded passes make of it
    assert 1e-6 < true_kl() < 1e-4


class Flat:
    """The reward that likes everything alike."""

    differentiable = True

    def __call__(self, samples: Any, conditions: Any = ()) -> Any:
        return 0.0 * samples.flatten(1).sum(1)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dtype", "beta", "gradient"), [("bfloat16", 1.0, False), ("float16", 1.0, False), ("bfloat16", 0.5, True)]
)
def test_weights_of_an_anchored_search_are_not_noise(dtype: str, beta: float, gradient: bool) -> None:
    """With a reward that is flat and a policy that hardly moved, log W is 0 but for the KL."""
    diffusion = digits(dtype)
    found = Dav(3, 1.0, 1.0, gradient, beta)(diffusion, scorer(Flat()), NAMES[:2], KeyedNoise(0, 1, range(2)))
    assert found.log_weight is not None and found.step_ess is not None
    assert found.log_weight.abs().max() < 0.05
    assert found.step_ess.min() > 2.99
    assert diffusion.cost.reference == 2 * STEPS
    assert diffusion.cost.network == 2 * ((2 if gradient else 1) * STEPS + (STEPS - 1) * 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adapters_that_did_not_move_have_no_kl(dtype: str) -> None:
    assert path_kl(digits(dtype, moved=0.0)) == 0.0


def test_in_float32_the_weights_are_what_they_are_held_as() -> None:
    """A model in bfloat16 is, exactly, the one in float32 whose weights were rounded; afterwards it is itself again."""
    half, whole = digits("bfloat16"), digits()
    weights = dict(half.trainable().named_parameters())
    with torch.no_grad():
        for name, parameter in whole.trainable().named_parameters():
            parameter.copy_(weights[name])
        for prompt in ("zero", None):  # of the same text encoder, in half precision
            told = half._embedded(prompt)
            whole._embeddings[prompt] = {name: part.float() for name, part in told.items()}
        x = states()[0][:1]
        before = half.predict(x, half.steps, ["zero"]).kernel.mean
        with half.exactly():
            exact = half.predict(x, half.steps, ["zero"]).kernel.mean
        assert torch.equal(exact, whole.predict(x, whole.steps, ["zero"]).kernel.mean)
        assert not torch.equal(exact, before)
        assert torch.equal(half.predict(x, half.steps, ["zero"]).kernel.mean, before)
    assert weights["conv_in.base_layer.weight"].dtype == torch.bfloat16 and half.rounded and not whole.rounded


def test_where_float32_is_what_there_is_nothing_is_evaluated_twice() -> None:
    toy = LinearGaussian(4, 2).shifted(0.5)
    x = torch.randn(3, 2)
    kernel = toy.predict(x, 2, ["0.1"] * 3).kernel
    before = toy.cost
    policy, pretrained = against_reference(toy, x, 2, ["0.1"] * 3, kernel)
    assert policy is kernel and not torch.equal(pretrained.mean, kernel.mean)
    assert toy.cost - before == type(before)(reference=3)


def test_layers_are_widened_one_at_a_time_and_come_back_after_an_error() -> None:
    class Fails(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.weight.dtype == torch.float32 and net[0].weight.dtype == torch.bfloat16
            raise KeyError

    net = torch.nn.Sequential(torch.nn.Linear(2, 2), Fails(2, 2)).to(torch.bfloat16)
    before = [parameter.data_ptr() for parameter in net.parameters()]
    with pytest.raises(KeyError), in_float32(net):
        net(torch.ones(1, 2))
    assert [parameter.data_ptr() for parameter in net.parameters()] == before
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}
    assert not net[0]._forward_pre_hooks and not net[1]._forward_hooks


@pytest.mark.parametrize("allowed", [(True, False), (False, True), (True, True)])
def test_in_float32_no_factor_is_shortened(allowed: tuple[bool, bool]) -> None:
    libraries: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [library.allow_tf32 for library in libraries]
    try:
        for library, one in zip(libraries, allowed, strict=True):
            library.allow_tf32 = one
        with in_float32(torch.nn.Linear(2, 2)):
            assert [library.allow_tf32 for library in libraries] == [False, False]
        assert tuple(library.allow_tf32 for library in libraries) == allowed
    finally:
        for library, one in zip(libraries, before, strict=True):
            library.allow_tf32 = one
