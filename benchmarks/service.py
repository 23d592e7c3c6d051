"""The service as its callers meet it: started from a model folder, as a process or in its image, asked over HTTP."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from retrue.local.home import STACK, Home, session
from retrue.settings import MEGABYTES_OF_ONE_CPU, MEMORY_VARIABLE
from retrue.stack import Stack

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "infra"))
import images  # noqa: E402

IMAGE = "retrue-predict"
TMP = "/tmp"  # noqa: S108 - of the container
PERIOD = 20_000  # microseconds in which a container gets its share of the CPUs
STARTED = re.compile(r'"url":"http://127\.0\.0\.1:(\d+)"')


class Service(NamedTuple):
    """One that is up: where it listens, what its callers send along, and what prints the status of its process."""

    port: int
    status: Sequence[str] = ()
    root: str = ""
    headers: str = ""

    def megabytes(self, name: str) -> float:
        """Memory that the process holds (VmRSS), or has held at most (VmHWM)."""
        told = subprocess.run(self.status, capture_output=True, text=True, check=True).stdout
        found = re.search(rf"{name}:\s+(\d+) kB", told)
        assert found is not None, told
        return int(found[1]) / 1024


@cache
def engine() -> images.Engine:
    """The container engine of this machine, with the image."""
    try:
        found = images.engine()
    except images.Unable as error:
        sys.exit(str(error))
    if not found.has(IMAGE):
        sys.exit(f"the image {IMAGE} is not built: make base images IMAGES=predict")
    return found


class Connection:
    """One connection that stays open; a request is sent when the answer to the one before has come."""

    def __init__(self, up: Service) -> None:
        self.up = up

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.up.port)

    async def ask(self, text: str) -> tuple[int, float]:
        """Status, and seconds from the first byte sent to the last received."""
        began, body = time.perf_counter(), json.dumps({"inputs": text}).encode()
        head = f"POST {self.up.root}/v1/predict HTTP/1.1\r\nhost: localhost\r\n{self.up.headers}"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}"
        self.writer.write(f"{head}\r\n\r\n".encode() + body)
        told = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", told, re.IGNORECASE)
        assert length is not None, told
        await self.reader.readexactly(int(length[1]))
        return int(told.split()[1]), time.perf_counter() - began


async def many(up: Service, text: str, at_once: int, requests: int, *, told: bool = True) -> tuple[list[float], float]:
    """Seconds of each request, and of all; every one must be answered well."""
    connections = [Connection(up) for _ in range(at_once)]
    for connection in connections:
        await connection.open()
    left, taken = iter(tqdm(range(requests), desc=f"{at_once} at once", disable=None if told else True)), []

    async def work(connection: Connection) -> None:
        for _ in left:
            status, seconds = await connection.ask(text)
            assert status == 200, status
            taken.append(seconds)

    began = time.perf_counter()
    await asyncio.gather(*map(work, connections))
    whole = time.perf_counter() - began
    for connection in connections:
        connection.writer.close()
        await connection.writer.wait_closed()
    return taken, whole


def stack() -> Service:
    """The API of the local stack that is up."""
    home = Home(Path(os.environ.get("RETRUE_HOME", ROOT / ".retrue")))
    if home.endpoint is None:
        sys.exit("no local stack is up: retrue up --parameter ApiRate=1000 --parameter ApiBurst=1000")
    found = Stack(session(home.endpoint), STACK)
    url = urlsplit(found.api_url)
    assert url.port is not None
    return Service(url.port, root=url.path, headers=f"x-api-key: {found.api_key}\r\n")


@contextmanager
def process(folder: Path) -> Iterator[Service]:
    """The server as a process of this machine, in this project's own environment."""
    environ = os.environ | {"MODEL_URI": folder.resolve().as_uri(), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "functions/predict/server.py"), "--host", "127.0.0.1", "--port", "0"]
    with _started(words, environ) as (pid, port):
        yield Service(port, ["cat", f"/proc/{pid}/status"])


@contextmanager
def container(folder: Path, megabytes: int) -> Iterator[Service]:
    """The server in its image, with this much memory and the share of the CPUs that Lambda gives with it."""
    name = f"retrue-{uuid.uuid4().hex[:12]}"
    words = [*confined(folder, megabytes), "--name", name, IMAGE, "serve", "--host", "127.0.0.1", "--port", "0"]
    with _started(words, engine().environ) as (_, port):
        yield Service(port, [engine().path, "exec", name, "cat", "/proc/1/status"])


def confined(folder: Path, megabytes: int) -> list[str]:
    """The words that run a container with a model folder, this much memory and its share of the CPUs."""
    share = min(megabytes / MEGABYTES_OF_ONE_CPU, os.cpu_count() or 1)
    words = [engine().path, "run", "--rm", "--network", "host", "--pull", "never", "--read-only", "--tmpfs", TMP]
    words += ["--memory", f"{megabytes}m", "--memory-swap", f"{megabytes}m"]
    words += ["--cpu-period", str(PERIOD), "--cpu-quota", str(round(share * PERIOD))]
    return [*words, "--env", f"{MEMORY_VARIABLE}={megabytes}", "--volume", f"{folder.resolve()}:/opt/ml/model:ro"]


@contextmanager
def _started(words: Sequence[str], environ: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """Process id and port of a server, from its own word that it serves to its end."""
    running = subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    try:
        found = None
        while not found:
            line = running.stdout.readline()
            if not line:
                raise RuntimeError(f"{words[0]} ended with {running.wait()} before it served; its reason is above")
            found = STARTED.search(line)
        # Its log has to be read, or it would wait for its reader.
        with subprocess.Popen(["cat"], stdin=running.stdout, stdout=subprocess.DEVNULL):  # noqa: S607
            try:
                yield running.pid, int(found[1])
            finally:
                running.terminate()
    finally:
        running.terminate()
        running.wait(60)
        running.stdout.close()
