"""Seeded damage to every file that is read: `python -m tests.support.fuzz FOLDER CASES SEED` prints what came of it.

Each case is a bit flip, a cut, a splice, a run of zeros or a changed length, or several of them.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import io
import json
import random
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dav_ray.config.checks.preflight import model_mistakes
from dav_ray.config.model_path import ASSETS
from dav_ray.config.recipe.load import from_yaml, load
from dav_ray.config.schema import Config
from dav_ray.diffusion.masked import files
from dav_ray.diffusion.masked.alphabet import Alphabet, read_sequences
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.diffusion.weight_files import read_checkpoint
from dav_ray.diffusion.weight_headers import tensor_shapes
from dav_ray.errors import DavRayError
from dav_ray.redact import printable
from dav_ray.report.data import load_accepted, load_run, load_samples, load_table
from dav_ray.rewards import golden
from dav_ray.run_dir import policy, shards
from dav_ray.run_dir.manifest import Manifest, ManifestStore, Shard
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage
from tests.support.deadlines import stretched

SECONDS, GIGABYTES = 60, 24  # of one case; of address space, most of which torch takes for nothing
DNA = Alphabet.of("dna")
RECIPE = "model: {kind: masked, path: 'shipped:dna'}\nreward: {kind: gc_content}\nmstep: {lora: {targets: [convs]}}\n"


@dataclasses.dataclass(frozen=True)
class Reader:
    """file: what is damaged, below the folder; read: raises what it should, or returns."""

    file: str
    read: Callable[[Path], object]


def damage(data: bytes, rng: random.Random) -> bytes:
    held = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        where, kind = rng.randrange(len(held) + 1), rng.choice((1, 1, 1, 1, 2, 3, 4, 5, 6, 7))
        if kind == 1 and held:  # flips
            for _ in range(rng.choice((1, 2, 8))):
                held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del held[where:]
        elif kind == 3:  # a part of it somewhere else
            start = rng.randrange(len(held) + 1)
            held[where:where] = held[start : start + rng.randrange(1, 64)]
        elif kind == 4:
            held[where : where + rng.randrange(1, 64)] = bytes(rng.randrange(1, 64))
        elif kind == 5:  # what may be a length
            held[where : where + 4] = rng.choice((b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)))
        elif kind == 6:
            held[:8] = rng.choice((2**63, 2**40, len(held), 0, 1)).to_bytes(8, "little")
        else:  # a number or a word of text
            held[where : where + 1] = rng.choice(
                (b"9" * 30, b"-1", b"null", b"[[[[", b'"', b"\\u0000", b"1e999", b"{}")
            )
    return bytes(held)


def readers(folder: Path) -> dict[str, Reader]:
    """Every file, whole, and who reads it."""
    config = load(str(_put(folder / "mine.yaml", RECIPE.encode())))
    shard = _run(folder, config.yaml)
    storage = open_storage(str(folder))
    _model(folder)
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    whole = {name: tensor.numpy().copy() for name, tensor in layer.state_dict().items()}
    _put(folder / "policy/v0001/model.safetensors", _safetensors({k: torch.from_numpy(v) for k, v in whole.items()}))
    _put(folder / "policy/v0001/optimizer.safetensors", _safetensors(policy._flatten(optimizer)))
    model: Any = dataclasses.make_dataclass("Model", [("policy_file", str), ("policy_prefix", str)])(
        "model.safetensors", ""
    )
    return {
        "recipe": Reader("mine.yaml", lambda path: load(str(path))),
        "config": Reader("config.yaml", lambda path: from_yaml(path.read_text("utf-8", "surrogateescape"), str(path))),
        "manifest": Reader("manifest.json", lambda _: ManifestStore(storage).load()),
        "round manifest": Reader("manifests/round-0001.json", lambda _: load_accepted(storage, load_run(storage))),
        "metrics": Reader("metrics.jsonl", lambda _: load_run(storage)),
        "shard": Reader(shard.path, lambda _: shards.decode(ManifestStore(storage).verify(shard))),
        "evaluation": Reader("evaluate/round-0000.parquet", lambda _: _evaluation(storage)),
        "policy": Reader("policy/v0001/model.safetensors", lambda _: policy.read_weights(storage, 1, model)),
        "optimizer": Reader(
            "policy/v0001/optimizer.safetensors", lambda _: policy.read_optimizer(storage, 1, optimizer)
        ),
        "checkpoint": Reader("a.ckpt", read_checkpoint),
        "lightning": Reader("b.ckpt", lambda path: _network(path)),
        "model's config": Reader("masked/config.json", lambda path: _network(path.parent)),
        "model's weights": Reader("masked/model.safetensors", lambda path: _network(path.parent)),
        "tensor shapes": Reader("unet.safetensors", tensor_shapes),
        "pipeline": Reader("pipeline/model_index.json", lambda path: _mistakes(path.parent)),
        "scheduler": Reader("pipeline/scheduler/scheduler_config.json", lambda path: _mistakes(path.parents[1])),
        "golden": Reader("golden.npz", lambda path: golden.decode(path.read_bytes())),
        "fasta": Reader("a.fa", lambda path: read_sequences(path, DNA)),
        "csv": Reader("a.csv", lambda path: read_sequences(path, DNA)),
        "parquet": Reader("a.parquet", lambda path: read_sequences(path, DNA)),
    }


def main(folder: Path, cases: int, seed: int) -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    found, wrong = {}, []
    for name, reader in readers(folder).items():
        rng, path = random.Random(f"{seed} {name}"), folder / reader.file
        data, counts = path.read_bytes(), [0, 0]
        reader.read(path)  # whole, it can be read
        for case in range(cases):
            path.write_bytes(damage(data, rng) if name != "shard" else _changed(data, rng))
            print(name, case, file=sys.stderr, flush=True)
            signal.alarm(int(stretched(SECONDS)))
            try:
                reader.read(path)
                counts[1] += 1
            except DavRayError as error:
                counts[0] += 1
                assert printable(str(error))
            except ValueError as error:
                counts[0] += 1
                if type(error) is not ValueError:  # the readers' own word; a subclass slipped through
                    wrong.append(f"{name} {case}: {error!r}"[:300])
            except Exception as error:  # what a user would see as a traceback
                wrong.append(f"{name} {case}: {error!r}"[:300])
            signal.alarm(0)
        path.write_bytes(data)
        found[name] = counts
    print(json.dumps({"readers": found, "wrong": wrong}))


def _changed(data: bytes, rng: random.Random) -> bytes:
    while (other := damage(data, rng)) == data:
        pass
    return other


def _mistakes(pipeline: Path) -> None:
    values = {"model": {"path": str(pipeline)}, "prompts": ["a"], "reward": {"kind": "brightness"}}
    for line in model_mistakes(Config.model_validate(values)):
        raise ValueError(line)


def _network(path: Path) -> object:
    return files.build_backbone(files.read(path, "ema", DNA, None))


def _evaluation(storage: Storage) -> None:
    path = "evaluate/round-0000.parquet"
    load_samples(storage, path)
    load_table(storage, path).to_pylist()


def _put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def _parquet(columns: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, compression="zstd")
    return file.getvalue()


def _run(folder: Path, config: str) -> Shard:
    """A run directory of one round, and its shard."""
    rows = {"trajectory": [0, 1], "condition": ["", ""], "reward": [0.5, 0.25], "log_weight": [0.0, 0.0]}
    table = pa.table({**rows, "ess": [1.0, 1.0], "nfe": [3.0, 3.0], "sequence": ["ACGT", "ACGA"]})
    data, sha256 = shards.encode(table)
    shard = Shard(shards.shard_path(1, 0, sha256), sha256, 0, 2, 0)
    _put(folder / shard.path, data)
    _put(folder / "config.yaml", config.encode())
    manifest = Manifest(1, 2, "search", 1, (), 1, {"ray": "2"}, "0" * 64)
    _put(folder / "manifest.json", manifest.to_json())
    record = {"round": 1, "policy_version": 0, "shards": [dataclasses.asdict(shard)], "summary": {}}
    _put(folder / "manifests/round-0001.json", json.dumps(record).encode())
    lines = [{"round": r, "role": "evaluate", "evaluate/reward_mean": 0.5 + r, "time": 1.5} for r in range(4)]
    _put(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    samples = {"sample": list(range(40)), "condition": ["a"] * 40, "reward": [0.1 * i for i in range(40)]}
    _put(folder / "evaluate/round-0000.parquet", _parquet({**samples, "sequence": ["ACGT"] * 40}))
    return shard


def _model(folder: Path) -> None:
    torch.manual_seed(0)
    network = DilatedCNN(5, hidden=4, stacks=1, kernel=3)
    files.write(folder / "masked", network, files.Settings(DNA, 12, 0, False))
    state = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    averages = [tensor for name, tensor in network.state_dict().items() if name not in files.FIXED]
    torch.save(
        {"state_dict": state, "ema": {"shadow_params": averages}, "hyper_parameters": {"config": {}}}, folder / "b.ckpt"
    )
    torch.save({"a": [1, 2.5, "x"], "b": torch.ones(3)}, folder / "a.ckpt")
    _put(folder / "unet.safetensors", _safetensors({"mid.to_q.weight": torch.ones(2, 2), "b": torch.ones(1)}))
    digits = ASSETS / "digits"
    for file in ("model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        _put(folder / "pipeline" / file, (digits / file).read_bytes())
    layers = {f"mid.{name}.weight": torch.ones(1) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        _put(folder / "pipeline" / part / "model.safetensors", _safetensors(layers))
    kept = golden.Golden(np.zeros((2, 3), np.float32), ("a", "b"), np.zeros(2), grad=False)
    _put(folder / "golden.npz", golden.encode(kept))
    _put(folder / "a.fa", b">x\nACGT\n>y\nACGA\n")
    _put(folder / "a.csv", b"sequence,b\nACGT,1\nACGA,2\n")
    _put(folder / "a.parquet", _parquet({"sequence": ["ACGT", "ACGA"] * 20}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
