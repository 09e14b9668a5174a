"""Accepted rows as Ray Data datasets, one per rank; and what Ray Data is kept from doing beside it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import ray

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
    from ray.data import dataset

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray's own name, which may move. With every dataset it asks all processes of the cluster for their memory, for its
    # statistics, and waits a minute for one that hangs: with a node cut off, or a stopped rank, for each group again
    if hasattr(dataset, "get_memory_info_reply"):
        dataset.get_memory_info_reply = _unasked  # pyright: ignore[reportPrivateImportUsage]


def _unasked(*_: Any, **__: Any) -> NoReturn:
    raise LookupError("nobody reads what Ray Data spilled")  # it does without


def keep_actors_here() -> None:
    """Ray Data has two actors that outlive a run, on the node of whoever asks for them first. That is to be the
    driver's: a rank's node would never be idle again, and never given back."""
    with contextlib.suppress(ImportError):  # Ray's own names, which may move
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator
        from ray.data._internal.stats import get_or_create_stats_actor

        get_or_create_stats_actor()
        default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()


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
