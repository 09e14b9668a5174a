"""Where a search worker's time goes, as metrics: shares of waiting and decoding, a chunk by kind of device, speed."""

from __future__ import annotations

import time

import pytest
import torch

from dav_ray.config.figures import Work
from dav_ray.runtime.spent import Ledger, Meter, Spent
from dav_ray.types import Cost
from tests.support.deadlines import stretched

LIBRARIES = torch.backends.cuda.matmul, torch.backends.cudnn


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


WORK = Work(evaluation=2e12, decoding=5e11)


def ledger(*items: tuple[Spent, Cost]) -> Ledger:
    found = Ledger()
    for spent, cost in items:
        found.add(spent, cost)
    return found


def test_shares_and_medians() -> None:
    """A mean would be 40: one slow chunk says nothing about a kind."""
    assert Ledger().metrics(WORK) == {}
    found = ledger(
        (Spent(10.0, 4.0, 2.0, "NVIDIA A100-SXM4-80GB", "bfloat16", "a100"), Cost()),
        (Spent(20.0, 2.0, 5.0, "NVIDIA L4", "bfloat16", "spot l4"), Cost()),
        (Spent(75.0, kind="NVIDIA L4", precision="bfloat16", group="spot l4"), Cost()),
        (Spent(25.0, 4.0, kind="NVIDIA L4", precision="bfloat16"), Cost()),
    )
    assert found.metrics(None) == {
        "search/reward_wait_share": pytest.approx(10 / 130),
        "search/decode_share": pytest.approx(7 / 130),
        "chunk_s/NVIDIA_A100-SXM4-80GB": 10.0,
        "chunk_s/NVIDIA_L4": 25.0,
        "group_chunk_s/a100": 10.0,
        "group_chunk_s/spot_l4": 47.5,
    }
    assert found.metrics(WORK) == found.metrics(None)  # nothing was counted: no zeros


def speed(*items: tuple[Spent, Cost], work: Work | None = WORK) -> dict[str, float]:
    found = ledger(*items).metrics(work)
    return {name: value for name, value in found.items() if name.startswith(("search/tflops", "peak_share/"))}


def test_how_fast_workers_compute() -> None:
    """(100 + 20 + 10) evaluations and (40 + 20) decodings are 290 TFLOP, on the A100 in 20 - 10 s: 29 of its 312; on
    two L4s 100 + 5 TFLOP in 6 + 4 s."""
    cost = Cost(network=100, backward=20, reference=10, reward=40)
    a100 = Spent(20.0, 10.0, kind="NVIDIA A100-SXM4-80GB", precision="bfloat16")
    l4s = Spent(8.0, 2.0, kind="NVIDIA L4", precision="bfloat16"), Spent(4.0, kind="NVIDIA L4", precision="bfloat16")

    assert speed((a100, cost)) == {"search/tflops": 29.0, "peak_share/NVIDIA_A100-SXM4-80GB": pytest.approx(29 / 312)}
    assert speed((a100, cost), (l4s[0], Cost(network=50)), (l4s[1], Cost(reward=10))) == {
        "search/tflops": pytest.approx((290 + 105) / (10 + 10)),
        "peak_share/NVIDIA_A100-SXM4-80GB": pytest.approx(29 / 312),
        "peak_share/NVIDIA_L4": pytest.approx(10.5 / 121),
    }


def test_what_is_not_known_is_left_out() -> None:
    cost = Cost(network=100, reward=40)
    known = Spent(20.0, 10.0, kind="NVIDIA L4", precision="bfloat16")
    other = Spent(20.0, 10.0, kind="NVIDIA L5", precision="bfloat16")

    assert speed((other, cost)) == {"search/tflops": 22.0}
    assert speed((known, cost), (other, cost)) == {
        "search/tflops": 22.0,
        "peak_share/NVIDIA_L4": pytest.approx(22 / 121),
    }
    assert speed((Spent(20.0, 10.0, kind="Tesla T4", precision="bfloat16"), cost)) == {"search/tflops": 22.0}
    assert speed((known, cost), work=None) == {}
    assert speed((known, cost), work=Work(2e12, None)) == {}  # decodings took time, nobody knows for how much
    assert speed((Spent(20.0, 20.0, kind="NVIDIA L4", precision="bfloat16"), cost)) == {}


def test_float32_products_may_be_shortened_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    before = [library.allow_tf32 for library in LIBRARIES]
    try:
        for library in LIBRARIES:
            library.allow_tf32 = False
        said = [Meter("cuda").read().precision, Meter("cuda", "bfloat16").read().precision]
        LIBRARIES[1].allow_tf32 = True
        said += [
            Meter("cuda").read().precision,
            Meter("cuda", "float16").read().precision,
            Meter("cpu").read().precision,
        ]
    finally:
        for library, allowed in zip(LIBRARIES, before, strict=True):
            library.allow_tf32 = allowed
    assert said == ["float32", "bfloat16", "tf32", "float16", "float32"]
