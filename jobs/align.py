"""`dav-ray run` in a job: ray job submit --working-dir . -- python jobs/align.py RECIPE.yaml ..."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("dav_ray") is None:  # not installed on the cluster: use the copy that came with the job
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dav_ray.cli.app import app  # noqa: E402

if __name__ == "__main__":
    os.environ.setdefault("RAY_ADDRESS", "auto")  # Ray sets it inside a job
    app(["run", *sys.argv[1:]], prog_name="jobs/align.py")
