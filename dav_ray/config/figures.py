"""What counts, planned or spent, come to in floating-point operations and bytes, for models whose configurations are at
hand.

    network    (evaluations + reference + with backward) x passes x operations of a pass
    decoding   (decoded samples + with backward) x operations of a decoding
    bytes      samples shown x bytes of a sample x rewards outside the search workers; pixels are a quarter of float32

A backward pass to the states, through frozen weights, is as much work as a forward pass. Every sample that a reward
sees was decoded. Nothing is said of what is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.rewards.registry import WANTS, fact
from dav_ray.search.facts import Spent
from dav_ray.types import Cost

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


@dataclass(frozen=True)
class Work:
    """Floating-point operations. evaluation: of one guided prediction; decoding: of one sample, None where it is not
    known."""

    evaluation: float
    decoding: float | None

    def network(self, spent: Spent | Cost) -> float:
        return self.evaluation * (spent.network + spent.reference + spent.backward)

    def decoded(self, spent: Spent | Cost) -> float | None:
        return None if self.decoding is None else self.decoding * (spent.reward + spent.backward)

    def of(self, cost: Cost) -> float | None:
        """All that was done for this; None where a part of it is not known."""
        decoded = self.decoded(cost)
        return None if decoded is None else self.network(cost) + decoded


def work(config: Config) -> Work | None:
    """Of the configured model; None where nothing is known of its networks."""
    family = family_of(config.model)
    each = family.flops(config)
    return None if each is None else Work(each.network * family.passes(config), each.decoder)


def precision(config: Config) -> str:
    """In which the search's network computes: float32, bfloat16 or float16."""
    weights = config.model.dtype if config.mstep.parameters == "lora" else "float32"
    return weights if config.search.precision == "float32" else config.search.precision


def figures(config: Config, spent: Spent) -> Figures:
    """At most: candidates that are equal may be evaluated once."""
    each, size = work(config), family_of(config.model).sample_bytes(config)
    sent = None if size is None else spent.reward * size * len(config.pooled) * _share_sent(config)
    if each is None:
        return Figures(None, None, sent)
    return Figures(each.network(spent), each.decoded(spent), sent)


def shown(value: float, digits: int = 4) -> str:
    """With the prefix of its thousands: 1261 T, 3.146 M. A space before the prefix."""
    power = 0
    while round(value) >= 10_000 and power < len(UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{float(f'{value:.{digits}g}'):,g} {UNITS[power]}"


def _share_sent(config: Config) -> float:
    """Of the bytes of float32 images: a quarter where all rewards are known to want pixels."""
    pixels = not config.search.gradient and all(fact(reward.kind, WANTS) == "uint8" for reward in config.reward)
    return 0.25 if pixels else 1.0
