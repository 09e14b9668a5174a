"""What each of several rewards said, in tables and metrics: its own value, unweighted, under its name.

A run with one reward has no such columns: `reward` tells it. Shards that an older release wrote have none either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

PREFIX = "reward/"  # of a column, and of the mean over a round's accepted samples
EVALUATED = ("evaluate/reward_mean/", "evaluate/reward_std/")  # of metrics of plain samples


def shown(names: Sequence[str]) -> tuple[str, ...]:
    """The rewards that are told apart: all of them where they are several."""
    return tuple(names) if len(names) > 1 else ()


def columns(names: Sequence[str], each: np.ndarray) -> dict[str, pa.Array]:
    """each [n, R] float64; what is not known (NaN) is null."""
    return {
        f"{PREFIX}{name}": pa.array(each[:, i], pa.float64(), from_pandas=True) for i, name in enumerate(shown(names))
    }


def read_each(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """[n, R] float64; NaN where the table does not tell."""
    each = np.full((table.num_rows, len(names)), np.nan)
    for i, name in enumerate(names):
        if f"{PREFIX}{name}" in table.column_names:
            each[:, i] = table.column(f"{PREFIX}{name}").to_numpy()
    return each


def with_columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """A shard's table with all of `columns`, so that shards of several releases go together."""
    missing = [name for name in shown(names) if f"{PREFIX}{name}" not in table.column_names]
    for name in missing:
        place = table.column_names.index("reward") + 1 + list(names).index(name)
        table = table.add_column(place, f"{PREFIX}{name}", pa.nulls(table.num_rows, pa.float64()))
    return table


def named(table: pa.Table) -> list[str]:
    """The rewards that a table tells apart."""
    return [column.removeprefix(PREFIX) for column in table.column_names if column.startswith(PREFIX)]


def finite_of(values: Sequence[float | None]) -> np.ndarray:
    """What is known and finite."""
    found = np.array([np.nan if value is None else value for value in values], np.float64)
    return found[np.isfinite(found)]


def accepted_means(each: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """reward/<name>: the mean over accepted samples, of the finite values; absent where there are none."""
    finite = {name: finite_of(values) for name, values in each.items()}
    return {f"{PREFIX}{name}": float(values.mean()) for name, values in finite.items() if len(values)}


def evaluated(table: pa.Table) -> dict[str, float]:
    """Mean and standard deviation of each reward over plain samples, of the finite values."""
    metrics: dict[str, float] = {}
    for name in named(table):
        values = finite_of(table.column(f"{PREFIX}{name}").to_pylist())
        if len(values):
            metrics |= {f"{EVALUATED[0]}{name}": float(values.mean()), f"{EVALUATED[1]}{name}": float(values.std())}
    return metrics
