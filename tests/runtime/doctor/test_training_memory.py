"""What the doctor says of the M-step's memory, against what autograd keeps of Stable Diffusion 1.5's real shapes."""

from __future__ import annotations

import pytest
import torch

from dav_ray.config.memory import search_memory, train_memory
from tests.runtime.doctor.test_estimates import SD15, config
from tests.support import like_a_gpu

BF16 = torch.bfloat16


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dtype", "autocast", "counted"),
    [("float32", None, 3.39e9), ("bfloat16", None, 2.09e9), ("bfloat16", BF16, 2.29e9), ("float32", BF16, 2.29e9)],
)
def test_a_transition_keeps_about_what_the_doctor_says(
    dtype: str, autocast: torch.dtype | None, counted: float
) -> None:
    network, held = like_a_gpu.unet(getattr(torch, dtype)), getattr(torch, dtype)
    kept = like_a_gpu.saved(network, held, autocast)
    precision = "bfloat16" if autocast else "float32"
    settings = {"model": {"path": "x/y", "dtype": dtype}, "mstep": {"micro_batch": 1, "precision": precision}}
    assert kept == pytest.approx(counted, rel=0.02)
    assert train_memory(config(**settings), SD15, 2).activations == pytest.approx(kept, rel=0.05)

    layer = like_a_gpu.saved_by_a_layer(network, held, autocast)
    network.enable_gradient_checkpointing()
    least = like_a_gpu.saved(network, held, autocast)
    assert least < kept / 5
    settings["mstep"]["checkpointing"] = "on"
    assert train_memory(config(**settings), SD15, 2).activations == pytest.approx(least + layer, rel=0.08)


def test_what_is_compared_in_float32_takes_its_memory() -> None:
    def activations(dtype: str, **search: object) -> float:
        fixed = {"chunk": 16, "candidates": 1, "decode_batch": 1, "micro_batch": 64, **search}
        made = config(model={"path": "x/y", "dtype": dtype}, search=fixed, evaluate={"batch": 4})
        return search_memory(made, SD15, 2).activations

    whole = activations("float32")
    assert activations("bfloat16") == whole / 2  # 16 states in half, 4 in full
    assert activations("bfloat16", anchor="pretrained") == whole
    assert activations("float32", anchor="pretrained") == whole


def test_graphs_of_a_searchs_gradient_are_held_at_once() -> None:
    """Of all parents of a chunk, network and decoder, however many go through either at a time."""
    made = config(
        model={"path": "x/y", "dtype": "bfloat16"},
        search={"gradient": True, "chunk": 8, "micro_batch": 4, "decode_batch": 2, "candidates": 4},
    )
    assert search_memory(made, SD15, 2).activations == pytest.approx(8 * (2.09e9 + 2.98e9), rel=0.05)
    fewer = made.model_copy(update={"search": made.search.model_copy(update={"chunk": 2})})
    assert search_memory(fewer, SD15, 2).activations == pytest.approx(2 * (2.09e9 + 2.98e9), rel=0.05)
