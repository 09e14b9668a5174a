"""What may help where a reward raised: less at once, another process, or another try. Nothing helps what is wrong.

Classes are known by their names, so that nothing is imported here: it works in any environment that a reward has.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from dav_ray.errors import Transient

# memory: fewer samples at once; device: another process, as this one's GPU is lost to it; transient: later
Fault = Literal["memory", "device", "transient"]

MEMORY_WORDS = ("can't allocate memory", "out of memory", "_ALLOC_FAILED", "RESOURCE_EXHAUSTED: Out of memory")
DEVICE_WORDS = ("CUDA error", "CUDNN_STATUS_", "CUBLAS_STATUS_", "HIP error", "device-side assert", "NCCL error")
BUSY = (408, 425, 429)  # HTTP: request timeout, too early, too many requests; and all from 500 on
UNREACHABLE = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT)
# (package, class), theirs and those derived from them
CONNECTIONS = {
    ("builtins", "ConnectionError"),
    ("builtins", "TimeoutError"),
    ("socket", "gaierror"),
    ("http", "IncompleteRead"),
    ("requests", "ConnectionError"),
    ("requests", "Timeout"),
    ("requests", "ChunkedEncodingError"),
    ("httpx", "TransportError"),
    ("httpcore", "TimeoutException"),
    ("httpcore", "NetworkError"),
    ("httpcore", "RemoteProtocolError"),
    ("urllib3", "TimeoutError"),
    ("urllib3", "ProtocolError"),
    ("urllib3", "MaxRetryError"),
    ("aiohttp", "ClientConnectionError"),
    ("openai", "APIConnectionError"),
    ("anthropic", "APIConnectionError"),
    ("grpc", "FutureTimeoutError"),
}
# what is derived from one of these and will be the same next time
MISTAKES = {
    ("requests", "SSLError"),
    ("urllib3", "LocationParseError"),
    ("httpx", "UnsupportedProtocol"),
    ("httpx", "LocalProtocolError"),
    ("aiohttp", "ClientConnectorCertificateError"),
    ("ssl", "SSLCertVerificationError"),
}


def fault_of(error: BaseException) -> Fault | None:
    """None: the reward or its data is wrong, and another try would raise the same."""
    if isinstance(error, Transient):
        return "transient"
    names, words = _names(error), str(error)
    if isinstance(error, MemoryError) or any(name == "OutOfMemoryError" for _, name in names):
        return "memory"
    if isinstance(error, RuntimeError):
        if any(part in words for part in MEMORY_WORDS):
            return "memory"
        if ("torch", "AcceleratorError") in names or any(part in words for part in DEVICE_WORDS):
            return "device"
    status = _status(error)
    if status is not None:
        return "transient" if status in BUSY or status >= 500 else None
    return "transient" if _connection(error, names) else None


def retry_after(error: BaseException) -> float | None:
    """Seconds that the other side asks to wait for, where it does: Retry-After as a number or a date."""
    if isinstance(error, Transient):
        return error.retry_after_s
    headers = _get(_get(error, "response"), "headers") or _get(error, "headers")
    value = headers.get("Retry-After") or headers.get("retry-after") if isinstance(headers, Mapping) else None
    if value is None and hasattr(headers, "get"):  # of urllib, no Mapping
        value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return _until(str(value))


def _until(date: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _status(error: BaseException) -> int | None:
    """An HTTP status that the error carries."""
    found = (_get(error, "status_code"), _get(_get(error, "response"), "status_code"), _get(error, "code"))
    for status in (*found, _get(error, "status")):
        if type(status) is int and 400 <= status < 600:
            return status
    return None


def _connection(error: BaseException, names: set[tuple[str, str]]) -> bool:
    if names & MISTAKES:
        return False
    if names & CONNECTIONS or (isinstance(error, OSError) and error.errno in UNREACHABLE):
        return True
    reason = _get(error, "reason")  # of urllib.error.URLError
    return isinstance(reason, OSError) and _connection(reason, _names(reason))


def _names(error: BaseException) -> set[tuple[str, str]]:
    """(package, name) of its class and of those that this is derived from."""
    return {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}


def _get(holder: Any, name: str) -> Any:
    try:
        return getattr(holder, name, None)
    except Exception:  # a property of a stranger's class
        return None
