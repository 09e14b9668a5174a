"""The letters of a model of sequences where its configuration names none: the model's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dav_ray.config.model_path import model_path
from dav_ray.diffusion.masked.alphabet import ALPHABETS, Alphabet
from dav_ray.diffusion.masked.config_file import CHECKPOINTS_ALPHABET, own_letters
from dav_ray.errors import UserError

if TYPE_CHECKING:
    from dav_ray.config.sections.model import Model


def alphabet_of(model: Model) -> Alphabet:
    """ValueError where the letters are none, UserError for an unknown shipped model."""
    return Alphabet.of(model.alphabet or own_letters(Path(model_path(model.path))) or CHECKPOINTS_ALPHABET)


def own_alphabet(path: Any) -> str | None:
    """The alphabet of the masked model that lies at `model.path`, by its name where it has one; None where there is
    none to tell it."""
    try:
        place = Path(model_path(path)) if isinstance(path, str) and "\0" not in path else None
    except UserError:
        place = None
    if place is None or not os.path.exists(place):
        return None
    letters = CHECKPOINTS_ALPHABET if os.path.isfile(place) else own_letters(place)
    names = {letters: name for name, letters in ALPHABETS.items()}
    return None if letters is None else names.get(letters, letters)
