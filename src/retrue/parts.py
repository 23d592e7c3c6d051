"""A CSV beyond one run of the batch function: cut into parts, classified side by side, and joined again.

parts/<job>/rows/<part>.jsonl.gz holds the rows of a part: the workflow infra/scoring.asl.yaml maps over these objects.
What came of them is in parts/<job>/<part>/, what is known of the whole file in parts/<job>/about.json. A part is done
when its counts are there. Parts hold whole chunks, so ids and records are the very ones that a single run would write.
"""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retrue import jobs, rows, scoring
from retrue.classifier import Classifier
from retrue.errors import BadInput, NotFound
from retrue.jobs import CHUNK, IDS_FILE, LATE_ERROR, REJECTS_FILE, RESULTS_FILE, Clock, Outcome, Run
from retrue.lake import AT_ONCE, JOBS, PARTS, RESULTS, Lake
from retrue.records import Job
from retrue.rows import Rejected, Row
from retrue.settings import Batch

ROWS = 5 * CHUNK
PACKED = 3  # how many times its size a gzip file of text has
LARGEST = 5_000_000_000  # bytes; copied, cut and joined within one run each
TOO_LARGE = "the file has {:.1f} GB, more than the {:.0f} GB that can be cut within one run: drop it as several files"
TOO_LONG = "the file could not be cut into parts within one run: drop it as several files"
UNANSWERED = "its part of the file could not be classified: put these rows into a new file"
SOME_FAILED = "some parts of the file could not be classified: their rows are in rejects.csv, the reason in the log"
ALL_FAILED = "no part of the file could be classified: the reason is in the log of the function batch"


def are_needed(key: str, size: int, megabytes: float) -> bool:
    """Whether a file of `size` bytes is more than one run may take, which is `megabytes` of text."""
    return size * (PACKED if key.endswith(".gz") else 1) > megabytes * 1e6


def cut(lake: Lake, job: Job, size: int, settings: Batch, clock: Clock, remaining: Clock) -> dict[str, Any]:
    """Cut the job's file of `size` bytes into parts; what the workflow needs to map over them.

    `parts` is 0 where the file cannot be read, which has then ended the job.
    """
    folder = f"{PARTS}{job.id}/"
    plan: dict[str, Any] = {"rows": f"{folder}rows/", "at_once": settings.at_once}
    with Run(lake, job, clock, remaining, settings.reserve_seconds) as run:
        try:
            if size > LARGEST:
                raise BadInput(TOO_LARGE.format(size / 1e9, LARGEST / 1e9))
            with run.table() as (header, table):
                rows.text_column(header)
                rows.column(header, rows.ID)
                parts = _write(run, folder, table)
        except (BadInput, NotFound) as error:
            run.error = str(error)
            run.finish()
            return plan | {"parts": 0}
        about = {"parts": parts, "columns": header, "sha256": run.sha256, "error": run.error, "begun": run.begun}
    lake.put_json(folder + "about.json", about)
    return plan | {"parts": parts}


def number_of(key: str) -> int:
    """Which part the rows in an object are."""
    return int(key.rpartition("/")[2].partition(".")[0])


def _write(run: Run, folder: str, table: Iterator[Row | Rejected]) -> int:
    """Write the parts, one at least; how many there are."""
    number = 0
    while (lines := [_line(item) for item in islice(table, ROWS)]) or number == 0:
        if run.out_of_time():
            raise BadInput(TOO_LONG)
        run.lake.put(_rows(folder, number), gzip.compress("".join(lines).encode(), 1), "application/gzip")
        number += 1
    return number


def score(lake: Lake, classifier: Classifier, job: Job, number: int, settings: Batch, remaining: Clock) -> None:
    """Classify one part; nothing is done where that was done before."""
    folder = f"{PARTS}{job.id}/"
    if _counts(lake, folder, number) is not None:
        return
    header = lake.get_json(folder + "about.json")["columns"]
    with Outcome(lake, job, remaining, settings.reserve_seconds, headed=number == 0) as outcome:
        outcome.begin(header)
        scoring.predict(outcome, classifier, settings, header, _read(lake, folder, number))
        _close(outcome, folder, number)
    _tell(lake, job, outcome)


def join(lake: Lake, job: Job, settings: Batch, clock: Clock) -> Job:
    """Put what came of the parts together, hand back the rows of those that failed, and end the job."""
    folder = f"{PARTS}{job.id}/"
    about = lake.get_json(folder + "about.json")
    numbers = range(about["parts"])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        counts = list(pool.map(lambda number: _counts(lake, folder, number), numbers))
    failed = [number for number in numbers if counts[number] is None]
    for number in failed:
        counts[number] = _hand_back(lake, job, about["columns"], settings, number)
    files = [RESULTS_FILE, REJECTS_FILE] + ([] if rows.column(about["columns"], rows.ID) is None else [IDS_FILE])
    for name in files:
        _put_together(lake, [_place(folder, number) + name for number in numbers], f"{RESULTS}{job.id}/{name}")
    known = [found for found in counts if found is not None]
    ended = about["error"] or (ALL_FAILED if len(failed) == len(numbers) else None)
    late = LATE_ERROR if any(found["late"] for found in known) else None
    job = jobs.counted(job, *(sum(found[name] for found in known) for name in ("accepted", "rejected")))
    job = dataclasses.replace(
        job, state="failed" if ended else "done", error=ended or (SOME_FAILED if failed else late)
    )
    facts = {"sha256": about["sha256"], "columns": about["columns"], "files": files, "parts": len(numbers)}
    return jobs.end(lake, job, about["begun"], clock(), facts)


def _hand_back(lake: Lake, job: Job, header: list[str], settings: Batch, number: int) -> dict[str, Any]:
    """The files of a part of which nothing came: every row among the rejects."""
    folder, place = f"{PARTS}{job.id}/", rows.text_column(header)
    with Outcome(lake, job, lambda: 0.0, 0.0, headed=number == 0) as outcome:
        outcome.begin(header)
        scoring.answer_files(outcome, header)
        for item in _read(lake, folder, number):
            row = rows.check_text(item, place, settings.max_characters) if isinstance(item, Row) else item
            outcome.reject(row if isinstance(row, Rejected) else Rejected(row.number, UNANSWERED, row.cells))
        outcome.upload(_place(folder, number))
    return _found(outcome)


def _put_together(lake: Lake, keys: list[str], key: str) -> None:
    """One object out of many, one behind the other: gzip files are whole that way too."""
    with TemporaryDirectory(prefix="retrue-join-") as place:
        whole = Path(place, "whole")
        with whole.open("wb") as file:
            for part in keys:
                with lake.open(part) as body:
                    shutil.copyfileobj(body, file)
        lake.upload(whole, key)


def _close(outcome: Outcome, folder: str, number: int) -> None:
    """The counts come last: they say that the part is done."""
    outcome.upload(_place(folder, number))
    outcome.lake.put_json(_place(folder, number) + "counts.json", _found(outcome))


def _found(outcome: Outcome) -> dict[str, Any]:
    return {"accepted": outcome.accepted, "rejected": outcome.rejected, "late": outcome.late}


def _counts(lake: Lake, folder: str, number: int) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = lake.get_json(_place(folder, number) + "counts.json")
    except NotFound:
        return None
    return found


def _tell(lake: Lake, job: Job, outcome: Outcome) -> None:
    """Add the rows of a part to those that the job tells of; others do the same at the same time."""
    key = f"{JOBS}{job.id}.json"
    while True:
        document, version = lake.get_versioned(key)
        told = Job(**document)
        more = jobs.counted(told, told.accepted + outcome.accepted, told.rejected + outcome.rejected)
        if told.state != "running" or lake.put_json_if(key, json.loads(more.to_json()), version):
            return


def _rows(folder: str, number: int) -> str:
    return f"{folder}rows/{number:06d}.jsonl.gz"


def _place(folder: str, number: int) -> str:
    return f"{folder}{number:06d}/"


def _line(item: Row | Rejected) -> str:
    reason = item.reason if isinstance(item, Rejected) else None
    return json.dumps([item.number, reason, item.cells]) + "\n"


def _read(lake: Lake, folder: str, number: int) -> Iterator[Row | Rejected]:
    for line in gzip.decompress(lake.get(_rows(folder, number))).splitlines():
        row, reason, cells = json.loads(line)
        yield Row(row, cells) if reason is None else Rejected(row, reason, cells)
