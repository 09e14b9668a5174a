"""Floating-point operations and bytes of a plan: closed forms against torch's own count, and what is not known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dav_ray.config.families.published import SD1, SD2, TEXT_LENGTH
from dav_ray.config.families.table import family_of
from dav_ray.config.figures import Figures, figures, precision, shown, work
from dav_ray.config.networks.counted import Inputs
from dav_ray.config.networks.table import counted
from dav_ray.config.plan import plan, render
from dav_ray.config.recipe.load import load
from dav_ray.search.facts import Spent
from dav_ray.types import Cost
from jobs.gpu_hour import flops
from tests.support.places import PACKAGE

DIGITS = PACKAGE / "assets/digits"


def part(name: str) -> dict[str, Any]:
    return json.loads((DIGITS / name / "config.json").read_text())


def unet_flops(config: dict[str, Any], tokens: int) -> float:
    return counted(config, Inputs(*size(config), tokens)).flops


def decoder_flops(unet: dict[str, Any], vae: dict[str, Any]) -> float:
    return counted(vae, Inputs(*size(unet))).flops


def size(unet: dict[str, Any]) -> tuple[int, int]:
    side = unet["sample_size"]
    return (side[0], side[1]) if isinstance(side, list) else (side, side)


def test_stable_diffusion_takes_what_torch_counts() -> None:
    """TFLOP of a UNet's pass at 64 x 64 and of a decoding to 512 x 512."""
    unet, vae = SD1["unet"], SD1["vae"]
    counted = flops.unet_flops(unet, TEXT_LENGTH), flops.decoder_flops({**vae, **ENCODER}, 64, 64)

    assert counted[0] / 1e12 == pytest.approx(0.803, abs=5e-4)
    assert counted[1] / 1e12 == pytest.approx(2.515, abs=5e-4)
    assert unet_flops(unet, TEXT_LENGTH) == pytest.approx(counted[0], rel=0.02)
    assert decoder_flops(unet, vae) == pytest.approx(counted[1], rel=0.02)


ENCODER = {"down_block_types": ["DownEncoderBlock2D"] * 4}  # not called, and built all the same


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sample_size": [6, 10]},
        {"sample_size": 7},  # halves are rounded up
        {"layers_per_block": 2, "transformer_layers_per_block": 2},
        {
            "block_out_channels": [16, 32, 48],
            **dict(
                zip(
                    ("down_block_types", "up_block_types"),
                    (
                        ["CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
                        ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
                    ),
                    strict=True,
                )
            ),
        },
        {"cross_attention_dim": 24},
    ],
)
def test_the_digits_networks_take_what_torch_counts(change: dict[str, Any]) -> None:
    unet, vae = {**part("unet"), **change}, part("vae")
    height, width = size(unet)

    assert unet_flops(unet, 16) == pytest.approx(flops.unet_flops(unet, 16), rel=0.02)
    assert decoder_flops(unet, vae) == pytest.approx(flops.decoder_flops(vae, height, width), rel=0.02)
    attentive = {**vae, "mid_block_add_attention": True, "layers_per_block": 2}
    assert decoder_flops(unet, attentive) == pytest.approx(flops.decoder_flops(attentive, height, width), rel=0.02)


def test_the_masked_network_takes_what_torch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dav_ray.config.build import build

    config = load("dna").config
    diffusion: Any = build(config.model_copy(update={"mstep": config.mstep.model_copy(update={"parameters": "full"})}))
    length = diffusion.length
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        diffusion.trainable()(torch.zeros(1, length, dtype=torch.long), torch.zeros(1), None)
    work = family_of(config.model).flops(config)

    assert work is not None and work.decoder == 0
    assert work.network == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_papers_settings_on_stable_diffusion() -> None:
    """785 evaluations of two passes, 800 decodings to 512 x 512: 61 % of the work is decoding."""
    made = load("sd15").config
    found = plan(made).figures
    said = {" ".join(line.split()) for line in render(made, plan(made)).splitlines()}

    assert found.network == pytest.approx(785 * 2 * 0.80327e12, rel=1e-3)
    assert found.decoding == pytest.approx(800 * 2.5145e12, rel=1e-3)
    assert found.reward_bytes == 800 * 3 * 512 * 512  # a JPEG's pixels
    assert "work per sample 1,261 TFLOP of the network, 2,012 TFLOP of decoding" in said
    assert "samples sent to rewards 629.1 MB, 201.3 GB per round" in said


def test_the_size_that_a_recipe_asks_for_counts() -> None:
    """Decoding grows a little faster than the pixels: its middle attends."""
    usual, larger = (figures(load("sd15", words).config, Spent(1, reward=1)) for words in ([], SIZE))
    assert usual.network and larger.network and usual.decoding and larger.decoding
    assert 2.25 < larger.network / usual.network < 3 and 2.25 < larger.decoding / usual.decoding < 2.6
    assert usual.reward_bytes == 3 * 512**2 and larger.reward_bytes == 3 * 768**2


SIZE = ["model.height=768", "model.width=768"]


@pytest.mark.parametrize(
    ("name", "passes", "network"),
    [("flux_dev", 1, 21.5e12), ("sd35_medium", 2, 2.44e12), ("sana_sprint", 1, 1.12e12), ("flux_schnell", 1, 17.7e12)],
)
def test_transformers_are_known_without_a_download(name: str, passes: int, network: float) -> None:
    config = load(name).config
    found, family = work(config), family_of(config.model)
    assert found and family.passes(config) == passes
    assert found.evaluation / passes == pytest.approx(network, rel=0.02)


def test_a_backward_pass_is_one_more_and_each_reward_gets_its_own() -> None:
    rewards = ["reward=[{kind: jpeg_compressibility}, {kind: brightness}]"]
    config = load("digits", rewards).config
    plain, slopes = (figures(config, Spent(10, backward=n, reference=2, reward=8)) for n in (0, 4))

    assert plain.network and slopes.network and plain.decoding and slopes.decoding
    assert slopes.network / plain.network == pytest.approx(16 / 12)
    assert slopes.decoding / plain.decoding == pytest.approx(12 / 8)
    assert plain.reward_bytes == slopes.reward_bytes == 8 * 2 * 3 * 32 * 32 * 4


def test_what_was_spent_is_counted_as_what_is_planned() -> None:
    for name in ("digits", "dna"):
        config = load(name, []).config
        planned, done = figures(config, Spent(10, backward=4, reference=2, reward=8)), work(config)
        assert planned.network and planned.decoding is not None and done
        assert done.of(Cost(10, 4, 2, 8)) == pytest.approx(planned.network + planned.decoding)
        assert done.of(Cost(20, 8, 4, 16)) == pytest.approx(2 * (planned.network + planned.decoding))
    assert work(load("sd15", ["model.path=some/model"]).config) is None
    draft = work(load("sd15", ["model.draft_vae=madebyollin/taesd"]).config)
    assert draft and draft.of(Cost(10, reward=8)) is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "float32"),
        (["model.dtype=bfloat16"], "bfloat16"),
        (["search.precision=float16"], "float16"),
        (["model.dtype=float16", "search.precision=bfloat16"], "bfloat16"),
        (["model.dtype=bfloat16", "mstep.parameters=full"], "float32"),
    ],
)
def test_the_precision_of_the_searchs_network(words: list[str], expected: str) -> None:
    assert precision(load("digits", words).config) == expected


def test_what_is_sent_follows_what_rewards_want_and_where_they_run() -> None:
    def sent(*words: str) -> float | None:
        return figures(load("digits", [*words]).config, Spent(10, reward=8)).reward_bytes

    image = 3 * 32 * 32
    jpeg, bright = "{kind: jpeg_incompressibility", "{kind: brightness"
    assert sent(f"reward={jpeg}}}") == 8 * image
    assert sent(f"reward={jpeg}, where: search}}") == 0
    assert sent(f"reward=[{jpeg}}}, {bright}, where: search}}]") == 8 * image * 4
    assert sent(f"reward={bright}}}", "search.gradient=true") == 8 * image * 4


def test_rounds_that_start_from_the_last_one_take_less() -> None:
    words = [
        "mstep.candidates=winner",
        "search.kind=refine",
        "search.candidates=4",
        "search.steps=8",
        "search.repeats=3",
        "search.depth=0.25",
    ]
    made = load("digits", words).config
    planned, text = plan(made), render(made, plan(made))
    assert planned.later is not None

    assert planned.later.figures.network == pytest.approx(planned.figures.network * 15 / 44)  # type: ignore[operator]
    assert f"; later rounds {planned.later.figures.flops}" in text
    assert f"later rounds {shown(planned.later.figures.reward_bytes or 0)}B" in text


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path) -> None:
    def of(*words: str) -> Figures:
        return plan(load("sd15", list(words)).config).figures

    other = of("model.path=some/model")
    assert other == Figures(None, None, None) and other.flops == ""
    draft = of("model.draft_vae=madebyollin/taesd")
    assert draft.network is not None and draft.decoding is None
    assert draft.flops == "1,261 TFLOP of the network"
    made = load("sd15", ["model.path=some/model"]).config
    assert "work per sample" not in render(made, plan(made)) and "sent to rewards" not in render(made, plan(made))


@pytest.mark.parametrize(
    "change", [{"mid_block_type": "UNetMidBlock2D"}, {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}]
)
def test_other_blocks_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nothing is known of the work"):
        unet_flops({**part("unet"), **change}, 16)


def test_other_sizes_of_published_models() -> None:
    """At 96 x 96 convolutions take 2.25 times as long, self-attention 5 times."""
    ratio = unet_flops(SD2["unet"], 77) / unet_flops({**SD2["unet"], "sample_size": 64}, 77)
    assert 2.25 < ratio < 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999 "), (10_000, "10 k"), (9_999.4, "9,999 "), (1.2611e15, "1,261 T"), (3.2e21, "3,200 E")],
)
def test_numbers_have_a_prefix(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_plan_imports_no_torch() -> None:
    code = (
        "import sys; from dav_ray.config.plan import plan, render; from dav_ray.config.recipe.load import load; "
        "made = load('sd15').config; assert 'TFLOP' in render(made, plan(made)); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
