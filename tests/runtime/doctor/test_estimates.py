"""The doctor's estimates: sizes from file headers, memory, time per round, versions compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.families.sizes import Sizes, header
from dav_ray.config.memory import CUDA_CONTEXT, Memory, search_memory, train_memory, trained
from dav_ray.config.plan import plan
from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.runtime.doctor import estimates
from dav_ray.runtime.doctor.pool import Node, Pool
from dav_ray.runtime.doctor.versions import Gpu, Installed, compare
from dav_ray.runtime.doctor.weights import read_sizes
from dav_ray.runtime.probe.measure import measure
from dav_ray.runtime.probe.rates import Rates, round_time

# Stable Diffusion 1.5: configurations and counts of parameters; one tensor stands for all others
UNET = {"sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}
QUERY = {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (320, 320)}
SD15 = Sizes(
    {
        "unet": {**QUERY, "rest": (859_520_964 - 320 * 320,)},
        "vae": {"all": (83_653_863,)},
        "text_encoder": {"all": (123_060_480,)},
    },
    {"unet": UNET, "vae": {"block_out_channels": [128, 256, 512, 512]}, "text_encoder": {}},
    "unet",
)


def config(**changes: Any) -> Config:
    settings = {"model": {"path": "x/y"}, "prompts": ["a"], "reward": {"kind": "jpeg_compressibility"}, **changes}
    return Config.model_validate(settings)


def test_weights_are_counted_exactly() -> None:
    unet, vae, text = 859_520_964, 83_653_863, 123_060_480
    half = search_memory(config(model={"path": "x/y", "dtype": "bfloat16"}), SD15, 2)
    assert half.weights == 2 * (unet + vae) + 4 * 16 * (320 + 320)  # the adapters' rank is 16
    assert half.released == 2 * text  # once the prompts are embedded
    many = config(prompts=[str(i) for i in range(512)])
    assert search_memory(many, SD15, 2).weights == 4 * (unet + vae + text) + 4 * 16 * (320 + 320)
    whole = config(mstep={"parameters": "full"})
    assert trained(whole, SD15) == 859_520_964
    assert train_memory(whole, SD15, 2).training == 16 * 859_520_964
    rank = train_memory(whole, SD15, 2)
    assert rank.weights == 2 * 4 * unet  # with the frozen reference
    assert rank.released == 4 * (vae + text)
    assert rank.total == rank.weights + rank.training + rank.activations
    assert Memory(3.0, 1.0, 1.0, 5.0).total == 8.0  # a model is loaded whole


def test_adapters_are_counted_by_their_layers() -> None:
    made = config(mstep={"lora": {"rank": 4, "targets": ["to_q"]}})
    assert trained(made, SD15) == 4 * (320 + 320)
    assert trained(config(mstep={"lora": {"targets": ["q"]}}), SD15) == 0
    shapes = {"convs.0.weight": (128, 64, 9), "convs.0.bias": (128,)}
    convolution = Sizes({"network": shapes}, {"network": {}}, "network")
    assert trained(config(mstep={"lora": {"rank": 2, "targets": ["convs.0"]}}), convolution) == 2 * (64 * 9 + 128)


@pytest.mark.parametrize(
    ("search", "mstep", "counted", "role"),
    [  # bytes per row that torch counted on these shapes, in float32
        ({"micro_batch": 1, "decode_batch": 10, "chunk": 10}, {}, 10 * 0.807e9, "search"),
        ({"micro_batch": 1, "decode_batch": 2, "gradient": True, "chunk": 2}, {}, 2 * (3.39e9 + 6.03e9), "search"),
        ({}, {"micro_batch": 8}, 8 * 3.39e9, "train"),
    ],
)
def test_activations_are_near_what_was_counted_on_stable_diffusion(
    search: dict, mstep: dict, counted: float, role: str
) -> None:
    made = config(search=search, mstep=mstep)
    need = {"search": search_memory, "train": train_memory}[role](made, SD15, 2)
    assert need.activations == pytest.approx(counted, rel=0.05)


def test_activations_grow_with_what_is_done_at_once() -> None:
    def activations(passes: int = 1, **search: int) -> float:
        return search_memory(config(search={"decode_batch": 1, **search}), SD15, passes).activations

    one = activations(micro_batch=16)
    assert activations(micro_batch=32) == activations(micro_batch=16, passes=2) == 2 * one
    assert activations(micro_batch=128, chunk=2, candidates=2) < one  # there are but four states
    assert activations(micro_batch=16, decode_batch=64) > 20 * one


def test_training_a_real_unet_keeps_about_what_is_estimated() -> None:
    """The digits model on the CPU, counted by autograd's own hooks."""
    made = load("digits", ["mstep.micro_batch=8", "roles.train.replicas=1"]).config
    from dav_ray.config.build import build
    from dav_ray.diffusion.noise import KeyedNoise

    diffusion: Any = build(made, micro_batch=8)
    kept: dict[int, torch.UntypedStorage] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in diffusion.trainable().parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    x = diffusion.prior(["0"] * 8, KeyedNoise(0, 0, range(8)).at(diffusion.steps))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        diffusion.predict(x, diffusion.steps, ["0"] * 8)
    counted = sum(storage.nbytes() for storage in kept.values())
    estimated = train_memory(made, read_sizes(made), plan(made).network_passes).activations
    assert 0.5 < estimated / counted < 2, (estimated, counted)


def test_the_files_of_shipped_models_are_read() -> None:
    digits, dna = load("digits", []).config, load("dna", []).config
    sizes = read_sizes(digits)
    assert sizes.elements("unet") == sum(
        parameter.numel() for parameter in torch.nn.ParameterList(_tensors("digits/unet/diffusion_pytorch_model"))
    )
    assert search_memory(dna, read_sizes(dna), 1).activations > 0
    with pytest.raises(ValueError, match="some/where is not on this machine"):
        read_sizes(config(model={"path": "some/where"}))


def _tensors(name: str) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    from dav_ray.config.model_path import ASSETS

    return list(load_file(ASSETS / f"{name}.safetensors").values())


def test_what_is_no_safetensors_says_so(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for content in (b"", b"\xff" * 100):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is no safetensors file"):
            header(file)


@pytest.mark.parametrize(("memory", "fit"), [(80e9, True), (8e9, False)])
def test_memory_is_held_against_the_gpus_of_the_roles_nodes(memory: float, fit: bool) -> None:
    made = config(roles={"search": {"gpus": 0.5, "labels": {"role": "search"}}}, search={"decode_batch": 8})
    pool = Pool((Node("a", {"CPU": 8, "GPU": 1}, {"role": "search"}), Node("b", {"CPU": 8, "GPU": 1}, {})))
    told = {"a": Installed({}, (Gpu("X", int(memory)),)), "b": Installed({}, (Gpu("Y", int(500e9)),))}
    search, train = estimates.memory_of(SD15, made, plan(made), pool, told)
    assert search.ok is fit and f"the largest share of a GPU is {memory / 2e9:.3g} GB" in search.text
    assert "CUDA 600 MB" in search.text and CUDA_CONTEXT == 0.6e9
    assert train.ok and "of host memory each" in train.text


@pytest.mark.parametrize(("memory", "typed", "on"), [(80e9, "auto", False), (40e9, "auto", True), (40e9, "off", False)])
def test_gradient_checkpointing_is_foreseen(memory: float, typed: str, on: bool) -> None:
    roles = {"train": {"gpus": 1, "replicas": 1}}
    made = config(mstep={"micro_batch": 16, "checkpointing": typed}, roles=roles, search={"decode_batch": 8})
    pool = Pool((Node("a", {"CPU": 8, "GPU": 1}, {}),))
    _, train = estimates.memory_of(SD15, made, plan(made), pool, {"a": Installed({}, (Gpu("X", int(memory)),))})
    assert ("with gradient checkpointing" in train.text) is on
    assert train.ok is (typed == "auto")


def test_time_per_round() -> None:
    """64 trajectories in 8 chunks over 3 workers are 3 waves of 8; a gradient's backward pass counts twice."""
    made = config(
        search={"steps": 10, "candidates": 4, "trajectories": 64, "chunk": 8, "guidance_scale": 1},
        mstep={"epochs": 2},
        roles={"search": {"replicas": 3}, "train": {"replicas": 2}},
    )
    rates = Rates(evaluation_s=0.01, decode_s=0.1, transition_s=0.05, peak=10**9, device="CPU")
    found = round_time(made, plan(made), rates)
    assert found.search_s == pytest.approx(24 * (37 * 0.01 + 40 * 0.1))
    assert found.train_s == pytest.approx(64 * 10 * 2 / 2 * 0.05)
    tilted = config(search={"steps": 10, "candidates": 4, "gradient": True, "trajectories": 1, "guidance_scale": 1})
    assert round_time(tilted, plan(tilted), rates).search_s == pytest.approx((46 + 2 * 10) * 0.01 + 50 * 0.1)


@pytest.mark.parametrize("recipe", ["digits", "dna"])
def test_a_model_is_timed_at_the_recipes_shapes(recipe: str) -> None:
    small = ["search.micro_batch=4", "search.chunk=2", "search.decode_batch=2", "mstep.micro_batch=4"]
    rates = measure(load(recipe, small).config, "cpu")
    assert rates.device == "CPU" and rates.peak > 10**8
    assert 0 < rates.evaluation_s < 10 and 0 <= rates.decode_s < 10
    assert rates.transition_s > rates.evaluation_s / 4  # forward and backward


def said(nodes: dict[str, Installed]) -> dict[str, tuple[bool, str]]:
    return {finding.subject: (finding.ok, finding.text) for finding in compare(nodes)}


def test_versions_that_differ_are_named_with_their_nodes() -> None:
    same = {"python": "3.11.7", "dav_ray": "0.1.0", "ray": "2.60.0", "torch": "2.13.0", "diffusers": "0.42.1"}
    same |= {"transformers": "5.23.0", "numpy": "2.4.6"}
    other = {**same, "torch": "2.12.0", "numpy": "2.3.0"}
    lines = said({"a": Installed(same), "b": Installed(other, (Gpu("L4", 24 * 10**9),)), "c": Installed(same)})
    assert lines["torch"] == (False, "differs: 2.12.0 on b; 2.13.0 on a, c")
    assert lines["numpy"] == (True, "differs: 2.3.0 on b; 2.4.6 on a, c")
    assert lines["python"] == (True, "3.11.7") and lines["node b"] == (True, "L4 with 24 GB")
    for name in ("python", "dav_ray", "ray"):
        assert not said({"a": Installed(same), "b": Installed({**same, name: "0"})})[name][0]


@pytest.mark.parametrize(
    ("chunk", "limit", "ok", "said"),
    [
        # 785 evaluations of 0.1 s and 800 decodings of 0.05 s: 118.5 s a trajectory
        (4, 1800.0, True, "a chunk of 4 takes some 474 s, which a spot node that goes takes along; {} leaves room"),
        (
            *(
                10,
                1800.0,
                True,
                "a chunk of 10 takes some 1,185 s, which a spot node that goes takes along; {} is near, ",
            ),
        ),
        (
            32,
            1800.0,
            False,
            "a chunk of 32 takes some 3,792 s, which a spot node that goes takes along; {} ends it as ",
        ),
        (1, 100.0, False, "a chunk of 1 takes some 118 s, which a spot node that goes takes along; {} ends it as hung"),
    ],
)
def test_deadlines_are_held_against_what_is_measured(chunk: int, limit: float, ok: bool, said: str) -> None:
    made = config(
        search={"steps": 50, "candidates": 16, "chunk": chunk, "trajectories": 64},
        roles={"search": {"call_timeout_s": limit}, "train": {"call_timeout_s": 30}},
    )
    rates = Rates(0.1, 0.05, 0.001, 0, "a GPU")
    found = {finding.subject: finding for finding in estimates.time(made, plan(made), rates)}
    search, train = found["deadline search"], found["deadline train"]
    assert search.ok == ok and search.text.startswith(said.format(f"roles.search.call_timeout_s = {limit:g}"))
    mended = {10: "= 3555 or search.chunk = 5", 32: "= 11376 or search.chunk = 5", 1: "= 356"}
    assert search.text.endswith(f": set roles.search.call_timeout_s {mended[chunk]}" if chunk in mended else "room")
    # 64 trajectories of 50 transitions
    assert train.ok and "takes some 3 s; roles.train.call_timeout_s = 30 leaves room" in train.text


def test_a_model_that_is_not_here_has_the_sizes_that_are_published() -> None:
    """FLUX.1 dev: 12 billion parameters, beside T5's 4.8."""
    sizes = read_sizes(load("flux_dev").config)
    assert sizes.elements("transformer") == 11_901_408_320
    assert sizes.elements("text_encoder_2") == 4_762_310_656
    assert sizes.configs["transformer"]["sample_size"] == [64, 64]
