"""`python jobs/gpu_hour`: see `study.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # in place of this folder: its modules are jobs.gpu_hour.*
# Ray's workers import from this package too, from whatever folder the command was started in
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], *filter(None, [os.environ.get("PYTHONPATH")])])

from jobs.gpu_hour.study import main  # noqa: E402

sys.exit(main())
