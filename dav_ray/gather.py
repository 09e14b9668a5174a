"""Tables that search workers measure, as the driver fetches them: one that is lost with its node is measured again, and
is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray import exceptions

from dav_ray.errors import RunError
from dav_ray.types import EvaluationChunk

ATTEMPTS = 10  # at tables that are lost with their nodes
FETCH_S = 1200.0  # longest wait for a table that is there

Tables = dict[int, pa.Table]  # by chunk
OnResult = Callable[[EvaluationChunk, Any, Any], None]


def gathered(
    chunks: Sequence[EvaluationChunk],
    measure: Callable[[Sequence[EvaluationChunk], OnResult, Tables], None],
    on_loss: Callable[[EvaluationChunk, str], None],
) -> pa.Table:
    """The rows of all chunks, in their order. measure: has chunks measured, and sees what there is so far; on_loss:
    hears of a chunk whose table was lost, and why. RunError where tables are lost again and again."""
    tables: Tables = {}

    def keep(chunk: EvaluationChunk, table: Any, _: Any) -> None:
        try:
            tables[chunk.index] = ray.get(table, timeout=FETCH_S)
        except (exceptions.ObjectLostError, exceptions.GetTimeoutError) as error:
            on_loss(chunk, type(error).__name__)

    for _ in range(ATTEMPTS):
        measure([chunk for chunk in chunks if chunk.index not in tables], keep, tables)
        if len(tables) == len(chunks):
            return pa.concat_tables([tables[index] for index in sorted(tables)])
    raise RunError("search", f"tables of {chunks[0].name} and others were lost {ATTEMPTS} times with their nodes")
