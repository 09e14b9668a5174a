"""The letters of a masked model where its configuration names none: the model's own."""

from __future__ import annotations

import os
from pathlib import Path

from dav_ray.config import Model
from dav_ray.errors import UserError
from dav_ray.masked_model import CHECKPOINTS_ALPHABET, own_letters
from dav_ray.model_folder import model_path
from dav_ray.recipe_paths import at
from dav_ray.sequences import ALPHABETS, Alphabet
from dav_ray.tree import Tree


def alphabet_of(model: Model) -> Alphabet:
    """ValueError where the letters are none, UserError for an unknown shipped model."""
    return Alphabet.of(model.alphabet or own_letters(Path(model_path(model.path))) or CHECKPOINTS_ALPHABET)


def with_own_alphabet(typed: Tree, tree: Tree) -> tuple[Tree, Tree]:
    """The recipe (as typed, and resolved) with `model.alphabet` filled in, by name where it has one, if there is a
    model to tell it: what reads a run later, as the report does, may not have the model."""
    model = tree.get("model")
    if not isinstance(model, dict) or model.get("kind") != "masked" or model.get("alphabet") is not None:
        return typed, tree
    path = at(tree, ("model", "path"))
    try:
        place = Path(model_path(path)) if isinstance(path, str) and "\0" not in path else None
    except UserError:
        place = None
    if place is None or not os.path.exists(place):
        return typed, tree
    letters = CHECKPOINTS_ALPHABET if os.path.isfile(place) else own_letters(place)
    names = {letters: name for name, letters in ALPHABETS.items()}
    named = None if letters is None else names.get(letters, letters)
    return typed, {**tree, "model": {**model, "alphabet": named}}
