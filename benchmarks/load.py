"""The server under load: latency and throughput by the number of requests at the same time, and memory over many.

Starts `functions/predict/server.py` with a model folder, asks it over HTTP from this process, and reads its memory from
/proc. Latencies are those of whole requests. The tables go into docs/benchmarks.md.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import page
from pools import model
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = (1, 2, 4, 8)
SHARES = (50, 95, 99)
TINY = "Fine."
TYPICAL = "A quiet film that stays with you, though the second half is far too long for what it has to say. " * 5


class Connection:
    """One connection that stays open; a request is sent when the answer to the one before has come."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, text: str) -> tuple[int, float]:
        """Status, and seconds from the first byte sent to the last received."""
        began, body = time.perf_counter(), json.dumps({"inputs": text}).encode()
        head = f"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        self.writer.write(f"{head}\r\n\r\n".encode() + body)
        told = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", told, re.IGNORECASE)
        assert length is not None, told
        await self.reader.readexactly(int(length[1]))
        return int(told.split()[1]), time.perf_counter() - began


async def many(port: int, text: str, at_once: int, requests: int) -> tuple[list[float], float]:
    """Seconds of each request, and of all; every one must be answered well."""
    connections = [Connection(port) for _ in range(at_once)]
    for connection in connections:
        await connection.open()
    left, taken = iter(tqdm(range(requests), desc=f"{at_once} at once", disable=None)), []

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


@contextmanager
def serving(folder: Path) -> Iterator[tuple[int, int]]:
    """Process id and port of a server that serves a model folder."""
    environ = os.environ | {"MODEL_URI": folder.resolve().as_uri(), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "functions/predict/server.py"), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = None
        while not found:
            found = re.search(r'"url":"http://127\.0\.0\.1:(\d+)"', process.stdout.readline())
            assert process.poll() is None
        # Its log has to be read, or it would wait for its reader.
        drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)  # noqa: S607
        yield process.pid, int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()
        drain.wait(60)


def resident(pid: int) -> float:
    """Memory that a process holds, in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Measure both, and write the page."""
    asked = arguments()
    folder = asked.model or model(Path(os.environ["RETRUE_DATA"]))
    rows, memory = [], []
    with serving(folder) as (_, port):
        for name, text in (("a review of 100 words", TYPICAL), ("one word", TINY)):
            asyncio.run(many(port, text, 1, 20))
            for at_once in AT_ONCE:
                taken, whole = asyncio.run(many(port, text, at_once, asked.requests))
                shares = [f"{1000 * each:.1f}" for each in np.percentile(taken, SHARES)]
                rows.append([name, str(at_once), *shares, f"{len(taken) / whole:.1f}"])
    with serving(folder) as (pid, port):
        done = 0
        for upto in (asked.tiny // 100, *(asked.tiny * n // 4 for n in range(1, 5))):
            asyncio.run(many(port, TINY, 8, upto - done))
            done = upto
            memory.append([f"{done:,}", f"{resident(pid):.1f}"])
    head = ["text", "at once", *(f"ms, {share} %" for share in SHARES), "requests a second"]
    text = "\n\n".join(
        [
            f"{asked.requests} requests a row, over connections that stay open; client and server share the machine.",
            page.table(head, rows),
            "Memory of the server's process, after so many requests of one word by 8 clients:",
            page.table(["requests", "MB"], memory),
        ]
    )
    sys.stdout.write(text + "\n")
    page.put("load", f"{text}\n\n{page.made_by()}", asked.page)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="model folder; that of the drift benchmark unless given")
    parser.add_argument("--requests", type=int, default=400, help="requests a row")
    parser.add_argument("--tiny", type=int, default=100_000, help="requests through which memory is watched")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="where the tables go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
