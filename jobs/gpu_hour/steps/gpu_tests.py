"""The tests that want a GPU, as pytest counts them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Iterator, Mapping
from pathlib import Path

from jobs.gpu_hour.record import Result
from jobs.gpu_hour.setting import Setting
from jobs.gpu_hour.steps.base import Measure, Step, cells
from jobs.tables import Table

ROOT = Path(__file__).resolve().parents[3]
CASES = {"quick": "gpu and not slow", "slow": "gpu and slow"}
TINY_TESTS = "tests/diffusion/test_device.py"  # quick ones, that want no GPU
COUNTS = ("tests", "failures", "errors", "skipped")


@contextlib.contextmanager
def opened(setting: Setting) -> Iterator[Measure]:
    def measure(case: str) -> Result:
        report = setting.out / f"pytest-{case}.xml"
        where = [TINY_TESTS] if setting.tiny else ["tests", "-m", CASES[case]]
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider", *where]
        done = subprocess.run([*command, f"--junitxml={report.resolve()}"], cwd=ROOT, stdout=sys.stderr)
        suite = xml.parse(report).getroot().find("testsuite")
        assert suite is not None
        return {"exit_code": done.returncode, **{name: int(suite.get(name, 0)) for name in COUNTS}}

    yield measure


def table(results: Mapping[str, Result]) -> Table:
    rows = tuple((case, *cells(each, *COUNTS)) for case, each in results.items())
    return Table("GPU tests", ("which", *COUNTS), rows)


STEP = Step("tests", lambda setting: ["quick"] if setting.tiny else list(CASES), opened, table)
