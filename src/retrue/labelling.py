"""A CSV of labels: each finds its prediction, by the prediction's own id or by that of the CSV it came from."""

import csv
import gzip
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from retrue import rows
from retrue.errors import BadInput, NotFound
from retrue.jobs import CHUNK, IDS_FILE, LATE, Clock, Run
from retrue.lake import AT_ONCE, LABELS, RESULTS, Lake, split_uri
from retrue.records import Job, Label, Prediction, from_iso, iso, why_missing
from retrue.rows import Rejected, Row
from retrue.settings import Batch

TWICE = "twice"


def label_file(lake: Lake, job: Job, settings: Batch, clock: Clock, remaining: Clock) -> Job:
    """Take labels for predictions, named by their own ids or by the `id` column of the CSV that was classified.

    Such a column is looked up in the job that the key names, labels/<job>/file.csv, or else in all, newest job first.
    Where a file labels one prediction twice, the last row counts.
    """
    with Run(lake, job, clock, remaining, settings.reserve_seconds) as run:
        try:
            with run.table() as (header, table):
                wanted, reasons = _asked(header, table)
            _label(run, settings.capture_rate, wanted, reasons)
            with run.table() as (header, table):
                for item in table:
                    if isinstance(item, Rejected):
                        run.reject(item)
                    elif item.number in reasons:
                        run.reject(Rejected(item.number, reasons[item.number], item.cells))
        except (BadInput, NotFound) as error:
            run.error = str(error)
        return run.finish()


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


def _label(run: Run, rate: float, wanted: dict[str, tuple[int, str]], reasons: dict[int, str]) -> None:
    """Write a Label for each id that is known, and the reason for each that is not."""
    began = from_iso(run.job.started)
    chunk: list[Label] = []
    chunks = 0
    for id, prediction in _known(run, rate, wanted, reasons):
        number, label = wanted[id]
        if label not in prediction.scores:
            reasons[number] = f"the label is none of {', '.join(prediction.scores)}"
            continue
        if len(chunk) == CHUNK:
            run.lake.write_labels(chunk)
            chunk, chunks = [], chunks + 1
        chunk.append(prediction.truth(label, iso(began + chunks), f"csv:{run.job.id}"))
        run.accept()
    if chunk:
        run.lake.write_labels(chunk)


def _known(
    run: Run, rate: float, wanted: dict[str, tuple[int, str]], reasons: dict[int, str]
) -> Iterator[tuple[str, Prediction]]:
    """Ids with their predictions: first those that are ids of predictions, then those of CSV files."""
    missing = set(wanted)
    for prediction in _predictions(run, wanted):
        missing.remove(prediction.id)
        yield prediction.id, prediction
    own: dict[str, str] = {}
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
        reasons[wanted[id][0]] = LATE if run.late else why_missing(own.get(id, id), rate)


def _predictions(run: Run, wanted: Iterable[str]) -> Iterator[Prediction]:
    """The predictions that exist, as far as time allows."""
    if run.out_of_time():
        return
    for found in run.lake.find_predictions(wanted):
        yield from found
        if run.out_of_time():
            return


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
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = list(pool.map(lake.read_job, ids))
    return [job.id for job in sorted(jobs, key=lambda job: job.started, reverse=True)]
