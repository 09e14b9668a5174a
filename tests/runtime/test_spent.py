"""Where a search worker's time goes, as metrics: shares of waiting and decoding, a chunk by kind of device."""

from __future__ import annotations

import time

import pytest

from dav_ray.runtime.spent import Ledger, Meter, Spent
from tests.support.deadlines import stretched


def test_what_is_waited_and_what_is_decoded() -> None:
    meter = Meter("cpu")
    decode = meter.watched(lambda x, *, t: (time.sleep(0.05), x + t)[1])
    assert decode(1, t=2) == 3
    meter.start()  # another chunk
    for _ in range(2):
        decode(1, t=2)
        with meter.waiting():
            time.sleep(0.1)
    found = meter.read()
    assert found.kind == "CPU" and 0.3 <= found.seconds < stretched(0.5)
    assert 0.2 <= found.waited_s < found.seconds - found.decoded_s + 0.01 and 0.1 <= found.decoded_s


def test_shares_and_kinds() -> None:
    ledger = Ledger()
    assert ledger.metrics() == {}
    for spent in (
        Spent(10.0, 4.0, 2.0, "NVIDIA A100-SXM4-80GB"),
        Spent(20.0, 2.0, 5.0, "NVIDIA L4"),
        Spent(30.0, kind="NVIDIA L4"),
    ):
        ledger.add(spent)
    assert ledger.metrics() == {
        "search/reward_wait_share": pytest.approx(6 / 60),
        "search/decode_share": pytest.approx(7 / 60),
        "chunk_s/NVIDIA_A100-SXM4-80GB": 10.0,
        "chunk_s/NVIDIA_L4": 25.0,
    }
