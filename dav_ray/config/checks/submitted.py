"""Whether this process is a submitted job's, whose folders are copies."""

from __future__ import annotations

import os


def inside_submitted_job() -> bool:
    """Whether this process is a Ray job's entrypoint: only its supervisor sets this variable."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
