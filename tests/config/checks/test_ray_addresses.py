"""`--address auto` where it may mean several Rays: one line at once, before Ray is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dav_ray.config.checks.preflight import check_address
from dav_ray.config.checks.ray_addresses import RAYLET, running
from dav_ray.errors import UserError
from tests.support.deadlines import hung
from tests.support.places import ROOT

ADDRESSES = ("203.0.113.7:6379", "127.0.0.1:65001")


def raylet(folder: Path, address: str) -> subprocess.Popen[bytes]:
    """A process that is called and asked like a node of a Ray, and does nothing."""
    link = folder / RAYLET
    if not link.exists():
        link.symlink_to(os.path.realpath(sys.executable))
    started = subprocess.Popen([link, "-c", "import time; time.sleep(120)", f"--gcs-address={address}", "--session=x"])
    while psutil.Process(started.pid).name() != RAYLET:
        time.sleep(0.01)
    return started


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nodes of two Rays; of one of them there are two, that know its port by different names."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    nodes = [raylet(tmp_path, address) for address in (*ADDRESSES, "localhost:65001")]
    yield
    for node in nodes:
        node.kill()
        node.wait()


def test_each_ray_is_found_once(two: None) -> None:
    found = [address for address in running() if address.endswith((":6379", ":65001"))]
    assert len(found) == 2 and found[1] == ADDRESSES[0] and found[0] in ("127.0.0.1:65001", "localhost:65001")


def test_auto_is_refused_at_once_where_there_are_two(two: None, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_address("auto")
    (line,) = caught.value.lines
    assert line.startswith("--address auto: ") and " Rays are up on this machine (" in line
    assert ADDRESSES[0] in line and "; allowed: one of them, for instance --address " in line

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dav_ray", "doctor", "--address", "auto"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=hung(60))
    said = re.compile(r"dav-ray: --address auto: \d+ Rays are up on this machine \((.*)\); allowed: one of them, .*\n")
    assert (done.returncode, done.stdout) == (2, "") and (found := said.fullmatch(done.stderr))
    assert ADDRESSES[0] in found[1].split(", ")  # beside Rays of other tests


def test_auto_is_what_the_environment_says_and_other_addresses_are_not_looked_for(
    two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_address("auto", connect=False)  # a dry run
    check_address("local")
    monkeypatch.setenv("RAY_ADDRESS", ADDRESSES[0])
    check_address("auto")
