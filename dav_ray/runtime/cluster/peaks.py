"""What known GPUs can multiply at most, by the name that torch gives them.

Sources are NVIDIA's data sheets: A100 (nvidia-a100-datasheet-us-nvidia-1758950-r4), H100
(nvidia-tensor-core-gpu-datasheet), H200 (hpc-datasheet-sc23-h200-datasheet-3002446), HGX B200, L4, L40, L40S
(l40s-datasheet-28413), A10 (a10-datasheet), A10G (NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022), T4
(t4-tensor-core-datasheet-951643), V100 (v100-datasheet-update-us-1165301-r5); for RTX 3090 and 4090 the appendices of
the whitepapers on GA102 and Ada. Where a sheet counts with sparsity, half of it stands here. A part of a GPU (MIG), and
a GPU whose name is not here, has no peak.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Dense matrix products in TFLOPS, added up in float32, by their factors' format. None: the GPU has no units for
    it, or it is not known here. tf32: float32 products where TF32 is allowed; as fast as float32's own on a GPU without
    units for it."""

    bfloat16: float | None
    float16: float
    tf32: float | None
    float32: float

    def of(self, precision: str) -> float | None:
        """By the name of a field."""
        found: dict[str, float | None] = vars(self)
        return found.get(precision)


PEAKS = (  # the whole name matches, without NVIDIA's own
    (r"B200", Peak(2250, 2250, None, 75)),
    (r"H200", Peak(989, 989, 494.5, 67)),
    (r"H200 NVL", Peak(835, 835, 417.5, 60)),
    (r"H100 80GB HBM3", Peak(989, 989, 494.5, 67)),  # SXM
    (r"H100 PCIe", Peak(756, 756, 378, 51)),
    (r"H100 NVL", Peak(835, 835, 417.5, 60)),
    (r"A100(-SXM4-(40|80)GB|-PCIE-40GB| 80GB PCIe)", Peak(312, 312, 156, 19.5)),
    (r"L40S", Peak(362, 362, 183, 91.6)),
    (r"L40", Peak(181, 181, 90.5, 90.5)),
    (r"L4", Peak(121, 121, 60, 30.3)),
    (r"A10G", Peak(70, 70, 35, 35)),
    (r"A10", Peak(125, 125, 62.5, 31.2)),
    (r"T4", Peak(None, 65, 8.1, 8.1)),
    (r"V100-SXM2-(16|32)GB", Peak(None, 125, 15.7, 15.7)),
    (r"V100-PCIE-(16|32)GB", Peak(None, 112, 14, 14)),
    (r"V100S-PCIE-32GB", Peak(None, 130, 16.4, 16.4)),
    (r"GeForce RTX 4090", Peak(165, 165, 82.6, 82.6)),
    (r"GeForce RTX 3090", Peak(71, 71, 35.6, 35.6)),
)


def peak(name: str) -> Peak | None:
    """None for a GPU that is not known."""
    own = re.sub(r"^(NVIDIA|Tesla) ", "", name)
    return next((found for pattern, found in PEAKS if re.fullmatch(pattern, own)), None)
