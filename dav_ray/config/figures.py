"""What a plan's counts come to in floating-point operations and bytes, for models whose configurations are at hand.

    network    (evaluations + reference + with backward) x passes x operations of a pass
    decoding   (decoded samples + with backward) x operations of a decoding
    bytes      samples shown x bytes of a sample x rewards

A backward pass to the states, through frozen weights, is as much work as a forward pass. Every sample that a reward
sees was decoded. Nothing is said of what is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

from dav_ray.config.families.base import Flops
from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.search.facts import Spent

UNITS = ("", "k", "M", "G", "T", "P", "E")


@dataclass(frozen=True)
class Figures:
    """Of one accepted sample; None where it is not known."""

    network: float | None  # floating-point operations
    decoding: float | None
    reward_bytes: float | None  # to all rewards together

    @property
    def flops(self) -> str:
        """In words; empty where nothing is known."""
        if self.network is None:
            return ""
        decoding = f", {shown(self.decoding)}FLOP of decoding" if self.decoding else ""
        return f"{shown(self.network)}FLOP of the network{decoding}"


def figures(config: Config, spent: Spent) -> Figures:
    """At most: candidates that are equal may be evaluated once."""
    family = family_of(config.model)
    work, size = family.flops(config), family.sample_bytes(config)
    sent = None if size is None else float(spent.reward * size * len(config.reward))
    if work is None:
        return Figures(None, None, sent)
    return Figures(_network(work, spent, family.passes(config)), _decoding(work, spent), sent)


def shown(value: float, digits: int = 4) -> str:
    """With the prefix of its thousands: 1261 T, 3.146 M. A space before the prefix."""
    power = 0
    while round(value) >= 10_000 and power < len(UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{float(f'{value:.{digits}g}'):,g} {UNITS[power]}"


def _network(work: Flops, spent: Spent, passes: int) -> float:
    return work.network * passes * (spent.network + spent.reference + spent.backward)


def _decoding(work: Flops, spent: Spent) -> float | None:
    return None if work.decoder is None else work.decoder * (spent.reward + spent.backward)
