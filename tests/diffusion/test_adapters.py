"""Adapters that are part of the weights: the same predictions up to rounding, by plain layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dav_ray.config.build import for_search
from dav_ray.config.recipe.load import load
from dav_ray.diffusion import adapters
from dav_ray.run_dir.policy import get_weights, set_weights

SMALL = ["search.steps=4", "search.merge=on", "search.guidance_scale=2.0"]


def moved(model: Any, seed: int) -> dict[str, Any]:
    """The policy's weights, moved away from those of the base."""
    torch.manual_seed(seed)
    return {name: array + 0.1 * torch.randn(array.shape).numpy() for name, array in get_weights(model).items()}


def at(model: Any, conditions: list[str]) -> Tensor:
    from dav_ray.diffusion.noise import KeyedNoise

    return model.prior(conditions, KeyedNoise(0, 1, range(len(conditions))).at(4))


@pytest.mark.parametrize(("recipe", "conditions"), [("digits", ["one", "two", "two"]), ("dna", ["", "", ""])])
def test_merged_adapters_predict_the_same_and_follow_the_policy(recipe: str, conditions: list[str]) -> None:
    model, plain = for_search(load(recipe, SMALL).config), for_search(load(recipe, [*SMALL, "search.merge=off"]).config)
    x = at(model, conditions)
    base = plain.predict(x, 4, conditions).x0_hat.float()
    for seed in (1, 2):
        weights = moved(plain, seed)
        for one in (model, plain):
            set_weights(one, weights)
        assert get_weights(model).keys() == weights.keys()
        with torch.no_grad():
            found, wanted = (one.predict(x, 4, conditions).kernel.log_prob(x.unsqueeze(1)) for one in (model, plain))
            reference = model.predict(x, 4, conditions, reference=True).x0_hat.float()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
        assert torch.equal(reference, base)


def test_a_gradient_goes_through_merged_adapters() -> None:
    slopes = []
    for merge in ("on", "off"):
        model = for_search(load("digits", [*SMALL, f"search.merge={merge}"]).config)
        set_weights(model, moved(model, 3))
        x = at(model, ["one"]).requires_grad_()
        slopes.append(torch.autograd.grad(model.predict(x, 4, ["one"]).x0_hat.square().sum(), x)[0])
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_adapted_layers_have_a_copy_and_sums_are_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).to(dtype).requires_grad_(False)
    kept = [parameter.clone() for parameter in network.parameters()]
    adapters.add(network, 2, 4.0, ["2"], seed=0)
    whole = adapters.folded(network)
    layer: Any = network[2]
    with torch.no_grad():
        for part in (layer.lora_A["default"], layer.lora_B["default"]):
            part.weight.data = torch.randn(part.weight.shape)
    adapters.fold(network, whole)
    delta = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.equal(whole[2].weight, (kept[2].float() + delta).to(dtype))
    assert whole[0].weight is network[0].weight and type(whole[2]) is nn.Linear
    assert torch.equal(layer.get_base_layer().weight, kept[2])
