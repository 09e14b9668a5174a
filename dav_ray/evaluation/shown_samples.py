"""Which fresh samples of a round are shown, and how: the same in the report and in the trackers."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa

CELL = 64  # px; smaller images are enlarged by whole factors to about this, without smoothing
THUMBNAIL = 256  # px; larger ones are shown at this size


class OfPrompt(Protocol):
    @property
    def index(self) -> int: ...

    @property
    def condition(self) -> str: ...


Shown = TypeVar("Shown", bound=OfPrompt)


@dataclass(frozen=True)
class Row:
    """A sample of a table: its number and prompt, and where in the table it is."""

    index: int
    condition: str
    place: int


@dataclass(frozen=True)
class ShownSamples:
    """N samples of one round, those of one prompt side by side."""

    conditions: list[str]
    rewards: list[float]
    images: np.ndarray | None = None  # [N, H, W, 3] uint8
    texts: list[str] | None = None

    @classmethod
    def of(cls, table: pa.Table, limit: int) -> ShownSamples:
        """At most `limit` rows of an evaluation, the same ones in every round of the same size."""
        numbers, conditions = table.column("sample").to_pylist(), table.column("condition").to_pylist()
        order = sorted(range(len(numbers)), key=lambda place: numbers[place])
        rows = choose_columns([Row(numbers[n], conditions[n] or "", n) for n in order], limit)
        chosen = table.take([row.place for row in rows])
        names = [row.condition for row in rows]
        rewards = chosen.column("reward").to_pylist()
        if "image" in table.column_names:
            return cls(names, rewards, images=np.stack([_pixels(png) for png in chosen.column("image").to_pylist()]))
        return cls(names, rewards, texts=chosen.column("sequence").to_pylist())

    @property
    def markdown(self) -> str:
        """A table of sequences."""
        conditional = any(self.conditions)
        head = ["reward", *(["condition"] if conditional else []), "sequence"]
        rows = [
            [f"{reward:.4g}", *([f"`{condition}`"] if conditional else []), f"`{text}`"]
            for reward, condition, text in zip(self.rewards, self.conditions, self.texts or [], strict=True)
        ]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))

    @property
    def sheet(self) -> np.ndarray:
        """All images as one, [H, N * W, 3], side by side."""
        assert self.images is not None
        return np.concatenate(list(self.images), axis=1)


def choose_columns(samples: Sequence[Shown], limit: int) -> list[Shown]:
    """At most `limit` samples, spread evenly over the prompts whatever their order, grouped by prompt."""
    by_prompt: dict[str, list[Shown]] = defaultdict(list)
    for sample in samples:
        by_prompt[sample.condition].append(sample)
    depth = max((len(group) for group in by_prompt.values()), default=0)
    turns = [group[i] for i in range(depth) for group in by_prompt.values() if i < len(group)]
    chosen = {sample.index for sample in turns[:limit]}
    return [sample for group in by_prompt.values() for sample in group if sample.index in chosen]


def _pixels(png: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        shown = image.convert("RGB")
    side = max(shown.size)
    if side > THUMBNAIL:
        shown.thumbnail((THUMBNAIL, THUMBNAIL))
    elif (factor := round(CELL / side)) > 1:
        shown = shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.NEAREST)
    return np.asarray(shown)
