"""Sequence logos: what the samples of a round have in common, position by position, as PNG."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from dav_ray.diffusion.masked.alphabet import ALPHABETS, Alphabet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE = 75  # positions per line
LEAST = 0.02  # of the axis; lower letters can't be seen, and each takes time to draw
DPI = 110
SCHEMES = {ALPHABETS["dna"]: "classic", ALPHABETS["rna"]: "classic", ALPHABETS["protein"]: "chemistry"}
PALETTE = ("#3f7fd0", "#e08a3c", "#3fa377", "#9270c9", "#c94f4f", "#7a6a5a", "#c96fae", "#2c8c99", "#8a8f2b", "#555b63")


def information(tokens: np.ndarray, letters: int) -> np.ndarray:
    """tokens [N, L] -> letter heights [L, V] in bits: a position's sum to its information, log2 V at most."""
    p = np.stack([(tokens == letter).mean(0) for letter in range(letters)], axis=1)
    ratio = np.log2(np.where(p > 0, p, 1) * letters)
    return p * (p * ratio).sum(1, keepdims=True)


def draw(heights: np.ndarray, alphabet: Alphabet, top: float) -> str:
    """A data URI of heights [L, V] in lines of LINE positions; top: the axis' end, in bits."""
    import logomaker
    import pandas as pd
    from matplotlib.figure import Figure

    starts = range(0, len(heights), LINE)
    inches = 1.35 * len(starts)
    figure = Figure(figsize=(12, inches), dpi=DPI)
    figure.subplots_adjust(left=0.045, right=0.995, bottom=0.25 / inches, top=1 - 0.1 / inches, hspace=0.3)
    shown = np.where(heights < LEAST * top, 0, heights)
    for axis, start in zip(np.ravel(figure.subplots(len(starts), 1)), starts, strict=True):
        lines = pd.DataFrame(shown[start : start + LINE], columns=[*alphabet.letters])
        lines.index += start + 1
        if lines.to_numpy().any():  # an axis without height is drawn with a warning
            logomaker.Logo(lines, ax=axis, color_scheme=_colours(alphabet), font_name="DejaVu Sans")
        axis.set_xlim(start + 0.5, start + min(LINE, len(heights)) + 0.5)
        axis.set_ylim(0, top)
        axis.set_ylabel("bits", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return _data_uri(figure)


def _colours(alphabet: Alphabet) -> str | dict[str, str]:
    custom = {letter: PALETTE[i % len(PALETTE)] for i, letter in enumerate(alphabet.letters)}
    return SCHEMES.get(alphabet.letters, custom)


def _data_uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
