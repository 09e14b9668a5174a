"""What ranks raise, as the driver learns of it, and when to stop starting them again."""

from __future__ import annotations

import errno
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import ray
from ray import exceptions

from dav_ray.runtime.cluster.ray_private import error_log

RESTARTS = 3  # per round and rank, after an error or a death; the peers of a rank that was killed raise one too
FRAMES = 3  # of a traceback, the last ones
# of the operating system's errors, those that no other try changes
_FIXED = {None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_PASSING = (ConnectionError, TimeoutError, MemoryError, RuntimeError, exceptions.RayError)  # torch's are RuntimeErrors


@dataclass(frozen=True)
class Trouble:
    """cause: class and words; trace: the last frames of its traceback; node: Ray's id; log: the file on that node where
    the rest is; passing: whether it may go away by itself; final: whether it ends the run."""

    rank: int
    cause: str
    trace: str = ""
    node: str = ""
    log: str = ""
    passing: bool = True
    final: bool = False


def trouble_of(rank: int, error: Exception, *, final: bool) -> Trouble:
    """On the rank, while its error is handled. The whole traceback goes to its process' log."""
    sys.stderr.write("".join(traceback.format_exception(error)))  # Ray Train takes what is printed to another file
    words = " ".join(f"{type(error).__name__}: {error}".split())
    trace = "".join(traceback.format_tb(error.__traceback__)[-FRAMES:]).rstrip()
    node = ray.get_runtime_context().get_node_id()
    return Trouble(rank, words, trace, node, error_log(), may_pass(error), final)


def may_pass(error: Exception) -> bool:
    """Whether another try may help: infrastructure's errors, not those of code or of files that are not there."""
    if isinstance(error, OSError) and not isinstance(error, _PASSING):
        return error.errno not in _FIXED
    return isinstance(error, _PASSING)


def hopeless(troubles: Sequence[Trouble], ranks: int) -> str | None:
    """Why the ranks are not to be started again, given what they raised since the last policy: one of them raised the
    same error twice that no other try changes, or they raised too many."""
    again = Counter((trouble.rank, trouble.cause) for trouble in troubles if not trouble.passing)
    for (rank, cause), times in again.items():
        if times > 1:
            return f"rank {rank} failed twice with the same {cause}"
    if len(troubles) > RESTARTS * ranks:
        return f"its ranks failed again and again, last with {troubles[-1].cause}"
    return None


def in_words(trouble: Trouble) -> str:
    """For a terminal."""
    place = f"log on node {trouble.node[:8]}: {trouble.log}"
    return f"train: rank {trouble.rank} failed and is started again: {trouble.cause} ({place})\n{trouble.trace}"
