"""`dav-ray pretrain` from a clone: python jobs/pretrain_masked.py sequences.csv --out models/mine --steps 10000"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("dav_ray") is None:  # not installed: use the copy that this file came with
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dav_ray.cli.app import app  # noqa: E402

if __name__ == "__main__":
    app(["pretrain", *sys.argv[1:]], prog_name="jobs/pretrain_masked.py")
