"""Enformer: the same numbers as gReLU's, from the same file."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dav_ray.rewards.base import local_scorer
from dav_ray.rewards.enformer import Enformer
from dav_ray.rewards.enformer_model import (
    AttentionPool,
    ConvBlock,
    EnformerModel,
    conv_widths,
    position_features,
)
from dav_ray.rewards.oracle import one_hot
from dav_ray.rewards.registry import resolve

TINY: dict[str, Any] = dict(n_tasks=3, n_conv=3, channels=384, n_transformers=2, n_heads=8, key_len=8)
# of `filled` weights and `sequences(2)`, as gReLU 1.1.0 with enformer-pytorch 0.8.12 printed them
GRELU = {
    200: [[4.540524, -9.374881, 0.960338], [4.445873, -9.418442, 1.427671]],
    149: [[4.582898, -9.215648, 1.033027], [4.159766, -9.768212, 2.425271]],
}


def sequences(num: int, length: int = 200) -> Tensor:
    """Tokens [num, length], the same everywhere."""
    return torch.from_numpy((4 * np.random.default_rng(0).random((num, length))).astype(np.int64))


def filled(model: nn.Module) -> Any:
    """The same weights everywhere, of a size that lets sequences differ."""
    with torch.no_grad():
        for i, (name, tensor) in enumerate(sorted(model.state_dict().items())):
            if not tensor.is_floating_point():
                continue
            wave = torch.from_numpy(2 * np.random.default_rng(i).random(tuple(tensor.shape)) - 1)
            size = 5 / math.sqrt(tensor[0].numel()) if tensor.ndim > 1 else 0.5
            wave = wave.abs() + 0.5 if name.endswith("running_var") else size * wave
            tensor.copy_(wave)
    return model.eval()


def saved(path: Path, model: EnformerModel, train: dict[str, Any], **more: Any) -> str:
    """As gReLU's LightningModel saves itself."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    params = {"model_type": "EnformerModel", **TINY, "attn_dropout": 0.05, "ff_dropout": 0.4}
    content = {
        "state_dict": {**state, "loss.pos_weight": torch.ones(3, 1)},
        "hyper_parameters": {"model_params": params, "train_params": train},
        "data_params": {"tasks": {"name": ["k562", "hepg2", "sknsh"]}, "train": {"chroms": np.array(["1"])}},
        "performance": {"val": {"mse": np.float64(0.5)}},
    }
    torch.save({**content, **more}, path)
    return str(path)


@pytest.fixture(scope="module")
def model() -> EnformerModel:
    return filled(EnformerModel(**TINY))


@pytest.mark.parametrize("length", GRELU)
def test_values_that_grelu_printed(model: EnformerModel, length: int) -> None:
    with torch.no_grad():
        values = model(one_hot(sequences(2, length), 4).transpose(1, 2))[:, :, 0]

    torch.testing.assert_close(values, torch.tensor(GRELU[length]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_conv": 4, "channels": 768, "n_heads": 4, "crop_len": 2, "final_act_func": "softplus"},
        {"n_heads": 4, "final_pool_func": None},
        {"final_pool_func": "max", "final_act_func": "exp", "key_len": 5, "n_tasks": 1},
    ],
)
def test_it_is_grelus_own(changes: dict[str, Any]) -> None:
    theirs = pytest.importorskip("grelu.model.models", exc_type=ImportError)
    grelu = filled(theirs.EnformerModel(**{**TINY, **changes}))
    ours = EnformerModel(**{**TINY, **changes}).eval()
    ours.load_state_dict(grelu.state_dict(), strict=True)
    for length in (200, 149):
        x, y = (one_hot(sequences(2, length), 4).transpose(1, 2).requires_grad_() for _ in range(2))
        expected, values = grelu(x), ours(y)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        slope, own = torch.autograd.grad(expected.sum(), x)[0], torch.autograd.grad(values.sum(), y)[0]
        torch.testing.assert_close(own, slope, rtol=1e-3, atol=1e-5 * slope.abs().max().item())


def test_the_published_size() -> None:
    """Names and number of gReLU's parameters at Enformer's own sizes."""
    with torch.device("meta"):
        state = EnformerModel(n_tasks=1).state_dict()
        parameters = sum(p.numel() for p in EnformerModel(n_tasks=1).parameters())

    assert parameters == 229_848_577
    assert state["embedding.conv_tower.blocks.0.0.weight"].shape == (768, 4, 15)
    assert state["embedding.conv_tower.blocks.6.1.pool.layer.to_attn_logits.weight"].shape == (1536, 1536, 1, 1)
    assert state["embedding.transformer_tower.blocks.10.mha.to_rel_k.weight"].shape == (512, 192)
    assert state["embedding.transformer_tower.blocks.10.ffn.dense1.norm.layer.weight"].shape == (1536,)
    assert state["embedding.pointwise_conv.norm.layer.running_var"].shape == (1536,)
    assert state["head.channel_transform.conv.layer.weight"].shape == (1, 3072, 1)
    assert conv_widths(1536, 7) == [768, 896, 1024, 1152, 1280, 1536]


def test_pooling_by_hand() -> None:
    pool = AttentionPool(1)
    with torch.no_grad():
        pool.to_attn_logits.weight.fill_(1.0)
        values = pool(torch.tensor([[[0.0, math.log(3.0), 5.0]]]))

    assert values.flatten().tolist() == pytest.approx([0.75 * math.log(3.0), 5.0])


def test_a_block_without_pooling_has_no_shortcut() -> None:
    block = ConvBlock(2, 3, 5).eval()
    assert block(torch.zeros(1, 2, 8)).shape == (1, 3, 8)
    nn.init.zeros_(block.conv.weight)
    torch.testing.assert_close(block(torch.rand(1, 2, 8))[0, :, 0], block.conv.bias)


def test_position_features_by_hand() -> None:
    features = position_features(4, 12, torch.device("cpu"))  # 2 of each kind, distances -3 to 3

    assert features.shape == (7, 12)
    torch.testing.assert_close(features[:, :6], features.flip(0)[:, :6])
    torch.testing.assert_close(features[:, 6:], -features.flip(0)[:, 6:])
    assert features[4:, 0].tolist() == pytest.approx([2 ** (-d / 8) for d in (1, 2, 3)])
    assert features[4:, 1].tolist() == pytest.approx([2 ** (-d / 4) for d in (1, 2, 3)])
    assert features[3:, 2].tolist() == [1, 0, 0, 0] and features[3:, 3].tolist() == [1, 1, 1, 0]
    # gamma laws of means 2 and 4, deviation 1; the larger of both densities is made 1
    laws = [[rate**shape * d ** (shape - 1) * math.exp(-rate * d) / math.gamma(shape) + 1e-8 for d in range(4)]
            for shape, rate in ((4, 2), (16, 4))]  # fmt: skip
    for place, law in enumerate(laws):
        expected = [value / max(pair) for value, *pair in zip(law, *laws, strict=True)]
        assert features[3:, 4 + place].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "train, activation",
    [
        ({"task": "regression", "loss": "mse"}, lambda x: x),
        ({"task": "Regression", "loss": "Poisson"}, torch.exp),
        ({"task": "binary", "loss": "bce"}, torch.sigmoid),
        ({"task": "multiclass"}, lambda x: x.softmax(1)),
        ({}, torch.sigmoid),
    ],
)
def test_predictions_of_a_checkpoint(
    tmp_path: Path, model: EnformerModel, train: dict[str, str], activation: Any
) -> None:
    tokens = sequences(2)
    with torch.no_grad():
        expected = activation(model(one_hot(tokens, 4).transpose(1, 2))[:, :, 0])
    path = saved(tmp_path / "a.ckpt", model, train)

    for place, name in enumerate(("k562", "hepg2", "sknsh")):
        for output in (place, name):
            assert Enformer(path, output)(tokens, [""] * 2).tolist() == pytest.approx(
                expected[:, place].tolist(), rel=1e-5
            )
    again = pickle.loads(pickle.dumps(Enformer(path, "hepg2")))
    assert again(tokens, [""] * 2).tolist() == pytest.approx(expected[:, 1].tolist(), rel=1e-5)
    middle = float(expected[:, 1].mean())
    assert Enformer(path, 1, threshold=middle)(tokens, [""] * 2).tolist() == (expected[:, 1] > middle).float().tolist()


def test_gradients_reach_the_letters(tmp_path: Path, model: EnformerModel) -> None:
    """The slope along a direction is the difference quotient."""
    path = saved(tmp_path / "a.ckpt", model, {"task": "regression", "loss": "mse"})
    scorer = local_scorer([("activity", 1.0, Enformer(path))])
    soft = (one_hot(sequences(1), 4) + 0.25) / 2
    direction = torch.sin(torch.arange(800.0)).reshape(1, 200, 4)
    slope = float((scorer.score_and_grad(soft, [""])[1] * direction).sum())
    step = 1e-2
    ends = [scorer.score(soft + sign * step * direction, [""]).item() for sign in (1, -1)]

    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.02)
    assert abs(slope) > 0.01


def test_tasks_where_older_versions_left_them(tmp_path: Path, model: EnformerModel) -> None:
    params = {"model_type": "EnformerModel", **TINY}
    hyper = {"model_params": params, "train_params": {}, "data_params": {"tasks": {"name": ["x", "y", "z"]}}}
    path = saved(tmp_path / "a.ckpt", model, {}, hyper_parameters=hyper, data_params=None)

    assert Enformer(path, "z").place == 2
    with pytest.raises(ValueError, match=r"output = w: unknown; allowed: 0 \(x\), 1 \(y\), 2 \(z\)"):
        Enformer(path, "w")


@pytest.mark.parametrize(
    "params, train, words",
    [
        ({"model_type": "BorzoiModel"}, {}, "model_type BorzoiModel; allowed: a gReLU checkpoint of EnformerModel or "),
        ({"flash_attn": True}, {}, "model_params has flash_attn, which is not known here"),
        ({"n_transformers": 1}, {}, "does not fit EnformerModel: unexpected: embedding.transformer_tower.blocks.1."),
        (
            {},
            {"task": "regression", "loss": "huber"},
            "was trained for task regression, loss huber, which is not known",
        ),
    ],
)
def test_other_models(tmp_path: Path, model: EnformerModel, params: dict, train: dict, words: str) -> None:
    hyper = {"model_params": {"model_type": "EnformerModel", **TINY, **params}, "train_params": train}
    path = saved(tmp_path / "a.ckpt", model, {}, hyper_parameters=hyper)
    with pytest.raises(ValueError) as caught:
        Enformer(path)

    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint = nowhere.ckpt: no such file"):
        Enformer("nowhere.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="text.ckpt: can't be read as a checkpoint"):
        Enformer(str(tmp_path / "text.ckpt"))
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match="bare.ckpt: model_type None; allowed: a gReLU checkpoint"):
        Enformer(str(tmp_path / "bare.ckpt"))


def test_it_is_registered() -> None:
    assert resolve("enformer") is Enformer
