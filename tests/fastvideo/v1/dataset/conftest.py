"""Stores on S3."""

import time

import pytest

from fastvideo.v1.dataset.objects.store import Store
from tests.s3_servers import BUCKET, S3Server, make_bucket, use_server


@pytest.fixture(params=["moto", pytest.param("seaweed", marks=pytest.mark.slow)])
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server with an empty-enough bucket, named by the environment as users name it."""
    server: S3Server = request.getfixturevalue(request.param)
    use_server(monkeypatch, server)
    make_bucket(server)
    return server


@pytest.fixture
def s3_store(s3: S3Server, request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}-{time.time_ns()}", patience=5)
