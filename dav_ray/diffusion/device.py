"""Precisions by name, the memory of a process' GPU, and how quiet a role's libraries are."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
MOST_FROM_HEAP, MOST_KEPT = 32 * 2**20, 2**30  # bytes; more than 32 MiB is never taken from the heap
CUDA_CONTEXT = 0.6e9  # bytes that a process takes on a GPU before its first tensor
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def peak_memory_gb() -> float:
    """The most that this process' tensors held of its GPU so far, in GB (10^9 bytes); 0 where it uses none."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_initialized() else 0.0


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory was wanted, of a GPU or of the host, that there was not."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # torch has no class for these
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def in_a_line(error: BaseException) -> str:
    """The error's class and the first line of what it says."""
    return " ".join([f"{type(error).__name__}:", *str(error).strip().splitlines()[:1]])


def free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to a GB, for what it asks for next. glibc gives large blocks back to the
    kernel at once; a network on the CPU asks for the same ones again and again, and up to a quarter of its time goes
    into page faults. Nothing happens where there is another C library."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, MOST_FROM_HEAP)
        libc.mallopt(TRIM_THRESHOLD, MOST_KEPT)


def keep_to_share(gpus: float) -> None:
    """Hold this process' tensors to its part of a GPU that it shares, so that it runs out of memory before a neighbour
    does. gpus: its part, its CUDA context included; nothing happens with a whole one, or without CUDA."""
    if not 0 < gpus < 1 or not torch.cuda.is_available():
        return
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(max(gpus / 2, gpus - CUDA_CONTEXT / total))


def memory_in_words() -> str:
    """What this process took at most, and what its GPU has, or it of the host."""
    if torch.cuda.is_initialized():
        return f"{peak_memory_gb():.2f} GB of the GPU's {torch.cuda.mem_get_info()[1] / 1e9:.2f} GB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB of the host"


def quiet() -> None:
    """No progress bars or notices of model loading: a role's log holds what concerns the run."""
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
