"""The two tiny domains of the chaos runs: models with random weights, recipes whose rounds take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

DOMAINS = ("masked", "images")
ROLES = {
    "search": {"replicas": 2, "cpus": 0.5, "labels": {"kind": "work"}},
    "reward": {"replicas": 1, "cpus": 0.3, "labels": {"kind": "work"}},
    "train": {"replicas": 2, "cpus": 0.3, "labels": {"kind": "work"}},
}


def write_recipe(domain: str, folder: Path, rounds: int) -> Path:
    """The domain's recipe, its model beside it. The same files when it is written again."""
    path = folder / f"{domain}.yaml"
    if not path.exists():
        settings = masked(folder) if domain == "masked" else images(folder)
        path.write_text(yaml.safe_dump({"rounds": rounds, "roles": ROLES, **settings}))
    return path


def masked(folder: Path) -> dict[str, Any]:
    """A masked model of sequences of 24 letters; full weights, so that ranks start without adapters' libraries."""
    import torch

    from dav_ray.diffusion.masked.alphabet import Alphabet
    from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
    from dav_ray.diffusion.masked.files import Settings, write

    torch.manual_seed(0)
    write(folder / "masked", DilatedCNN(5, 16, 2, 5), Settings(Alphabet.of("dna"), 24, 0, False))
    return {
        "model": {"kind": "masked", "path": str(folder / "masked")},
        "prompts": ["", "fixed=3:TATA"],
        "reward": {"kind": "slow_rewards:SlowGc"},
        "search": {"candidates": 3, "alpha": 0.02, "steps": 6, "trajectories": 16, "chunk": 4},
        "mstep": {"parameters": "full", "learning_rate": 0.003, "kl": 0.01, "batch_size": 16, "epochs": 8},
        "evaluate": {"samples": 8, "batch": 4, "kl_samples": 4, "elbo_draws": 2},
    }


def images(folder: Path) -> dict[str, Any]:
    """A Stable Diffusion pipeline of latents 4 x 4 x 4 with adapters."""
    from dav_ray.diffusion.device import quiet
    from tests.support.tiny import save_tiny

    quiet()
    return {
        "model": {"path": save_tiny(folder)},
        "prompts": ["a", "b", "c"],
        "reward": {"kind": "slow_rewards:SlowJpeg"},
        "search": {
            "candidates": 2,
            "alpha": 0.01,
            "steps": 4,
            "guidance_scale": 2.0,
            "trajectories": 12,
            "chunk": 3,
        },
        "mstep": {"batch_size": 16, "epochs": 3, "lora": {"rank": 2}},
        "evaluate": {"samples": 6, "batch": 3, "kl_samples": 3, "grid": 6},
    }
