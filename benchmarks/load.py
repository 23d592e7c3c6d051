"""The server under load: latency and throughput by the number of requests at the same time, and memory over many.

Starts `functions/predict/server.py` with a model folder, and asks it over HTTP from this process; then the same in the
predict image, with the share of the CPUs that Lambda gives; with --stack also the local stack. Latencies are those of
whole requests. The tables go into docs/benchmarks.md.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

import numpy as np
import page
import service
from pools import model

from retrue.settings import MEGABYTES_OF_ONE_CPU

AT_ONCE = (1, 2, 4, 8)
MEGABYTES = (885, 1_769)  # half a CPU, and a whole one
SHARES = (50, 95, 99)  # percentiles of latency
TINY = "Fine."
TYPICAL = "A quiet film that stays with you, though the second half is far too long for what it has to say. " * 5


def main() -> None:
    """Measure, and write the page."""
    asked = arguments()
    folder = asked.model or model(Path(os.environ["RETRUE_DATA"]))
    parts = [f"{asked.requests} requests a row, over connections that stay open; client and server share the machine."]
    # Whatever is missing is to be missed before anything is measured.
    engine = None if asked.no_image else service.engine()
    stack = service.stack() if asked.stack else None
    with service.process(folder) as up:
        parts += [table(up, asked.requests)]
    for megabytes in MEGABYTES if engine else ():
        with service.container(folder, megabytes) as up:
            share = f"{megabytes / MEGABYTES_OF_ONE_CPU:.2f}"
            told = f"The same in the image, with {megabytes:,} MB and their share of the CPUs, {share}:"
            parts += [told, table(up, asked.requests)]
    if stack:
        parts += ["The API of the local stack, with the model of `make up`:", table(stack, asked.requests)]
    memory = []
    with service.process(folder) as up:
        done = 0
        for upto in (asked.tiny // 100, *(asked.tiny * n // 4 for n in range(1, 5))):
            asyncio.run(service.many(up, TINY, 8, upto - done))
            done = upto
            memory.append([f"{done:,}", f"{up.megabytes('VmRSS'):.1f}"])
    parts += ["Memory of the server's process, after so many requests of one word by 8 clients:"]
    parts += [page.table(["requests", "MB"], memory)]
    text = "\n\n".join(parts)
    sys.stdout.write(text + "\n")
    page.put("load", f"{text}\n\n{page.made_by()}", asked.page)


def table(up: service.Service, requests: int) -> str:
    """Latency and throughput of one server, by text and by requests at the same time."""
    rows = []
    for name, text in (("a review of 100 words", TYPICAL), ("one word", TINY)):
        asyncio.run(service.many(up, text, 1, 20))
        for at_once in AT_ONCE:
            taken, whole = asyncio.run(service.many(up, text, at_once, requests))
            shares = [f"{1000 * each:.1f}" for each in np.percentile(taken, SHARES)]
            rows.append([name, str(at_once), *shares, f"{len(taken) / whole:.1f}"])
    head = ["text", "at once", *(f"ms, {share} %" for share in SHARES), "requests a second"]
    return page.table(head, rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="model folder; that of the drift benchmark unless given")
    parser.add_argument("--requests", type=int, default=400, help="requests a row")
    parser.add_argument("--tiny", type=int, default=100_000, help="requests through which memory is watched")
    parser.add_argument("--no-image", action="store_true", help="leave the image out, where there is no engine")
    parser.add_argument("--stack", action="store_true", help="ask the local stack too, which keeps what it answers")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="where the tables go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
