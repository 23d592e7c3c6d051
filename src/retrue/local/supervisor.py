"""The background process of the local stack: the cloud, one training worker, and the bridge, until SIGTERM.

Usage: python -m retrue.local.supervisor HOME PROJECT CLOUD_PYTHON PORT
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from retrue.local import cloud
from retrue.local.bridge import Bridge
from retrue.local.deploy import recover
from retrue.local.home import STACK, Home, endpoint_environ, session

TURN_SECONDS = 2.0


def main(root: Path, project: Path, python: Path, port: int) -> int:
    home = Home(root)
    stopping = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopping.set())
    endpoint = f"http://127.0.0.1:{port}"
    clients = session(endpoint)
    server = cloud.start(home, python, port)
    recover(clients)
    worker: subprocess.Popen[bytes] | None = None
    bridge: Bridge | None = None
    home.write("supervisor", {"pid": os.getpid(), "endpoint_url": endpoint, "cloud_pid": server.pid})
    try:
        while not stopping.wait(TURN_SECONDS):
            if server.poll() is not None:
                _tell("the local cloud ended; see cloud.log")
                return 1
            stack = home.read("stack")
            if not stack:
                continue
            if worker is None or worker.poll() is not None:
                worker = _start_worker(home, project, endpoint)
            if bridge is None:
                groups = [f"/aws/lambda/{STACK}-{name}" for name in ("monitor", "batch")]
                bridge = Bridge(clients.client("logs"), clients.client("cloudwatch"), groups, STACK)
            try:
                changes = bridge.turn(datetime.now(UTC))
            except (ClientError, BotoCoreError) as error:
                _tell(f"bridge: {type(error).__name__}: {error}")
            else:
                for change in changes:
                    _tell(f"alarm {change}")
    finally:
        for process in (worker, server):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    return 0


def _start_worker(home: Home, project: Path, endpoint: str) -> subprocess.Popen[bytes]:
    """`retrue worker` as a person would start it, in a process group that ends with it."""
    words = [sys.executable, "-m", "retrue.cli", "--endpoint-url", endpoint, "--stack", STACK, "worker"]
    words += ["--program", str(project / "functions" / "train" / "job.py")]
    with (home.logs / "worker.log").open("ab") as log:
        return subprocess.Popen(words, env={**os.environ, **endpoint_environ(endpoint)}, stdout=log, stderr=log)


def _tell(line: str) -> None:
    sys.stdout.write(json.dumps({"time": time.strftime("%FT%TZ", time.gmtime()), "message": line}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
