"""What is kept of a chunk whose data failed."""

from __future__ import annotations

import traceback

from dav_ray.errors import DataError, DavRayError
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.tracebacks import innermost
from dav_ray.runtime.cluster.failures import TRACE
from dav_ray.runtime.search.process import Process
from dav_ray.types import Chunk, EvaluationChunk


def quarantined(
    storage: Storage, chunk: Chunk | EvaluationChunk, error: Exception, worker: str, process: Process
) -> DataError:
    """The error to raise, which names the evidence, or why there is none. worker: name of the one that had the chunk,
    in this process."""
    from dav_ray.run_dir.quarantine import Scene, keep
    from dav_ray.runtime.cluster.versions import library_versions

    name = type(error).__name__
    fault = error
    trace = "".join(traceback.format_exception(error))
    if not isinstance(fault, DataError):
        words = f"chunk {chunk.name} on {worker}: {name}: {error} ({innermost(error)})"
        fault = DataError("search", words, name)
        fault.trace = trace[-TRACE:]
    try:
        scene = Scene(worker, process.node, process.pid, trace, library_versions())
        return keep(storage, chunk, fault, scene)
    except (OSError, DavRayError) as unkept:
        bare = DataError(fault.role, f"{fault.words}; evidence could not be kept: {unkept}", fault.what, fault.rows)
        bare.trace = fault.trace
        return bare
