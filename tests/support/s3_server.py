"""A real S3 server on this machine: moto, in a process of its own, with one empty bucket."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import psutil

BUCKET = "benchmark"


@dataclass(frozen=True)
class Server:
    """Where it is, and a client of it."""

    endpoint: str
    store: Any
    process: psutil.Process

    def upload(self, folder: Path, name: str) -> str:
        """Put a folder's files under ``name`` in the bucket, for everybody to read; returns the URL."""
        self.store.put(f"{folder}/", f"{BUCKET}/{name}/", recursive=True, ACL="public-read")
        return f"s3://{BUCKET}/{name}"

    @property
    def processor_seconds(self) -> float:
        """Processor time that the server has taken so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def s3_server() -> Iterator[Server]:
    """While it runs, ``s3://`` URLs lead to it, also in processes that are started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_for(server, port)
        with mock.patch.dict(os.environ):
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                del os.environ[name]
            os.environ.update(environment(endpoint))
            fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another server's
            store = fsspec.filesystem("s3")
            store.mkdir(BUCKET)
            yield Server(endpoint, store, psutil.Process(server.pid))
            type(store).clear_instance_cache()
    finally:
        server.terminate()
        server.wait(timeout=10)


def environment(endpoint: str) -> dict[str, str]:
    """Variables that lead the clients of S3 to the server."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "S3_ENDPOINT_URL": endpoint,  # mosaicml-streaming's
        "NO_PROXY": "127.0.0.1",
    }


def _wait_for(server: "subprocess.Popen[bytes]", port: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"moto_server ended with status {server.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"moto_server does not answer on port {port}")
