"""What a process keeps of the memory that it frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from dav_ray.diffusion.device import keep_to_share

COUNT = """
import resource, torch
from dav_ray.diffusion.device import keep_freed_memory
torch.set_num_threads(1)
if {keep}:
    keep_freed_memory()
x, w = torch.randn(64, 64, 200), torch.randn(64, 64, 9)
def layers():
    h = x
    for _ in range(6):
        h = torch.relu(torch.conv1d(h, w, padding=4)) / 30
layers(), layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    layers()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.thorough
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_memory_that_is_asked_for_again_costs_no_page_faults() -> None:
    """Activations of 3 MB, two per layer, that glibc gives back in between: some 49,000 pages of 4 kB."""
    faults = []
    for keep in (True, False):
        words = [sys.executable, "-c", COUNT.format(keep=keep)]
        faults.append(int(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    assert faults[0] < 0.2 * faults[1] and faults[1] > 5000


@pytest.mark.parametrize(
    ("gpus", "fraction"),
    [(0.5, 0.5 - 0.6 / 24), (0.9, 0.9 - 0.6 / 24), (0.02, 0.01), (1.0, None), (0.0, None)],
)
def test_a_process_keeps_to_its_part_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: float, fraction: float | None
) -> None:
    """Of 24 GB, its CUDA context of 0.6 GB left out, which no limit of torch counts."""
    held: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", held.append)
    keep_to_share(gpus)
    assert held == []  # there is no GPU here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, int(24e9)))
    keep_to_share(gpus)
    assert held == ([] if fraction is None else pytest.approx([fraction]))
