"""The rewards that have a name, and how one is built. A name with a colon is a class or function of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dav_ray.moved import names_of
from dav_ray.registry import Entry, Registry
from dav_ray.rewards.function import FunctionReward
from dav_ray.rewards.samples.columns import Table, WithColumns, columns_of
from dav_ray.rewards.samples.pixels import wants_of

# facts of an entry, each a text: what it scores, its arguments that name a file, a class, other rewards, and in which
# type it wants images where that is not float32
SCORES, FILE, CODE, FACTORS, WANTS = "scores", "file", "code", "factors", "wants"
_OF_SEQUENCES = {SCORES: "sequences"}

REWARDS = Registry(
    "dav_ray.rewards",
    "reward",
    {
        "jpeg_compressibility": Entry(
            "dav_ray.rewards.jpeg:JpegCompressibility",
            "images: minus the size as JPEG in kB, rewards plainness",
            facts={WANTS: "uint8"},
        ),
        "jpeg_incompressibility": Entry(
            "dav_ray.rewards.jpeg:JpegIncompressibility",
            "images: the size as JPEG in kB, rewards detail",
            facts={WANTS: "uint8"},
        ),
        "brightness": Entry("dav_ray.rewards.colour:Brightness", "images: mean of all pixels, has gradients"),
        "target_colour": Entry(
            "dav_ray.rewards.colour:TargetColour", "images: minus the squared distance to one colour, has gradients"
        ),
        "digit_legibility": Entry(
            "dav_ray.rewards.digits:DigitLegibility", "images: 1 where a classifier reads the digit of the prompt"
        ),
        "torch_oracle": Entry(
            "dav_ray.rewards.oracle:TorchOracle",
            "sequences: one output of any torch module, has gradients",
            facts={**_OF_SEQUENCES, FILE: "weights", CODE: "model"},
        ),
        "enformer": Entry(
            "dav_ray.rewards.enformer:Enformer",
            "DNA: one task of an Enformer that gReLU trained, has gradients",
            facts={**_OF_SEQUENCES, FILE: "checkpoint"},
        ),
        "gc_content": Entry(
            "dav_ray.rewards.sequence:GcContent", "DNA: the share of G and C, has gradients", facts=_OF_SEQUENCES
        ),
        "gc_window": Entry(
            "dav_ray.rewards.sequence:GcWindow",
            "DNA: 1 where the share of G and C is in a window, else 0",
            facts=_OF_SEQUENCES,
        ),
        "motif_score": Entry(
            "dav_ray.rewards.sequence:MotifScore",
            "DNA: how well the best match of each JASPAR motif fits, has gradients",
            facts=_OF_SEQUENCES,
        ),
        "product": Entry(
            "dav_ray.rewards.combine:Product", "the product of other rewards' values", facts={FACTORS: "rewards"}
        ),
        "ehrlich": Entry(
            "dav_ray.rewards.ehrlich:Ehrlich",
            "sequences: an Ehrlich function, a benchmark with a known optimum",
            facts=_OF_SEQUENCES,
        ),
    },
)


def fact(kind: str, name: str) -> str:
    """What is known of a built-in reward without importing it; nothing where that is not so, or it is no built-in."""
    entry = REWARDS.builtin.get(kind)
    return entry.facts.get(name, "") if entry else ""


def build(kind: str, args: dict[str, Any], device: str = "cpu", columns: Table | None = None) -> Any:
    """A reward; on the device where it can be placed, which is what `place_on` is for. columns: of the prompts, which
    it gets if it wants some. ValueError if it wants what no reward is shown."""
    reward = make(kind, args)
    wants_of(reward)
    if hasattr(reward, "place_on"):
        reward.place_on(device)
    return WithColumns(reward, columns or {}) if columns_of(reward) else reward


def make(kind: str, args: dict[str, Any]) -> Any:
    """A reward where it is built: a class with its arguments, or a function, which gets them at each call."""
    found = resolve(kind)
    return found(**args) if isinstance(found, type) else FunctionReward(found, args)


def features(target: str) -> Any:
    """Features of the user's own: an object of the class, or the function."""
    found = resolve(target)
    return found() if isinstance(found, type) else found


def resolve(kind: str) -> Any:
    """The class or function of a reward. Unregistered: why the name is none; else what the import raised."""
    return REWARDS.load(kind)


if not TYPE_CHECKING:  # pyright would take any name for one of this module's
    __getattr__ = names_of("rewards.registry")
