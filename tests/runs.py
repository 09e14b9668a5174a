"""Starting whole runs as a user would, and reading what they left behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

RUN = [sys.executable, "-m", "dav_ray", "run"]


def recipe(folder: Path, **changes: Any) -> Path:
    """A recipe over a pipeline with random weights: 3 chunks of 3, 3 and 1 trajectories a round."""
    settings: dict[str, Any] = {
        "rounds": 2,
        "model": {"path": str(folder / "pipeline")},
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
    settings.update(changes)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*RUN, *words], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], code: int, timeout_s: float = 240) -> str:
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == code, output
    return output


def events(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(run_dir: Path, name: str, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while sum(event["event"] == name for event in events(run_dir)) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {name} in time"
        time.sleep(0.05)


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
