"""How each test of drift is asked: one process, one file of windows, one JSON answer.

The file is an npz: `rows` (all documents), `reference` (what the test may learn from), and for each cell an array of
row numbers (windows, n), named 0, 1, 2 and so on. Only numpy and the standard library are used here: every peer has an
environment of its own.
"""

import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Judge = Callable[[NDArray[Any]], float]


def answer(prepare: Callable[[NDArray[Any], int], Judge]) -> None:
    """Judge all windows of the file and print what was said of each, cell by cell, and what it cost.

    `prepare` gets the reference and the size of the windows to come; the judge that it gives answers 1 for an alarm and
    0 for none, or a distance. The seconds are CPU seconds of one check, without what was prepared; megabytes are the
    largest resident size of the process.
    """
    with np.load(sys.argv[1]) as archive:
        held = dict(archive)
    rows, reference = held.pop("rows"), held.pop("reference")
    said: list[list[float]] = []
    spent: dict[int, list[float]] = {}
    judges: dict[int, Judge] = {}
    for cell in sorted(held, key=int):
        n = held[cell].shape[1]
        if n not in judges:
            judges[n] = prepare(reference, n)
        said.append([])
        for window in held[cell]:
            texts = rows[window]
            began = time.process_time()
            said[-1].append(float(judges[n](texts)))
            spent.setdefault(n, []).append(time.process_time() - began)
    # Unlike ru_maxrss this does not count what the process was before it became this one.
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert peak
    seconds = {str(n): statistics.median(each) for n, each in spent.items()}
    sys.stdout.write("\n" + json.dumps({"said": said, "seconds": seconds, "megabytes": int(peak[1]) / 1024}) + "\n")
