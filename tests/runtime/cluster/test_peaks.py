"""Peaks of GPUs by the names that torch gives them; of what is not on a data sheet nothing is said."""

from __future__ import annotations

import pytest

from dav_ray.runtime.cluster.peaks import PEAKS, peak

FORMATS = "bfloat16", "float16", "tf32", "float32"


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-40GB", (312, 312, 156, 19.5)),
        ("A100-SXM4-80GB", (312, 312, 156, 19.5)),
        ("NVIDIA A100 80GB PCIe", (312, 312, 156, 19.5)),
        ("NVIDIA H100 80GB HBM3", (989, 989, 494.5, 67)),
        ("NVIDIA H100 PCIe", (756, 756, 378, 51)),
        ("NVIDIA H200", (989, 989, 494.5, 67)),
        ("NVIDIA L4", (121, 121, 60, 30.3)),
        ("NVIDIA L40S", (362, 362, 183, 91.6)),
        ("NVIDIA A10G", (70, 70, 35, 35)),
        ("Tesla T4", (None, 65, 8.1, 8.1)),
        ("Tesla V100-SXM2-16GB", (None, 125, 15.7, 15.7)),
        ("Tesla V100-PCIE-32GB", (None, 112, 14, 14)),
        ("NVIDIA GeForce RTX 3090", (71, 71, 35.6, 35.6)),
        ("NVIDIA GeForce RTX 4090", (165, 165, 82.6, 82.6)),
    ],
)
def test_known_gpus(name: str, tflops: tuple[float | None, ...]) -> None:
    found = peak(name)
    assert found is not None and tuple(found.of(form) for form in FORMATS) == tflops
    assert found.of("float64") is None


@pytest.mark.parametrize(
    "name",
    [
        "CPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GH200 480GB",
        "NVIDIA A100X",
        "NVIDIA T400",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_others_have_no_peak(name: str) -> None:
    assert peak(name) is None


def test_a_shorter_format_is_never_slower() -> None:
    for _, found in PEAKS:
        assert found.float16 >= (found.tf32 or 0) >= 0 and (found.tf32 or found.float32) >= found.float32
        assert found.bfloat16 in (None, found.float16)
