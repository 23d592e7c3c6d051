"""CSV jobs: a file dropped under incoming/ is classified, one under labels/ tells what the truth was.

A job is named after the bucket, the key and the identity of the drop, and the ids of its records after the job and the
row. Whoever does the same job again, after a crash or a second delivery, writes the same objects once more.
"""

import csv
import dataclasses
import gzip
import hashlib
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

from retrue import rows
from retrue.classifier import Classifier
from retrue.errors import BadInput, NotFound
from retrue.lake import CAPTURE, INCOMING, JOBS, LABELS, RESULTS, Lake, hour_prefix, split_uri, stamp
from retrue.records import Job, Label, Prediction, from_iso, id_ms, iso, new_id
from retrue.rows import Rejected, Row
from retrue.settings import Batch

CHUNK = 200  # records in one object of the lake
PROGRESS = 5.0  # seconds between two notes of how far a job is
DECIMALS = 6  # of a captured projection: finer digits are noise of float32
LOOKUPS = 8  # objects fetched at a time
LATE = "not reached before the time limit: put these rows into a new file"
LATE_ERROR = "the time limit was near: the rows that were not reached are in rejects.csv"
TWICE = "twice"
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
RESULTS_FILE, REJECTS_FILE, IDS_FILE, MANIFEST_FILE = "results.csv", "rejects.csv", "ids.csv.gz", "manifest.json"

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


def run_predict(lake: Lake, classifier: Classifier, job: Job, settings: Batch, clock: Clock, remaining: Clock) -> Job:
    """Classify every row of a file and capture what was answered.

    `clock` and `remaining` are in seconds, since 1970 and until the platform ends this run. A file that cannot be read
    ends the job as "failed" and raises nothing: to deliver it again would not help.
    """
    job = dataclasses.replace(job, model=classifier.model)
    with _Run(lake, job, clock, remaining, settings.reserve_seconds) as run:
        try:
            with run.table() as (header, table):
                _predict(run, classifier, settings, header, table)
        except (BadInput, NotFound) as error:
            run.error = str(error)
        return run.finish()


def run_labels(lake: Lake, job: Job, settings: Batch, clock: Clock, remaining: Clock) -> Job:
    """Take labels for predictions, named by their own ids or by the `id` column of the CSV that was classified.

    Such a column is looked up in the job that the key names, labels/<job>/file.csv, or else in all, newest job first.
    Where a file labels one prediction twice, the last row counts.
    """
    with _Run(lake, job, clock, remaining, settings.reserve_seconds) as run:
        try:
            with run.table() as (header, table):
                wanted, reasons = _asked(header, table)
            _label(run, wanted, reasons)
            with run.table() as (header, table):
                for item in table:
                    if isinstance(item, Rejected):
                        run.reject(item)
                    elif item.number in reasons:
                        run.reject(Rejected(item.number, reasons[item.number], item.cells))
        except (BadInput, NotFound) as error:
            run.error = str(error)
        return run.finish()


class _Run:
    """One run of a job: its local files, its counts and its time."""

    def __init__(self, lake: Lake, job: Job, clock: Clock, remaining: Clock, reserve: float) -> None:
        self.lake, self.job, self.clock = lake, job, clock
        self.remaining, self.reserve = remaining, reserve
        self.begun = self.noted = clock()
        self.accepted = self.rejected = 0
        self.late = False
        self.error: str | None = None
        self.columns: list[str] = []
        self.sha256: str | None = None
        self.rejects: Any = None

    def __enter__(self) -> Self:
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(TemporaryDirectory(prefix="retrue-job-")))
        self.files = self.stack.enter_context(ExitStack())
        self.lake.write_job(self._now("running"))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

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
                self.columns, table = rows.read(stream)
            except DAMAGED:
                raise BadInput("the file is no gzip file, or a damaged one: compress it again") from None
            if self.rejects is None:
                self.rejects = self.writer(REJECTS_FILE, [*rows.added(self.columns, rows.REJECTS), *self.columns])
            yield self.columns, self._whole(table)

    def _whole(self, table: Iterator[Row | Rejected]) -> Iterator[Row | Rejected]:
        number = 0
        try:
            for item in table:
                number = item.number
                yield item
        except DAMAGED:
            self.error = f"the gzip file is damaged behind row {number}: compress and drop the whole file again"

    def writer(self, name: str, header: list[str]) -> Any:
        """A CSV file among the results, with its header written."""
        opener: Any = gzip.open if name.endswith(".gz") else open
        # Bytes that were not UTF-8 are shown as escapes, so that the results always are.
        stream = opener(self.folder / name, "wt", encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(self.files.enter_context(stream))
        writer.writerow(header)
        return writer

    def reject(self, row: Rejected) -> None:
        self.rejects.writerow([row.number, row.reason, *row.cells])
        self.rejected += 1
        self._note()

    def accept(self) -> None:
        self.accepted += 1
        self._note()

    def out_of_time(self) -> bool:
        """Whether what is left must be kept for writing the results; once true, it stays so."""
        self.late = self.late or self.remaining() < self.reserve
        return self.late

    def finish(self) -> Job:
        """Upload the results and the manifest, and then say that the job has ended."""
        if self.rejects is None:
            self.writer(REJECTS_FILE, list(rows.REJECTS))
        self.files.close()
        prefix = f"{RESULTS}{self.job.id}/"
        written = [name for name in (RESULTS_FILE, REJECTS_FILE, IDS_FILE) if (self.folder / name).exists()]
        for name in written:
            self.lake.upload(self.folder / name, prefix + name)
        error = self.error or (LATE_ERROR if self.late else None)
        now = self.clock()
        job = dataclasses.replace(
            self._now("failed" if self.error else "done"),
            error=error,
            finished=iso(round(now * 1000)),
            seconds=round(now - self.begun, 3),
            results=self.lake.uri(prefix + RESULTS_FILE) if RESULTS_FILE in written else None,
            rejects=self.lake.uri(prefix + REJECTS_FILE),
        )
        facts = {"sha256": self.sha256, "columns": self.columns, "files": written}
        self.lake.put_json(prefix + MANIFEST_FILE, dataclasses.asdict(job) | facts)
        self.lake.write_job(job)
        return job

    def _note(self) -> None:
        if self.clock() - self.noted >= PROGRESS:
            self.noted = self.clock()
            self.lake.write_job(self._now("running"))

    def _now(self, state: Literal["running", "done", "failed"]) -> Job:
        rows = self.accepted + self.rejected
        return dataclasses.replace(self.job, state=state, rows=rows, accepted=self.accepted, rejected=self.rejected)


def _predict(
    run: _Run, classifier: Classifier, settings: Batch, header: list[str], table: Iterator[Row | Rejected]
) -> None:
    place, own = rows.text_column(header), rows.column(header, rows.ID)
    results = run.writer(RESULTS_FILE, [*header, *rows.added(header, rows.ANSWERS)])
    ids = run.writer(IDS_FILE, ["id", "prediction_id"]) if own is not None else None
    began = from_iso(run.job.started)
    chunk: list[Prediction] = []
    for item in table:
        row = rows.check_text(item, place, settings.max_characters) if isinstance(item, Row) else item
        if isinstance(row, Row) and run.out_of_time():
            row = Rejected(row.number, LATE, row.cells)
        if isinstance(row, Rejected):
            run.reject(row)
            continue
        ms = began + (row.number - 1) // CHUNK
        if chunk and id_ms(chunk[0].id) != ms:
            run.lake.write_predictions(chunk)
            chunk = []
        prediction = _answer(classifier, row.cells[place], _row_id(run.job, row.number, ms), run.job, settings)
        chunk.append(prediction)
        results.writerow([*row.cells, prediction.label, round(prediction.score, 6), prediction.id])
        if ids is not None and own is not None:
            ids.writerow([row.cells[own].strip(), prediction.id])
        run.accept()
    if chunk:
        run.lake.write_predictions(chunk)


def _row_id(job: Job, number: int, ms: int) -> str:
    return new_id(ms, hashlib.sha256(f"{job.id}\n{number}".encode()).digest())


def _answer(classifier: Classifier, text: str, id: str, job: Job, settings: Batch) -> Prediction:
    scored = classifier.score(text)
    return Prediction(
        id=id,
        time=iso(id_ms(id) or 0),
        model=classifier.model,
        label=scored.label,
        score=scored.score,
        scores=scored.scores,
        tokens=scored.tokens,
        truncated=scored.truncated,
        projection=[round(value, DECIMALS) for value in scored.projection.tolist()],
        source=f"csv:{job.id}",
        text=text if settings.keep_text else None,
    )


def _asked(header: list[str], table: Iterator[Row | Rejected]) -> tuple[dict[str, tuple[int, str]], dict[int, str]]:
    """Row and label by id, and the rows that are refused already."""
    ids, labels = rows.label_columns(header)
    wanted: dict[str, tuple[int, str]] = {}
    reasons: dict[int, str] = {}
    for row in table:
        if isinstance(row, Rejected):
            continue
        id, label = row.cells[ids].strip(), row.cells[labels].strip()
        if not id or not label:
            reasons[row.number] = "the id or the label is empty"
            continue
        if id in wanted:
            reasons[wanted[id][0]] = f"row {row.number} labels the same id"
        wanted[id] = (row.number, label)
    return wanted, reasons


def _label(run: _Run, wanted: dict[str, tuple[int, str]], reasons: dict[int, str]) -> None:
    """Write a Label for each id that is known, and the reason for each that is not."""
    began = from_iso(run.job.started)
    chunk: list[Label] = []
    chunks = 0
    for id, prediction in _known(run, wanted, reasons):
        number, label = wanted[id]
        if label not in prediction.scores:
            reasons[number] = f"the label is none of {', '.join(prediction.scores)}"
            continue
        if len(chunk) == CHUNK:
            run.lake.write_labels(chunk)
            chunk, chunks = [], chunks + 1
        chunk.append(
            Label(
                id=prediction.id,
                time=iso(began + chunks),
                label=label,
                model=prediction.model,
                predicted=prediction.label,
                scores=prediction.scores,
                source=f"csv:{run.job.id}",
                text=prediction.text,
            )
        )
        run.accept()
    if chunk:
        run.lake.write_labels(chunk)


def _known(run: _Run, wanted: dict[str, tuple[int, str]], reasons: dict[int, str]) -> Iterator[tuple[str, Prediction]]:
    """Ids with their predictions: first those that are ids of predictions, then those of CSV files."""
    missing = set(wanted)
    for prediction in _predictions(run, (id for id in wanted if id_ms(id) is not None)):
        missing.remove(prediction.id)
        yield prediction.id, prediction
    if missing and not run.out_of_time():
        own = _own_ids(run.lake, _named_job(run.job), missing)
        for id in [id for id in missing if own.get(id) == TWICE]:
            reasons[wanted[id][0]] = "the id stands in more than one row of its CSV: use the prediction_id"
            missing.remove(id)
        by_prediction = {prediction: id for id, prediction in own.items() if prediction != TWICE}
        for prediction in _predictions(run, by_prediction):
            id = by_prediction[prediction.id]
            missing.remove(id)
            yield id, prediction
    for id in missing:
        reasons[wanted[id][0]] = LATE if run.late else "there is no prediction with this id"


def _predictions(run: _Run, wanted: Iterable[str]) -> Iterator[Prediction]:
    """The predictions that exist, in the order of time; every object of the lake is read once, several at a time."""
    groups = [(ms, set(ids)) for ms, ids in groupby(sorted(wanted), id_ms) if ms is not None]
    with ThreadPoolExecutor(LOOKUPS) as pool:
        for first in range(0, len(groups), LOOKUPS):
            if run.out_of_time():
                return
            batch = groups[first : first + LOOKUPS]
            for (_, ids), found in zip(batch, pool.map(lambda group: _at(run.lake, group[0]), batch), strict=True):
                yield from (prediction for prediction in found if prediction.id in ids)


def _at(lake: Lake, ms: int) -> list[Prediction]:
    """Every prediction whose id holds this time."""
    found: list[Prediction] = []
    for key in lake.keys(hour_prefix(CAPTURE, ms) + stamp(ms)):
        found += [Prediction.from_json(line) for line in gzip.decompress(lake.get(key)).splitlines()]
    return found


def _named_job(job: Job) -> str | None:
    """The job in labels/<job>/file.csv."""
    _, key = split_uri(job.input)
    folder = key.removeprefix(LABELS).split("/")[0]
    return folder if re.fullmatch("[0-9a-f]{20}", folder) else None


def _own_ids(lake: Lake, only: str | None, wanted: set[str]) -> dict[str, str]:
    """Ids of predictions by ids of CSV files; TWICE where several rows of one file have the id."""
    found: dict[str, str] = {}
    for job in _jobs_with_ids(lake, only):
        if len(found) == len(wanted):
            break
        mine: dict[str, str] = {}
        with (
            lake.open(f"{RESULTS}{job}/{IDS_FILE}") as body,
            gzip.open(body, "rt", encoding="utf-8", newline="") as file,
        ):
            for own, prediction in csv.reader(file):
                if own in wanted and own not in found:
                    mine[own] = TWICE if own in mine else prediction
        found |= mine
    return found


def _jobs_with_ids(lake: Lake, only: str | None) -> list[str]:
    """Jobs whose input had an `id` column, newest first."""
    prefix = f"{RESULTS}{only}/" if only else RESULTS
    ids = [key.split("/")[1] for key in lake.keys(prefix) if key.endswith(f"/{IDS_FILE}")]
    with ThreadPoolExecutor(LOOKUPS) as pool:
        jobs = list(pool.map(lake.read_job, ids))
    return [job.id for job in sorted(jobs, key=lambda job: job.started, reverse=True)]
