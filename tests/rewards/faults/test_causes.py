"""What may help where a reward raised: known by the classes that real libraries raise, and by what they carry."""

from __future__ import annotations

import email.message
import errno
import http.client
import pickle
import socket
import ssl
import time
import urllib.error
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
import torch
import urllib3

from dav_ray.errors import Transient
from dav_ray.rewards.faults.causes import fault_of, retry_after

CUDA = "CUDA error: an illegal memory access was encountered"


def named(package: str, name: str, base: type[Exception] = Exception, **fields: Any) -> Exception:
    """An error of a library that need not be installed."""
    error = type(name, (base,), {"__module__": f"{package}._exceptions"})("words")
    vars(error).update(fields)
    return error


def status(code: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = code
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return requests.HTTPError("refused", response=response)


def of_urllib(code: int, **headers: str) -> urllib.error.HTTPError:
    told = email.message.Message()
    for name, value in headers.items():
        told[name.replace("_", "-")] = value
    return urllib.error.HTTPError("http://a", code, "words", told, None)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(), ConnectionRefusedError(), BrokenPipeError(), TimeoutError(),
        socket.gaierror(socket.EAI_AGAIN, "try again"), OSError(errno.ENETUNREACH, "unreachable"),
        http.client.RemoteDisconnected(), http.client.IncompleteRead(b""),
        urllib.error.URLError(ConnectionRefusedError()), urllib.error.URLError(socket.gaierror(-3, "later")),
        requests.ConnectionError(), requests.ReadTimeout(), requests.ConnectTimeout(),
        requests.exceptions.ChunkedEncodingError(),
        urllib3.exceptions.ReadTimeoutError(None, "a", "b"), urllib3.exceptions.ProtocolError("broken"),  # type: ignore[arg-type]
        urllib3.exceptions.MaxRetryError(None, "a"),  # type: ignore[arg-type]
        named("httpx", "TransportError"), named("openai", "APIConnectionError"),
        type("ConnectTimeout", (type(named("httpx", "TransportError")),), {"__module__": "httpx"})(),
        status(429), status(500), status(503), status(408), of_urllib(502), of_urllib(429),
        named("openai", "RateLimitError", status_code=429), named("aiohttp", "ClientResponseError", status=503),
        named("mine", "Busy", code=504), Transient("later"),
    ],
)  # fmt: skip
def test_what_may_go_well_later(error: Exception) -> None:
    assert fault_of(error) == "transient"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"), RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("x"), AssertionError(),
        FileNotFoundError("weights"), OSError(errno.ENOSPC, "full"), PermissionError(), NotImplementedError(),
        status(400), status(401), status(404), status(422), of_urllib(403), named("mine", "Busy", code="504"),
        named("mine", "Exit", code=7), named("mine", "Odd", code=True),
        urllib.error.URLError("unknown url type: foo"), urllib.error.URLError(ssl.SSLCertVerificationError()),
        requests.exceptions.SSLError(), requests.exceptions.MissingSchema(), ssl.SSLCertVerificationError(),
        type("UnsupportedProtocol", (type(named("httpx", "TransportError")),), {"__module__": "httpx"})(),
        named("mine", "ConnectionError"),  # a stranger's class of that name says nothing
    ],
)  # fmt: skip
def test_what_would_be_the_same_again(error: Exception) -> None:
    assert fault_of(error) is None


def test_a_status_outweighs_the_class() -> None:
    assert fault_of(named("requests", "ConnectionError", status_code=404)) is None


def test_memory() -> None:
    with pytest.raises(MemoryError) as of_numpy:
        np.empty((2**40, 2**20), np.uint8)
    assert fault_of(of_numpy.value) == fault_of(MemoryError()) == "memory"
    assert fault_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) == "memory"
    for words in ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED when calling"):
        assert fault_of(RuntimeError(words)) == "memory"
    assert fault_of(torch.AcceleratorError("CUDA error: out of memory")) == "memory"
    assert fault_of(named("cupy", "OutOfMemoryError")) == "memory"
    assert fault_of(ValueError("out of memory")) is None  # words that anyone may write


def test_the_device() -> None:
    assert fault_of(torch.AcceleratorError(CUDA)) == fault_of(RuntimeError(CUDA)) == "device"
    assert fault_of(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")) == "device"
    assert fault_of(ValueError(CUDA)) is None


def test_a_stranger_whose_attributes_raise() -> None:
    class Odd(Exception):
        @property
        def status_code(self) -> int:
            raise RuntimeError("not read yet")

    assert fault_of(Odd()) is None and retry_after(Odd()) is None


def test_retry_after_in_seconds_or_as_a_date() -> None:
    assert retry_after(status(429, Retry_After="7")) == 7.0
    assert retry_after(of_urllib(503, Retry_After="2.5")) == 2.5
    assert retry_after(Transient("busy", retry_after_s=3.0)) == 3.0
    found = retry_after(status(503, Retry_After=formatdate(time.time() + 100, usegmt=True)))
    assert found is not None and 90 < found <= 100
    assert retry_after(status(503, Retry_After=formatdate(time.time() - 100))) == 0.0
    for error in (status(503), status(503, Retry_After="soon"), ValueError(), Transient()):
        assert retry_after(error) is None
    assert retry_after(named("a", "B", response=SimpleNamespace(headers={"retry-after": "4"}))) == 4.0


def test_transient_travels() -> None:
    found = pickle.loads(pickle.dumps(Transient("busy", 3.0)))
    assert (type(found), str(found), found.retry_after_s) == (Transient, "busy", 3.0)
