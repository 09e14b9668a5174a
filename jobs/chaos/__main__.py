"""`python jobs/chaos`: see `study.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # in place of this folder: its modules are jobs.chaos.*

from jobs.chaos.study import main  # noqa: E402

sys.exit(main())
