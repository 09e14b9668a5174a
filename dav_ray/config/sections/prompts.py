"""The configuration's section `prompts`: texts, each with a weight and with columns that rewards may want.

Where a recipe gives texts alone, and where it gives more, `Config.prompts` is the tuple of the texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import core_schema

from dav_ray.redact import show

PROMPT, WEIGHT = "prompt", "weight"
MOST_BYTES, MOST_PROMPTS = 64_000_000, 50_000
DEEPEST = 32  # lists and objects within each other
_PLAIN = (str, int, float, type(None))


class Prompts(tuple[str, ...]):
    """The texts, in order.

    weights: of each, > 0, for how often it is searched; none where all are alike. columns: by text, what else is known
    of the prompt; a text that has none is not in there.
    """

    weights: tuple[float, ...]
    columns: Mapping[str, Mapping[str, Any]]

    def __new__(
        cls,
        texts: Iterable[str] = (),
        weights: Sequence[float] = (),
        columns: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Prompts:
        made = super().__new__(cls, texts)
        made.weights = tuple(weights) if len(set(weights)) > 1 else ()
        made.columns = dict(columns or {})
        return made

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Prompts) and (self.weights, self.columns) != (other.weights, other.columns):
            return False
        return super().__eq__(other)

    __hash__ = tuple.__hash__

    @property
    def plain(self) -> bool:
        """Whether they are texts and nothing else."""
        return not self.weights and not self.columns

    def replaced(self, texts: Iterable[str]) -> Prompts:
        """Other texts, all alike; what is known of a text stays known."""
        return Prompts(texts, (), self.columns)

    def rows(self) -> list[Any]:
        """As a recipe may have them: texts, or objects."""
        if self.plain:
            return list(self)
        weights = [{WEIGHT: weight} for weight in self.weights] or [{}] * len(self)
        return [
            {PROMPT: text, **weight, **self.columns.get(text, {})} for text, weight in zip(self, weights, strict=True)
        ]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        texts = core_schema.tuple_variable_schema(core_schema.str_schema())
        written = core_schema.plain_serializer_function_ser_schema(cls.rows, when_used="json")
        return core_schema.no_info_wrap_validator_function(cls._validated, texts, serialization=written)

    @classmethod
    def _validated(cls, value: Any, texts: Callable[[Any], tuple[str, ...]]) -> Prompts:
        if isinstance(value, Prompts):
            return value
        if isinstance(value, list | tuple) and any(isinstance(entry, dict) for entry in value):
            return from_rows(value, "prompts[{}]".format, first=0)
        return cls(texts(value))


def from_rows(rows: Iterable[Any], name: Callable[[int], str] = "row {}".format, first: int = 1) -> Prompts:
    """Prompts of texts, and of objects that have `prompt`, may have `weight`, and any columns. ValueError naming the
    first row that is none; name: of a row by its number, of which `first` is the first."""
    texts: list[str] = []
    weights: list[float] = []
    columns: dict[str, Mapping[str, Any]] = {}
    origin: dict[str, int] = {}
    size = 0
    for number, row in enumerate(rows, first):
        try:
            text, weight, others = _row(row)
            size += _bytes(row)
        except ValueError as error:
            raise ValueError(f"{name(number)}: {error}") from None
        if text in origin and columns.get(text, {}) != others:
            raise ValueError(
                f"{name(number)}: {show(text)} has other columns than in {name(origin[text])}; allowed: prompts that "
                "differ, or the same columns"
            )
        origin.setdefault(text, number)
        texts.append(text)
        weights.append(weight)
        if others:
            columns[text] = others
        if len(texts) > MOST_PROMPTS or size > MOST_BYTES:
            raise ValueError(f"too many; allowed: at most {MOST_PROMPTS:,} prompts, and {MOST_BYTES:,} bytes with all")
    return Prompts(texts, weights, columns)


def _row(row: Any) -> tuple[str, float, dict[str, Any]]:
    if isinstance(row, str):
        return row, 1.0, {}
    if not isinstance(row, dict):
        raise ValueError(f"{show(row)} is no prompt; allowed: a text, or an object with {PROMPT}")
    if PROMPT not in row:
        raise ValueError(f"has no {PROMPT}; it has {', '.join(map(str, row)) or 'nothing'}")
    text, weight = row[PROMPT], row.get(WEIGHT, 1.0)
    if not isinstance(text, str):
        raise ValueError(f"{PROMPT} = {show(text)}: is no text; allowed: a text")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"{WEIGHT} = {show(weight)}: allowed: a number > 0")
    others = {key: value for key, value in row.items() if key not in (PROMPT, WEIGHT)}
    for key, value in others.items():
        _check_column(key, value)
    return text, float(weight), others


def _check_column(key: Any, value: Any) -> None:
    if not isinstance(key, str):
        raise ValueError(f"the column {show(key)} has no text as its name; allowed: a text")
    if not _is_plain(value):
        raise ValueError(f"{key} = {show(value)}: allowed: texts, finite numbers, true, false, null, lists and objects")


def _is_plain(value: Any, depth: int = 0) -> bool:
    if depth > DEEPEST:
        return False
    if isinstance(value, list):
        return all(_is_plain(entry, depth + 1) for entry in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry, depth + 1) for key, entry in value.items())
    return isinstance(value, _PLAIN) and not (isinstance(value, float) and not math.isfinite(value))


def _bytes(row: Any) -> int:
    """Of the row as JSON. ValueError for what is no text in any encoding."""
    try:
        return len(json.dumps(row, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise ValueError("holds a text that can't be written (half of a surrogate pair)") from None
