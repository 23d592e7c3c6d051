"""A CSV of texts: every row is classified and captured, the bad ones are told apart, and nothing is lost."""

import dataclasses
import hashlib
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from retrue import rows
from retrue.classifier import Classifier
from retrue.errors import BadInput, NotFound
from retrue.jobs import CHUNK, IDS_FILE, LATE, RESULTS_FILE, Clock, Outcome, Run
from retrue.lake import Lake
from retrue.records import Job, Prediction, from_iso, kept, new_id
from retrue.rows import Rejected, Row
from retrue.settings import Batch


def score_file(lake: Lake, classifier: Classifier, job: Job, settings: Batch, clock: Clock, remaining: Clock) -> Job:
    """Classify every row of a file and capture what was answered, or the share of it that is kept.

    `clock` and `remaining` are in seconds, since 1970 and until the platform ends this run. A file that cannot be read
    ends the job as "failed" and raises nothing: to deliver it again would not help.
    """
    job = dataclasses.replace(job, model=classifier.model)
    with Run(lake, job, clock, remaining, settings.reserve_seconds) as run:
        try:
            with run.table() as (header, table):
                predict(run, classifier, settings, header, table)
        except (BadInput, NotFound) as error:
            run.error = str(error)
        return run.finish()


def predict(
    run: Outcome, classifier: Classifier, settings: Batch, header: list[str], table: Iterator[Row | Rejected]
) -> None:
    """Classify rows of a file with this header, and capture what was answered or the share of it that is kept."""
    place, own = rows.text_column(header), rows.column(header, rows.ID)
    results, ids = answer_files(run, header)
    began, source = from_iso(run.job.started), f"csv:{run.job.id}"
    for index, chunk in groupby(table, lambda item: (item.number - 1) // CHUNK):
        found = [
            rows.check_text(item, place, settings.max_characters) if isinstance(item, Row) else item for item in chunk
        ]
        if run.out_of_time():
            found = [Rejected(row.number, LATE, row.cells) if isinstance(row, Row) else row for row in found]
        scored = iter(classifier.score_many([row.cells[place] for row in found if isinstance(row, Row)]))
        captured: list[Prediction] = []
        for row in found:
            if isinstance(row, Rejected):
                run.reject(row)
                continue
            text, id = row.cells[place], _row_id(run.job, row.number, began + index)
            prediction = next(scored).record(id, classifier.model, source, text if settings.keep_text else None)
            if kept(id, settings.capture_rate):
                captured.append(prediction)
            results.writerow([*row.cells, prediction.label, round(prediction.score, 6), prediction.id])
            if ids is not None and own is not None:
                ids.writerow([row.cells[own].strip(), prediction.id])
            run.accept()
        if captured:
            run.lake.write_predictions(captured)


def answer_files(run: Outcome, header: list[str]) -> tuple[Any, Any]:
    """Writers of the answers, and of the ids where the file has its own; None where it has not."""
    results = run.writer(RESULTS_FILE, [*header, *rows.added(header, rows.ANSWERS)])
    return results, None if rows.column(header, rows.ID) is None else run.writer(IDS_FILE, ["id", "prediction_id"])


def _row_id(job: Job, number: int, ms: int) -> str:
    return new_id(ms, hashlib.sha256(f"{job.id}\n{number}".encode()).digest())
