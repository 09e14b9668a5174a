"""What several test files share: storages, a tiny pipeline, one torch thread; and what holds for each of them: the
order, limits of time, files and processes that end with the tests."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage
from tests.support import shared_ray as the_shared
from tests.support.deadlines import hung
from tests.support.processes import MARK, command, end_those_left

BUCKET = "runs"
FIRST = ("whole", "runtime", "diffusion", "config", "search")  # folders, the longest files first
SCRATCH = pytest.StashKey[str]()
SHARED = "shared_ray"  # the fixture


def pytest_configure(config: pytest.Config) -> None:
    """A mark for all processes that are started here, and a folder for what they write: logs and sockets of Ray too."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # where pytest's own folders stay
    os.environ[MARK] = uuid.uuid4().hex
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process that is started would compile the package anew
    sys.dont_write_bytecode = False
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start: all networks here are tiny
    config.stash[SCRATCH] = tempfile.mkdtemp(prefix="dt-", dir="/tmp")  # short: sockets have their paths in it
    os.environ["TMPDIR"], tempfile.tempdir = config.stash[SCRATCH], None
    Path(config.stash[SCRATCH], "ray").mkdir()  # clusters with a folder of their own write their address here too


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[SCRATCH], ignore_errors=True)


def pytest_collection_finish() -> None:
    """What is imported by now is never garbage: each collection would walk through a million objects."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders with whole runs first: begun last, one of them would be waited for alone. In a folder the files that
    share a Ray come one after the other."""
    here = Path(__file__).parent
    folders = [item.path.relative_to(here).parts[0] for item in items]
    known = {path.name for path in here.iterdir()}
    assert known.issuperset(FIRST), "tests/conftest.py: FIRST names a folder that is not there"
    rank = {name: number for number, name in enumerate(FIRST)}
    sharing = {item.path for item in items if SHARED in getattr(item, "fixturenames", ())}
    place = {n: (rank.get(folders[n], len(rank)), item.path not in sharing) for n, item in enumerate(items)}
    order = sorted(place, key=lambda number: place[number])
    items[:] = [items[number] for number in order]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that hangs is ended; one that waits on a loaded machine is not."""
    marker = item.get_closest_marker("timeout")
    seconds = marker.args[0] if marker else item.config.getoption("timeout") or item.config.getini("timeout")
    item.add_marker(pytest.mark.timeout(hung(float(seconds))), append=False)
    return (yield)


@pytest.fixture(scope="module", autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the tests of a file started has ended with them; else it is ended, and the file fails. Only the Ray that
    files share outlives them, until a file comes that does not."""
    here = [item for item in request.session.items if item.path == request.path]
    if not any(SHARED in getattr(item, "fixturenames", ()) for item in here):
        _end_shared_ray()
    yield
    if not the_shared.is_up():
        _nothing_is_left()
        return
    left = [command(process) for process in the_shared.left_in_it()]
    if left:
        _end_shared_ray()
    assert not left, f"processes are left in the shared Ray: {left}"


@pytest.fixture(scope="session", autouse=True)
def nothing_stays_at_the_end() -> Iterator[None]:
    yield
    _end_shared_ray()


@pytest.fixture(scope="module")
def shared_ray() -> None:
    """Ray on this machine, for any file that needs no other: 4 CPUs, and a GPU that Ray takes for an A100."""
    the_shared.start()


def _end_shared_ray() -> None:
    if the_shared.is_up():
        the_shared.end()
        _nothing_is_left()


def _nothing_is_left() -> None:
    left = end_those_left()
    assert not left, f"processes are left: {left}"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The number of threads is part of what makes results bit-equal."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a saved tiny StableDiffusionPipeline (latents 4 x 4 x 4, images 16 x 16)."""
    from dav_ray.diffusion.device import quiet
    from tests.support.tiny import save_tiny

    quiet()
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket on a fresh S3 server; the environment says where and as whom to reach it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "run"))
    # the blank is on purpose: run directories may have one
    return open_storage(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}/run 1")
