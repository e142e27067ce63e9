"""For all tests: no hub, and a real S3 server (moto in a process of its own, reached by plain ``s3://`` URLs)."""

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
BUCKET = "caches"
_prefixes = itertools.count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The server's endpoint; while it runs, the environment's credentials and endpoint are its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_for(server, port)
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            patch.setenv("AWS_ACCESS_KEY_ID", "testing")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
            patch.setenv("NO_PROXY", "127.0.0.1")
            store = fsspec.filesystem("s3")
            store.mkdir(BUCKET)
            yield endpoint
            type(store).clear_instance_cache()
    finally:
        server.terminate()
        server.wait(timeout=10)


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


@pytest.fixture
def s3_url(s3_server: str) -> str:
    """An ``s3://`` prefix that nothing was written to."""
    return f"s3://{BUCKET}/{next(_prefixes)}"
