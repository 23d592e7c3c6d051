"""How each way of serving is asked: one process, which reads jobs from its input and answers them, a line of JSON each.

{"do": "one", "texts"}           each text by itself, from its letters to its label
{"do": "bare", "ids"}            each list of token ids by itself, the model alone
{"do": "many", "texts", "batch"} all texts, as many at a time as the way is told to

The answer holds the CPU and wall seconds of each (of all, for "many"), the labels as column numbers, and of the process
as a whole its CPU seconds so far and its largest resident size. Only the standard library is used here: every peer has
an environment of its own.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Served(NamedTuple):
    """What a loaded model can be asked; `many` gets the batch size too, which is 0 where the way chooses it itself."""

    one: Callable[[str], int]
    bare: Callable[[list[int]], Any]
    many: Callable[[list[str], int], list[int]]


def answer(load: Callable[[Path, str, int], Served], make: Callable[[Path, Path], None] | None = None) -> None:
    """Run `X.py serve FOLDER HOW THREADS`, or `X.py make CHECKPOINT FOLDER` for a peer with a model file of its own."""
    if sys.argv[1] == "make":
        assert make
        make(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    served = load(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] == "many":
            cpu, wall, labels = timed(served.many, job["texts"], job["batch"])
            answers = [(cpu, wall, None)]
        elif job["do"] == "one":
            answers = [timed(served.one, text) for text in job["texts"]]
            labels = [label for _, _, label in answers]
        else:
            answers, labels = [timed(served.bare, ids) for ids in job["ids"]], []
        seconds = {"cpu": [each[0] for each in answers], "wall": [each[1] for each in answers]}
        said = {**seconds, "labels": labels, "process": time.process_time(), "megabytes": peak()}
        sys.stdout.write("\n" + json.dumps(said) + "\n")
        sys.stdout.flush()


def timed(ask: Callable[..., Any], *given: Any) -> tuple[float, float, Any]:
    """CPU seconds, wall seconds, and what was answered."""
    began, before = time.perf_counter(), time.process_time()
    said = ask(*given)
    return time.process_time() - before, time.perf_counter() - began, said


def peak() -> float:
    """The largest resident size in MB; unlike ru_maxrss without what the process was before it became this one."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024
