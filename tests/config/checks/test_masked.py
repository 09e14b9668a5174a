"""What is refused of a masked model, its conditions and its settings before torch is imported."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.build import build
from dav_ray.config.checks.preflight import check, model_mistakes
from dav_ray.config.families.alphabet import alphabet_of
from dav_ray.config.families.masked_checks import check_weights
from dav_ray.config.model_path import ASSETS, model_path
from dav_ray.config.recipe.load import from_yaml, load
from dav_ray.config.schema import Config
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.config_file import read_config
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.diffusion.masked.files import Settings, write
from dav_ray.errors import UserError

STORED: dict[str, Any] = {"alphabet": "ACGT", "length": 12, "classes": 2, "time_conditioning": False}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder as far as this can tell, a checkpoint, and sequences to compare with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(STORED))
    (tmp_path / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    zipfile.ZipFile(tmp_path / "a.ckpt", "w").close()
    (tmp_path / "text.ckpt").write_text("version https://git-lfs")
    (tmp_path / "good.fa").write_text(">x\nACGT\n")
    (tmp_path / "bad.fa").write_text(">x\nACGU\n>y\nNCGT\n")
    return tmp_path


def mistakes(model: dict[str, Any] | None = None, **sections: Any) -> list[str]:
    values = {
        "model": {"kind": "masked", "path": "model", **(model or {})},
        "reward": {"kind": "gc_content"},
        "mstep": {"lora": {"targets": ["convs"]}},
        **sections,
    }
    return list(model_mistakes(Config.model_validate(values)))


@pytest.mark.parametrize(
    ("model", "sections"),
    [
        ({}, {}),
        ({"path": "shipped:dna"}, {}),
        ({}, {"prompts": ["", "class=1", "fixed=0:AC,11:T class=0"]}),
        ({"length": 20}, {"prompts": ["fixed=19:A"]}),
        ({"path": "a.ckpt"}, {"prompts": ["fixed=999:A", "class=999"]}),  # only what is in it tells
        ({"path": "a.ckpt", "alphabet": "protein"}, {"prompts": ["fixed=0:WY"]}),
        ({}, {"mstep": {"lora": {"targets": ["final_conv.0", "linear"]}}}),
        ({}, {"mstep": {"parameters": "full"}}),  # whose adapters' targets do not matter
        ({}, {"evaluate": {"reference": "good.fa"}}),
    ],
)
def test_nothing_is_wrong(folder: Path, model: dict[str, Any], sections: dict[str, Any]) -> None:
    assert mistakes(model, **sections) == []


@pytest.mark.parametrize(
    ("model", "sections", "lines"),
    [
        ({"path": "none"}, {}, ["model.path = none: no such file or folder; allowed: a model folder, a Lightning"]),
        (
            {"path": "text.ckpt"},
            {},
            ["model.path = text.ckpt: is no checkpoint that torch.save wrote; allowed: a Light"],
        ),
        ({"path": "shipped:nada"}, {}, ["model.path = shipped:nada: no such shipped model; allowed: shipped:digits, "]),
        ({"alphabet": "AA"}, {}, ["model.alphabet = AA: 2 to 254 different letters"]),
        ({"alphabet": "rna"}, {}, ["model.alphabet = rna: the model's is ACGT; allowed: null (the model's own)"]),
        ({"dtype": "float16"}, {}, ["model.dtype = float16: masked models are loaded in float32; allowed: float32"]),
        ({}, {"prompts": ["a cat"]}, ["prompts[0] = a cat: 'a' is no condition; allowed: empty, or class=NUMBER"]),
        (
            {},
            {"prompts": ["", "class=2", "fixed=12:A"]},
            [
                "prompts[1] = class=2: class=2: unknown class; allowed: 0 to 1",
                "prompts[2] = fixed=12:A: fixed=12:A: ends at position 12; allowed: 0 to 11",
            ],
        ),
        (
            {},
            {"mstep": {"lora": {"targets": ["to_q", "convs", "norms"]}}},
            [
                "mstep.lora.targets = to_q, norms: not in a masked model; allowed: null (convs, final_conv), or some "
                "of linear, time_embedder, convs, "
            ],
        ),
        (
            {},
            {"evaluate": {"reference": "bad.fa"}},
            [
                "evaluate.reference: bad.fa:2: letter 4: 'U'; allowed: ACGT",
                "evaluate.reference: bad.fa:4: letter 1: 'N'; allowed: ACGT",
            ],
        ),
        ({}, {"evaluate": {"reference": "none.fa"}}, ["evaluate.reference: none.fa: no such file; allowed: FASTA"]),
        (
            {"alphabet": "rna", "dtype": "float16"},  # all at once
            {"mstep": {"lora": {"targets": ["to_q"]}}},
            [
                "model.alphabet = rna: the model's is ACGT",
                "mstep.lora.targets = to_q: not in a masked model",
                "model.dtype = float16: ",
            ],
        ),
    ],
)
def test_one_line_per_mistake(folder: Path, model: dict[str, Any], sections: dict[str, Any], lines: list[str]) -> None:
    found = mistakes(model, **sections)
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True)), found


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "config.json is no JSON"),
        ("[]", "config.json is no JSON object"),
        (json.dumps({**STORED, "length": "12"}), "config.json has no length (int)"),
        (json.dumps({**STORED, "classes": None}), "config.json has no classes (int)"),
        (json.dumps({**STORED, "time_conditioning": 1}), "config.json has no time_conditioning (bool)"),
        (json.dumps({**STORED, "alphabet": "A"}), "2 to 254 different letters"),
    ],
)
def test_a_folder_that_is_no_model(folder: Path, content: str, line: str) -> None:
    (folder / "model" / "config.json").write_text(content)
    (found,) = mistakes()
    assert found.startswith(f"model.path = model: is no masked model: {line}")


def test_a_folder_without_its_files(folder: Path) -> None:
    (folder / "model" / "model.safetensors").unlink()
    assert mistakes() == ["model.path = model: is no masked model: model.safetensors is missing"]
    (folder / "model" / "config.json").unlink()
    assert mistakes()[0].startswith("model.path = model: is no masked model: config.json is missing; allowed: a folder")


def test_the_shipped_model() -> None:
    assert model_path("shipped:dna") == str(ASSETS / "dna")
    assert read_config(ASSETS / "dna")["alphabet"] == "ACGT"


def test_what_only_the_weights_tell(tmp_path: Path) -> None:
    """A checkpoint's own length and classes, and whether the adapters' targets are there; all at once."""
    network = DilatedCNN(5, 8, 1, 5)
    tensors = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    hyper = {"config": {"model": {"length": 12}}}
    torch.save({"state_dict": tensors, "hyper_parameters": hyper}, tmp_path / "a.ckpt")

    def check(targets: list[str], *prompts: str, **model: Any) -> None:
        path = str(tmp_path / "a.ckpt")
        values = {
            "model": {"kind": "masked", "path": path, "weights": "raw", **model},
            "reward": {"kind": "gc_content"},
            "prompts": list(prompts),
            "mstep": {"lora": {"targets": targets}},
        }
        check_weights(Config.model_validate(values), path)

    check(["convs", "final_conv.0"], "", "fixed=11:A")
    with pytest.raises(UserError) as caught:
        check(["convs.99"], "fixed=12:A", "class=0")
    assert [line.split(";")[0] for line in caught.value.lines] == [
        "prompts[0] = fixed=12:A: fixed=12:A: ends at position 12",
        "prompts[1] = class=0: class=0: the model has no classes",
        "mstep.lora.targets: no layer is named convs.99",
    ]
    with pytest.raises(UserError, match="was made for 4 letters and a mask"):
        check(["convs"], "", alphabet="protein")


@pytest.mark.parametrize(("letters", "name"), [("ACDEFGHIKLMNPQRSTVWY", "protein"), ("ACGT", "dna"), ("XYZ", "XYZ")])
def test_a_model_of_ones_own_needs_its_path_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: str, name: str
) -> None:
    """Alphabet and layers of the adapters are the model's own; the alphabet is stored for who reads the run later."""
    alphabet = Alphabet.of(letters)
    write(tmp_path / "model", DilatedCNN(len(letters) + 1, 8, 1, 5), Settings(alphabet, 12, 0, False))
    (tmp_path / "mine.yaml").write_text("model: {kind: masked, path: model}\nreward: {kind: gc_content}\n")
    recipe = load(str(tmp_path / "mine.yaml"))
    check(recipe.config)
    assert recipe.config.model.alphabet == name
    monkeypatch.chdir("/")
    stored = from_yaml(recipe.yaml, "config.yaml").config
    assert stored.model.alphabet == name and stored.identity() == recipe.config.identity()
    bare = Config.model_validate(
        {"model": {"kind": "masked", "path": str(tmp_path / "model")}, "reward": {"kind": "gc_content"}}
    )
    assert alphabet_of(bare.model) == alphabet_of(stored.model) == alphabet

    diffusion = build(stored)
    adapted = {key.rpartition(".lora_")[0] for key in diffusion.policy_state()}
    assert adapted == {*(f"convs.{i}" for i in range(5)), "final_conv.0", "final_conv.2"}
    assert all(set(text) <= set(letters) for text in build(stored).sample(2))  # type: ignore[attr-defined]
