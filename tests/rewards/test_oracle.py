"""Oracles: values and gradients by hand, files that fit and files that do not."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from dav_ray.rewards.base import evaluate, local_scorer
from dav_ray.rewards.oracle import ConvOracle, TorchOracle, one_hot, save_oracle
from dav_ray.rewards.registry import resolve

HERE = "tests.rewards.test_oracle"
TOKENS = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 0], [1, 1, 1, 1]])


class Weighted(nn.Module):
    """Two outputs that can be summed by hand: weights [2, V, L]. Asks for [B, V, L]."""

    outputs = ("first", "second")

    def __init__(self, length: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weights = nn.Parameter(torch.zeros(2, 4, length))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.einsum("bvl,ovl->bo", x, self.weights)


class Places(nn.Module):
    """Asks for [B, L, V], has unnamed outputs [B, 4, 1]: how often each letter stands in the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.factor * x.sum(1))[:, :, None]


@pytest.fixture
def weighted(tmp_path: Path) -> Weighted:
    module = Weighted(4, scale=2.0)
    with torch.no_grad():
        module.weights.copy_(torch.arange(32.0).reshape(2, 4, 4))
    save_oracle(tmp_path / "w.safetensors", module, {"length": 4, "scale": 2.0}, ["low", "high"], half=False)
    return module


def by_hand(weights: Tensor) -> list[float]:
    return [2 * sum(weights[int(v), i].item() for i, v in enumerate(row)) for row in TOKENS]


@pytest.mark.parametrize("output, row", [(0, 0), (1, 1), ("first", 0), ("second", 1)])
def test_values_by_hand(tmp_path: Path, weighted: Weighted, output: int | str, row: int) -> None:
    oracle = TorchOracle(f"{HERE}:Weighted", str(tmp_path / "w.safetensors"), output)
    expected = by_hand(weighted.weights[row])

    assert oracle(TOKENS, [""] * 3).tolist() == expected
    assert oracle(one_hot(TOKENS, 4), [""] * 3).tolist() == expected
    assert not any(parameter.requires_grad for parameter in oracle.module.parameters())
    assert not oracle.module.training
    assert pickle.loads(pickle.dumps(oracle))(TOKENS, [""] * 3).tolist() == expected


def test_the_gradient_is_that_of_the_relaxation(tmp_path: Path, weighted: Weighted) -> None:
    oracle = TorchOracle(f"{HERE}:Weighted", str(tmp_path / "w.safetensors"), 1)
    relaxed = torch.rand((3, 4, 4), generator=torch.Generator().manual_seed(0))
    values, grads = local_scorer([("oracle", 0.5, oracle)]).score_and_grad(relaxed, [""] * 3)
    slope = weighted.weights[1].T

    torch.testing.assert_close(grads, slope.expand(3, 4, 4), rtol=1e-6, atol=0)
    torch.testing.assert_close(values, (relaxed * slope).sum((1, 2)).double(), rtol=1e-5, atol=0)


def test_a_threshold_makes_a_share_of_it(tmp_path: Path, weighted: Weighted) -> None:
    exact = by_hand(weighted.weights[0])
    oracle = TorchOracle(f"{HERE}:Weighted", str(tmp_path / "w.safetensors"), threshold=exact[0])

    assert oracle(TOKENS, [""] * 3).tolist() == [float(value > exact[0]) for value in exact]
    scored = evaluate(oracle, np.eye(4, dtype=np.float32)[TOKENS.numpy()], [""] * 3, grad=True)
    assert not oracle.differentiable
    assert scored.error == f"ValueError: threshold = {exact[0]} leaves no gradient; allowed: no threshold"


def test_layout_and_unnamed_outputs_of_a_trailing_place(tmp_path: Path) -> None:
    save_file({"factor": torch.tensor([3.0])}, tmp_path / "p.safetensors")
    oracle = TorchOracle(f"{HERE}:Places", str(tmp_path / "p.safetensors"), 3, layout="BLV")

    assert oracle(TOKENS, [""] * 3).tolist() == [3.0, 6.0, 0.0]
    far = TorchOracle(f"{HERE}:Places", str(tmp_path / "p.safetensors"), 4, layout="BLV")
    with pytest.raises(ValueError, match=r"output = 4 of a module whose output has the shape \[3, 4, 1\]"):
        far(TOKENS, [""] * 3)


@pytest.mark.parametrize(
    "content",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "hyper_parameters": {"path": Path("x")}},
        lambda state: {"state_dict": {f"model.{n}": t.half() for n, t in state.items()} | {"loss.w": torch.ones(1)}},
    ],
)
def test_files_of_torch(tmp_path: Path, weighted: Weighted, content: Callable[[Any], Any]) -> None:
    stored = content(weighted.state_dict())
    torch.save(stored, tmp_path / "w.ckpt")
    prefix = "model." if "model.weights" in stored.get("state_dict", {}) else ""
    args = {"length": 4, "scale": 2.0}
    oracle = TorchOracle(f"{HERE}:Weighted", str(tmp_path / "w.ckpt"), args=args, prefix=prefix)

    assert oracle(TOKENS, [""] * 3).tolist() == by_hand(weighted.weights[0])
    assert all(parameter.dtype == torch.float32 for parameter in oracle.module.parameters())


def test_half_precision_on_disk_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = ConvOracle(20)
    files = [tmp_path / "half.safetensors", tmp_path / "again.safetensors"]
    for file in files:
        save_oracle(file, module, {"length": 20}, ["selected"], half=True)
    oracle = TorchOracle("dav_ray.rewards.oracle:ConvOracle", str(files[0]), "selected")
    tokens = torch.randint(0, 4, (8, 20))
    with torch.no_grad():
        exact = module.eval()(one_hot(tokens, 4).transpose(1, 2))[:, 0]

    assert files[0].read_bytes() == files[1].read_bytes()
    header = json.loads(files[0].read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert header["__metadata__"] == {"args": '{"length": 20}', "outputs": '["selected"]'}
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F16"}
    torch.testing.assert_close(oracle(tokens, [""] * 8), exact, rtol=0, atol=2e-3)
    assert oracle(tokens, [""] * 8).dtype == torch.float32


def weights(tmp_path: Path, **tensors: Tensor) -> str:
    save_file(tensors, tmp_path / "x.safetensors")
    return str(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({}, "missing: weights"),
        ({"weights": torch.zeros(2, 4, 4), "a": torch.ones(1)}, "unexpected: a"),
        ({"weights": torch.zeros(2, 4, 5)}, "of another shape: weights [2, 4, 5], not [2, 4, 4]"),
        ({n: torch.ones(1) for n in "abcde"}, "missing: weights; unexpected: a, b, c and 2 more"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, tensors: dict[str, Tensor], words: str) -> None:
    file = weights(tmp_path, **tensors)
    with pytest.raises(ValueError) as caught:
        TorchOracle(f"{HERE}:Weighted", file, args={"length": 4})

    assert str(caught.value) == f"{file}: does not fit Weighted: {words}"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": "Weighted"}, "model = Weighted: is no class; allowed: module.path:Name or path/to/file.py:Name"),
        ({"model": f"{HERE}:Nope"}, f"model = {HERE}:Nope: AttributeError: "),
        ({"model": "nope.nope:Nope"}, "model = nope.nope:Nope: ModuleNotFoundError: No module named 'nope'"),
        ({"model": "pathlib:Path", "args": {}}, "model = pathlib:Path: is no torch.nn.Module"),
        ({"args": {"size": 4}}, f"model = {HERE}:Weighted: TypeError: "),
        ({"layout": "LBV"}, "layout = LBV: unknown; allowed: BVL, BLV"),
        ({"output": "third"}, "output = third: unknown; allowed: 0 (first), 1 (second)"),
        ({"output": 2}, "output = 2: unknown; allowed: 0 (first), 1 (second)"),
        (
            {"model": f"{HERE}:Places", "args": {}, "prefix": "x."},
            "x.safetensors: does not fit Places: missing: factor",
        ),
    ],
)
def test_arguments_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    given = {"model": f"{HERE}:Weighted", "weights": weights(tmp_path, weights=torch.zeros(2, 4, 4))}
    with pytest.raises(ValueError) as caught:
        TorchOracle(**{**given, "args": {"length": 4}, **changes})

    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_text("no weights")
    (tmp_path / "bad.pt").write_text("no weights")
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.pt")
    for name, words in (
        ("bad.safetensors", "as safetensors"),
        ("bad.pt", "as a checkpoint"),
        ("list.pt", "no weights"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            TorchOracle(f"{HERE}:Weighted", str(tmp_path / name), args={"length": 4})
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
    for name, words in (("shipped:dna/nope", "no such shipped file"), ("nope.pt", "no such file")):
        with pytest.raises(FileNotFoundError, match=f"weights = {name}: {words}"):
            TorchOracle(f"{HERE}:Weighted", name)


@pytest.mark.parametrize(
    "samples, words",
    [
        (torch.full((2, 4), 4), "tokens from 4 to 4; allowed: 0 to 3"),
        (torch.zeros(2, 4), r"samples are float32 \[2, 4\]; allowed: tokens \[B, L\] or float32 \[B, L, 4\]"),
        (torch.zeros(2, 4, 5), r"samples are float32 \[2, 4, 5\]"),
    ],
)
def test_samples_that_are_no_sequences(samples: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        one_hot(samples, 4)


def test_one_hot_keeps_a_relaxation() -> None:
    relaxed = torch.rand(2, 5, 4)
    assert torch.equal(one_hot(relaxed, 4), relaxed)
    assert torch.equal(one_hot(TOKENS.to(torch.uint8), 4), F.one_hot(TOKENS, 4).float())


def test_the_small_network() -> None:
    torch.manual_seed(0)
    network = ConvOracle(150).eval()
    x = one_hot(torch.randint(0, 4, (6, 150)), 4).transpose(1, 2)
    with torch.no_grad():
        together = network(x)

        assert sum(parameter.numel() for parameter in network.parameters()) < 100_000
        assert together.shape == (6, 1)
        for i in range(6):  # no verdict depends on its neighbours
            torch.testing.assert_close(network(x[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-6)
    assert ConvOracle(21, letters=20, outputs=3)(torch.zeros(2, 20, 21)).shape == (2, 3)
    for wrong in ({"length": 7}, {"length": 20, "kernel": 4}):
        with pytest.raises(ValueError, match="allowed: a length from 8, an odd kernel"):
            ConvOracle(**wrong)


def test_the_small_network_learns_letters_and_pairs() -> None:
    """Half of it is a weight per letter and place; the other half sees letters together, here an exclusive or."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = ConvOracle(16, channels=16, hidden=16)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def batch(num: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(0, 4, (num, 16), generator=generator)
        return one_hot(tokens, 4).transpose(1, 2), ((tokens[:, 3] < 2) ^ (tokens[:, 5] < 2)).float()

    for _ in range(300):
        x, target = batch(64)
        loss = F.binary_cross_entropy_with_logits(network(x)[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, target = batch(1000)

    assert ((network(x)[:, 0] > 0) == (target > 0)).float().mean() > 0.95  # a weight per letter reaches 0.5


def test_it_is_registered() -> None:
    assert resolve("torch_oracle") is TorchOracle
