"""An S3 server for the tests of the lake: moto's, on a loopback port."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from streams.lake.files import LakeSettings

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


BUCKETS = itertools.count()


@contextmanager
def s3_lake(patch: pytest.MonkeyPatch) -> Iterator[LakeSettings]:
    """The settings of a lake in a new bucket of a server that runs meanwhile; its keys are in the environment."""
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    bucket = f"queryloop-{next(BUCKETS)}"  # moto's buckets live as long as the process
    for name, value in KEYS.items():
        patch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        S3FileSystem(endpoint_override=endpoint, region="us-east-1", allow_bucket_creation=True).create_dir(bucket)
        yield LakeSettings(maturity_floor_s=3600, url=f"s3://{bucket}/some/prefix", endpoint=endpoint, region="us-east-1")
    finally:
        server.stop()
