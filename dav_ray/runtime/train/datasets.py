"""Accepted rows as Ray Data datasets, one per rank; and what Ray Data is kept from doing beside it."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from dav_ray.runtime.cluster.ray_private import skip_memory_statistics

if TYPE_CHECKING:
    import pyarrow as pa


_imports = threading.Lock()


def loaded() -> None:
    """Ray Data and Ray Train, imported: they import each other, which two threads at once can't do."""
    with _imports:
        importlib.import_module("ray.data")
        importlib.import_module("ray.train.torch")


def prepare() -> None:
    """Before a process makes or reads datasets."""
    loaded()
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    skip_memory_statistics()


def cut(tables: Sequence[Any], edges: Sequence[int]) -> list[Any]:
    """One dataset per rank: the rows edges[r] to edges[r + 1] - 1 of the tables (references), in order. RayError where
    a table is lost."""
    prepare()
    whole: Any = ray.data.from_arrow_refs(list(tables))
    return whole.split_at_indices(list(edges[1:-1])) if len(edges) > 2 else [whole]


def read(dataset: Any, timeout_s: float) -> list[pa.Table]:
    """A dataset's tables. RayError where they are lost, or not there in time."""
    # not iter_batches: Ray keeps what it measures of every dataset that is iterated over, for ever
    return ray.get(dataset.to_arrow_refs(), timeout=timeout_s)
