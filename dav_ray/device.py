"""Precisions by name, the memory of a process' GPU, and how quiet a role's libraries are."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def peak_memory_gb() -> float:
    """The most that this process' tensors held of its GPU so far, in GB (10^9 bytes); 0 where it uses none."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_initialized() else 0.0


def quiet() -> None:
    """No progress bars or notices of model loading: a role's log holds what concerns the run."""
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
