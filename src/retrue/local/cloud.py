"""The local cloud (ministack) as a child process, in a virtual environment of its own, on 127.0.0.1 only."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from retrue.errors import StackError
from retrue.local.home import Home, endpoint_environ

START_SECONDS = 60.0
# Nagle's algorithm and delayed acknowledgements would add 40 ms to each call of a function.
LAUNCH = """
import socketserver
socketserver.StreamRequestHandler.disable_nagle_algorithm = True
from ministack.app import main
main()
"""


def start(home: Home, python: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the local cloud with the state that the last one left, and wait until it answers."""
    if not python.is_file():
        raise StackError(f"the local cloud is not installed at {python}: run `make up`, which installs it")
    endpoint = f"http://127.0.0.1:{port}"
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("AWS_")},
        **endpoint_environ(endpoint),
        "AUTH": "true",
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_ENABLED": "0",
        "LAMBDA_EXECUTOR": "local",
        "LOG_LEVEL": "WARNING",
        "PERSIST_STATE": "1",
        "S3_DATA_DIR": str(home.root / "cloud" / "s3"),
        "S3_PERSIST": "1",
        "STATE_DIR": str(home.root / "cloud" / "state"),
    }
    home.logs.mkdir(parents=True, exist_ok=True)
    with (home.logs / "cloud.log").open("ab") as log:
        process = subprocess.Popen([python, "-c", LAUNCH], env=environ, stdout=log, stderr=log, cwd=home.root)
    deadline = time.monotonic() + START_SECONDS
    while not _answers(endpoint):
        if process.poll() is not None:
            raise StackError(f"the local cloud ended at once; see {home.logs / 'cloud.log'}")
        if time.monotonic() > deadline:
            process.kill()
            raise StackError(f"the local cloud did not answer in {START_SECONDS:.0f} s; see {home.logs}")
        time.sleep(0.1)
    return process


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(f"{endpoint}/_ministack/health", timeout=2) as answer:  # noqa: S310 - our own loopback address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
