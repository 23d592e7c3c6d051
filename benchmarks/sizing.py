"""How much memory a function should have: latency and price of one text, and the cost of a cold start, step by step.

The predict image runs with each memory size and the share of the CPUs that Lambda gives with it, a DistilBERT of full
size in it. All sizes are up at once and asked in turns, one request at a time, as Lambda does. Tables and picture go
into docs/sizing.md.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fullsize
import matplotlib as mpl
import numpy as np
import page
import service
from matplotlib.figure import Figure
from tokenizers import Tokenizer
from tqdm import tqdm

from retrue.artifact import TOKENIZER
from retrue.cost import GB_SECOND, REQUEST
from retrue.lake import Lake
from retrue.local import cloud, home
from retrue.local.home import Home
from retrue.settings import MEGABYTES_OF_ONE_CPU, MEMORY_VARIABLE, threads
from retrue.training.pictures import BLUE, INK, ORANGE, STYLE

PAGE, PICTURE = service.ROOT / "docs/sizing.md", service.ROOT / "docs/sizing.svg"
SIZES = (512, 768, 1_024, 1_280, 1_536, 1_769, 2_048, 2_560, 3_008, 3_538)
LENGTHS = {32: INK, 128: BLUE, 512: ORANGE}  # tokens, and the colour of each
WORD = "film "
STAGES = service.ROOT / "benchmarks/stages.py"
BUCKET = "sizing"
BUDGETS = {  # CPU ms of each step of a start
    "interpreter": 60, "import numpy": 90, "import onnxruntime": 40, "import tokenizers": 15, "import boto3": 220,
    "import pydantic and powertools": 150, "the handler with its routes": 140, "model from S3, without TLS": 400,
    "check of the model's files": 90, "tokenizer and session": 130, "first answer, 128 tokens": 40,
}  # fmt: skip

Taken = dict[tuple[int, int], list[float]]  # megabytes, tokens → seconds of each request


def main() -> None:
    """Measure, and write page and picture."""
    asked = arguments()
    folder = fullsize.ours(fullsize.checkpoint(), fullsize.home())
    texts = {length: text(folder, length) for length in LENGTHS}
    with lake(folder) as endpoint:
        starts = [stages(folder, endpoint) for _ in tqdm(range(asked.rounds), desc="starts", disable=None)]
    taken, memory = latencies(folder, texts, asked.rounds, asked.requests)
    told = f"{tables(taken, memory, starts)}\n\n{page.made_by()}"
    sys.stdout.write(told + "\n")
    page.put("sizing", told, asked.page)
    if asked.page == PAGE:
        draw(taken)


def text(folder: Path, length: int) -> str:
    """A text of so many tokens, the two marks at its ends among them."""
    made = WORD * (length - 2)
    assert len(Tokenizer.from_file(str(folder / TOKENIZER)).encode(made)) == length
    return made


@contextmanager
def lake(folder: Path) -> Iterator[str]:
    """The address of an S3 on this machine that holds the model."""
    with tempfile.TemporaryDirectory() as scratch, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        running = cloud.start(Home(Path(scratch)), service.ROOT / ".venv-cloud/bin/python", port)
        try:
            client = home.session(endpoint := f"http://127.0.0.1:{port}").client("s3")
            client.create_bucket(Bucket=BUCKET)
            Lake(BUCKET, client).upload_folder(folder, "models/one/")
            yield endpoint
        finally:
            running.terminate()
            running.wait(60)


def stages(folder: Path, endpoint: str) -> dict[str, float]:
    """CPU milliseconds of each step of a start, in the image with one whole CPU."""
    words = service.confined(folder, MEGABYTES_OF_ONE_CPU)
    for name, value in home.endpoint_environ(endpoint).items():
        words += ["--env", f"{name}={value}"]
    words += ["--entrypoint", "python", service.IMAGE, "-c", STAGES.read_text(), BUCKET]
    done = subprocess.run(words, env=service.engine().environ, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def latencies(folder: Path, texts: dict[int, str], rounds: int, requests: int) -> tuple[Taken, dict[int, float]]:
    """Seconds of each request by size and length, and the most memory that each size has held."""
    taken: Taken = {}
    with ExitStack() as stack:
        up = {size: stack.enter_context(service.container(folder, size)) for size in sizes()}
        for number in tqdm(range(-1, rounds), desc="rounds", disable=None):  # the first is to warm up
            for size, one in up.items():
                for length, asked in texts.items():
                    found, _ = asyncio.run(service.many(one, asked, 1, requests, told=False))
                    if number >= 0:
                        taken.setdefault((size, length), []).extend(found)
        return taken, {size: one.megabytes("VmHWM") for size, one in up.items()}


def sizes() -> list[int]:
    """The sizes whose CPUs this machine has."""
    return [size for size in SIZES if size <= MEGABYTES_OF_ONE_CPU * (os.cpu_count() or 1)]


def price(seconds: list[float], megabytes: int) -> float:
    """Dollars for a million requests of one text: the time that they take on average, and the requests."""
    return 1e6 * (statistics.fmean(seconds) * megabytes / 1024 * GB_SECOND + REQUEST)


def tables(taken: Taken, memory: dict[int, float], starts: list[dict[str, float]]) -> str:
    rows = []
    for size in sizes():
        count = threads({MEMORY_VARIABLE: str(size)})
        cells = [f"{size:,}", f"{size / MEGABYTES_OF_ONE_CPU:.2f}", str(count), f"{memory[size]:.0f}"]
        for length in LENGTHS:
            seconds = taken[size, length]
            middle, late = (1000 * value for value in np.percentile(seconds, (50, 95)))
            cells.append(f"{middle:.0f} / {late:.0f} ms, ${price(seconds, size):.2f}")
        rows.append(cells)
    lengths = [f"{length} tokens" for length in LENGTHS]
    latency = page.table(["MB", "CPUs", "threads", "MB used at most", *lengths], rows)
    middle = {name: statistics.median(one[name] for one in starts) for name in starts[0]}
    steps = [
        [name, f"{value:.0f}", f"{BUDGETS[name]}", "kept" if value <= BUDGETS[name] else "exceeded"]
        for name, value in middle.items()
    ]
    whole = ["**all**", f"**{sum(middle.values()):.0f}**", f"{sum(BUDGETS[name] for name in middle)}", ""]
    start = page.table(["step of a start", "CPU ms", "budget", ""], [*steps, whole])
    return (
        "One text a request: median and 95th percentile of its time, and dollars for a million of them.\n\n"
        f"{latency}\n\nA start in the image with one whole CPU, medians of {len(starts)}:\n\n{start}"
    )


def draw(taken: Taken) -> None:
    """Median latency and price against memory, with the size that is one whole CPU."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for length, colour in LENGTHS.items():
            each = [taken[size, length] for size in sizes()]
            label = f"{length} tokens"
            left.plot(sizes(), [1000 * statistics.median(one) for one in each], "o-", color=colour, ms=4, label=label)
            dollars = [price(one, size) for one, size in zip(each, sizes(), strict=True)]
            right.plot(sizes(), dollars, "o-", color=colour, ms=4, label=label)
        for axes, title in ((left, "One text, median ms"), (right, "A million texts, dollars")):
            axes.axvline(MEGABYTES_OF_ONE_CPU, color=INK, linestyle=":")
            axes.set_title(title)
            axes.set_xlabel("MB")
            axes.set_ylim(bottom=0)
        left.legend()
        figure.savefig(PICTURE, transparent=True, bbox_inches="tight", metadata={"Date": None})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=30, help="requests by round, size and length")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
