"""CSV jobs: a file dropped under incoming/ is classified, one under labels/ tells what the truth was.

A job is named after the bucket, the key and the identity of the drop, and the ids of its records after the job and the
row. Whoever does the same job again, after a crash or a second delivery, writes the same objects once more.
"""

import csv
import dataclasses
import gzip
import hashlib
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

from retrue import rows
from retrue.errors import BadInput
from retrue.lake import INCOMING, JOBS, LABELS, RESULTS, Lake, split_uri
from retrue.records import Job, iso
from retrue.rows import Rejected, Row

CHUNK = 200  # records in one object of the lake
PROGRESS = 5.0  # seconds between two notes of how far a job is
LATE = "not reached before the time limit: put these rows into a new file"
LATE_ERROR = "the time limit was near: the rows that were not reached are in rejects.csv"
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
RESULTS_FILE, REJECTS_FILE, IDS_FILE, MANIFEST_FILE = "results.csv", "rejects.csv", "ids.csv.gz", "manifest.json"
FILES = (RESULTS_FILE, REJECTS_FILE, IDS_FILE)

Clock = Callable[[], float]


def kind_of(key: str) -> Literal["predict", "label"] | None:
    """What a dropped file asks for; None where it is no job."""
    if not key.endswith((".csv", ".csv.gz")):
        return None
    if key.startswith(INCOMING):
        return "predict"
    return "label" if key.startswith(LABELS) else None


def job_id(bucket: str, key: str, identity: str) -> str:
    """The id of a job: 20 hex digits. `identity` tells two files that were dropped under one key apart."""
    return hashlib.sha256("\n".join((bucket, key, identity)).encode()).hexdigest()[:20]


def start(
    lake: Lake, kind: Literal["predict", "label"], key: str, identity: str, ms: int, model: str | None = None
) -> Job:
    """The job of a drop, begun or taken up again; only one that is "done" has nothing left to do.

    `ms` is the time of the event, which is in the ids of the job's records. The first to start the job pins the model.
    """
    job = Job(job_id(lake.bucket, key, identity), kind, lake.uri(key), "running", iso(ms), model=model)
    if lake.put_new(f"{JOBS}{job.id}.json", job.to_json().encode()):
        return job
    found = lake.read_job(job.id)
    return (
        found if found.state == "done" else dataclasses.replace(job, started=found.started, model=found.model or model)
    )


def fail(lake: Lake, job: Job, reason: str) -> Job:
    """Write down that a job could not be done, and why."""
    failed = dataclasses.replace(job, state="failed", error=reason)
    lake.write_job(failed)
    return failed


class Outcome:
    """What comes of rows: result files that are written on this machine first, their counts, and the time that is left.

    The files of the parts of one job are put one behind the other, so only those of the first are `headed`.
    """

    def __init__(self, lake: Lake, job: Job, remaining: Clock, reserve: float, headed: bool = True) -> None:
        self.lake, self.job = lake, job
        self.remaining, self.reserve, self.headed = remaining, reserve, headed
        self.accepted = self.rejected = 0
        self.late = False
        self.columns: list[str] = []
        self.rejects: Any = None

    def __enter__(self) -> Self:
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(TemporaryDirectory(prefix="retrue-job-")))
        self.files = self.stack.enter_context(ExitStack())
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def begin(self, columns: list[str]) -> None:
        """Take rows of a file with these columns."""
        self.columns = columns
        if self.rejects is None:
            self.rejects = self.writer(REJECTS_FILE, [*rows.added(columns, rows.REJECTS), *columns])

    def writer(self, name: str, header: list[str]) -> Any:
        """A CSV file among the results, with its header written."""
        opener: Any = gzip.open if name.endswith(".gz") else open
        # Bytes that were not UTF-8 are shown as escapes, so that the results always are.
        stream = opener(self.folder / name, "wt", encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(self.files.enter_context(stream))
        if self.headed:
            writer.writerow(header)
        return writer

    def reject(self, row: Rejected) -> None:
        self.rejects.writerow([row.number, row.reason, *row.cells])
        self.rejected += 1
        self.note()

    def accept(self) -> None:
        self.accepted += 1
        self.note()

    def note(self) -> None:
        """Tell how far it is, where somebody listens."""

    def out_of_time(self) -> bool:
        """Whether what is left must be kept for writing the results; once true, it stays so."""
        self.late = self.late or self.remaining() < self.reserve
        return self.late

    def upload(self, prefix: str) -> list[str]:
        """Put the files under a prefix; their names."""
        self.files.close()
        written = [name for name in FILES if (self.folder / name).exists()]
        for name in written:
            self.lake.upload(self.folder / name, prefix + name)
        return written


class Run(Outcome):
    """One run of a whole job, from the file that was dropped to the manifest of its results."""

    def __init__(self, lake: Lake, job: Job, clock: Clock, remaining: Clock, reserve: float) -> None:
        super().__init__(lake, job, remaining, reserve)
        self.clock = clock
        self.begun = self.noted = clock()
        self.error: str | None = None
        self.sha256: str | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        self.lake.write_job(self._now())
        return self

    @contextmanager
    def table(self) -> Iterator[tuple[list[str], Iterator[Row | Rejected]]]:
        """The file's header and rows, from a local copy: S3 drops a reader as slow as a classifier."""
        _, key = split_uri(self.job.input)
        local = self.folder / "input"
        if self.sha256 is None:
            with self.lake.open(key) as body, local.open("wb") as file:
                shutil.copyfileobj(body, file)
            with local.open("rb") as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        opener: Any = gzip.open if key.endswith(".gz") else open
        with opener(local, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            try:
                columns, table = rows.read(stream)
            except DAMAGED:
                raise BadInput("the file is no gzip file, or a damaged one: compress it again") from None
            self.begin(columns)
            yield columns, self._whole(table)

    def _whole(self, table: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
        number = 0
        try:
            for item in table:
                number = item.number
                yield item
        except DAMAGED:
            self.error = f"the gzip file is damaged behind row {number}: compress and drop the whole file again"

    def finish(self) -> Job:
        """Upload the results and the manifest, and then say that the job has ended."""
        if self.rejects is None:
            self.writer(REJECTS_FILE, list(rows.REJECTS))
        written = self.upload(f"{RESULTS}{self.job.id}/")
        error = self.error or (LATE_ERROR if self.late else None)
        job = dataclasses.replace(self._now(), state="failed" if self.error else "done", error=error)
        facts = {"sha256": self.sha256, "columns": self.columns, "files": written}
        return end(self.lake, job, self.begun, self.clock(), facts)

    def note(self) -> None:
        if self.clock() - self.noted >= PROGRESS:
            self.noted = self.clock()
            self.lake.write_job(self._now())

    def _now(self) -> Job:
        return counted(self.job, self.accepted, self.rejected)


def counted(job: Job, accepted: int, rejected: int) -> Job:
    """The job while it runs, with so many rows behind it."""
    return dataclasses.replace(job, state="running", rows=accepted + rejected, accepted=accepted, rejected=rejected)


def end(lake: Lake, job: Job, begun: float, now: float, facts: dict[str, Any]) -> Job:
    """Write the manifest of results that are in their place, with what else is known of them, and then the job.

    `begun` and `now` are in seconds since 1970; `facts` has at least the names of the "files".
    """
    prefix = f"{RESULTS}{job.id}/"
    job = dataclasses.replace(
        job,
        finished=iso(round(now * 1000)),
        seconds=round(now - begun, 3),
        results=lake.uri(prefix + RESULTS_FILE) if RESULTS_FILE in facts["files"] else None,
        rejects=lake.uri(prefix + REJECTS_FILE),
    )
    lake.put_json(prefix + MANIFEST_FILE, dataclasses.asdict(job) | facts)
    lake.write_job(job)
    return job
