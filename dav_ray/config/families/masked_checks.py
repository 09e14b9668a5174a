"""What can be known of a masked model, its conditions and its settings before torch is imported."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dav_ray.diffusion.masked.alphabet import Alphabet, read_sequences
from dav_ray.diffusion.masked.condition import Condition
from dav_ray.diffusion.masked.config_file import CHECKPOINTS_ALPHABET, CONFIG, WEIGHTS, own_letters, read_config
from dav_ray.diffusion.weight_headers import tensor_shapes
from dav_ray.errors import UserError
from dav_ray.redact import PATH, show

if TYPE_CHECKING:
    from dav_ray.config.schema import Config

LORA_TARGETS = ("convs", "final_conv")  # the layers that get adapters where a recipe names none
LAYERS = ("linear", "time_embedder", "convs", "time_layers", "final_conv", "cls_layers")


def masked_mistakes(config: Config, path: str) -> Iterator[str]:
    """One line per reason why this model, or a condition, can't be searched. path: of the model, on this machine."""
    place, key = Path(path), f"model.path = {show(config.model.path, PATH)}"
    alphabet, mistakes = _alphabet(config, place)
    if os.path.isdir(place):
        mistakes += _folder_mistakes(config, place, key, alphabet)
    elif not os.path.isfile(place):
        what = config.model.origin or "a model folder, a Lightning checkpoint (.ckpt), or shipped:dna"
        mistakes.append(f"{key}: no such file or folder; allowed: {what}")
    elif not zipfile.is_zipfile(place):
        what = config.model.origin or "a Lightning checkpoint"
        mistakes.append(f"{key}: is no checkpoint that torch.save wrote; allowed: {what}")
    yield from mistakes
    yield from _setting_mistakes(config, alphabet)


def _alphabet(config: Config, place: Path) -> tuple[Alphabet | None, list[str]]:
    """The letters that are given, else the model's own, and what is wrong with them."""
    given, own = config.model.alphabet, own_letters(place) if os.path.isdir(place) else None
    try:
        alphabet = Alphabet.of(given or own or CHECKPOINTS_ALPHABET)
    except ValueError as error:
        rule = "allowed: dna, rna, protein, or the letters themselves"
        return None, [f"model.alphabet = {show(given)}: {error}; {rule}"]
    if own is not None and own != alphabet.letters:
        return None, [f"model.alphabet = {given}: the model's is {own}; allowed: null (the model's own)"]
    return alphabet, []


def _folder_mistakes(config: Config, folder: Path, key: str, alphabet: Alphabet | None) -> Iterator[str]:
    try:
        stored = read_config(folder)
    except ValueError as error:
        yield f"{key}: is no masked model: {error}; allowed: a folder with {CONFIG} and {WEIGHTS}, or a .ckpt"
        return
    try:
        tensor_shapes(folder / WEIGHTS)
    except OSError:
        yield f"{key}: is no masked model: {WEIGHTS} is missing"
    except ValueError as error:
        yield f"{key}: is no masked model: {WEIGHTS} {error}"
    if alphabet is not None:
        length = config.model.length or stored["length"]
        yield from _condition_mistakes(config, alphabet, length, stored["classes"])


def check_weights(config: Config, path: str) -> None:
    """UserError, a line per mistake, if the weights are not those of the network, or do not have what conditions and
    adapters name. This takes torch, so that it comes when all else was found right."""
    from dav_ray.diffusion import adapters
    from dav_ray.diffusion.masked.files import build_backbone, read

    model = config.model
    found = read(path, model.weights, Alphabet.of(model.alphabet) if model.alphabet else None, model.length)
    backbone = build_backbone(found)
    mistakes = [*_condition_mistakes(config, found.alphabet, found.length, found.classes)]
    if config.mstep.parameters == "lora":
        try:
            adapters.layers(backbone, config.lora_targets)
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


def _setting_mistakes(config: Config, alphabet: Alphabet | None) -> Iterator[str]:
    if config.mstep.parameters == "lora":
        wrong = [target for target in config.lora_targets if target.split(".")[0] not in LAYERS]
        if wrong:
            fits = f"null ({', '.join(LORA_TARGETS)}), or some of {', '.join(LAYERS)}"
            yield f"mstep.lora.targets = {show(', '.join(wrong))}: not in a masked model; allowed: {fits}"
    if config.model.dtype != "float32":
        yield f"model.dtype = {config.model.dtype}: masked models are loaded in float32; allowed: float32"
    if config.evaluate.reference is not None and alphabet is not None:
        try:
            read_sequences(config.evaluate.reference, alphabet)
        except UserError as error:
            what = f" ({config.evaluate.origin})" if config.evaluate.origin else ""
            yield from (f"evaluate.reference{what}: {line}" for line in error.lines)
