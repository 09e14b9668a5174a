"""`model.max_sequence_length`: adapters cut and pad a text as the pipelines do that are told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.config.checks.preflight import model_mistakes
from dav_ray.config.families.table import PIPELINES
from dav_ray.config.schema import Config
from dav_ray.diffusion.pipelines.few_step.sana_sprint import SanaSprint
from dav_ray.diffusion.pipelines.latents import usual
from dav_ray.registry import load
from tests.support.oracle import differences, recorded
from tests.support.pipelines import (
    flux,
    flux_2_klein,
    lumina_2,
    qwen_image,
    sana,
    sana_sprint,
    stable_diffusion_3,
    stable_diffusion_xl,
    z_image,
)
from tests.support.pipelines.sana_parts import begin

PROMPTS = ["a cat on the mat, and a dog", "two dogs beside the door"]  # longer than what is read of them
NEGATIVE, STEPS, LONGEST = "not this one, please", 2, 4


@dataclass(frozen=True)
class Case:
    """A tiny pipeline from a folder; the start of its steps, [B, *event], for images of this size; what the pipeline
    takes in its place, if it is another; arguments of its call."""

    tiny: Callable[[Path], Any]
    begin: Callable[[int, int], Tensor]
    side: int = 16
    given: Callable[[int, int], Tensor] | None = None
    words: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 3.0})


CASES = {
    "FluxPipeline": Case(flux.tiny, flux.begin),
    "Flux2KleinPipeline": Case(lambda _: flux_2_klein.tiny(), flux_2_klein.begin, given=flux_2_klein.patches),
    "Lumina2Pipeline": Case(lambda _: lumina_2.tiny(), lumina_2.begin, side=32),
    "QwenImagePipeline": Case(
        lambda _: qwen_image.tiny(),
        qwen_image.begin,
        words={"true_cfg_scale": 3.0, "negative_prompt": [NEGATIVE] * 2},
    ),
    "SanaPipeline": Case(
        lambda _: sana.tiny(), begin, side=32, words={"guidance_scale": 3.0, "use_resolution_binning": False}
    ),
    "StableDiffusion3Pipeline": Case(stable_diffusion_3.tiny, z_image.begin),
    "StableDiffusion3Pipeline, no T5": Case(
        lambda folder: stable_diffusion_3.tiny(folder, with_t5=False), z_image.begin
    ),
    "ZImagePipeline": Case(lambda _: z_image.tiny(), z_image.begin),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_pipelines_own(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    pipe, size = case.tiny(tmp_path), {"height": case.side, "width": case.side}
    given = (case.given or case.begin)(case.side, case.side)
    cut = recorded(pipe, PROMPTS, given, num_inference_steps=STEPS, max_sequence_length=LONGEST, **size, **case.words)

    family: Any = load(PIPELINES[name.split(",")[0]])
    options = {"steps": STEPS, "eta": 0.0, "guidance_scale": 3.0, **size}
    if "negative_prompt" in case.words:
        options["negative_prompt"] = NEGATIVE
    models = [load(family.adapter)(pipe, **options, **more) for more in ({"max_sequence_length": LONGEST}, {})]
    same, whole = (differences(model, cut, PROMPTS, case.begin(case.side, case.side))[0] for model in models)
    assert same < 1e-5 < 1e-4 < whole


def test_so_does_sana_sprint() -> None:
    pipe = sana_sprint.tiny()
    model = SanaSprint(pipe, steps=2, height=32, width=32, max_sequence_length=LONGEST)
    instruction = usual(pipe, "complex_human_instruction")
    wanted, _ = pipe.encode_prompt(
        PROMPTS[0], complex_human_instruction=instruction, max_sequence_length=LONGEST, device="cpu"
    )
    assert torch.equal(model.embed(PROMPTS[0])["text"], wanted[0])
    assert len(wanted[0]) == LONGEST


def test_a_pipeline_without_a_long_text_encoder_refuses_it(tmp_path: Path) -> None:
    stable_diffusion_xl.tiny(tmp_path / "parts").save_pretrained(tmp_path / "pipe")
    for path, name in (
        ("shipped:digits", "StableDiffusionPipeline"),
        (str(tmp_path / "pipe"), "StableDiffusionXLPipeline"),
    ):
        section = {"path": path, "max_sequence_length": 8}
        config = Config.model_validate({"model": section, "prompts": ["a"], "reward": {"kind": "brightness"}})
        wanted = f"model.max_sequence_length = 8: a {name} has no use for it; allowed: null"
        assert list(model_mistakes(config)) == [wanted]
