"""Prompts of tables: Parquet files, and what `datasets.Dataset.save_to_disk` wrote (Arrow files).

Columns of texts, numbers, truth values, and lists and structures of them are taken; others, for instance pictures and
times, are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dav_ray.config.sections.prompts import MOST_PROMPTS, PROMPT, Prompts, from_rows
from dav_ray.redact import show

STATE, SPLITS = "state.json", "dataset_dict.json"
RULE = "allowed: a Parquet file, a folder of them, or a folder that save_to_disk wrote"


def of_tables(place: Path) -> Prompts:
    """Of a file, or of the files of a folder in the order of their names. ValueError: why there are none."""
    files = _files(place) if place.is_dir() else [place]
    tables = [_read(file) for file in files]
    count = sum(table.num_rows for table in tables)
    if not count:
        raise ValueError("the table is empty; allowed: one prompt per row")
    if count > MOST_PROMPTS:
        raise ValueError(f"{count:,} prompts; allowed: at most {MOST_PROMPTS:,}")
    return from_rows(row for table in tables for row in _rows(table))


def _files(folder: Path) -> list[Path]:
    if (folder / STATE).is_file():
        return _of_data_set(folder)
    if (folder / SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))
        raise ValueError(f"holds several parts of a data set; allowed: one of {', '.join(splits) or 'its folders'}")
    found = sorted(folder.glob("*.parquet"))
    if not found:
        raise ValueError(f"the folder holds no Parquet files; {RULE}")
    return found


def _of_data_set(folder: Path) -> list[Path]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{STATE} is none that save_to_disk wrote ({type(error).__name__}); {RULE}") from None
    if state.get("_indices_files"):
        raise ValueError("its rows are chosen by an index; allowed: flatten_indices() before save_to_disk")
    return [folder / name for name in names]


def _read(file: Path) -> pa.Table:
    try:
        return _table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file.name} can't be read: {' '.join(str(error).split())[:200]}") from None


def _table(file: Path) -> pa.Table:
    """The columns of a file that are taken. ValueError where none is `prompt`."""
    if file.suffix == ".arrow":
        with pa.memory_map(str(file)) as source:
            schema = pa.ipc.open_stream(source).schema
        names = _taken(schema, file)
        with pa.memory_map(str(file)) as source:
            return pa.ipc.open_stream(source).read_all().select(names)
    with pq.ParquetFile(file) as held:
        return held.read(columns=_taken(held.schema_arrow, file))


def _taken(schema: pa.Schema, file: Path) -> list[str]:
    if PROMPT not in schema.names:
        raise ValueError(f"{file.name} has no column {PROMPT}; it has {', '.join(schema.names) or 'none'}")
    text = schema.field(PROMPT).type
    if not (_is_text(text) or pa.types.is_null(text)):
        raise ValueError(f"{file.name}: the column {PROMPT} holds {show(str(text))}; allowed: texts")
    return [field.name for field in schema if _is_plain(field.type)]


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_plain(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return numbers or _is_text(kind) or pa.types.is_null(kind)


def _rows(table: pa.Table) -> Iterator[Any]:
    for batch in table.to_batches(max_chunksize=1000):
        yield from (_without_nan(row) for row in batch.to_pylist())


def _without_nan(value: Any) -> Any:
    """Tables have NaN where nothing is known."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
