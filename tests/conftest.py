"""What several test files share: storages, a tiny pipeline, one torch thread."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dav_ray.storage import Storage, open_storage

BUCKET = "runs"
WHOLE_RUNS = ("test_run", "test_chaos", "test_job", "test_overlap", "test_nodes", "test_doctor", "test_fleet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with whole runs first: begun last, one of them would be waited for alone."""
    items.sort(key=lambda item: not item.path.name.startswith(WHOLE_RUNS))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The number of threads is part of what makes results bit-equal."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a saved tiny StableDiffusionPipeline (latents 4 x 4 x 4, images 16 x 16)."""
    from dav_ray.device import quiet
    from tests.tiny import save_tiny

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
