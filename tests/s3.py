"""An S3 server on loopback, in this process: real requests, buckets in memory."""

import logging
from contextlib import contextmanager

import pytest
from pyarrow.fs import FileSystem


@contextmanager
def s3_bucket():
    """URI of a new bucket, as a format string for a key: `bucket.format("one")`."""
    server = pytest.importorskip("moto.server", reason="needs moto[s3], flask and flask-cors")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        port = running.get_host_and_port()[1]
        options = f"scheme=http&endpoint_override=127.0.0.1%3A{port}&region=us-east-1"
        filesystem, _ = FileSystem.from_uri(
            f"s3://key:secret@runs/?{options}&allow_bucket_creation=1"
        )
        filesystem.create_dir("runs")
        yield f"s3://key:secret@runs/{{}}?{options}"
    finally:
        running.stop()
