"""The lines of a shipped recipe's header that say what it takes: the plan's figures, and what fits usual cards.

They stand between the recipe's description and its first key. `jobs/recipe_headers.py` writes them.
"""

from __future__ import annotations

from dav_ray.config.families.table import family_of
from dav_ray.config.memory import fit, memory_facts
from dav_ray.config.plan import plan
from dav_ray.config.schema import Config

CARDS = (24, 40, 80)  # GB
FIRST = "# One accepted sample takes"


def card_lines(config: Config) -> list[str]:
    """One line each, without a line's end. ValueError, in words, where nothing tells of the model's networks."""
    sizes, found = family_of(config.model).described(config), plan(config)
    roles = ", ".join(text for _, text in memory_facts(config))
    fits = [f"#   GPU of {card} GB   {fit(config, sizes, card * 1e9)}" for card in CARDS]
    return [f"{FIRST} {found.figures.flops}. Memory of one worker:", f"#   these batches  {roles}", *fits]


def with_cards(text: str, config: Config) -> str:
    """The recipe's text with these lines, in place of those that it has."""
    lines, end = text.splitlines(), len(CARDS) + 2
    start = next((i for i, line in enumerate(lines) if line.startswith(FIRST)), None)
    if start is not None:
        del lines[start : start + end]
    else:
        start = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    lines[start:start] = card_lines(config)
    return "\n".join(lines) + "\n"
