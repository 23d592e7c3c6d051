"""The lake: one S3 bucket that holds everything retrue knows. This module alone knows S3 and the names of keys.

incoming/*.csv[.gz]                     dropped by users: texts to classify
labels/*.csv[.gz]                       dropped by users: what the truth was
jobs/<job>.json                         one Job record: progress and outcome
results/<job>/results.csv, rejects.csv, ids.csv.gz, manifest.json
capture/date=…/hour=…/<ms>-<id>.jsonl.gz    Prediction records; <ms> is the time inside their ids
feedback/date=…/hour=…/<ms>-<id>.jsonl.gz   Label records, by the time they arrived
datasets/<id>/…, datasets/current       prepared datasets, and the id of the base set in use
encoders/<name>/…                       base encoders that training starts from
models/<id>/…                           immutable model folders
runs/<job>/…                            what one training job made: progress.json, output/model.tar.gz
runs/<run>/…                            checkpoints of a retraining; of a search search.json and trials/
reports/<time>.json, .html, reports/latest…  what the monitor saw
reports/state.json, reports/told.json       what its checks found together, and when it asked for what
ledger/<ms>.json                        what served when, and why
mlflow/…                                artefacts of MLflow's runs, where it keeps the runs themselves in a database
"""

import gzip
import json
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.exceptions import ClientError

from retrue.errors import NotFound
from retrue.records import Job, Label, LedgerEntry, Prediction, from_iso, id_ms

INCOMING, LABELS, JOBS, RESULTS = "incoming/", "labels/", "jobs/", "results/"
CAPTURE, FEEDBACK, DATASETS, ENCODERS = "capture/", "feedback/", "datasets/", "encoders/"
MODELS, RUNS, REPORTS, LEDGER, MLFLOW = "models/", "runs/", "reports/", "ledger/", "mlflow/"
CURRENT_DATASET = "datasets/current"
LATEST_REPORT, LATEST_PAGE = "reports/latest.json", "reports/latest.html"
MISSING = {"NoSuchKey", "404", "NotFound"}


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of s3://bucket/key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def hour_prefix(root: str, ms: int) -> str:
    """The partition of a time, such as capture/date=2026-11-22/hour=09/."""
    return root + datetime.fromtimestamp(ms / 1000, UTC).strftime("date=%Y-%m-%d/hour=%H/")


def stamp(ms: int) -> str:
    """Milliseconds as 12 hex digits: the first part of a UUIDv7 and of the key that holds its record."""
    return f"{ms:012x}"


class Lake:
    """Reads and writes one bucket."""

    def __init__(self, bucket: str, client: Any = None) -> None:
        self.bucket = bucket
        self.s3 = client if client is not None else boto3.client("s3")

    # objects
    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, body: bytes, content_type: str = "application/json") -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type)

    def put_new(self, key: str, body: bytes, content_type: str = "application/json") -> bool:
        """Write an object only where there is none; False where somebody was first."""
        try:
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] in {"PreconditionFailed", "ConditionalRequestConflict"}:
                return False
            raise
        return True

    def get(self, key: str) -> bytes:
        try:
            body: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in MISSING:
                raise NotFound(f"there is no {self.uri(key)}") from None
            raise
        return body

    def open(self, key: str) -> IO[bytes]:
        """The object as a stream, for files that may be larger than memory."""
        try:
            stream: IO[bytes] = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"]
        except ClientError as error:
            if error.response["Error"]["Code"] in MISSING:
                raise NotFound(f"there is no {self.uri(key)}") from None
            raise
        return stream

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        """Keys under a prefix in order, beginning behind `after`."""
        pages = self.s3.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=prefix, **({"StartAfter": after} if after else {})):
            for item in page.get("Contents", ()):
                yield item["Key"]

    def upload(self, path: Path, key: str) -> None:
        self.s3.upload_file(str(path), self.bucket, key)

    def download(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.s3.download_file(self.bucket, key, str(path))

    def upload_folder(self, folder: Path, prefix: str) -> None:
        """Every file under a folder, in parallel."""
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda p: self.upload(p, prefix + p.relative_to(folder).as_posix()), files))

    def download_folder(self, prefix: str, folder: Path, only: Collection[str] | None = None) -> list[Path]:
        """Every object under a prefix, or those named in `only`, in parallel; the paths written."""
        keys = [key for key in self.keys(prefix) if only is None or key.removeprefix(prefix) in only]
        if not keys:
            raise NotFound(f"there is nothing under {self.uri(prefix)}")
        paths = [folder / key.removeprefix(prefix) for key in keys]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self.download, keys, paths))
        return paths

    # predictions and labels
    def write_predictions(self, predictions: list[Prediction]) -> str:
        """One object for predictions that share the time in their ids; the same ids give the same key."""
        return self._write_records(CAPTURE, id_ms(predictions[0].id) or 0, predictions[0].id, predictions)

    def write_labels(self, labels: list[Label]) -> str:
        return self._write_records(FEEDBACK, from_iso(labels[0].time), labels[0].id, labels)

    def predictions_at(self, ms: int) -> list[Prediction]:
        """Every prediction whose id holds this time."""
        keys = self.keys(hour_prefix(CAPTURE, ms) + stamp(ms))
        return [Prediction.from_json(line) for key in keys for line in self._lines(key)]

    def find_prediction(self, id: str) -> Prediction:
        """The prediction with this id; NotFound where there is none."""
        ms = id_ms(id)
        for found in [] if ms is None else self.predictions_at(ms):
            if found.id == id:
                return found
        raise NotFound("there is no prediction with this id")

    def newest_predictions(self, now_ms: int, hours: int) -> Iterator[list[Prediction]]:
        """Predictions of the last hours, one object at a time, newest first."""
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        for back in range(hours + 1):
            # One hour at a time, and only as far as the reader goes.
            hour = hour_prefix(CAPTURE, round((now - timedelta(hours=back)).timestamp() * 1000))
            for key in reversed(list(self.keys(hour))):
                yield [Prediction.from_json(line) for line in self._lines(key)]

    def newest_labels(self, now_ms: int, hours: int) -> Iterator[Label]:
        """Labels that arrived in the last hours, newest first.

        There are few labels, and they are asked for over months: one listing of all is cheaper than one for each hour.
        """
        oldest = hour_prefix(FEEDBACK, now_ms - hours * 3_600_000)
        for key in reversed(list(self.keys(FEEDBACK, after=oldest))):
            yield from reversed([Label.from_json(line) for line in self._lines(key)])

    # jobs, ledger
    def write_job(self, job: Job) -> None:
        self.put(f"{JOBS}{job.id}.json", job.to_json().encode())

    def read_job(self, id: str) -> Job:
        if not id.isalnum():
            raise NotFound("there is no job with this id")
        return Job.from_json(self.get(f"{JOBS}{id}.json"))

    def job_of(self, key: str) -> Job | None:
        """The job that the object at a key started, looked for among those written since; None where none has begun."""
        dropped = self.s3.head_object(Bucket=self.bucket, Key=key)["LastModified"]
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=JOBS):
            for item in page.get("Contents", ()):
                if item["LastModified"] >= dropped:
                    job = Job.from_json(self.get(item["Key"]))
                    if job.input == self.uri(key):
                        return job
        return None

    def append_ledger(self, entry: LedgerEntry) -> None:
        ms = from_iso(entry.time)
        while not self.put_new(f"{LEDGER}{stamp(ms)}.json", entry.to_json().encode()):
            ms += 1

    def ledger(self) -> list[LedgerEntry]:
        """Every entry, oldest first."""
        return [LedgerEntry.from_json(self.get(key)) for key in self.keys(LEDGER)]

    def _write_records(self, root: str, ms: int, id: str, records: Iterable[Prediction | Label]) -> str:
        key = f"{hour_prefix(root, ms)}{stamp(ms)}-{id[-12:]}.jsonl.gz"
        body = "".join(record.to_json() + "\n" for record in records).encode()
        self.put(key, gzip.compress(body, 6, mtime=0), "application/gzip")
        return key

    def _lines(self, key: str) -> list[bytes]:
        return gzip.decompress(self.get(key)).splitlines()

    # small JSON documents
    def put_json(self, key: str, value: Any) -> None:
        self.put(key, json.dumps(value, ensure_ascii=False, indent=1).encode())

    def get_json(self, key: str) -> Any:
        return json.loads(self.get(key))
