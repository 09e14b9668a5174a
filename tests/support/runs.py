"""Starting whole runs as a user would, and reading what they left behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.deadlines import hung, until

RUN = [sys.executable, "-m", "dav_ray", "run"]


def recipe(folder: Path, **changes: Any) -> Path:
    """A recipe over a pipeline with random weights: 3 chunks of 3, 3 and 1 trajectories a round."""
    settings: dict[str, Any] = {
        "rounds": 2,
        "model": {"path": "pipeline"},  # beside the recipe
        "prompts": ["a", "b", "c"],
        "reward": {"kind": "jpeg_compressibility"},
        "search": {
            "candidates": 2,
            "alpha": 0.01,
            "steps": 4,
            "guidance_scale": 2.0,
            "trajectories": 7,
            "chunk": 3,
        },
        "mstep": {"batch_size": 16, "lora": {"rank": 2}},
        "evaluate": {"samples": 6, "batch": 4, "kl_samples": 2, "grid": 6},
        "roles": {
            "search": {"replicas": 2, "cpus": 0.2},
            "reward": {"replicas": 1, "cpus": 0.1},
            "train": {"replicas": 2, "cpus": 0.2},
        },
    }
    return _written(folder, {**settings, **changes})


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*RUN, *words], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], code: int, timeout_s: float = 480) -> str:
    output, _ = process.communicate(timeout=hung(timeout_s))
    assert process.returncode == code, output
    return output


def events(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(run_dir: Path, name: str, count: int, process: subprocess.Popen[str]) -> None:
    def there() -> bool:
        return sum(event["event"] == name for event in events(run_dir)) >= count

    until(there, f"no {name} in time", 400, process=process, pause_s=0.05)


def shards(run_dir: Path) -> dict[str, str]:
    """Every committed shard's path and the checksum of what lies there."""
    named = [
        shard["path"]
        for manifest in sorted((run_dir / "manifests").glob("*.json"))
        for shard in json.loads(manifest.read_text())["shards"]
    ]
    return {path: hashlib.sha256((run_dir / path).read_bytes()).hexdigest() for path in named}


def weights(run_dir: Path, version: int) -> bytes:
    return (run_dir / f"policy/v{version:04d}/pytorch_lora_weights.safetensors").read_bytes()


def masked_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe over a masked model with random weights, which loads faster: 3 chunks of 4 trajectories a round."""
    masked_model(folder)
    settings: dict[str, Any] = {
        "rounds": 2,
        "model": {"kind": "masked", "path": "model"},  # beside the recipe
        "reward": {"kind": "gc_content"},
        "search": {"candidates": 2, "alpha": 0.02, "steps": 4, "trajectories": 12, "chunk": 4},
        "mstep": {"learning_rate": 0.01, "batch_size": 16, "lora": {"targets": ["convs"]}},
        "evaluate": {"samples": 8, "batch": 8, "kl_samples": 0, "elbo_draws": 0},
        "roles": {
            "search": {"replicas": 1, "cpus": 0.2},
            "reward": {"replicas": 1, "cpus": 0.1},
            "train": {"replicas": 1, "cpus": 0.2},
        },
    }
    return _written(folder, {**settings, **changes})


def masked_model(folder: Path) -> str:
    """The folder of a masked model of 24 letters with random weights."""
    import torch

    from dav_ray.diffusion.masked.alphabet import Alphabet
    from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
    from dav_ray.diffusion.masked.files import Settings, write

    torch.manual_seed(0)
    write(folder / "model", DilatedCNN(5, 8, 1, 5), Settings(Alphabet.of("dna"), 24, 0, False))
    return str(folder / "model")


def _written(folder: Path, settings: dict[str, Any]) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def files(run_dir: Path, pattern: str) -> dict[str, bytes]:
    """What lies in a run directory, by path."""
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in sorted(run_dir.glob(pattern))}
