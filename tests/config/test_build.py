"""What a search worker and a rank have: text encoders leave memory once the prompts are embedded, decoders on ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.config.build import build, for_search, for_training
from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.types import Transitions

PROMPTS = ["cat", "dog", "cat"]


def config(folder: str, **changes: Any) -> Config:
    settings = {"steps": 4, "guidance_scale": 2.0, "merge": "off"}
    whole = {"model": {"path": folder}, "prompts": PROMPTS[:2], "reward": {"kind": "brightness"}, "search": settings}
    return Config.model_validate({**whole, **changes})


def bytes_of(module: Any) -> int:
    """That its weights take in memory."""
    return sum(p.nbytes for p in module.parameters() if not p.is_meta)


def predicted(model: Any) -> tuple[Tensor, Tensor]:
    x = model.prior(PROMPTS, KeyedNoise(0, 1, range(3)).at(4))
    with torch.no_grad():
        found = model.predict(x, 3, PROMPTS)
    return found.x0_hat, found.kernel.log_prob(x.unsqueeze(1))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_search_worker_gives_its_text_encoder_back_and_finds_the_same_bits(scale: float, tiny_folder: str) -> None:
    made = config(tiny_folder, search={"steps": 4, "guidance_scale": scale, "merge": "off"})
    whole, lean = build(made), for_search(made)
    assert bytes_of(whole._parts.text_encoder) > 0 == bytes_of(lean._parts.text_encoder)  # type: ignore[attr-defined]
    for a, b in zip(predicted(whole), predicted(lean), strict=True):
        assert torch.equal(a, b)
    x_0 = predicted(whole)[0]
    assert torch.equal(whole.decode(x_0, PROMPTS), lean.decode(x_0, PROMPTS))
    with pytest.raises(ValueError, match="'owl': is none of the prompts for which the text encoders were asked"):
        lean.predict(x_0, 3, ["cat", "owl", "cat"])


def test_a_rank_gives_its_decoder_back_too_and_learns_the_same(tiny_folder: str, tmp_path: Path) -> None:
    made = config(tiny_folder)
    whole, lean = build(made, micro_batch=3), for_training(made, micro_batch=3)
    parts: Any = lean._parts  # type: ignore[attr-defined]
    assert bytes_of(parts.text_encoder) == bytes_of(parts.vae) == 0 < bytes_of(parts.unet)
    x = whole.prior(PROMPTS, KeyedNoise(0, 1, range(3)).at(4))
    batch = Transitions(x, 0.9 * x, torch.tensor([4, 3, 2]), PROMPTS)
    slopes = []
    for model in (whole, lean):
        loss = model.step_loss(batch, reference=True)
        (loss.nll + loss.kl).sum().backward()
        slopes.append([p.grad for p in model.trainable().parameters() if p.requires_grad])
    assert slopes[0] and all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))
    for name, model in (("whole", whole), ("lean", lean)):
        model.write_policy(tmp_path / name)
    assert (tmp_path / "whole" / whole.policy_file).read_bytes() == (tmp_path / "lean" / lean.policy_file).read_bytes()


@pytest.mark.parametrize("num", [100, 600])
def test_encoders_stay_where_embeddings_would_take_more(num: int, tiny_folder: str) -> None:
    """600 are too many to be embedded at the start, 100 take more memory than the tiny encoder."""
    lean: Any = for_search(config(tiny_folder, prompts=[f"cat {i}" for i in range(num)]))
    assert bytes_of(lean._parts.text_encoder) > 0 and len(lean._embeddings) == int(num == 100)
    assert torch.isfinite(predicted(lean)[0]).all()  # others are embedded as they come


def test_a_worker_without_prompts_keeps_its_encoder(tiny_folder: str) -> None:
    lean: Any = for_search(config(tiny_folder).model_copy(update={"prompts": ()}))
    assert bytes_of(lean._parts.text_encoder) > 0
    assert torch.equal(predicted(lean)[0], predicted(build(config(tiny_folder)))[0])


def test_a_model_without_encoders_releases_nothing() -> None:
    made = load("dna", ["search.steps=4"]).config
    assert bytes_of(for_training(made).trainable()) == bytes_of(build(made).trainable()) > 0
