"""Where a role's torch work happens, and how quiet its libraries are."""

from __future__ import annotations

import os


def role_device() -> str:
    """cuda where Ray gave this process a GPU, else cpu."""
    import torch

    return "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") and torch.cuda.is_available() else "cpu"


def quiet() -> None:
    """No progress bars or notices of model loading: a role's log holds what concerns the run."""
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
