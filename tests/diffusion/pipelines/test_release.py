"""Text encoders and decoders that have left memory are missed by no pipeline's adapter."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.diffusion.pipelines.latents import LatentModel
from tests.diffusion.pipelines.flows import test_flux, test_flux_2_klein, test_lumina_2, test_qwen_image, test_z_image

FAMILIES: list[Any] = [test_flux, test_flux_2_klein, test_lumina_2, test_qwen_image, test_z_image]


@pytest.mark.parametrize("family", FAMILIES, ids=[family.__name__.rpartition("test_")[2] for family in FAMILIES])
def test_the_network_says_the_same_to_the_last_bit(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model() -> Any:
        needs_folder = "folder" in inspect.signature(family.tiny).parameters
        return family.model_of(family.tiny(tmp_path) if needs_folder else family.tiny())

    monkeypatch.setattr(LatentModel, "_worthwhile", lambda *_: True)  # tiny encoders are smaller than what they say
    whole, lean = model(), model()
    lean.release(family.PROMPTS, decodes=False)
    gone = {name for name, part in lean._named().items() if all(p.is_meta for p in part.parameters())}
    encoders = {name for name in lean._named() if name.startswith("text_encoder")}
    assert encoders and gone == {*encoders, "vae"}
    x, t = family.begin(), torch.full((2,), 2)
    with torch.no_grad():
        said = [one._evaluate(one.called(reference=False), x, t, family.PROMPTS) for one in (whole, lean)]
    assert torch.equal(*said) and torch.isfinite(said[0]).all()
