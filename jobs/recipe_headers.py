"""Writes into the shipped recipes of large models what they take and what fits one card: python jobs/recipe_headers.py.

A test compares these lines with the plan's.
"""

from __future__ import annotations

import typer

from dav_ray.config.recipe.cards import with_cards
from dav_ray.config.recipe.load import SHIPPED, load, shipped


def main() -> None:
    """All recipes whose model is one of the hub."""
    for name in shipped():
        config = load(name).config
        if config.model.kind == "diffusers" and not config.model.path.startswith("shipped:"):
            file = SHIPPED / f"{name}.yaml"
            file.write_text(with_cards(file.read_text(encoding="utf-8"), config), encoding="utf-8")
            typer.echo(f"{name}: written")


if __name__ == "__main__":
    typer.run(main)
