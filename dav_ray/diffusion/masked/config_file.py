"""What a masked model's folder says of itself in config.json. No torch in here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.redact import show
from dav_ray.strict import parse_object

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KEYS = {"alphabet": str, "length": int, "classes": int, "time_conditioning": bool}
MOST = 10_000_000  # letters, classes
CHECKPOINTS_ALPHABET = "dna"  # of a .ckpt, which does not say
BENCHMARK_LENGTH = 200  # of the DNA benchmark, whose checkpoints do not have to say


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says, checked. ValueError naming what is wrong with it."""
    try:
        config = parse_object((folder / CONFIG).read_bytes())
    except OSError:
        raise ValueError(f"{CONFIG} is missing") from None
    except ValueError as error:
        raise ValueError(f"{CONFIG} {error}") from None
    for key, kind in KEYS.items():
        if type(config.get(key)) is not kind:
            raise ValueError(f"{CONFIG} has no {key} ({kind.__name__})")
    if not 1 <= config["length"] <= MOST or not 0 <= config["classes"] <= MOST:
        raise ValueError(f"{CONFIG} says length {show(config['length'])}, classes {show(config['classes'])}")
    if not isinstance(config.get("backbone", ""), str):
        raise ValueError(f"{CONFIG} says backbone {show(config['backbone'])}")
    Alphabet.of(config["alphabet"])
    return config


def own_letters(folder: Path) -> str | None:
    """The letters that a model folder names; None where there are none to be had."""
    try:
        return Alphabet.of(read_config(folder)["alphabet"]).letters
    except ValueError:
        return None
