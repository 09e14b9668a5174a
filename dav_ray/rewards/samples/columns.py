"""Columns of the prompts, for rewards that want them: `prompt_columns = ("count",)` on a class or function.

Such a reward is called with a third argument, the columns that it names, each with the values of the B prompts:
`reward(samples, conditions, {"count": (3, 2, 3)})`. All others are called as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ATTRIBUTE = "prompt_columns"
Table = Mapping[str, Mapping[str, Any]]  # by prompt, the value of each of its columns


def columns_of(reward: Any) -> tuple[str, ...]:
    """The columns that a reward, or its class, wants. ValueError for what can't be names."""
    said = getattr(reward, ATTRIBUTE, ())
    if isinstance(said, str) or not isinstance(said, list | tuple) or not all(isinstance(name, str) for name in said):
        raise ValueError(f"{ATTRIBUTE} = {said!r}; allowed: names of columns, for instance ('count',)")
    return tuple(said)


def lacking(table: Table, prompts: Sequence[str], names: Sequence[str]) -> tuple[str, str] | None:
    """(prompt, column) of the first prompt that has not a column; None: all have all."""
    return next(((text, name) for text in prompts for name in names if name not in table.get(text, {})), None)


class WithColumns:
    """A reward that wants columns, as all other rewards are called. What it says of itself is said here too."""

    def __init__(self, reward: Any, table: Table) -> None:
        self.reward, self._names, self._table = reward, columns_of(reward), table
        self.differentiable = bool(getattr(reward, "differentiable", False))
        self.wants = getattr(reward, "wants", "float32")
        self.by_row = getattr(reward, "by_row", False)

    @property
    def precision(self) -> str:
        from dav_ray.rewards.golden import precision_of

        return precision_of(self.reward)

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        """ValueError naming the prompt that has not such a column."""
        if missing := lacking(self._table, conditions, self._names):
            text, name = missing
            raise ValueError(f"the prompt {text!r} has no column {name}; it has {words(self._table.get(text, {}))}")
        return self.reward(samples, conditions, self.of(conditions))

    def of(self, conditions: Sequence[str]) -> dict[str, tuple[Any, ...]]:
        """The B values of each column."""
        return {name: tuple(self._table[text][name] for text in conditions) for name in self._names}


def words(columns: Mapping[str, Any]) -> str:
    return ", ".join(columns) or "none"
