"""The fixture `s3`: an empty bucket on a real S3 server over HTTP.

`ARCPIPE_TEST_S3_ENDPOINT` names a server to use, with its credentials in `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY` and its region, if not us-east-1, in `AWS_DEFAULT_REGION`. Without it a moto server runs as a
process of its own on a free loopback port, one per pytest (and per xdist worker).
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.config import Config

# The server asks the kernel to end with its parent, so that not even a pytest that is killed leaves it behind.
# Of two puts on one condition S3 lets one win. Moto looks and then writes, so each such request has to have its turn.
_MOTO = """
import ctypes, functools, os, signal, sys, threading
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone already")
from moto.s3.responses import S3Response
from moto.server import main
turn = threading.RLock()
def in_turn(method):
    @functools.wraps(method)
    def call(*arguments, **options):
        with turn:
            return method(*arguments, **options)
    return call
for name in ("_key_response_put", "_key_response_post", "_key_response_delete"):
    setattr(S3Response, name, in_turn(getattr(S3Response, name)))
main(["-H", "127.0.0.1", "-p", "0"])
"""
_START_SECONDS = 120
# Keys of one page of a listing: with 1000, as S3 has it, a listing of two pages takes a thousand puts.
_PAGE_KEYS = 50


@dataclass(frozen=True)
class S3Server:
    """An S3 endpoint and how to use it."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str
    region: str
    page_keys: int = 1000  # of a listing: S3's own number

    def client(self) -> Any:
        """A boto3 client, to look at the server from outside."""
        return _client(self.endpoint_url, self.access_key_id, self.secret_access_key, self.region)


@dataclass(frozen=True)
class S3Bucket(S3Server):
    """The same with a bucket of one's own."""

    bucket: str = ""

    def list_keys(self) -> list[str]:
        """All keys in the bucket, sorted."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))

    def read(self, key: str) -> bytes:
        body: bytes = self.client().get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def uploads(self) -> list[str]:
        """The keys of multipart uploads that were neither completed nor aborted."""
        answer = self.client().list_multipart_uploads(Bucket=self.bucket)
        return [upload["Key"] for upload in answer.get("Uploads", [])]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The server, without a bucket."""
    region = os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    if endpoint_url := os.environ.get("ARCPIPE_TEST_S3_ENDPOINT"):
        yield S3Server(endpoint_url, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], region)
        return
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _MOTO, str(os.getpid())],
            env=os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": str(_PAGE_KEYS)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            yield S3Server(
                _wait_until_it_answers(process, output.fileno()), "test-key-id", "test-secret", region, _PAGE_KEYS
            )
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Bucket]:
    """A fresh bucket, removed with all that is in it afterwards."""
    name = f"arcpipe-test-{uuid.uuid4().hex[:16]}"
    bucket = S3Bucket(**vars(s3_server), bucket=name)
    client = bucket.client()
    place = {} if bucket.region == "us-east-1" else {"LocationConstraint": bucket.region}
    client.create_bucket(Bucket=name, **({"CreateBucketConfiguration": place} if place else {}))
    yield bucket
    for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", []):
        client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
    keys = bucket.list_keys()
    for first in range(0, len(keys), 1000):
        client.delete_objects(
            Bucket=name, Delete={"Objects": [{"Key": key} for key in keys[first : first + 1000]], "Quiet": True}
        )
    client.delete_bucket(Bucket=name)


@functools.cache  # making one takes longer than most of what it is then asked
def _client(endpoint_url: str, access_key_id: str, secret_access_key: str, region: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        region_name=region,
        config=Config(s3={"addressing_style": "path"}),
    )


def _wait_until_it_answers(process: subprocess.Popen[bytes], output: int) -> str:
    """The URL on which the server says that it listens, which is after it began to."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if found := re.search(rb"Running on (http://127\.0\.0\.1:\d+)", os.pread(output, 65536, 0)):
            return found[1].decode()
        time.sleep(0.05)
    said = os.pread(output, 65536, 0).decode(errors="replace")
    raise RuntimeError(f"the S3 server did not start within {_START_SECONDS} s (exit {process.poll()}): {said}")
