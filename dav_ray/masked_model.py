"""What can be known of a masked model, its conditions and its settings before torch is imported."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dav_ray.config import Config
from dav_ray.diffusion.condition import Condition
from dav_ray.errors import UserError
from dav_ray.keys import PATH, show
from dav_ray.parsing import parse_object, tensor_shapes
from dav_ray.sequences import Alphabet, read_sequences

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KEYS = {"alphabet": str, "length": int, "classes": int, "time_conditioning": bool}
MOST = 10_000_000  # letters, classes
BENCHMARK_LENGTH = 200  # of the DNA benchmark, whose checkpoints do not have to say
LAYERS = ("linear", "time_embedder", "convs", "time_layers", "final_conv", "cls_layers")


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


def masked_mistakes(config: Config, path: str) -> Iterator[str]:
    """One line per reason why this model, or a condition, can't be searched. path: of the model, on this machine."""
    model, place = config.model, Path(path)
    try:
        alphabet = Alphabet.of(model.alphabet)
    except ValueError as error:
        yield f"model.alphabet = {show(model.alphabet)}: {error}; allowed: dna, rna, protein, or the letters themselves"
        return
    key = f"model.path = {show(model.path, PATH)}"
    if os.path.isdir(place):
        try:
            stored = read_config(place)
        except ValueError as error:
            yield f"{key}: is no masked model: {error}; allowed: a folder with {CONFIG} and {WEIGHTS}, or a .ckpt"
            return
        try:
            tensor_shapes(place / WEIGHTS)
        except OSError:
            yield f"{key}: is no masked model: {WEIGHTS} is missing"
        except ValueError as error:
            yield f"{key}: is no masked model: {WEIGHTS} {error}"
        if (own := Alphabet.of(stored["alphabet"])) != alphabet:
            yield f"model.alphabet = {model.alphabet}: the model's is {own.letters}; allowed: that"
            return
        yield from _condition_mistakes(config, alphabet, model.length or stored["length"], stored["classes"])
    elif not os.path.isfile(place):
        what = model.origin or "a model folder, a Lightning checkpoint (.ckpt), or shipped:dna"
        yield f"{key}: no such file or folder; allowed: {what}"
    elif not zipfile.is_zipfile(place):
        yield f"{key}: is no checkpoint that torch.save wrote; allowed: {model.origin or 'a Lightning checkpoint'}"
    yield from _setting_mistakes(config, alphabet)


def check_weights(config: Config, path: str) -> None:
    """UserError, a line per mistake, if the weights are not those of the network, or do not have what conditions and
    adapters name. This takes torch, so that it comes when all else was found right."""
    from dav_ray.diffusion import adapters
    from dav_ray.diffusion.masked_files import build_backbone, read

    model, lora = config.model, config.mstep.lora
    found = read(path, model.weights, Alphabet.of(model.alphabet), model.length)
    backbone = build_backbone(found)
    mistakes = [*_condition_mistakes(config, found.alphabet, found.length, found.classes)]
    if config.mstep.parameters == "lora":
        try:
            adapters.layers(backbone, lora.targets)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError(mistakes)


def _condition_mistakes(config: Config, alphabet: Alphabet, length: int, classes: int) -> Iterator[str]:
    for i, text in enumerate(config.prompts):
        try:
            Condition.parse(text, alphabet, length, classes)
        except ValueError as error:
            yield f"prompts[{i}] = {show(text)}: {error}"


def _setting_mistakes(config: Config, alphabet: Alphabet) -> Iterator[str]:
    if config.mstep.parameters == "lora":
        for target in config.mstep.lora.targets:
            if target.split(".")[0] not in LAYERS:
                yield f"mstep.lora.targets = {target}: no such layer; allowed: {', '.join(LAYERS)}"
    if config.model.dtype != "float32":
        yield f"model.dtype = {config.model.dtype}: masked models are loaded in float32; allowed: float32"
    if config.evaluate.reference is not None:
        try:
            read_sequences(config.evaluate.reference, alphabet)
        except UserError as error:
            what = f" ({config.evaluate.origin})" if config.evaluate.origin else ""
            yield from (f"evaluate.reference{what}: {line}" for line in error.lines)
