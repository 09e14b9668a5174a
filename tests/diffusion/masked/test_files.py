"""Folders and checkpoints of masked models, and the published network that they are for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.diffusion.masked.files import ADAPTERS, CONFIG, FIXED, MODEL, Settings, write
from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.errors import UserError

DNA = Alphabet.of("dna")
SETTINGS = Settings(DNA, 24, 0, False)
SIZES = {"hidden": 16, "stacks": 2, "kernel": 5}


def network(seed: int = 0, **changes: int) -> DilatedCNN:
    torch.manual_seed(seed)
    return DilatedCNN(**{"tokens": 5, **SIZES, **changes}).eval()


def tokens(num: int = 3, length: int = 24) -> Tensor:
    return torch.randint(0, 5, (num, length), generator=torch.Generator().manual_seed(0))


def state(diffusion: MaskedDiffusion) -> dict[str, Tensor]:
    return diffusion.trainable().state_dict()


def same(found: MaskedDiffusion, expected: dict[str, Tensor]) -> bool:
    tensors = state(found)
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)


# ---- the published network ----


def published(weights: dict[str, Tensor], x: Tensor, sigma: Tensor, stacks: int, label: Tensor | None) -> Tensor:
    """The DNA benchmark's network, from its description: every layer one residual block; each dilation `stacks` times
    in a row; time and class are added before the norm, which comes before the convolution."""

    def conv(name: str, h: Tensor, dilation: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv1d(
            h, weight, weights[f"{name}.bias"], dilation=dilation, padding=dilation * (weight.shape[2] - 1) // 2
        )

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    angle = sigma[:, None] * weights["time_embedder.0.W"][None] * 2 * torch.pi
    time = F.relu(linear("time_embedder.1", torch.cat([angle.sin(), angle.cos()], -1)))
    feat = F.relu(conv("linear", F.one_hot(x, 5).float().permute(0, 2, 1)))
    for i, dilation in enumerate(d for d in (1, 1, 4, 16, 64) for _ in range(stacks)):
        h = feat + linear(f"time_layers.{i}.dense", time)[:, :, None]
        if label is not None:
            h = h + linear(f"cls_layers.{i}.dense", weights["cls_embedder.weight"][label])[:, :, None]
        h = h.permute(0, 2, 1)
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        h = h * weights[f"norms.{i}.weight"] + weights[f"norms.{i}.bias"]
        feat = feat + F.relu(conv(f"convs.{i}", h.permute(0, 2, 1), dilation))
    return conv("final_conv.2", F.relu(conv("final_conv.0", feat))).permute(0, 2, 1)


@pytest.mark.parametrize(("stacks", "classes"), [(1, 0), (2, 0), (2, 3), (4, 0)])
def test_the_network_is_the_published_one(stacks: int, classes: int) -> None:
    backbone = network(stacks=stacks, classes=classes)
    with torch.no_grad():
        for parameter in backbone.parameters():  # norms start as the identity, which would hide where they stand
            parameter += 0.1 * torch.randn(parameter.shape)
        label = torch.tensor([0, 2, 3]) if classes else None
        sigma = torch.tensor([0.0, 0.3, 5.0])
        expected = published(backbone.state_dict(), tokens(), sigma, stacks, label)
        torch.testing.assert_close(backbone(tokens(), sigma, label), expected, rtol=1e-4, atol=1e-4)
        onehot = F.one_hot(tokens(), 5).float()
        torch.testing.assert_close(backbone(onehot, sigma, label), expected, rtol=1e-4, atol=1e-4)
    assert [c.dilation[0] for c in backbone.convs] == [d for d in (1, 1, 4, 16, 64) for _ in range(stacks)]


def test_the_parameters_have_the_published_order() -> None:
    """That in which an exponential moving average, which has no names, was kept."""
    names = [name for name, _ in network(stacks=1, classes=2).named_parameters()]
    layers = [
        [f"{kind}.{i}{inner}.{part}" for i in range(5) for part in ("weight", "bias")]
        for kind, inner in (("convs", ""), ("time_layers", ".dense"), ("norms", ""))
    ]
    assert names == [
        *("linear.weight", "linear.bias", "time_embedder.0.W", "time_embedder.1.weight", "time_embedder.1.bias"),
        *sum(layers, []),
        *("final_conv.0.weight", "final_conv.0.bias", "final_conv.2.weight", "final_conv.2.bias"),
        "cls_embedder.weight",
        *(f"cls_layers.{i}.dense.{part}" for i in range(5) for part in ("weight", "bias")),
    ]
    assert names == list(network(stacks=1, classes=2).state_dict())


# ---- folders ----


@pytest.mark.parametrize("classes", [0, 2])
def test_a_folder_comes_back(tmp_path: Path, classes: int) -> None:
    backbone = network(classes=classes)
    write(tmp_path, backbone, Settings(Alphabet.of("ACGU"), 24, classes, True))
    found = MaskedDiffusion.from_checkpoint(tmp_path, alphabet="rna", steps=7)

    assert same(found, backbone.state_dict())
    assert (found.alphabet.letters, found.length, found.classes, found.timeless) == ("ACGU", 24, classes, False)
    assert found.steps == 7 and {**found.trainable().settings, "dropout": 0.0} == {  # type: ignore[arg-type]
        "tokens": 5,
        **SIZES,
        "classes": classes,
        "dropout": 0.0,
    }
    assert MaskedDiffusion.from_checkpoint(str(tmp_path), alphabet="rna", length=9).length == 9
    assert json.loads((tmp_path / CONFIG).read_text()) == {
        "model_type": "dav_ray.masked",
        "backbone": "dilated_cnn",
        "alphabet": "ACGU",
        "length": 24,
        "classes": classes,
        "time_conditioning": True,
    }


def test_half_precision_spares_the_frequencies(tmp_path: Path) -> None:
    backbone = network()
    write(tmp_path, backbone, SETTINGS, half=True)
    stored, found = load_file(tmp_path / MODEL), state(MaskedDiffusion.from_checkpoint(tmp_path))

    for name, tensor in backbone.state_dict().items():
        assert stored[name].dtype == (torch.float32 if name in FIXED else torch.float16)
        assert torch.equal(found[name], tensor if name in FIXED else tensor.half().float())
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


@pytest.mark.parametrize("adapted", [False, True])
def test_a_policy_comes_back(tmp_path: Path, adapted: bool) -> None:
    """Adapters are merged: users need neither peft nor the base. The same policy is the same bytes."""
    diffusion = MaskedDiffusion(network(), alphabet=DNA, length=24, time_conditioned=True)
    if adapted:
        diffusion.add_adapters(2, 3.0, ("convs", "final_conv"), seed=0)
    else:
        diffusion.train_all_weights()
    with torch.no_grad():
        for parameter in diffusion.policy_state().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    for folder in ("a", "b"):
        diffusion.write_policy(tmp_path / folder)
    found, x = MaskedDiffusion.from_checkpoint(tmp_path / "a"), tokens()
    time = torch.tensor([0.1, 0.5, 1.0])

    assert not found.adapted and not found.timeless
    assert (tmp_path / "a" / diffusion.policy_file).is_file()
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        *([ADAPTERS] if adapted else []),
        CONFIG,
        MODEL,
    ]
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    expected = diffusion.log_probs(x, time=time)
    torch.testing.assert_close(found.log_probs(x, time=time), expected, rtol=1e-5, atol=1e-5)
    if adapted:
        assert load_file(tmp_path / "a" / ADAPTERS).keys() == diffusion.policy_state().keys()


# ---- checkpoints ----


def shadow(average: DilatedCNN, with_fixed: bool = False) -> list[Tensor]:
    return [p.detach().clone() for p in average.parameters() if p.requires_grad or with_fixed]


def lightning(path: Path, raw: DilatedCNN, average: DilatedCNN | None = None, **changes: Any) -> Path:
    """As Lightning writes an MDLM run, changes: of its top level."""
    config = OmegaConf.create({"model": {"length": 24, "name": "cnn"}, "noise": {"type": "loglinear"}, "T": 0})
    content = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {
            **{f"backbone.{name}": tensor for name, tensor in raw.state_dict().items()},
            "noise.sigma_max": torch.tensor(6.9),
        },
        "loops": {"fit_loop": {"epoch_progress": {"current": {"completed": 3}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val/nll'}": {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"config": config, "tokenizer": Path("none")},
    }
    if average is not None:
        content["ema"] = {"decay": 0.9999, "num_updates": 1000, "shadow_params": shadow(average)}
    torch.save({**content, **changes}, path)
    return path


def averaged(raw: DilatedCNN, seed: int = 1) -> DilatedCNN:
    """Other weights, all but the frequencies, which are never trained."""
    ema = network(seed)
    ema.load_state_dict({**ema.state_dict(), FIXED[0]: raw.state_dict()[FIXED[0]]})
    return ema


def test_raw_and_averaged_weights_of_a_checkpoint(tmp_path: Path) -> None:
    raw = network()
    ema = averaged(raw)
    path = lightning(tmp_path / "a.ckpt", raw, ema)

    assert same(MaskedDiffusion.from_checkpoint(path, weights="raw"), raw.state_dict())
    assert same(MaskedDiffusion.from_checkpoint(str(path), weights="ema"), ema.state_dict())
    found = MaskedDiffusion.from_checkpoint(path)
    assert same(found, ema.state_dict())
    assert (found.alphabet, found.length, found.classes, found.timeless) == (DNA, 24, 0, True)
    assert {name: found.trainable().settings[name] for name in SIZES} == SIZES  # type: ignore[index]


def test_an_average_that_holds_the_frequencies_too(tmp_path: Path) -> None:
    raw, ema = network(), network(1)
    kept = {"decay": 0.9, "num_updates": 1, "shadow_params": shadow(ema, with_fixed=True)}
    path = lightning(tmp_path / "a.ckpt", raw, ema=kept)

    assert same(MaskedDiffusion.from_checkpoint(path), ema.state_dict())


@pytest.mark.parametrize(
    ("hyper", "length", "timeless"),
    [
        ({"config": {"model": {"length": 24}, "time_conditioning": True}}, 24, False),
        ({"model": {"length": 50}, "time_conditioning": False}, 50, True),  # saved without a level above
        ({"config": {"model": {"name": "cnn"}}}, 200, True),
        (None, 200, True),
        ("no mapping", 200, True),
    ],
)
def test_what_hyper_parameters_say(tmp_path: Path, hyper: Any, length: int, timeless: bool) -> None:
    made = OmegaConf.create(hyper) if isinstance(hyper, dict) and "config" not in hyper else hyper
    if isinstance(hyper, dict) and "config" in hyper:
        made = {"config": OmegaConf.create(hyper["config"])}
    path = lightning(tmp_path / "a.ckpt", network(), hyper_parameters=made)
    found = MaskedDiffusion.from_checkpoint(path, weights="raw")

    assert (found.length, found.timeless) == (length, timeless)
    assert MaskedDiffusion.from_checkpoint(path, weights="raw", length=33).length == 33


def test_a_checkpoint_with_classes(tmp_path: Path) -> None:
    raw = network(classes=3)
    found = MaskedDiffusion.from_checkpoint(lightning(tmp_path / "a.ckpt", raw, copy.deepcopy(raw)))

    assert found.classes == 3 and same(found, raw.state_dict())
    assert found.predict(tokens(), 1, ["class=2", "", "class=0"]).x0_hat.shape == (3, 24)


# ---- mistakes ----

Change = Callable[[dict[str, Tensor]], None]


def without(name: str) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return change


def put(name: str, value: Any) -> Change:
    return lambda tensors: tensors.__setitem__(name, value)


def refused(path: Path, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        MaskedDiffusion.from_checkpoint(path, **options)
    assert all(line.startswith(str(path)) and "\n" not in line for line in caught.value.lines)
    return [line.removeprefix(f"{path}: ") for line in caught.value.lines]


TENSORS: list[tuple[list[Change], list[str]]] = [
    ([without("norms.3.bias")], ["has no norms.3.bias"]),
    ([without("norms.3.bias"), without("linear.bias")], ["has no linear.bias", "has no norms.3.bias"]),
    ([put("norms.10.weight", torch.zeros(16))], ["norms.10.weight is not part of the network"]),
    ([put("cls_extra", torch.zeros(1))], ["cls_extra is not part of the network"]),
    ([put("convs.4.weight", torch.zeros(16, 16, 7))], ["convs.4.weight is [16, 16, 7]; allowed: [16, 16, 5]"]),
    ([put("time_embedder.0.W", torch.zeros(9))], ["time_embedder.0.W is [9]; allowed: [8]"]),
    ([put("final_conv.2.bias", torch.tensor([0, 0, 0, 0, torch.nan]))], ["final_conv.2.bias holds values that are"]),
    ([put("norms.0.bias", torch.full((16,), torch.inf))], ["norms.0.bias holds values that are not finite"]),
    ([without("linear.weight")], ["has no linear.weight [hidden, tokens, kernel]; allowed: the dilated CNN"]),
    ([put("linear.weight", torch.zeros(16, 5))], ["has no linear.weight [hidden, tokens, kernel]; allowed:"]),
    (
        [put("linear.weight", torch.zeros(16, 21, 5))],
        ["was made for 20 letters and a mask; model.alphabet = ACGT has 4"],
    ),
    (
        [put("linear.weight", torch.zeros(16, 5, 4))],
        ["has 10 convolutions of width 4; allowed: a multiple of 5, of odd"],
    ),
    ([without("convs.7.weight")], ["has 7 convolutions of width 5; allowed: a multiple of 5, of odd width"]),
    ([without("convs.0.weight")], ["has 0 convolutions of width 5; allowed: a multiple of 5, of odd width"]),
]


@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
@pytest.mark.parametrize(("changes", "lines"), TENSORS)
def test_tensors_that_do_not_fit(tmp_path: Path, changes: list[Change], lines: list[str], kind: str) -> None:
    tensors = network().state_dict()
    for change in changes:
        change(tensors)
    if kind == "folder":
        path = tmp_path
        write(path, network(), SETTINGS)
        save_file(tensors, path / MODEL)
    else:
        path = lightning(
            tmp_path / "a.ckpt", network(), state_dict={f"backbone.{name}": tensor for name, tensor in tensors.items()}
        )
    found = refused(path, weights="raw")

    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True)), found


@pytest.mark.parametrize(
    ("changes", "options", "line"),
    [
        ({}, {}, "has no ema.shadow_params; allowed: weights = raw"),
        ({"ema": {"decay": 0.9}}, {}, "has no ema.shadow_params; allowed: weights = raw"),
        ({"ema": [1, 2]}, {}, "has no ema.shadow_params; allowed: weights = raw"),
        ({"ema": {"shadow_params": shadow(network())[:-1]}}, {}, "ema.shadow_params has 67 tensors; allowed: 68, as "),
        (
            {"ema": {"shadow_params": [*shadow(network()), torch.zeros(3), torch.zeros(3)]}},
            {},
            "ema.shadow_params has 70 tensors; allowed: 68, as ",
        ),
        (
            {"ema": {"shadow_params": [torch.zeros(4), *shadow(network())[1:]]}},
            {},
            "ema.shadow_params[0] is [4]; linear.weight is [16, 5, 5]",
        ),
        ({"ema": {"shadow_params": ["x"] * 68}}, {}, "has no ema.shadow_params; allowed: weights = raw"),
        ({"state_dict": None}, {"weights": "raw"}, "has no state_dict; allowed: a Lightning checkpoint of a masked "),
        ({"state_dict": {}}, {"weights": "raw"}, "its state_dict has no backbone.*; allowed: a checkpoint of the "),
        (
            {"state_dict": {"model.linear.weight": torch.zeros(2)}},
            {"weights": "raw"},
            "its state_dict has no backbone.*; allowed: a checkpoint of the dilated CNN",
        ),
        ({"state_dict": {"backbone.linear.weight": "x"}}, {"weights": "raw"}, "linear.weight is no plain tensor"),
        ({}, {"weights": "raw", "alphabet": "protein"}, "was made for 4 letters and a mask; model.alphabet = ACDEF"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, changes: Any, options: dict[str, Any], line: str) -> None:
    (found,) = refused(lightning(tmp_path / "a.ckpt", network(), **changes), **options)
    assert found.startswith(line)


def test_other_paths_and_names(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.ckpt") == [
        "no such file or folder; allowed: a model folder or a Lightning checkpoint (.ckpt)"
    ]
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    assert refused(tmp_path / "text.ckpt")[0].startswith("can't be read as a checkpoint (")
    path = lightning(tmp_path / "a.ckpt", network())
    with pytest.raises(UserError) as caught:
        MaskedDiffusion.from_checkpoint(path, weights="average")  # type: ignore[arg-type]
    assert caught.value.lines == ["weights = average: unknown; allowed: raw, ema"]


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (None, "is no masked model: config.json is missing"),
        ("{", "is no masked model: config.json is no JSON"),
        ("[1]", "is no masked model: config.json is no JSON object"),
        ({"length": None}, "is no masked model: config.json has no length (int)"),
        ({"length": "24"}, "is no masked model: config.json has no length (int)"),
        ({"classes": True}, "is no masked model: config.json has no classes (int)"),
        ({"time_conditioning": 0}, "is no masked model: config.json has no time_conditioning (bool)"),
        ({"alphabet": "AACG"}, "is no masked model: 2 to 254 different letters"),
        ({"classes": 2}, "has no cls_embedder.weight"),
        ({"backbone": "dit"}, "its backbone is dit; allowed: dilated_cnn"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, config: Any, line: str) -> None:
    write(tmp_path, network(), SETTINGS)
    file = tmp_path / CONFIG
    if config is None:
        file.unlink()
    else:
        file.write_text(config if isinstance(config, str) else json.dumps({**json.loads(file.read_text()), **config}))
    assert refused(tmp_path)[0].startswith(line)


def test_a_folder_has_an_alphabet_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, network(), SETTINGS)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "alphabet": "ACGU"}))

    assert MaskedDiffusion.from_checkpoint(tmp_path).alphabet == Alphabet.of("rna")
    assert refused(tmp_path, alphabet="dna") == ["its alphabet is ACGU, not ACGT; set model.alphabet to it"]


def test_folders_without_weights(tmp_path: Path) -> None:
    write(tmp_path, network(), SETTINGS)
    whole = (tmp_path / MODEL).read_bytes()
    for content in (b"", whole[:100], whole[:-1]):
        (tmp_path / MODEL).write_bytes(content)
        assert refused(tmp_path)[0].startswith("is no masked model: ")
    (tmp_path / MODEL).unlink()
    assert refused(tmp_path)[0].startswith("is no masked model: ")


def test_the_shipped_model_reads() -> None:
    from dav_ray.config.model_path import model_path

    found = MaskedDiffusion.from_checkpoint(model_path("shipped:dna"), steps=4)
    assert found.alphabet == DNA
    assert all(len(text) == found.length for text in found.sample(2))
