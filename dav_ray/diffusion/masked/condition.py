"""The conditions of sequence models as users type them: `class=2 fixed=0:ACGT,40:TATA`, or empty. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass

from dav_ray.diffusion.masked.alphabet import Alphabet

GRAMMAR = "empty, or class=NUMBER and fixed=START:LETTERS[,START:LETTERS...] (positions from 0)"


@dataclass(frozen=True)
class Condition:
    """label: a class, or None; fixed: (position, token) pairs that no step changes."""

    label: int | None
    fixed: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str, alphabet: Alphabet, length: int, classes: int) -> Condition:
        """ValueError saying what is wrong: grammar, letters, positions beyond the sequence, two letters in one place, a
        class that the model does not have."""
        label, fixed = None, {}
        for word in text.split():
            key, equals, value = word.partition("=")
            if not equals or key not in ("class", "fixed"):
                raise ValueError(f"{_short(word)!r} is no condition; allowed: {GRAMMAR}")
            if key == "class" and label is not None:
                raise ValueError(f"{_short(word)}: a class is given already; allowed: one")
            if key == "class":
                label = _label(value, classes)
            else:
                for part in value.split(","):
                    _fix(fixed, part, alphabet, length)
        return cls(label, tuple(sorted(fixed.items())))


def _label(value: str, classes: int) -> int:
    if not classes:
        raise ValueError(f"class={_short(value)}: the model has no classes; allowed: no class")
    label = _whole(value)
    if label is None or label >= classes:
        raise ValueError(f"class={_short(value)}: unknown class; allowed: 0 to {classes - 1}")
    return label


def _fix(fixed: dict[int, int], part: str, alphabet: Alphabet, length: int) -> None:
    first, colon, letters = part.partition(":")
    start = _whole(first)
    if not colon or start is None or not letters:
        raise ValueError(f"fixed={_short(part)}: is no START:LETTERS; allowed: {GRAMMAR}")
    if start + len(letters) > length:
        end = start + len(letters) - 1
        raise ValueError(f"fixed={_short(part)}: ends at position {end}; allowed: 0 to {length - 1}")
    try:
        tokens = alphabet.encode(letters).tolist()
    except ValueError as error:
        raise ValueError(f"fixed={_short(part)}: {error}") from None
    for position, token in enumerate(tokens, start=start):
        if fixed.setdefault(position, token) != token:
            raise ValueError(
                f"fixed={_short(part)}: position {position} is fixed to another letter already; allowed: one"
            )


def _whole(text: str) -> int | None:
    """A number >= 0 in plain digits, at most 18 of them."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
